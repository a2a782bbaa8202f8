//! The OCI runtime spec of a container, as containerd's CRI plugin would make it. Pure.
//!
//! Everything that must be looked up (user, capabilities of this process, cgroup version) comes in
//! through [`Inputs`]; the result is a `config.json`.

mod capabilities;
mod cgroup;
mod mounts;
mod process;
mod seccomp;
mod user;

pub(super) use capabilities::Held;
pub(super) use user::{ResolvedUser, UserDatabase, resolve as resolve_user, verify_non_root};

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::image::ImageConfig;
use super::{ContainerSpec, RuntimeError};

/// Containers with one value of this annotation share a shim.
const SHIM_GROUP: &str = "io.containerd.runc.v2.group";

const MASKED_PATHS: [&str; 11] = [
    "/proc/asound",
    "/proc/acpi",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
    "/proc/scsi",
];

const READ_ONLY_PATHS: [&str; 5] = [
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// What a spec is made of.
#[derive(Debug)]
pub(super) struct Inputs<'a> {
    pub(super) container: &'a ContainerSpec,
    pub(super) image: &'a ImageConfig,
    pub(super) user: &'a ResolvedUser,
    pub(super) hostname: &'a str,
    /// Namespaces of the pod; `None` is the host's.
    pub(super) network_namespace: Option<PathBuf>,
    pub(super) ipc_namespace: Option<PathBuf>,
    pub(super) uts_namespace: Option<PathBuf>,
    pub(super) host_pid: bool,
    /// Directory that becomes `/dev/shm`.
    pub(super) shm: &'a Path,
    pub(super) cgroup_path: &'a str,
    pub(super) cgroup_v2: bool,
    pub(super) swap_limit: bool,
    pub(super) held: &'a Held,
    /// Device nodes of the host, for privileged containers.
    pub(super) host_devices: &'a [Value],
}

/// Builds the spec, or says why the container cannot be honoured.
pub(super) fn build(inputs: &Inputs<'_>) -> Result<Value, RuntimeError> {
    let container = inputs.container;
    let mut linux = json!({
        "cgroupsPath": inputs.cgroup_path,
        "namespaces": namespaces(inputs),
        "resources": cgroup::resources(inputs),
        "maskedPaths": MASKED_PATHS,
        "readonlyPaths": READ_ONLY_PATHS,
    });
    if container.privileged {
        linux["maskedPaths"] = json!([]);
        linux["readonlyPaths"] = json!([]);
        linux["devices"] = json!(inputs.host_devices);
    }
    if let Some(profile) = seccomp::profile() {
        linux["seccomp"] = profile;
    }
    Ok(json!({
        "ociVersion": "1.0.2",
        "process": process::build(inputs)?,
        "root": { "path": "rootfs", "readonly": container.read_only_root },
        "mounts": mounts::build(inputs),
        "annotations": { SHIM_GROUP: container.pod.uid },
        "linux": linux,
    }))
}

fn namespaces(inputs: &Inputs<'_>) -> Vec<Value> {
    let mut all = vec![json!({ "type": "mount" })];
    if !inputs.host_pid {
        all.push(json!({ "type": "pid" }));
    }
    // On v1 a private cgroup namespace would hide what `/sys/fs/cgroup` shows there.
    if inputs.cgroup_v2 && !inputs.container.privileged {
        all.push(json!({ "type": "cgroup" }));
    }
    for (kind, path) in [
        ("ipc", &inputs.ipc_namespace),
        ("uts", &inputs.uts_namespace),
        ("network", &inputs.network_namespace),
    ] {
        if let Some(path) = path {
            all.push(json!({ "type": kind, "path": path }));
        }
    }
    all
}

/// The error of a container that cannot be made as asked.
fn invalid(container: &ContainerSpec, message: impl Into<String>) -> RuntimeError {
    RuntimeError::InvalidSpec {
        subject: format!("container {}", container.name),
        message: message.into(),
    }
}

#[cfg(test)]
mod tests;
