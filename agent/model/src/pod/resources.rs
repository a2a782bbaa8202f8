//! Requests and limits of containers, and the kernel values the kubelet derives from them.

use super::Container;

/// CPU in thousandths of a core, memory in bytes. `None` is "not set".
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    pub cpu_request_milli: Option<i64>,
    pub cpu_limit_milli: Option<i64>,
    pub memory_request_bytes: Option<i64>,
    pub memory_limit_bytes: Option<i64>,
}

/// Quality of service, which decides the cgroup and who is killed first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QosClass {
    Guaranteed,
    Burstable,
    BestEffort,
}

impl QosClass {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Guaranteed => "Guaranteed",
            Self::Burstable => "Burstable",
            Self::BestEffort => "BestEffort",
        }
    }
}

/// What the kernel is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelLimits {
    pub cpu_shares: u64,
    pub cpu_quota_us: i64,
    pub cpu_period_us: u64,
    pub memory_limit_bytes: i64,
    pub oom_score_adj: i32,
}

const CPU_PERIOD_US: u64 = 100_000;
const MIN_SHARES: u64 = 2;
const MIN_QUOTA_US: i64 = 1_000;

impl Resources {
    /// A limit without a request is also the request.
    #[must_use]
    pub fn effective_requests(&self) -> (Option<i64>, Option<i64>) {
        (
            self.cpu_request_milli.or(self.cpu_limit_milli),
            self.memory_request_bytes.or(self.memory_limit_bytes),
        )
    }
}

/// The class of a pod with these containers.
#[must_use]
pub fn qos_class(containers: &[Container]) -> QosClass {
    let is_set = |value: Option<i64>| value.is_some_and(|value| value > 0);
    let mut any = false;
    let mut guaranteed = true;
    for container in containers {
        let resources = &container.resources;
        let (cpu, memory) = resources.effective_requests();
        any |= is_set(cpu) || is_set(memory);
        guaranteed &= is_set(resources.cpu_limit_milli)
            && is_set(resources.memory_limit_bytes)
            && cpu == resources.cpu_limit_milli
            && memory == resources.memory_limit_bytes;
    }
    match (any, guaranteed) {
        (false, _) => QosClass::BestEffort,
        (true, true) => QosClass::Guaranteed,
        (true, false) => QosClass::Burstable,
    }
}

/// Kernel values of one container. `node_memory_bytes` scales the OOM score of burstable pods.
#[must_use]
pub fn kernel_limits(resources: &Resources, qos: QosClass, node_memory_bytes: i64) -> KernelLimits {
    let (cpu, memory) = resources.effective_requests();
    let cpu_shares = u64::try_from(cpu.unwrap_or(0) * 1024 / 1000)
        .unwrap_or(0)
        .max(MIN_SHARES);
    let cpu_quota_us = match resources.cpu_limit_milli {
        Some(limit) if limit > 0 => (limit * CPU_PERIOD_US.cast_signed() / 1000).max(MIN_QUOTA_US),
        _ => 0,
    };
    let oom_score_adj = match qos {
        QosClass::Guaranteed => -997,
        QosClass::BestEffort => 1000,
        QosClass::Burstable => {
            let share =
                1000 * i128::from(memory.unwrap_or(0)) / i128::from(node_memory_bytes.max(1));
            i32::try_from((1000 - share).clamp(3, 999)).expect("clamped to 3..=999")
        }
    };
    KernelLimits {
        cpu_shares,
        cpu_quota_us,
        cpu_period_us: CPU_PERIOD_US,
        memory_limit_bytes: resources.memory_limit_bytes.unwrap_or(0),
        oom_score_adj,
    }
}

/// Cgroup of the pod below `parent`, in the kubelet's cgroupfs naming.
#[must_use]
pub fn cgroup_path(parent: &str, qos: QosClass, uid: &str) -> String {
    let parent = parent.trim_end_matches('/');
    match qos {
        QosClass::Guaranteed => format!("{parent}/kubepods/pod{uid}"),
        QosClass::Burstable => format!("{parent}/kubepods/burstable/pod{uid}"),
        QosClass::BestEffort => format!("{parent}/kubepods/besteffort/pod{uid}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(cpu: (i64, i64), memory: (i64, i64)) -> Container {
        let set = |value: i64| (value > 0).then_some(value);
        Container {
            resources: Resources {
                cpu_request_milli: set(cpu.0),
                cpu_limit_milli: set(cpu.1),
                memory_request_bytes: set(memory.0),
                memory_limit_bytes: set(memory.1),
            },
            ..Container::default()
        }
    }

    #[test]
    fn the_class_follows_requests_and_limits() {
        let none = container((0, 0), (0, 0));
        let some = container((100, 0), (0, 0));
        let full = container((100, 100), (64, 64));
        let limits_only = container((0, 100), (0, 64));
        assert_eq!(qos_class(std::slice::from_ref(&none)), QosClass::BestEffort);
        assert_eq!(qos_class(&[some]), QosClass::Burstable);
        assert_eq!(
            qos_class(&[full.clone(), limits_only]),
            QosClass::Guaranteed
        );
        assert_eq!(qos_class(&[full, none]), QosClass::Burstable);
    }

    #[test]
    fn kernel_values_use_the_kubelets_conversions() {
        let limits = kernel_limits(
            &container((250, 500), (1 << 28, 1 << 29)).resources,
            QosClass::Burstable,
            1 << 30,
        );
        assert_eq!(limits.cpu_shares, 256);
        assert_eq!(limits.cpu_quota_us, 50_000);
        assert_eq!(limits.memory_limit_bytes, 1 << 29);
        assert_eq!(limits.oom_score_adj, 750);
        let none = kernel_limits(&Resources::default(), QosClass::BestEffort, 1 << 30);
        assert_eq!(
            (none.cpu_shares, none.cpu_quota_us, none.oom_score_adj),
            (2, 0, 1000)
        );
    }

    #[test]
    fn pods_of_a_class_share_a_cgroup_below_the_parent() {
        assert_eq!(
            cgroup_path("/", QosClass::BestEffort, "u"),
            "/kubepods/besteffort/podu"
        );
        assert_eq!(
            cgroup_path("/thp-1", QosClass::Guaranteed, "u"),
            "/thp-1/kubepods/podu"
        );
    }
}
