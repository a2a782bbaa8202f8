//! Mounts of a container: containerd's defaults, the pod's /dev/shm, then the container's own.

use std::path::Path;

use serde_json::{Value, json};

use super::Inputs;

/// Mounts in the order runc makes them.
pub(super) fn build(inputs: &Inputs<'_>) -> Vec<Value> {
    let container = inputs.container;
    let access = if container.privileged { "rw" } else { "ro" };
    let defaults = [
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount(
            "/dev",
            "tmpfs",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k"],
        ),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &[
                "nosuid",
                "noexec",
                "newinstance",
                "ptmxmode=0666",
                "mode=0620",
                "gid=5",
            ],
        ),
        mount(
            "/dev/mqueue",
            "mqueue",
            "mqueue",
            &["nosuid", "noexec", "nodev"],
        ),
        mount(
            "/sys",
            "sysfs",
            "sysfs",
            &["nosuid", "noexec", "nodev", access],
        ),
        mount(
            "/sys/fs/cgroup",
            "cgroup",
            "cgroup",
            &["nosuid", "noexec", "nodev", "relatime", access],
        ),
        bind(Path::new("/dev/shm"), inputs.shm, false),
    ];
    let is_overridden = |default: &Value| {
        container
            .mounts
            .iter()
            .any(|own| default["destination"] == json!(own.container_path))
    };
    let mut own: Vec<_> = container.mounts.iter().collect();
    // Outer before inner, or the outer one would hide the inner; otherwise as given.
    own.sort_by_key(|mount| mount.container_path.components().count());
    defaults
        .into_iter()
        .filter(|default| !is_overridden(default))
        .chain(
            own.into_iter()
                .map(|own| bind(&own.container_path, &own.host_path, own.read_only)),
        )
        .collect()
}

fn mount(destination: &str, kind: &str, source: &str, options: &[&str]) -> Value {
    json!({ "destination": destination, "type": kind, "source": source, "options": options })
}

fn bind(destination: &Path, source: &Path, read_only: bool) -> Value {
    let access = if read_only { "ro" } else { "rw" };
    json!({
        "destination": destination,
        "type": "bind",
        "source": source,
        "options": ["rbind", "rprivate", access],
    })
}
