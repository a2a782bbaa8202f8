//! EndpointSlices: where Services' traffic can go.

use std::net::IpAddr;
use std::time::SystemTime;

use k8s_openapi::api::discovery::v1 as discovery_v1;
use kube::{Api, Client, ResourceExt};
use tholepin_model::service::{
    Conditions, Endpoint, EndpointPort, EndpointSlice, ServiceName, SliceName,
};
use tokio_util::sync::CancellationToken;

use super::changes::{ServiceChanges, record};
use super::follow::{Change, Parsed, follow};
use super::services::{PROXY_NAME_LABEL, port_number, protocol_of};

const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";
/// When the change of a pod or Service happened that the slice tells of.
const TRIGGER_ANNOTATION: &str = "endpoints.kubernetes.io/last-change-trigger-time";
/// On the slices of headless Services.
const HEADLESS_LABEL: &str = "service.kubernetes.io/headless";

/// Why an endpoint or port of a slice is not used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidEndpointSlice {
    #[error("address {address:?} is not an IP address")]
    InvalidAddress { address: String },
    #[error("port {port} is not between 1 and 65535")]
    InvalidPort { port: i32 },
}

/// Follows EndpointSlices until cancelled.
pub async fn watch(client: Client, changes: ServiceChanges, cancel: CancellationToken) {
    let parse = |object: &discovery_v1::EndpointSlice| {
        let name = name_of(object);
        let Some((slice, problems)) = slice_of(object) else {
            return Parsed::Unwanted(name);
        };
        for problem in problems {
            let slice = format!("{}/{}", name.namespace, name.name);
            tracing::warn!(slice, reason = %problem, "part of an EndpointSlice is ignored");
        }
        Parsed::Wanted(name, slice)
    };
    let apply = |change: Change<SliceName, EndpointSlice>| {
        changes.change(|changes| {
            changes.sync.slices |= matches!(change, Change::Replace(_));
            if let Change::Apply(_, slice) = &change {
                changes.triggers.extend(slice.triggered_at);
            }
            record(&mut changes.slices, change);
        });
    };
    follow(Api::all(client), parse, apply, cancel).await;
}

fn name_of(object: &discovery_v1::EndpointSlice) -> SliceName {
    SliceName {
        namespace: object.namespace().unwrap_or_default(),
        name: object.name_any(),
    }
}

/// The slice with what cannot be used of it; `None` when it belongs to no Service of ours or has no IP
/// addresses.
#[must_use]
pub fn slice_of(
    object: &discovery_v1::EndpointSlice,
) -> Option<(EndpointSlice, Vec<InvalidEndpointSlice>)> {
    let service = object.labels().get(SERVICE_NAME_LABEL)?;
    let labels = object.labels();
    let others = labels.contains_key(PROXY_NAME_LABEL) || labels.contains_key(HEADLESS_LABEL);
    if object.address_type == "FQDN" || others {
        return None;
    }
    let name = name_of(object);
    let mut problems = Vec::new();
    let mut ports = Vec::new();
    for port in object.ports.as_deref().unwrap_or_default() {
        // A protocol we do not balance belongs to a Service port that is already reported.
        let Some(protocol) = protocol_of(port.protocol.as_deref().unwrap_or("TCP")) else {
            continue;
        };
        // A slice without a port number means all ports, which only headless Services have.
        let Some(number) = port.port else { continue };
        match port_number(number) {
            Some(number) => ports.push(EndpointPort {
                name: port.name.clone().unwrap_or_default(),
                protocol,
                port: number,
            }),
            None => problems.push(InvalidEndpointSlice::InvalidPort { port: number }),
        }
    }
    let mut endpoints = Vec::new();
    for endpoint in &object.endpoints {
        // All addresses of one endpoint are fungible; everyone uses the first.
        let Some(address) = endpoint.addresses.first() else {
            continue;
        };
        match address.parse::<IpAddr>() {
            Ok(address) => endpoints.push(Endpoint {
                address,
                conditions: conditions_of(endpoint.conditions.as_ref()),
                node_name: endpoint.node_name.clone(),
                node_hints: hints(endpoint, |hints| {
                    let nodes = hints.for_nodes.as_deref().unwrap_or_default();
                    nodes.iter().map(|node| node.name.clone()).collect()
                }),
                zone_hints: hints(endpoint, |hints| {
                    let zones = hints.for_zones.as_deref().unwrap_or_default();
                    zones.iter().map(|zone| zone.name.clone()).collect()
                }),
            }),
            Err(_) => {
                problems.push(InvalidEndpointSlice::InvalidAddress {
                    address: address.clone(),
                });
            }
        }
    }
    let service = ServiceName {
        namespace: name.namespace.clone(),
        name: service.clone(),
    };
    Some((
        EndpointSlice {
            name,
            service,
            ports,
            endpoints,
            triggered_at: object
                .annotations()
                .get(TRIGGER_ANNOTATION)
                .and_then(|text| text.parse::<jiff::Timestamp>().ok())
                .map(SystemTime::from),
        },
        problems,
    ))
}

fn hints(
    endpoint: &discovery_v1::Endpoint,
    of: impl Fn(&discovery_v1::EndpointHints) -> Vec<String>,
) -> Vec<String> {
    endpoint.hints.as_ref().map(of).unwrap_or_default()
}

/// Kubernetes' defaults: unknown readiness is ready, serving follows ready, terminating is no.
fn conditions_of(conditions: Option<&discovery_v1::EndpointConditions>) -> Conditions {
    let ready = conditions.and_then(|c| c.ready).unwrap_or(true);
    Conditions {
        ready,
        serving: conditions.and_then(|c| c.serving).unwrap_or(ready),
        terminating: conditions.and_then(|c| c.terminating).unwrap_or(false),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(
        endpoints: serde_json::Value,
        ports: serde_json::Value,
    ) -> Option<(EndpointSlice, Vec<InvalidEndpointSlice>)> {
        let object = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
            "metadata": {"name": "web-1", "namespace": "default", "labels": {SERVICE_NAME_LABEL: "web"}},
            "addressType": "IPv4", "endpoints": endpoints, "ports": ports,
        });
        slice_of(&serde_json::from_value(object).unwrap())
    }

    #[test]
    fn missing_conditions_mean_ready_and_serving_follows_ready() {
        let endpoints = json!([
            {"addresses": ["10.244.0.5"], "nodeName": "n1"},
            {"addresses": ["10.244.0.6"], "conditions": {"ready": false}},
            {"addresses": ["10.244.0.7"], "conditions": {"ready": false, "serving": true, "terminating": true}},
        ]);
        let (slice, problems) = parse(
            endpoints,
            json!([{"name": "", "port": 80, "protocol": "TCP"}]),
        )
        .unwrap();
        let conditions: Vec<_> = slice.endpoints.iter().map(|e| e.conditions).collect();
        assert_eq!(
            conditions[0],
            Conditions {
                ready: true,
                serving: true,
                terminating: false
            }
        );
        assert_eq!(
            conditions[1],
            Conditions {
                ready: false,
                serving: false,
                terminating: false
            }
        );
        assert_eq!(
            conditions[2],
            Conditions {
                ready: false,
                serving: true,
                terminating: true
            }
        );
        assert_eq!(problems, []);
    }

    #[test]
    fn hints_are_kept_and_slices_of_others_are_not() {
        let endpoints = json!([{
            "addresses": ["10.244.0.5"],
            "hints": {"forZones": [{"name": "a"}, {"name": "b"}], "forNodes": [{"name": "n1"}]},
        }]);
        let (slice, _) = parse(endpoints, json!([{"port": 80}])).unwrap();
        assert_eq!(slice.endpoints[0].zone_hints, ["a", "b"]);
        assert_eq!(slice.endpoints[0].node_hints, ["n1"]);
        for label in [PROXY_NAME_LABEL, HEADLESS_LABEL] {
            let labels = json!({SERVICE_NAME_LABEL: "web", label: ""});
            let object = json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": {"name": "web-1", "namespace": "default", "labels": labels},
                "addressType": "IPv4", "endpoints": [], "ports": [],
            });
            assert!(slice_of(&serde_json::from_value(object).unwrap()).is_none());
        }
    }

    #[test]
    fn a_bad_address_is_named_and_costs_only_itself() {
        let endpoints = json!([{"addresses": ["web.example"]}, {"addresses": ["10.244.0.6"]}]);
        let (slice, problems) = parse(endpoints, json!([{"port": 80}])).unwrap();
        assert_eq!(slice.endpoints.len(), 1);
        assert_eq!(
            problems[0].to_string(),
            "address \"web.example\" is not an IP address"
        );
    }
}
