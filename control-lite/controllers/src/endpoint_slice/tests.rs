//! Slices change as little as possible, and never hold more than a hundred endpoints.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use serde_json::{Value, json};

use super::desired::groups;
use super::plan::{Plan, plan};
use crate::service_pods::Family;

fn service(ports: Value) -> Service {
    serde_json::from_value(json!({
        "metadata": {"name": "web", "namespace": "ns", "uid": "s"},
        "spec": {"selector": {"app": "web"}, "ports": ports, "clusterIP": "10.96.0.9"},
    }))
    .expect("a service")
}

fn http() -> Service {
    service(json!([{"name": "http", "port": 80, "targetPort": "http", "protocol": "TCP"}]))
}

fn pod(number: usize, port: i32, extra: Value) -> Arc<Pod> {
    let ready = extra.get("ready").and_then(Value::as_bool).unwrap_or(true);
    let mut value = json!({
        "metadata": {"name": format!("p{number:03}"), "namespace": "ns", "uid": format!("u{number}")},
        "spec": {"nodeName": "n1", "containers": [{"name": "c",
            "ports": [{"name": "http", "containerPort": port}]}]},
        "status": {"phase": "Running", "podIP": format!("10.0.{}.{}", number / 200, number % 200),
            "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]},
    });
    if extra.get("terminating").is_some() {
        value["metadata"]["deletionTimestamp"] = json!("2026-01-01T00:00:00Z");
    }
    Arc::new(serde_json::from_value(value).expect("a pod"))
}

fn planned(service: &Service, pods: &[Arc<Pod>], existing: &[Arc<EndpointSlice>]) -> Plan {
    let zone = |_: &str| Some("z1".to_owned());
    plan(
        service,
        Family::V4,
        groups(service, Family::V4, pods, &zone),
        existing,
    )
}

/// The slices after a plan, as the server would hold them.
fn apply(existing: &[Arc<EndpointSlice>], plan: Plan) -> Vec<Arc<EndpointSlice>> {
    let mut slices: Vec<Arc<EndpointSlice>> = existing.to_vec();
    for (before, after) in plan.update {
        slices.retain(|slice| slice.metadata.name != before.metadata.name);
        slices.push(Arc::new(after));
    }
    slices.retain(|slice| {
        !plan
            .delete
            .iter()
            .any(|d| d.metadata.name == slice.metadata.name)
    });
    for mut slice in plan.create {
        slice.metadata.name = Some(format!("web-{}", slices.len()));
        slices.push(Arc::new(slice));
    }
    slices
}

#[test]
fn an_endpoint_says_where_it_is_and_how_it_is() {
    let pods = [
        pod(1, 8080, json!({})),
        pod(2, 8080, json!({"ready": false})),
        pod(3, 8080, json!({"terminating": true})),
    ];
    let plan = planned(&http(), &pods, &[]);
    let [slice] = plan.create.as_slice() else {
        panic!("one slice, not {plan:?}")
    };
    let ports = slice.ports.as_ref().expect("ports");
    assert_eq!(
        (ports[0].name.as_deref(), ports[0].port),
        (Some("http"), Some(8080))
    );
    let state: Vec<_> = slice
        .endpoints
        .iter()
        .map(|endpoint| {
            let c = endpoint.conditions.as_ref().expect("conditions");
            (c.ready, c.serving, c.terminating)
        })
        .collect();
    let yes_no = |a, b, c| (Some(a), Some(b), Some(c));
    assert_eq!(
        state,
        [
            yes_no(true, true, false),
            yes_no(false, false, false),
            yes_no(false, true, true)
        ]
    );
    assert_eq!(slice.endpoints[0].zone.as_deref(), Some("z1"));
    let labels = slice.metadata.labels.as_ref().expect("labels");
    assert_eq!(labels["kubernetes.io/service-name"], "web");
    assert_eq!(
        labels["endpointslice.kubernetes.io/managed-by"],
        "endpointslice-controller.k8s.io"
    );
}

#[test]
fn pods_with_different_named_ports_get_slices_of_their_own() {
    let plan = planned(
        &http(),
        &[pod(1, 8080, json!({})), pod(2, 9090, json!({}))],
        &[],
    );
    let ports: Vec<_> = plan
        .create
        .iter()
        .filter_map(|slice| slice.ports.as_ref()?[0].port)
        .collect();
    assert_eq!(ports, [8080, 9090]);
}

#[test]
fn a_slice_holds_a_hundred_and_one_more_pod_changes_one_slice() {
    let pods: Vec<_> = (0..250).map(|i| pod(i, 80, json!({}))).collect();
    let slices = apply(&[], planned(&http(), &pods, &[]));
    let sizes: Vec<_> = slices.iter().map(|slice| slice.endpoints.len()).collect();
    assert_eq!(sizes, [100, 100, 50]);
    let again = planned(&http(), &pods, &slices);
    assert_eq!(
        (again.create.len(), again.update.len(), again.delete.len()),
        (0, 0, 0)
    );
    let more: Vec<_> = (0..251).map(|i| pod(i, 80, json!({}))).collect();
    let plan = planned(&http(), &more, &slices);
    assert_eq!(
        (plan.create.len(), plan.update.len(), plan.delete.len()),
        (0, 1, 0)
    );
    assert_eq!(plan.update[0].1.endpoints.len(), 51);
}

#[test]
fn a_service_without_pods_keeps_one_empty_slice() {
    let slices = apply(&[], planned(&http(), &[], &[]));
    assert_eq!(slices.len(), 1);
    assert!(slices[0].endpoints.is_empty());
    let plan = planned(&http(), &[], &slices);
    assert_eq!(
        (plan.create.len(), plan.update.len(), plan.delete.len()),
        (0, 0, 0)
    );
    let plan = planned(&http(), &[pod(1, 80, json!({}))], &slices);
    assert_eq!(
        (plan.create.len(), plan.update.len()),
        (0, 1),
        "the empty one is rewritten"
    );
}
