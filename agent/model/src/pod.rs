//! The pod as the node sees it: an admitted spec in domain types, and what the runtime has of it.
//!
//! Built from API objects at the edge (`watch/pods`), so nothing in here re-checks its input.

pub mod backoff;
pub mod env;
pub mod quantity;
pub mod resources;
pub mod status;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::SystemTime;

/// One pod bound to this node.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Pod {
    pub uid: String,
    pub namespace: String,
    pub name: String,
    pub generation: Option<i64>,
    pub labels: BTreeMap<String, String>,
    pub annotations: BTreeMap<String, String>,
    /// Set once the API object carries a deletion timestamp.
    pub deletion: Option<Deletion>,
    pub node_name: String,
    pub service_account: String,
    pub restart_policy: RestartPolicy,
    pub termination_grace_secs: u64,
    pub active_deadline_secs: Option<u64>,
    pub host_network: bool,
    pub host_pid: bool,
    pub host_ipc: bool,
    pub hostname: Option<String>,
    pub subdomain: Option<String>,
    pub dns_policy: DnsPolicy,
    pub dns_config: DnsConfig,
    pub host_aliases: Vec<HostAlias>,
    pub enable_service_links: bool,
    pub containers: Vec<Container>,
    pub volumes: Vec<Volume>,
    pub image_pull_secrets: Vec<String>,
    pub sysctls: BTreeMap<String, String>,
    pub fs_group: Option<i64>,
    pub readiness_gates: Vec<String>,
    /// Features that the pod cannot run without and this agent does not have: the pod is refused.
    pub refused: Vec<String>,
    /// Features that are left out with a warning.
    pub ignored: Vec<String>,
    /// What the API last said about status: survives restarts of the agent.
    pub observed: ObservedStatus,
}

/// The parts of the API's own status that the node carries on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ObservedStatus {
    /// `Succeeded` or `Failed` already: such a pod is never started again.
    pub terminal: bool,
    pub phase: String,
    pub reason: String,
    pub message: String,
    pub start_time: Option<SystemTime>,
    pub conditions: Vec<status::Condition>,
}

impl Pod {
    /// `name_namespace(uid)`, as the kubelet writes pods in messages.
    #[must_use]
    pub fn display(&self) -> String {
        format!("{}_{}({})", self.name, self.namespace, self.uid)
    }

    #[must_use]
    pub fn container(&self, name: &str) -> Option<&Container> {
        self.containers
            .iter()
            .find(|container| container.name == name)
    }
}

/// A graceful deletion in progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deletion {
    pub grace_secs: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RestartPolicy {
    #[default]
    Always,
    OnFailure,
    Never,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DnsPolicy {
    #[default]
    ClusterFirst,
    ClusterFirstWithHostNet,
    Default,
    None,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DnsConfig {
    pub nameservers: Vec<String>,
    pub searches: Vec<String>,
    /// `name` or `name:value`.
    pub options: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostAlias {
    pub ip: String,
    pub hostnames: Vec<String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum PullPolicy {
    Always,
    #[default]
    IfNotPresent,
    Never,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct Container {
    pub name: String,
    pub image: String,
    pub pull_policy: PullPolicy,
    pub command: Vec<String>,
    pub args: Vec<String>,
    pub working_dir: Option<String>,
    pub env: Vec<env::EnvVar>,
    pub env_from: Vec<env::EnvFrom>,
    pub mounts: Vec<VolumeMount>,
    pub resources: resources::Resources,
    pub security: Security,
    pub stdin: bool,
    pub stdin_once: bool,
    pub tty: bool,
    pub termination_message_path: String,
    pub termination_message_from_logs: bool,
}

/// Security context of a container, with the pod's defaults merged in.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Security {
    pub run_as_user: Option<i64>,
    pub run_as_group: Option<i64>,
    pub run_as_non_root: bool,
    pub supplemental_groups: Vec<i64>,
    pub privileged: bool,
    pub read_only_root: bool,
    pub allow_privilege_escalation: bool,
    pub added_capabilities: Vec<String>,
    pub dropped_capabilities: Vec<String>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct VolumeMount {
    pub volume: String,
    pub path: String,
    pub sub_path: String,
    pub read_only: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    pub name: String,
    pub source: VolumeSource,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VolumeSource {
    EmptyDir {
        memory: bool,
        size_limit_bytes: Option<u64>,
    },
    /// ConfigMap, Secret, downward API and projected volumes are all one list of sources.
    Files {
        kind: FilesKind,
        sources: Vec<FileSource>,
        default_mode: u32,
    },
    Unsupported {
        kind: String,
    },
}

/// Which API type a file volume came from; decides its directory and whether it lives in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FilesKind {
    ConfigMap,
    Secret,
    DownwardApi,
    Projected,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum FileSource {
    ConfigMap(KeyedSource),
    Secret(KeyedSource),
    DownwardApi(Vec<DownwardFile>),
}

/// Keys of one ConfigMap or Secret as files. No items: every key under its own name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyedSource {
    pub name: String,
    pub items: Vec<KeyToPath>,
    pub optional: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyToPath {
    pub key: String,
    pub path: String,
    pub mode: Option<u32>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DownwardFile {
    pub path: String,
    pub mode: Option<u32>,
    pub value: DownwardValue,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DownwardValue {
    Field(String),
    Resource {
        container: String,
        resource: String,
        divisor: String,
    },
}

/// A container that exists on this node, or did and is remembered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerRecord {
    pub name: String,
    pub id: String,
    pub attempt: u32,
    pub image: String,
    pub image_id: String,
    pub state: RecordState,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecordState {
    Created,
    Running { started_at: SystemTime },
    Exited(Exit),
}

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    pub exit_code: i32,
    pub signal: i32,
    pub oom_killed: bool,
    pub started_at: SystemTime,
    pub finished_at: SystemTime,
    /// Termination message of the container, or why the result is unknown.
    pub message: String,
    pub kind: ExitKind,
}

/// How much is known about an exit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ExitKind {
    #[default]
    Process,
    /// The process never ran: `StartError`.
    StartError,
    /// The runtime has forgotten the container: `ContainerStatusUnknown`.
    Unknown,
}

impl Exit {
    /// The reason kubectl prints.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        if self.kind == ExitKind::Unknown {
            "ContainerStatusUnknown"
        } else if self.kind == ExitKind::StartError {
            "StartError"
        } else if self.oom_killed {
            "OOMKilled"
        } else if self.exit_code == 0 {
            "Completed"
        } else {
            "Error"
        }
    }
}

/// Newest record of a container.
#[must_use]
pub fn current<'a>(records: &'a [ContainerRecord], name: &str) -> Option<&'a ContainerRecord> {
    records
        .iter()
        .filter(|record| record.name == name)
        .max_by_key(|record| record.attempt)
}

/// Whether the restart policy wants an exited container to run again.
#[must_use]
pub fn wants_restart(policy: RestartPolicy, exit: &Exit) -> bool {
    match policy {
        RestartPolicy::Always => true,
        RestartPolicy::OnFailure => exit.exit_code != 0,
        RestartPolicy::Never => false,
    }
}

/// Addresses of the pod and its node, primary first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Addresses {
    pub pod: Vec<IpAddr>,
    pub host: Vec<IpAddr>,
}
