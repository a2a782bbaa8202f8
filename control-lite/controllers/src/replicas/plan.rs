//! How many pods to make or delete in one round.

use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use super::rank::sort_for_deletion;

/// At most so many pods are made or deleted per round.
pub(crate) const BURST_REPLICAS: usize = 500;

/// One round's work.
#[derive(Clone, Debug, Default)]
pub(crate) struct Plan {
    /// Pods to make.
    pub(crate) create: usize,
    /// Pods to delete.
    pub(crate) delete: Vec<Arc<Pod>>,
}

/// Compares the active pods with the wanted number.
///
/// `related` are the active pods of the whole owner family (all ReplicaSets of a Deployment).
pub(crate) fn plan(wanted: i32, active: &[Arc<Pod>], related: &[Arc<Pod>], now: Timestamp) -> Plan {
    let wanted = usize::try_from(wanted).unwrap_or(0);
    if active.len() <= wanted {
        return Plan {
            create: (wanted - active.len()).min(BURST_REPLICAS),
            delete: Vec::new(),
        };
    }
    let surplus = (active.len() - wanted).min(BURST_REPLICAS);
    let mut delete = active.to_vec();
    // All of them go: no need to rank.
    if surplus < delete.len() {
        sort_for_deletion(&mut delete, related, now);
        delete.truncate(surplus);
    }
    Plan { create: 0, delete }
}

/// Sizes of the batches that `count` creations are made in: 1, 2, 4, … so that a template nobody can
/// create costs one refusal and not five hundred.
pub(crate) fn slow_start_batches(count: usize) -> Vec<usize> {
    let mut batches = Vec::new();
    let (mut left, mut size) = (count, 1);
    while left > 0 {
        let batch = size.min(left);
        batches.push(batch);
        left -= batch;
        size *= 2;
    }
    batches
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pods(count: usize) -> Vec<Arc<Pod>> {
        (0..count)
            .map(|i| {
                let mut pod = Pod::default();
                pod.metadata.name = Some(format!("pod-{i}"));
                pod.metadata.uid = Some(format!("{i}"));
                Arc::new(pod)
            })
            .collect()
    }

    #[test]
    fn batches_double_from_one() {
        assert_eq!(slow_start_batches(0), Vec::<usize>::new());
        assert_eq!(slow_start_batches(1), [1]);
        assert_eq!(slow_start_batches(10), [1, 2, 4, 3]);
        assert_eq!(slow_start_batches(500).iter().sum::<usize>(), 500);
    }

    #[test]
    fn the_difference_is_made_or_deleted_up_to_the_burst() {
        for (wanted, have, create, delete) in [
            (3, 0, 3, 0),
            (3, 3, 0, 0),
            (3, 5, 0, 2),
            (0, 2, 0, 2),
            (600, 0, 500, 0),
            (0, 600, 0, 500),
            (-1, 2, 0, 2),
        ] {
            let active = pods(have);
            let plan = plan(wanted, &active, &active, Timestamp::UNIX_EPOCH);
            assert_eq!(
                (plan.create, plan.delete.len()),
                (create, delete),
                "{wanted} of {have}"
            );
        }
    }
}
