//! Whether the node has room for a pod. Judged once, when the pod is first seen: a pod that was let in
//! is never judged again, whatever changes on the node. Pure; upstream's words.

use crate::pod::Pod;

/// What the pods of a node may use together, or do.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Room {
    pub pods: i64,
    pub cpu_milli: i64,
    pub memory_bytes: i64,
}

impl Room {
    /// What one pod asks for.
    #[must_use]
    pub fn of(pod: &Pod) -> Self {
        let requests = pod
            .containers
            .iter()
            .map(|container| container.resources.effective_requests());
        requests.fold(
            Self {
                pods: 1,
                ..Self::default()
            },
            |sum, (cpu, memory)| Self {
                pods: sum.pods,
                cpu_milli: sum.cpu_milli.saturating_add(cpu.unwrap_or(0)),
                memory_bytes: sum.memory_bytes.saturating_add(memory.unwrap_or(0)),
            },
        )
    }

    #[must_use]
    pub fn plus(self, other: Self) -> Self {
        Self {
            pods: self.pods.saturating_add(other.pods),
            cpu_milli: self.cpu_milli.saturating_add(other.cpu_milli),
            memory_bytes: self.memory_bytes.saturating_add(other.memory_bytes),
        }
    }
}

/// Why a pod is turned away: it becomes Failed with this reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    pub reason: &'static str,
    pub message: String,
}

/// Lets `pod` in beside pods that use `used` of `capacity`, or says what is missing.
pub fn admit(pod: &Pod, used: Room, capacity: Room) -> Result<(), Rejection> {
    let wanted = Room::of(pod);
    let checks = [
        ("OutOfpods", "pods", wanted.pods, used.pods, capacity.pods),
        (
            "OutOfcpu",
            "cpu",
            wanted.cpu_milli,
            used.cpu_milli,
            capacity.cpu_milli,
        ),
        (
            "OutOfmemory",
            "memory",
            wanted.memory_bytes,
            used.memory_bytes,
            capacity.memory_bytes,
        ),
    ];
    for (reason, resource, wanted, used, capacity) in checks {
        if wanted > 0 && used.saturating_add(wanted) > capacity {
            return Err(Rejection {
                reason,
                message: format!(
                    "Node didn't have enough resource: {resource}, requested: {wanted}, used: {used}, capacity: {capacity}"
                ),
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::pod::Container;
    use crate::pod::resources::Resources;

    fn pod(cpu_milli: i64) -> Pod {
        Pod {
            containers: vec![Container {
                resources: Resources {
                    cpu_request_milli: Some(cpu_milli),
                    ..Resources::default()
                },
                ..Container::default()
            }],
            ..Pod::default()
        }
    }

    const NODE: Room = Room {
        pods: 2,
        cpu_milli: 2000,
        memory_bytes: 1 << 30,
    };

    #[test]
    fn a_full_node_turns_pods_away_in_upstreams_words() {
        let used = Room::of(&pod(1500));
        assert_eq!(admit(&pod(500), used, NODE), Ok(()));
        let rejection = admit(&pod(501), used, NODE).unwrap_err();
        assert_eq!(rejection.reason, "OutOfcpu");
        assert_eq!(
            rejection.message,
            "Node didn't have enough resource: cpu, requested: 501, used: 1500, capacity: 2000"
        );
        let full = used.plus(Room::of(&pod(0)));
        assert_eq!(admit(&pod(0), full, NODE).unwrap_err().reason, "OutOfpods");
    }

    #[test]
    fn a_pod_without_requests_fits_beside_any_use() {
        let over = Room {
            pods: 1,
            cpu_milli: 9000,
            memory_bytes: 1 << 40,
        };
        assert_eq!(admit(&Pod::default(), over, NODE), Ok(()));
    }
}
