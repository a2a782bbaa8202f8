//! The native containerd driver: its configuration and the `Runtime` implementation over `runtime/*`.

use std::path::PathBuf;

use super::RuntimeError;
use super::connect::Connection;

/// Where containerd is and where the driver keeps what containerd does not.
#[derive(Clone, Debug)]
pub struct RuntimeConfig {
    /// containerd's gRPC socket.
    pub socket: PathBuf,
    /// containerd namespace of everything we make.
    pub namespace: String,
    /// Pinned namespaces, FIFOs, shm: gone after a reboot, as what they belong to.
    pub run_dir: PathBuf,
    /// Exit journal: survives a reboot.
    pub state_dir: PathBuf,
    /// Cgroup that all pod cgroups are below, for example `/`.
    pub cgroup_parent: String,
    pub snapshotter: String,
    /// containerd runtime, for example `io.containerd.runc.v2`.
    pub runtime: String,
    /// `host` or `host:port` of registries spoken to without TLS. Loopback always is.
    pub plain_http_registries: Vec<String>,
}

impl Default for RuntimeConfig {
    fn default() -> Self {
        Self {
            socket: "/run/containerd/containerd.sock".into(),
            namespace: "tholepin".into(),
            run_dir: "/run/tholepin".into(),
            state_dir: "/var/lib/tholepin".into(),
            cgroup_parent: "/".into(),
            snapshotter: "overlayfs".into(),
            runtime: "io.containerd.runc.v2".into(),
            plain_http_registries: Vec::new(),
        }
    }
}

/// The driver. One per process; share it in an `Arc`.
#[derive(Debug)]
pub struct ContainerdRuntime {
    config: RuntimeConfig,
    connection: Connection,
}

impl ContainerdRuntime {
    /// Prepares the directories and starts following containerd. Does not wait for containerd to be
    /// there. Must be called inside a tokio runtime; dropping the driver ends its tasks and touches no
    /// container.
    pub fn new(config: RuntimeConfig) -> Result<Self, RuntimeError> {
        let connection = Connection::new(&config.socket, &config.namespace)?;
        Ok(Self { config, connection })
    }
}
