//! The native containerd driver: its configuration and the `Runtime` implementation over `runtime/*`.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::cgroup::Cgroups;
use super::connect::{Connection, QUICK, call};
use super::exits::Registry;
use super::holder::Holder;
use super::image::{ImageError, Images};
use super::journal::Journal;
use super::log_file::LogLimits;
use super::pull::Puller;
use super::reference::Reference;
use super::sandbox::{self, Sandboxes, operation_failed};
use super::spec::{Held, UserDatabase};
use super::{
    AttachRequest, ContainerSpec, ExecRequest, ExecSession, ImageInfo, PodIdentity, PullError,
    RealizedContainer, RealizedSandbox, RegistryAuth, Runtime, RuntimeError, SandboxSpec, events,
};

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
    /// The agent's binary, run as the [holder](super::holder) of unread output. Without it, output that a
    /// container leaves in its pipes when it ends while no agent runs is lost.
    pub holder: Option<PathBuf>,
    pub log_limits: LogLimits,
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
            holder: None,
            log_limits: LogLimits::default(),
        }
    }
}

/// The driver. One per process; share it in an `Arc`. Dropping it ends its tasks and touches no
/// container.
#[derive(Debug)]
pub struct ContainerdRuntime {
    driver: Arc<Driver>,
    _cancel: DropGuard,
}

/// The state behind [`ContainerdRuntime`], shared with its tasks.
#[derive(Debug)]
pub(super) struct Driver {
    pub(super) config: RuntimeConfig,
    pub(super) connection: Connection,
    pub(super) sandboxes: Sandboxes,
    pub(super) images: Arc<Images>,
    pub(super) journal: Journal,
    pub(super) held: Held,
    pub(super) registry: Registry,
    pub(super) holder: Holder,
    /// By root file system: what a chain id names never changes.
    pub(super) users: Mutex<HashMap<String, Arc<UserDatabase>>>,
    pub(super) cancel: CancellationToken,
    puller: Puller,
    changes: watch::Sender<u64>,
}

impl ContainerdRuntime {
    /// Prepares the directories and starts following containerd. Does not wait for containerd to be
    /// there. Must be called inside a tokio runtime.
    pub fn new(config: RuntimeConfig) -> Result<Self, RuntimeError> {
        // Registries over TLS need a process-wide provider; a second caller finds the first one's.
        rustls::crypto::ring::default_provider()
            .install_default()
            .ok();
        let connection = Connection::new(&config.socket, &config.namespace)?;
        let failed =
            |operation, path: &Path| operation_failed(operation, path.display().to_string());
        let cgroups = Cgroups::detect().map_err(failed("find", Path::new("cgroups")))?;
        let sandboxes = Sandboxes::open(&config.run_dir, &config.cgroup_parent, cgroups)
            .map_err(failed("prepare", &config.run_dir))?;
        let journal = Journal::open(config.state_dir.join("containers"))
            .map_err(failed("prepare", &config.state_dir))?;
        let held = Held::detect().map_err(failed("read", Path::new("own capabilities")))?;
        let images = Arc::new(Images::new(connection.clone(), config.snapshotter.clone()));
        let puller = Puller::new(
            connection.clone(),
            images.clone(),
            &config.plain_http_registries,
        );
        let cancel = CancellationToken::new();
        let (holder, holder_task) = Holder::new(config.holder.clone(), config.run_dir.clone());
        if let Some(task) = holder_task {
            tokio::spawn(cancel.clone().run_until_cancelled_owned(task.run()));
        }
        let driver = Arc::new(Driver {
            config,
            connection,
            sandboxes,
            images,
            journal,
            held,
            registry: Registry::default(),
            holder,
            users: Mutex::default(),
            cancel: cancel.clone(),
            puller,
            changes: watch::Sender::new(0),
        });
        tokio::spawn(
            cancel
                .clone()
                .run_until_cancelled_owned(events::run(driver.clone())),
        );
        Ok(Self {
            driver,
            _cancel: cancel.drop_guard(),
        })
    }
}

impl Driver {
    /// Tells everybody to look again.
    pub(super) fn changed(&self) {
        self.changes
            .send_modify(|count| *count = count.wrapping_add(1));
    }

    async fn ensure_sandbox(&self, spec: &SandboxSpec) -> Result<RealizedSandbox, RuntimeError> {
        let (sandboxes, spec) = (self.sandboxes.clone(), spec.clone());
        let subject = sandbox::subject(&spec.pod);
        let made = blocking(move || Ok(sandboxes.ensure(&spec))).await;
        let sandbox = made.map_err(operation_failed("make", subject))??;
        Ok(self.realized(&sandbox, true))
    }

    async fn remove_sandbox(self: &Arc<Self>, pod: &PodIdentity) -> Result<(), RuntimeError> {
        for container in self.containers(Some(&pod.uid)).await? {
            self.remove(&container.id).await?;
        }
        let (sandboxes, pod) = (self.sandboxes.clone(), pod.clone());
        let subject = sandbox::subject(&pod);
        let removed = blocking(move || Ok(sandboxes.remove(&pod))).await;
        removed.map_err(operation_failed("remove", subject))?
    }

    async fn image(&self, reference: &str) -> Result<Option<ImageInfo>, PullError> {
        let reference = Reference::parse(reference)?;
        let name = reference.to_string();
        let record = self
            .images
            .record(&reference)
            .await
            .map_err(self.connection.failed("look up", format!("image {name:?}")))?;
        let Some(image) = record else {
            return Ok(None);
        };
        match self.images.info(&image).await {
            Ok(info) => Ok(Some(info)),
            // The record is there and its content is not (a collected or cut-off pull): not present.
            Err(ImageError::Call(error)) if error.is_not_found() => Ok(None),
            Err(error) => Err(self.images.pull_failed(&name, error)),
        }
    }
}

/// Runs blocking file work on the pool for it.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work)
        .await
        .unwrap_or_else(|error| Err(io::Error::other(error)))
}

#[async_trait]
impl Runtime for ContainerdRuntime {
    async fn version(&self) -> Result<String, RuntimeError> {
        let connection = &self.driver.connection;
        let mut client = connection.version();
        let response = call(QUICK, client.version(connection.request(())))
            .await
            .map_err(connection.failed("ask", "containerd for its version"))?;
        // Debian's builds say `1.6.20~ds1`; upstream's say `v1.6.20`.
        Ok(format!(
            "containerd://{}",
            response.version.trim_start_matches('v')
        ))
    }

    async fn list(&self) -> Result<Vec<RealizedSandbox>, RuntimeError> {
        self.driver.list().await
    }

    async fn ensure_sandbox(&self, spec: &SandboxSpec) -> Result<RealizedSandbox, RuntimeError> {
        self.driver.ensure_sandbox(spec).await
    }

    async fn remove_sandbox(&self, pod: &PodIdentity) -> Result<(), RuntimeError> {
        self.driver.remove_sandbox(pod).await
    }

    async fn image(&self, reference: &str) -> Result<Option<ImageInfo>, PullError> {
        self.driver.image(reference).await
    }

    async fn pull(
        &self,
        reference: &str,
        auth: Option<RegistryAuth>,
    ) -> Result<ImageInfo, PullError> {
        self.driver
            .puller
            .pull(Reference::parse(reference)?, auth)
            .await
    }

    async fn images(&self) -> Result<Vec<ImageInfo>, RuntimeError> {
        let connection = &self.driver.connection;
        self.driver
            .images
            .list()
            .await
            .map_err(connection.failed("list", "images"))
    }

    async fn start_container(
        &self,
        spec: &ContainerSpec,
    ) -> Result<RealizedContainer, RuntimeError> {
        self.driver.start(spec).await
    }

    async fn stop_container(&self, id: &str, grace: Duration) -> Result<(), RuntimeError> {
        self.driver.stop(id, grace).await
    }

    async fn remove_container(&self, id: &str) -> Result<(), RuntimeError> {
        self.driver.remove(id).await
    }

    async fn exec(&self, request: ExecRequest) -> Result<ExecSession, RuntimeError> {
        self.driver.exec(request).await
    }

    async fn attach(&self, request: AttachRequest) -> Result<ExecSession, RuntimeError> {
        self.driver.attach(request).await
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.driver.changes.subscribe()
    }
}
