//! Scores prefer what upstream's defaults prefer.

use std::sync::Arc;

use serde_json::{Value, json};

use super::*;

fn pod(name: &str, spec: Value) -> Pod {
    let mut spec = spec;
    if spec.get("containers").is_none() {
        spec["containers"] = json!([{"name": "c", "image": "web"}]);
    }
    serde_json::from_value(json!({
        "metadata": {"name": name, "uid": name, "namespace": "ns", "labels": {"app": "web"}},
        "spec": spec,
    }))
    .expect("a pod")
}

fn node(name: &str, extra: Value, pods: usize) -> NodeInfo {
    let mut value = json!({
        "metadata": {"name": name, "labels": extra["labels"].clone()},
        "spec": {"taints": extra["taints"].clone()},
        "status": {"allocatable": {"cpu": "4", "memory": "8Gi", "pods": "110"},
            "images": extra["images"].clone()},
    });
    for pointer in ["/metadata/labels", "/spec/taints", "/status/images"] {
        if let Some(field) = value.pointer_mut(pointer)
            && field.is_null()
        {
            *field = if pointer == "/metadata/labels" {
                json!({})
            } else {
                json!([])
            };
        }
    }
    let pods = (0..pods)
        .map(|i| Arc::new(pod(&format!("{name}-{i}"), json!({}))))
        .collect();
    NodeInfo::new(
        Arc::new(serde_json::from_value(value).expect("a node")),
        pods,
    )
}

fn best(pod: &Pod, nodes: &[NodeInfo]) -> String {
    let selector = Selector::from_labels(Some(&[("app".to_owned(), "web".to_owned())].into()));
    let nodes: Vec<&NodeInfo> = nodes.iter().collect();
    let scores = score(pod, Some(&selector), &nodes, nodes.len());
    let best = (0..nodes.len()).max_by(|a, b| scores[*a].total_cmp(&scores[*b]));
    nodes[best.expect("there are nodes")].name().to_owned()
}

#[test]
fn pods_of_one_service_are_spread_over_nodes() {
    let nodes = [
        node("a", json!({}), 2),
        node("b", json!({}), 1),
        node("c", json!({}), 2),
    ];
    assert_eq!(best(&pod("p", json!({})), &nodes), "b");
}

#[test]
fn a_preferred_label_wins_over_an_even_spread() {
    let preferred = json!({"affinity": {"nodeAffinity": {
        "preferredDuringSchedulingIgnoredDuringExecution": [{"weight": 100, "preference":
            {"matchExpressions": [{"key": "disk", "operator": "In", "values": ["ssd"]}]}}]}}});
    let nodes = [
        node("a", json!({}), 0),
        node("b", json!({"labels": {"disk": "ssd"}}), 0),
    ];
    assert_eq!(best(&pod("p", preferred), &nodes), "b");
}

#[test]
fn a_node_with_a_soft_taint_is_the_last_choice() {
    let soft = json!({"taints": [{"key": "k", "effect": "PreferNoSchedule"}]});
    let nodes = [node("a", soft, 0), node("b", json!({}), 0)];
    assert_eq!(best(&pod("p", json!({})), &nodes), "b");
}

#[test]
fn a_node_that_has_the_image_is_preferred_among_equals() {
    let image = json!({"images": [{"names": ["web:latest"], "sizeBytes": 500_000_000}]});
    let nodes = [node("a", json!({}), 0), node("b", image, 0)];
    assert_eq!(best(&pod("p", json!({})), &nodes), "b");
}
