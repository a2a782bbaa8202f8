//! What a Service's slices should hold, before it is spread over slices.

use std::collections::BTreeMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, Service};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort};
use tholepin_informer::is_pod_ready;

use crate::service_pods::{
    Family, ResolvedPort, address, hostname, is_candidate, node_name, pod_reference,
    publishes_not_ready, resolve_ports,
};

/// Endpoints of one family by the ports they serve: pods may differ in what a named port means.
pub(super) type Groups = BTreeMap<Vec<ResolvedPort>, Vec<Endpoint>>;

/// Groups the pods of a Service. `zone_of` gives a node's zone.
pub(super) fn groups(
    service: &Service,
    family: Family,
    pods: &[Arc<Pod>],
    zone_of: &dyn Fn(&str) -> Option<String>,
) -> Groups {
    let mut groups = Groups::new();
    for pod in pods.iter().filter(|pod| is_candidate(pod, true)) {
        let Some(address) = address(pod, family) else {
            continue;
        };
        let endpoint = endpoint(service, pod, address, zone_of);
        groups
            .entry(resolve_ports(service, pod))
            .or_default()
            .push(endpoint);
    }
    groups
}

fn endpoint(
    service: &Service,
    pod: &Pod,
    address: String,
    zone_of: &dyn Fn(&str) -> Option<String>,
) -> Endpoint {
    let terminating = pod.metadata.deletion_timestamp.is_some();
    let serving = publishes_not_ready(service) || is_pod_ready(pod);
    let ready = publishes_not_ready(service) || (serving && !terminating);
    let node = node_name(pod);
    Endpoint {
        addresses: vec![address],
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hostname: hostname(service, pod),
        zone: node.as_deref().and_then(zone_of),
        node_name: node,
        target_ref: Some(pod_reference(pod)),
        ..Default::default()
    }
}

/// The ports as a slice lists them.
pub(super) fn slice_ports(ports: &[ResolvedPort]) -> Vec<EndpointPort> {
    ports
        .iter()
        .map(|port| EndpointPort {
            name: Some(port.name.clone()),
            protocol: Some(port.protocol.clone()),
            port: Some(port.port),
            app_protocol: port.app_protocol.clone(),
        })
        .collect()
}

/// The reverse of [`slice_ports`], to compare with slices that exist.
pub(super) fn resolved_ports(ports: Option<&Vec<EndpointPort>>) -> Vec<ResolvedPort> {
    let mut resolved: Vec<ResolvedPort> = ports
        .into_iter()
        .flatten()
        .map(|port| ResolvedPort {
            name: port.name.clone().unwrap_or_default(),
            protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
            port: port.port.unwrap_or(0),
            app_protocol: port.app_protocol.clone(),
        })
        .collect();
    resolved.sort();
    resolved
}
