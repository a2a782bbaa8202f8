//! What a node's conditions and taints should be.

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, NodeCondition, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

pub(super) const READY: &str = "Ready";
/// The conditions only the kubelet can know.
const OBSERVED: [&str; 4] = [READY, "MemoryPressure", "DiskPressure", "PIDPressure"];
const NOT_READY: &str = "node.kubernetes.io/not-ready";
const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
const NO_SCHEDULE: &str = "NoSchedule";
const NO_EXECUTE: &str = "NoExecute";

/// What changes while a node lives: its Lease's renewal and its Ready condition's heartbeat.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Sign {
    renewed: Option<Timestamp>,
    heartbeat: Option<Timestamp>,
    uid: Option<String>,
}

impl Sign {
    pub(super) fn of(node: &Node, lease: Option<&Lease>) -> Self {
        let renewed = lease.and_then(|lease| lease.spec.as_ref()?.renew_time.as_ref());
        let heartbeat = condition(node, READY).and_then(|ready| ready.last_heartbeat_time.as_ref());
        Self {
            renewed: renewed.map(|time| time.0),
            heartbeat: heartbeat.map(|time| time.0),
            uid: node.metadata.uid.clone(),
        }
    }
}

fn condition<'a>(node: &'a Node, type_: &str) -> Option<&'a NodeCondition> {
    node.status
        .as_ref()?
        .conditions
        .as_ref()?
        .iter()
        .find(|condition| condition.type_ == type_)
}

/// `True`, `False` or `Unknown`.
pub(super) fn condition_status<'a>(node: &'a Node, type_: &str) -> Option<&'a str> {
    condition(node, type_).map(|condition| condition.status.as_str())
}

/// The conditions of a node that has been silent too long; `None` if they say so already.
pub(super) fn overdue(node: &Node, now: Time) -> Option<Vec<NodeCondition>> {
    let known = node
        .status
        .as_ref()
        .and_then(|status| status.conditions.clone());
    let mut conditions = known.unwrap_or_default();
    let mut changed = false;
    for type_ in OBSERVED {
        match conditions
            .iter_mut()
            .find(|condition| condition.type_ == type_)
        {
            None => {
                changed = true;
                conditions.push(NodeCondition {
                    type_: type_.to_owned(),
                    status: "Unknown".to_owned(),
                    reason: Some("NodeStatusNeverUpdated".to_owned()),
                    message: Some("Kubelet never posted node status.".to_owned()),
                    last_heartbeat_time: node.metadata.creation_timestamp.clone(),
                    last_transition_time: Some(now.clone()),
                });
            }
            Some(condition) if condition.status != "Unknown" => {
                changed = true;
                condition.status = "Unknown".to_owned();
                condition.reason = Some("NodeStatusUnknown".to_owned());
                condition.message = Some("Kubelet stopped posting node status.".to_owned());
                condition.last_transition_time = Some(now.clone());
            }
            Some(_) => (),
        }
    }
    changed.then_some(conditions)
}

/// The taints the node should have; `None` if it has them. Taints of others stay.
pub(super) fn wanted_taints(node: &Node, now: Time) -> Option<Vec<Taint>> {
    let mut wanted: Vec<(&str, &str)> = Vec::new();
    match condition_status(node, READY) {
        Some("True") | None => (),
        Some("False") => wanted.extend([(NOT_READY, NO_SCHEDULE), (NOT_READY, NO_EXECUTE)]),
        Some(_) => wanted.extend([(UNREACHABLE, NO_SCHEDULE), (UNREACHABLE, NO_EXECUTE)]),
    }
    for (type_, key) in [
        ("MemoryPressure", "node.kubernetes.io/memory-pressure"),
        ("DiskPressure", "node.kubernetes.io/disk-pressure"),
        ("PIDPressure", "node.kubernetes.io/pid-pressure"),
        (
            "NetworkUnavailable",
            "node.kubernetes.io/network-unavailable",
        ),
    ] {
        if condition_status(node, type_) == Some("True") {
            wanted.push((key, NO_SCHEDULE));
        }
    }
    if node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true) {
        wanted.push(("node.kubernetes.io/unschedulable", NO_SCHEDULE));
    }
    let held = node
        .spec
        .as_ref()
        .and_then(|spec| spec.taints.clone())
        .unwrap_or_default();
    let is =
        |taint: &Taint, (key, effect): &(&str, &str)| taint.key == *key && taint.effect == *effect;
    let mut taints = held.clone();
    taints.retain(|taint| !is_ours(taint) || wanted.iter().any(|wanted| is(taint, wanted)));
    for entry in &wanted {
        if !taints.iter().any(|taint| is(taint, entry)) {
            taints.push(Taint {
                key: entry.0.to_owned(),
                effect: entry.1.to_owned(),
                value: None,
                time_added: Some(now.clone()),
            });
        }
    }
    (taints != held).then_some(taints)
}

fn is_ours(taint: &Taint) -> bool {
    let schedule = [
        NOT_READY,
        UNREACHABLE,
        "node.kubernetes.io/memory-pressure",
        "node.kubernetes.io/disk-pressure",
        "node.kubernetes.io/pid-pressure",
        "node.kubernetes.io/network-unavailable",
        "node.kubernetes.io/unschedulable",
    ];
    match taint.effect.as_str() {
        NO_SCHEDULE => schedule.contains(&taint.key.as_str()),
        NO_EXECUTE => [NOT_READY, UNREACHABLE].contains(&taint.key.as_str()),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn node(ready: &str, taints: Value) -> Node {
        serde_json::from_value(json!({
            "metadata": {"name": "n"}, "spec": {"taints": taints},
            "status": {"conditions": [
                {"type": "Ready", "status": ready, "lastHeartbeatTime": "2026-01-01T00:00:00Z"}]},
        }))
        .expect("a node")
    }

    fn at() -> Time {
        Time(Timestamp::UNIX_EPOCH)
    }

    fn taints(node: &Node) -> Option<Vec<String>> {
        let taints = wanted_taints(node, at())?;
        Some(
            taints
                .into_iter()
                .map(|taint| format!("{}:{}", taint.key, taint.effect))
                .collect(),
        )
    }

    #[test]
    fn a_silent_node_has_upstreams_words() {
        let conditions = overdue(&node("True", json!([])), at()).expect("changed");
        assert_eq!(conditions[0].status, "Unknown");
        assert_eq!(conditions[0].reason.as_deref(), Some("NodeStatusUnknown"));
        assert_eq!(
            conditions[0].message.as_deref(),
            Some("Kubelet stopped posting node status.")
        );
        assert_eq!(conditions.len(), 4);
        assert_eq!(
            conditions[1].reason.as_deref(),
            Some("NodeStatusNeverUpdated")
        );
        let mut silent = node("Unknown", json!([]));
        silent.status.as_mut().expect("status").conditions = Some(conditions);
        assert_eq!(overdue(&silent, at()), None, "said once is enough");
    }

    #[test]
    fn taints_follow_the_ready_condition_and_leave_others_alone() {
        let other = json!([{"key": "dedicated", "effect": "NoSchedule"}]);
        assert_eq!(taints(&node("True", other.clone())), None);
        assert_eq!(
            taints(&node("Unknown", other)),
            Some(vec![
                "dedicated:NoSchedule".into(),
                "node.kubernetes.io/unreachable:NoSchedule".into(),
                "node.kubernetes.io/unreachable:NoExecute".into(),
            ])
        );
        let unreachable = json!([
            {"key": UNREACHABLE, "effect": NO_SCHEDULE}, {"key": UNREACHABLE, "effect": NO_EXECUTE}]);
        assert_eq!(taints(&node("True", unreachable.clone())), Some(vec![]));
        assert_eq!(taints(&node("Unknown", unreachable.clone())), None);
        assert_eq!(
            taints(&node("False", unreachable)),
            Some(vec![
                "node.kubernetes.io/not-ready:NoSchedule".into(),
                "node.kubernetes.io/not-ready:NoExecute".into(),
            ])
        );
    }
}
