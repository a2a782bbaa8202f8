//! Resources of one container's cgroup.

use serde_json::{Value, json};

use super::Inputs;

/// Zero fields are left to the kernel. runc adds its own list of harmless devices to the denial.
pub(super) fn resources(inputs: &Inputs<'_>) -> Value {
    let limits = &inputs.container.resources;
    let mut resources = json!({
        "devices": [{ "allow": inputs.container.privileged, "access": "rwm" }],
    });
    let mut cpu = serde_json::Map::new();
    if limits.cpu_shares > 0 {
        cpu.insert("shares".into(), limits.cpu_shares.into());
    }
    if limits.cpu_quota_us != 0 {
        cpu.insert("quota".into(), limits.cpu_quota_us.into());
    }
    if limits.cpu_period_us > 0 {
        cpu.insert("period".into(), limits.cpu_period_us.into());
    }
    if !cpu.is_empty() {
        resources["cpu"] = cpu.into();
    }
    if limits.memory_limit_bytes > 0 {
        resources["memory"] = json!({ "limit": limits.memory_limit_bytes });
        if inputs.swap_limit {
            // Equal to the memory limit means no swap, which is the kubelet's default.
            resources["memory"]["swap"] = limits.memory_limit_bytes.into();
        }
    }
    resources
}
