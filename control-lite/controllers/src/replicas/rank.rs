//! Which pod goes first when there are too many: upstream's order for scaling down.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use tholepin_informer::{is_pod_active, is_pod_ready, pod_condition};

const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

/// Sorts pods so that the ones to delete come first.
///
/// `related` are all active pods of the same owner family: a pod that shares its node with many of them
/// goes before one that is alone on its node.
pub(crate) fn sort_for_deletion(pods: &mut [Arc<Pod>], related: &[Arc<Pod>], now: Timestamp) {
    let mut on_node: HashMap<&str, usize> = HashMap::new();
    for pod in related.iter().filter(|pod| is_pod_active(pod)) {
        if !node(pod).is_empty() {
            *on_node.entry(node(pod)).or_default() += 1;
        }
    }
    let rank = |pod: &Pod| on_node.get(node(pod)).copied().unwrap_or(0);
    pods.sort_by(|a, b| compare(a, b, rank(a), rank(b), now));
}

fn node(pod: &Pod) -> &str {
    pod.spec
        .as_ref()
        .and_then(|spec| spec.node_name.as_deref())
        .unwrap_or_default()
}

/// `Less` means that `a` is deleted before `b`.
fn compare(a: &Pod, b: &Pod, rank_a: usize, rank_b: usize, now: Timestamp) -> Ordering {
    let assigned = |pod: &Pod| !node(pod).is_empty();
    let by_ready_time = || {
        if is_pod_ready(a) && is_pod_ready(b) {
            younger_first(ready_since(a), ready_since(b), now, a, b)
        } else {
            Ordering::Equal
        }
    };
    assigned(a)
        .cmp(&assigned(b))
        .then_with(|| phase_order(a).cmp(&phase_order(b)))
        .then_with(|| is_pod_ready(a).cmp(&is_pod_ready(b)))
        .then_with(|| deletion_cost(a).cmp(&deletion_cost(b)))
        .then_with(|| rank_b.cmp(&rank_a))
        .then_with(by_ready_time)
        .then_with(|| max_restarts(b).cmp(&max_restarts(a)))
        .then_with(|| younger_first(created(a), created(b), now, a, b))
}

fn phase_order(pod: &Pod) -> u8 {
    match pod
        .status
        .as_ref()
        .and_then(|status| status.phase.as_deref())
    {
        Some("Unknown") => 1,
        Some("Running") => 2,
        _ => 0,
    }
}

fn deletion_cost(pod: &Pod) -> i32 {
    let cost = pod
        .metadata
        .annotations
        .as_ref()
        .and_then(|all| all.get(DELETION_COST));
    cost.and_then(|text| text.parse().ok()).unwrap_or(0)
}

fn max_restarts(pod: &Pod) -> i32 {
    let statuses = pod
        .status
        .as_ref()
        .and_then(|status| status.container_statuses.as_ref());
    statuses
        .into_iter()
        .flatten()
        .map(|status| status.restart_count)
        .max()
        .unwrap_or(0)
}

fn ready_since(pod: &Pod) -> Option<Timestamp> {
    Some(
        pod_condition(pod, "Ready")?
            .last_transition_time
            .as_ref()?
            .0,
    )
}

fn created(pod: &Pod) -> Option<Timestamp> {
    Some(pod.metadata.creation_timestamp.as_ref()?.0)
}

/// The younger one goes first, but ages within one power of two count as equal and the uid decides:
/// that randomises between pods of about the same age.
fn younger_first(
    a: Option<Timestamp>,
    b: Option<Timestamp>,
    now: Timestamp,
    pod_a: &Pod,
    pod_b: &Pod,
) -> Ordering {
    match (a, b) {
        (a, b) if a == b => Ordering::Equal,
        (None, _) => Ordering::Less,
        (_, None) => Ordering::Greater,
        (Some(a), Some(b)) => log2_age(a, now)
            .cmp(&log2_age(b, now))
            .then_with(|| pod_a.metadata.uid.cmp(&pod_b.metadata.uid)),
    }
}

fn log2_age(at: Timestamp, now: Timestamp) -> i32 {
    let age_nanos = now.as_nanosecond() - at.as_nanosecond();
    match u128::try_from(age_nanos) {
        Ok(0) | Err(_) => -1,
        Ok(nanos) => i32::try_from(nanos.ilog2()).unwrap_or(i32::MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn at(secs_ago: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 - secs_ago).expect("in range")
    }

    fn pod(name: &str, extra: Value) -> Arc<Pod> {
        let mut value = json!({
            "metadata": {"name": name, "uid": name, "creationTimestamp": at(1000).to_string()},
            "spec": {"containers": [], "nodeName": format!("node-{name}")},
            "status": {"phase": "Running", "conditions": [
                {"type": "Ready", "status": "True", "lastTransitionTime": at(900).to_string()}]},
        });
        json_patch_merge(&mut value, &extra);
        Arc::new(serde_json::from_value(value).expect("a pod"))
    }

    fn json_patch_merge(target: &mut Value, patch: &Value) {
        match patch {
            Value::Object(fields) => {
                for (field, value) in fields {
                    json_patch_merge(&mut target[field], value);
                }
            }
            other => *target = other.clone(),
        }
    }

    fn order(mut pods: Vec<Arc<Pod>>) -> Vec<String> {
        let related = pods.clone();
        sort_for_deletion(&mut pods, &related, at(0));
        pods.iter()
            .filter_map(|pod| pod.metadata.name.clone())
            .collect()
    }

    #[test]
    fn pods_go_in_upstreams_order() {
        let ready = |secs: i64| json!([{"type": "Ready", "status": "True", "lastTransitionTime": at(secs).to_string()}]);
        let not_ready = json!([{"type": "Ready", "status": "False"}]);
        let pods = vec![
            pod("h-oldest", json!({})),
            pod(
                "g-created-later",
                json!({"metadata": {"creationTimestamp": at(10).to_string()}}),
            ),
            pod(
                "f-restarted",
                json!({"status": {"containerStatuses": [
                {"name": "c", "image": "", "imageID": "", "ready": true, "restartCount": 3}]}}),
            ),
            pod(
                "e-ready-lately",
                json!({"status": {"conditions": ready(10)}}),
            ),
            pod(
                "d-cheap",
                json!({"metadata": {"annotations": {DELETION_COST: "-5"}}}),
            ),
            pod("c-not-ready", json!({"status": {"conditions": not_ready}})),
            pod(
                "b-pending",
                json!({"status": {"phase": "Pending", "conditions": not_ready}}),
            ),
            pod(
                "a-unassigned",
                json!({"spec": {"nodeName": ""}, "status": {"phase": "Pending"}}),
            ),
        ];
        assert_eq!(
            order(pods),
            [
                "a-unassigned",
                "b-pending",
                "c-not-ready",
                "d-cheap",
                "e-ready-lately",
                "f-restarted",
                "g-created-later",
                "h-oldest"
            ]
        );
    }

    #[test]
    fn a_pod_on_a_crowded_node_goes_before_one_that_is_alone() {
        let pods = vec![
            pod("alone", json!({"spec": {"nodeName": "n1"}})),
            pod("crowd-1", json!({"spec": {"nodeName": "n2"}})),
            pod("crowd-2", json!({"spec": {"nodeName": "n2"}})),
        ];
        assert_eq!(order(pods)[2], "alone");
    }

    #[test]
    fn ages_within_a_power_of_two_are_equal_and_the_uid_decides() {
        let since = |secs: i64| {
            json!({"status": {"conditions": [{"type": "Ready", "status": "True",
                "lastTransitionTime": at(secs).to_string()}]}})
        };
        // 2^39 ns is 549 s, 2^40 ns is 1099 s.
        assert_eq!(
            order(vec![pod("b", since(600)), pod("a", since(1000))]),
            ["a", "b"]
        );
        assert_eq!(
            order(vec![pod("a", since(1200)), pod("b", since(1000))]),
            ["b", "a"]
        );
    }
}
