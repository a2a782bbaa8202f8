//! Every filter refuses in upstream's words.

use std::sync::Arc;

use serde_json::{Value, json};

use super::*;

fn pod(spec: Value) -> Pod {
    let mut spec = spec;
    if spec.get("containers").is_none() {
        spec["containers"] = json!([{"name": "c"}]);
    }
    serde_json::from_value(json!({"metadata": {"name": "p", "uid": "p"}, "spec": spec}))
        .expect("a pod")
}

fn node(spec: Value, pods: Vec<Pod>) -> NodeInfo {
    let node = serde_json::from_value(json!({
        "metadata": {"name": "n1", "labels": {"disk": "ssd", "cores": "8"}}, "spec": spec,
        "status": {"allocatable": {"cpu": "2", "memory": "1Gi", "pods": "2"}},
    }));
    NodeInfo::new(
        Arc::new(node.expect("a node")),
        pods.into_iter().map(Arc::new).collect(),
    )
}

fn reasons(pod_spec: Value, info: &NodeInfo) -> Vec<String> {
    filter(&pod(pod_spec), info)
        .err()
        .map(|rejection| rejection.reasons)
        .unwrap_or_default()
}

fn affinity(operator: &str, key: &str, values: &[&str]) -> Value {
    json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
        {"nodeSelectorTerms": [{"matchExpressions":
            [{"key": key, "operator": operator, "values": values}]}]}}}})
}

#[test]
fn resources_that_do_not_fit_are_named() {
    let asks = |cpu: &str, memory: &str| json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": cpu, "memory": memory}}}]});
    let empty = node(json!({}), vec![]);
    assert!(reasons(asks("2", "1Gi"), &empty).is_empty());
    assert_eq!(
        reasons(asks("2001m", "2Gi"), &empty),
        ["Insufficient cpu", "Insufficient memory"]
    );
    let used = node(json!({}), vec![pod(asks("1500m", "1Mi"))]);
    assert_eq!(reasons(asks("600m", "1Mi"), &used), ["Insufficient cpu"]);
    let full = node(json!({}), vec![pod(json!({})), pod(json!({}))]);
    assert_eq!(reasons(json!({}), &full), ["Too many pods"]);
}

#[test]
fn a_request_larger_than_the_node_cannot_be_helped_by_preemption() {
    let asks = json!({"containers": [{"name": "c", "resources": {"requests": {"cpu": "3"}}}]});
    let rejection = filter(&pod(asks), &node(json!({}), vec![])).expect_err("too large");
    assert!(rejection.unresolvable);
}

#[test]
fn taints_keep_pods_away_unless_they_are_tolerated() {
    let tainted = |effect: &str| {
        node(
            json!({"taints": [{"key": "dedicated", "value": "db", "effect": effect}]}),
            vec![],
        )
    };
    let text = ["node(s) had untolerated taint {dedicated: db}"];
    assert_eq!(reasons(json!({}), &tainted("NoSchedule")), text);
    assert_eq!(reasons(json!({}), &tainted("NoExecute")), text);
    assert!(reasons(json!({}), &tainted("PreferNoSchedule")).is_empty());
    for (toleration, admitted) in [
        (
            json!({"key": "dedicated", "operator": "Equal", "value": "db"}),
            true,
        ),
        (json!({"key": "dedicated", "value": "web"}), false),
        (json!({"key": "dedicated", "operator": "Exists"}), true),
        (json!({"operator": "Exists"}), true),
        (
            json!({"key": "dedicated", "operator": "Exists", "effect": "NoExecute"}),
            false,
        ),
    ] {
        let found = reasons(json!({"tolerations": [toleration]}), &tainted("NoSchedule"));
        assert_eq!(found.is_empty(), admitted, "{toleration}");
    }
}

#[test]
fn a_cordoned_node_is_named_before_its_taint() {
    let cordoned = node(
        json!({"unschedulable": true, "taints": [{"key": UNSCHEDULABLE, "effect": "NoSchedule"}]}),
        vec![],
    );
    assert_eq!(
        reasons(json!({}), &cordoned),
        ["node(s) were unschedulable"]
    );
}

#[test]
fn selectors_and_affinity_choose_nodes_by_label() {
    let info = node(json!({}), vec![]);
    let text = ["node(s) didn't match Pod's node affinity/selector"];
    assert!(reasons(json!({"nodeSelector": {"disk": "ssd"}}), &info).is_empty());
    assert_eq!(
        reasons(json!({"nodeSelector": {"disk": "hdd"}}), &info),
        text
    );
    for (operator, key, values, admitted) in [
        ("In", "disk", &["ssd", "nvme"][..], true),
        ("In", "disk", &["hdd"], false),
        ("NotIn", "disk", &["hdd"], true),
        ("NotIn", "none", &["x"], true),
        ("Exists", "disk", &[], true),
        ("DoesNotExist", "disk", &[], false),
        ("Gt", "cores", &["4"], true),
        ("Gt", "cores", &["8"], false),
        ("Lt", "cores", &["16"], true),
        ("Lt", "disk", &["16"], false),
    ] {
        let found = reasons(affinity(operator, key, values), &info);
        assert_eq!(found.is_empty(), admitted, "{operator} {key} {values:?}");
    }
    let no_terms = json!({"affinity": {"nodeAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [{}]}}}});
    assert_eq!(
        reasons(no_terms, &info),
        text,
        "an empty term matches nothing"
    );
}

#[test]
fn host_ports_clash_by_protocol_and_address() {
    let wants = |protocol: &str, ip: &str| {
        json!({"containers": [{"name": "c", "ports": [
            {"containerPort": 80, "hostPort": 8080, "protocol": protocol, "hostIP": ip}]}]})
    };
    let text = ["node(s) didn't have free ports for the requested pod ports"];
    let used = node(json!({}), vec![pod(wants("TCP", "10.0.0.1"))]);
    assert_eq!(reasons(wants("TCP", "10.0.0.1"), &used), text);
    assert_eq!(reasons(wants("TCP", ""), &used), text);
    assert!(reasons(wants("UDP", ""), &used).is_empty());
    assert!(reasons(wants("TCP", "10.0.0.2"), &used).is_empty());
}
