//! The container runtime as the pod workers see it: one trait, its inputs and its outcomes.
//!
//! Owns the vocabulary between `reconcile/pods` and the containerd driver in `runtime/*`. Everything that
//! comes in is resolved already (ConfigMaps read, `$(VAR)` expanded, volumes on disk): a driver never
//! talks to the Kubernetes API. The trait exists because reconcilers are tested over a fake.

mod attach;
mod cgroup;
mod connect;
mod container;
pub mod containerd;
mod devices;
mod events;
mod exec;
mod exits;
mod fanout;
pub mod holder;
mod image;
mod io;
mod journal;
mod labels;
mod lease;
mod list;
pub mod log_file;
mod logs;
mod namespaces;
mod pidfd;
mod pull;
mod reference;
mod rootfs;
mod runc;
mod sandbox;
mod spec;
mod stdin;
mod stop;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, watch};

/// Identity of a pod, carried by every object the runtime makes for it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodIdentity {
    pub uid: String,
    pub namespace: String,
    pub name: String,
}

/// The pod-level environment: namespaces, hostname, cgroup. There is no pause container behind it.
#[derive(Clone, Debug)]
pub struct SandboxSpec {
    pub pod: PodIdentity,
    pub hostname: String,
    /// Join the node's network namespace instead of making one.
    pub host_network: bool,
    pub host_pid: bool,
    pub host_ipc: bool,
    /// Cgroup of the pod, relative to the cgroup root, for example `/kubepods/besteffort/pod<uid>`.
    pub cgroup_path: String,
    /// Limits of the pod's cgroup (the sum over its containers); zero fields are left to the kernel.
    pub resources: ResourceLimits,
    pub sysctls: BTreeMap<String, String>,
}

/// A sandbox that exists on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RealizedSandbox {
    pub pod: PodIdentity,
    /// Path of the pinned network namespace. `None` for host network.
    pub netns: Option<PathBuf>,
    /// Whether the namespaces are alive. False after a reboot: remove the sandbox and make it anew.
    pub ready: bool,
    pub created_at: SystemTime,
    pub containers: Vec<RealizedContainer>,
}

/// One bind mount or tmpfs of a container.
#[derive(Clone, Debug)]
pub struct MountSpec {
    pub host_path: PathBuf,
    pub container_path: PathBuf,
    pub read_only: bool,
}

/// CPU and memory of one container, in the kernel's units.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ResourceLimits {
    /// cgroup v1 `cpu.shares`; the driver converts for v2.
    pub cpu_shares: u64,
    /// Microseconds of CPU per `cpu_period_us`; 0 is unlimited.
    pub cpu_quota_us: i64,
    pub cpu_period_us: u64,
    /// Bytes; 0 is unlimited.
    pub memory_limit_bytes: i64,
    /// Wanted `oom_score_adj`; the driver clamps it to what this process may set.
    pub oom_score_adj: i32,
}

/// Everything needed to create a container. Command and arguments follow Kubernetes' rules: `command`
/// replaces the image's entrypoint (and drops its arguments), `args` replaces the image's command.
#[derive(Clone, Debug)]
pub struct ContainerSpec {
    pub pod: PodIdentity,
    /// Name in the pod.
    pub name: String,
    /// Restart count; part of the container id, so that a repeated create finds the first one's result.
    pub attempt: u32,
    /// Reference as the driver returned it in [`ImageInfo::reference`].
    pub image: String,
    pub command: Vec<String>,
    pub args: Vec<String>,
    pub working_dir: Option<String>,
    pub env: Vec<(String, String)>,
    pub mounts: Vec<MountSpec>,
    pub run_as_user: Option<i64>,
    pub run_as_group: Option<i64>,
    pub run_as_non_root: bool,
    pub supplemental_groups: Vec<i64>,
    pub privileged: bool,
    pub read_only_root: bool,
    pub allow_privilege_escalation: bool,
    pub added_capabilities: Vec<String>,
    pub dropped_capabilities: Vec<String>,
    pub resources: ResourceLimits,
    pub stdin: bool,
    pub stdin_once: bool,
    pub tty: bool,
    /// CRI-format log of this attempt, `/var/log/pods/<ns>_<name>_<uid>/<container>/<attempt>.log`.
    pub log_path: PathBuf,
    /// Extra labels to persist on the container (restart count, spec hash, grace period).
    pub labels: BTreeMap<String, String>,
}

/// Where a container is in its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContainerState {
    /// Made but never started.
    Created,
    Running {
        pid: u32,
        started_at: SystemTime,
    },
    Exited(ContainerExit),
}

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerExit {
    pub exit_code: i32,
    /// Signal number when the exit code is 128 + signal, else 0.
    pub signal: i32,
    pub oom_killed: bool,
    pub started_at: SystemTime,
    pub finished_at: SystemTime,
}

/// A container that exists on this node, as found by [`Runtime::list`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RealizedContainer {
    /// containerd's id: a hash of pod UID, container name and attempt.
    pub id: String,
    pub name: String,
    pub attempt: u32,
    pub image: String,
    /// Digest reference for `containerStatuses[].imageID`.
    pub image_id: String,
    pub state: ContainerState,
    pub labels: BTreeMap<String, String>,
}

/// An image in containerd's store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageInfo {
    /// Normalised reference, for example `docker.io/library/busybox:latest`.
    pub reference: String,
    /// `repository@sha256:…` when known, else the config digest.
    pub id: String,
    pub size_bytes: u64,
    /// User of the image config, for example `1000` or `nobody`.
    pub user: String,
}

/// Credentials for one registry, from an image pull secret.
#[derive(Clone)]
pub struct RegistryAuth {
    pub username: String,
    pub password: String,
}

impl std::fmt::Debug for RegistryAuth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // A secret never reaches a log.
        f.debug_struct("RegistryAuth")
            .field("username", &self.username)
            .finish_non_exhaustive()
    }
}

/// A command to run inside a running container.
#[derive(Debug)]
pub struct ExecRequest {
    pub container_id: String,
    pub command: Vec<String>,
    pub stdin: bool,
    pub tty: bool,
}

/// A wish for the streams of a running container's own process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AttachRequest {
    pub container_id: String,
    /// Feed the container's standard input. [`ExecSession::stdin`] stays `None` for a container that was
    /// made without one, and for a `stdinOnce` container whose input was closed.
    pub stdin: bool,
}

/// The live end of an exec or attach. Dropping it kills nothing; the caller waits for `exit`.
pub struct ExecSession {
    pub stdin: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    pub stdout: Box<dyn AsyncRead + Send + Unpin>,
    /// `None` with a terminal: everything is on `stdout`.
    pub stderr: Option<Box<dyn AsyncRead + Send + Unpin>>,
    /// (columns, rows) of the client's terminal.
    pub resize: mpsc::Sender<(u16, u16)>,
    /// Resolves to the exit code.
    pub exit: tokio::task::JoinHandle<Result<i32, RuntimeError>>,
}

impl std::fmt::Debug for ExecSession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ExecSession").finish_non_exhaustive()
    }
}

/// Why a runtime operation failed. `source` texts are containerd's own.
#[derive(Debug, thiserror::Error)]
pub enum RuntimeError {
    #[error("containerd is not reachable at {socket}")]
    Unreachable {
        socket: String,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("failed to {operation} {subject}")]
    Operation {
        operation: &'static str,
        subject: String,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The spec cannot be honoured; retrying the same one is pointless (CreateContainerConfigError).
    #[error("{subject}: {message}")]
    InvalidSpec { subject: String, message: String },
    /// The process could not be started (RunContainerError), with runc's message made readable.
    #[error("failed to start container {container}: {message}")]
    Start { container: String, message: String },
    /// A command could not be run in a container that exists, with runc's message made readable.
    #[error("failed to exec in container {container}: {message}")]
    Exec { container: String, message: String },
    #[error("failed to attach to container {container}: {message}")]
    Attach { container: String, message: String },
    #[error("{subject} not found")]
    NotFound { subject: String },
}

impl RuntimeError {
    /// Whether trying again without a change of the spec can help.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::Operation { .. })
    }

    /// The same failure for another waiter; sources keep their text and lose their type.
    fn duplicate(&self) -> Self {
        match self {
            Self::Unreachable { socket, source } => Self::Unreachable {
                socket: socket.clone(),
                source: source.to_string().into(),
            },
            Self::Operation {
                operation,
                subject,
                source,
            } => Self::Operation {
                operation,
                subject: subject.clone(),
                source: source.to_string().into(),
            },
            Self::InvalidSpec { subject, message } => Self::InvalidSpec {
                subject: subject.clone(),
                message: message.clone(),
            },
            Self::Start { container, message } => Self::Start {
                container: container.clone(),
                message: message.clone(),
            },
            Self::Exec { container, message } => Self::Exec {
                container: container.clone(),
                message: message.clone(),
            },
            Self::Attach { container, message } => Self::Attach {
                container: container.clone(),
                message: message.clone(),
            },
            Self::NotFound { subject } => Self::NotFound {
                subject: subject.clone(),
            },
        }
    }
}

/// Why an image could not be had; the variants decide the waiting reason that kubectl shows.
#[derive(Debug, thiserror::Error)]
pub enum PullError {
    /// InvalidImageName.
    #[error("couldn't parse image name {reference:?}: {message}")]
    InvalidName { reference: String, message: String },
    /// ErrImagePull, then ImagePullBackOff.
    #[error("failed to pull and unpack image {reference:?}: {message}")]
    Pull { reference: String, message: String },
    #[error(transparent)]
    Runtime(#[from] RuntimeError),
}

/// What the pod workers need of a container runtime. Every call is idempotent and has its own deadline.
#[async_trait]
pub trait Runtime: Send + Sync + 'static {
    /// For example `containerd://1.6.20`, for `nodeInfo.containerRuntimeVersion`.
    async fn version(&self) -> Result<String, RuntimeError>;

    /// Everything on this node that carries our labels, also what a former agent process made.
    async fn list(&self) -> Result<Vec<RealizedSandbox>, RuntimeError>;

    /// Makes and pins the pod's namespaces and cgroup, or finds them.
    async fn ensure_sandbox(&self, spec: &SandboxSpec) -> Result<RealizedSandbox, RuntimeError>;

    /// Removes containers, snapshots, namespaces and cgroup of the pod. Logs stay.
    async fn remove_sandbox(&self, pod: &PodIdentity) -> Result<(), RuntimeError>;

    async fn image(&self, reference: &str) -> Result<Option<ImageInfo>, PullError>;

    /// Pulls and unpacks. Parallel calls for one reference share one transfer.
    async fn pull(
        &self,
        reference: &str,
        auth: Option<RegistryAuth>,
    ) -> Result<ImageInfo, PullError>;

    /// All images in the store, for node status.
    async fn images(&self) -> Result<Vec<ImageInfo>, RuntimeError>;

    /// Creates the container and starts it, or finds it by its id. Returns it as realized.
    async fn start_container(
        &self,
        spec: &ContainerSpec,
    ) -> Result<RealizedContainer, RuntimeError>;

    /// Sends the stop signal, waits at most `grace`, then kills. Returns once the task has exited.
    async fn stop_container(&self, id: &str, grace: Duration) -> Result<(), RuntimeError>;

    /// Deletes an exited container with its snapshot. Its log stays.
    async fn remove_container(&self, id: &str) -> Result<(), RuntimeError>;

    async fn exec(&self, request: ExecRequest) -> Result<ExecSession, RuntimeError>;

    /// Joins the streams of a running container; any number of clients at once. Both outputs begin with
    /// the most recent output and end with the container. A client that drops its side, or does not read,
    /// disturbs neither the container nor its log. Shutting `stdin` down (or dropping it) closes the
    /// container's only if it was made with `stdin_once`. `exit` gives the container's exit code.
    async fn attach(&self, request: AttachRequest) -> Result<ExecSession, RuntimeError>;

    /// "Look again": bumped on every task event, exit and reconnect to containerd. Carries no data.
    fn changes(&self) -> watch::Receiver<u64>;
}
