//! Capability sets: containerd's default set, additions and removals, and what this process may give.

use std::collections::BTreeSet;
use std::fs;
use std::io;

use super::super::{ContainerSpec, RuntimeError};
use super::invalid;

/// In the kernel's order, so that the index is the bit number.
const ALL: [&str; 41] = [
    "CHOWN",
    "DAC_OVERRIDE",
    "DAC_READ_SEARCH",
    "FOWNER",
    "FSETID",
    "KILL",
    "SETGID",
    "SETUID",
    "SETPCAP",
    "LINUX_IMMUTABLE",
    "NET_BIND_SERVICE",
    "NET_BROADCAST",
    "NET_ADMIN",
    "NET_RAW",
    "IPC_LOCK",
    "IPC_OWNER",
    "SYS_MODULE",
    "SYS_RAWIO",
    "SYS_CHROOT",
    "SYS_PTRACE",
    "SYS_PACCT",
    "SYS_ADMIN",
    "SYS_BOOT",
    "SYS_NICE",
    "SYS_RESOURCE",
    "SYS_TIME",
    "SYS_TTY_CONFIG",
    "MKNOD",
    "LEASE",
    "AUDIT_WRITE",
    "AUDIT_CONTROL",
    "SETFCAP",
    "MAC_OVERRIDE",
    "MAC_ADMIN",
    "SYSLOG",
    "WAKE_ALARM",
    "BLOCK_SUSPEND",
    "AUDIT_READ",
    "PERFMON",
    "BPF",
    "CHECKPOINT_RESTORE",
];

const DEFAULT: [&str; 14] = [
    "AUDIT_WRITE",
    "CHOWN",
    "DAC_OVERRIDE",
    "FOWNER",
    "FSETID",
    "KILL",
    "MKNOD",
    "NET_BIND_SERVICE",
    "NET_RAW",
    "SETFCAP",
    "SETGID",
    "SETPCAP",
    "SETUID",
    "SYS_CHROOT",
];

/// What this process holds and so can give to a container: runc fails on more with a text that names
/// nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in super::super) struct Held {
    mask: u64,
    own_oom_score_adj: i32,
}

impl Held {
    pub(in super::super) fn detect() -> io::Result<Self> {
        let status = fs::read_to_string("/proc/self/status")?;
        let set = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        };
        let (Some(permitted), Some(bounding)) = (set("CapPrm:"), set("CapBnd:")) else {
            return Err(io::Error::other("no capability sets in /proc/self/status"));
        };
        let score = fs::read_to_string("/proc/self/oom_score_adj")?;
        let own_oom_score_adj = score.trim().parse().map_err(io::Error::other)?;
        Ok(Self {
            mask: permitted & bounding,
            own_oom_score_adj,
        })
    }

    #[cfg(test)]
    pub(super) fn of(mask: u64, own_oom_score_adj: i32) -> Self {
        Self {
            mask,
            own_oom_score_adj,
        }
    }

    fn has(self, name: &str) -> bool {
        ALL.iter()
            .position(|known| *known == name)
            .is_some_and(|bit| self.mask & (1 << bit) != 0)
    }

    /// Without CAP_SYS_RESOURCE the score can only be raised above our own.
    pub(super) fn clamp_oom_score_adj(self, wanted: i32) -> i32 {
        let wanted = wanted.clamp(-1000, 1000);
        if self.has("SYS_RESOURCE") {
            wanted
        } else {
            wanted.max(self.own_oom_score_adj)
        }
    }
}

/// Bounding, effective and permitted set of the container, sorted.
pub(super) fn of(container: &ContainerSpec, held: Held) -> Result<Vec<String>, RuntimeError> {
    let mut set: BTreeSet<&str> = DEFAULT.into();
    if container.privileged {
        set = ALL.into();
    } else {
        // ALL goes first in either direction, single names then adjust it.
        let adds = names(container, &container.added_capabilities)?;
        let drops = names(container, &container.dropped_capabilities)?;
        if adds.contains(&"ALL") {
            set = ALL.into();
        }
        if drops.contains(&"ALL") {
            set.clear();
        }
        set.extend(adds.iter().filter(|name| **name != "ALL"));
        for name in drops {
            set.remove(name);
        }
    }
    set.retain(|name| held.has(name));
    Ok(set.into_iter().map(|name| format!("CAP_{name}")).collect())
}

fn names<'a>(container: &ContainerSpec, given: &'a [String]) -> Result<Vec<&'a str>, RuntimeError> {
    given
        .iter()
        .map(|name| {
            let bare = name.strip_prefix("CAP_").unwrap_or(name);
            let known = bare == "ALL" || ALL.contains(&bare);
            known
                .then_some(bare)
                .ok_or_else(|| invalid(container, format!("unknown capability {name:?}")))
        })
        .collect()
}
