//! The text that says why a pod does not fit, as kubectl users know it.

use std::collections::BTreeMap;

use crate::filter::Rejection;

/// Sums the reasons up: how many nodes, and how often each reason.
pub(crate) fn unschedulable<'a>(
    node_count: usize,
    rejections: impl Iterator<Item = &'a Rejection> + Clone,
) -> String {
    if node_count == 0 {
        return "no nodes available to schedule pods".to_owned();
    }
    let reasons = rejections
        .clone()
        .flat_map(|rejection| rejection.reasons.iter().map(String::as_str));
    let head = format!("0/{node_count} nodes are available");
    let preemption = rejections.map(|rejection| {
        if rejection.unresolvable {
            "Preemption is not helpful for scheduling"
        } else {
            "No preemption victims found for incoming pod"
        }
    });
    format!(
        "{head}: {}. preemption: {head}: {}.",
        histogram(reasons),
        histogram(preemption)
    )
}

fn histogram<'a>(reasons: impl Iterator<Item = &'a str>) -> String {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for reason in reasons {
        *counts.entry(reason).or_default() += 1;
    }
    let mut parts: Vec<String> = counts
        .into_iter()
        .map(|(reason, count)| format!("{count} {reason}"))
        .collect();
    parts.sort();
    parts.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reasons_are_counted_and_sorted_as_upstream_does() {
        let rejections = [
            Rejection {
                reasons: vec!["Insufficient cpu".into()],
                unresolvable: false,
            },
            Rejection {
                reasons: vec!["node(s) had untolerated taint {dedicated: db}".into()],
                unresolvable: true,
            },
        ];
        assert_eq!(
            unschedulable(2, rejections.iter()),
            "0/2 nodes are available: 1 Insufficient cpu, 1 node(s) had untolerated taint {dedicated: db}. \
             preemption: 0/2 nodes are available: 1 No preemption victims found for incoming pod, \
             1 Preemption is not helpful for scheduling."
        );
        assert_eq!(
            unschedulable(0, [].iter()),
            "no nodes available to schedule pods"
        );
    }
}
