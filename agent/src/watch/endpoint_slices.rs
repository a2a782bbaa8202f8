//! EndpointSlices: where Services' traffic can go.

use std::net::IpAddr;

use k8s_openapi::api::discovery::v1 as discovery_v1;
use kube::{Api, Client, ResourceExt};
use tholepin_model::desired::Desired;
use tholepin_model::service::{
    Conditions, Endpoint, EndpointPort, EndpointSlice, ServiceName, SliceName,
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::follow::{Change, Parsed, fold, follow};
use super::services::{port_number, protocol_of};

const SERVICE_NAME_LABEL: &str = "kubernetes.io/service-name";

/// Why an endpoint or port of a slice is not used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidEndpointSlice {
    #[error("address {address:?} is not an IP address")]
    InvalidAddress { address: String },
    #[error("port {port} is not between 1 and 65535")]
    InvalidPort { port: i32 },
}

/// Follows EndpointSlices until cancelled.
pub async fn watch(client: Client, desired: watch::Sender<Desired>, cancel: CancellationToken) {
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
    let apply = |change| {
        desired.send_if_modified(|desired| {
            let whole = matches!(change, Change::Replace(_));
            let first = whole && !desired.sync.endpoint_slices;
            desired.sync.endpoint_slices |= whole;
            fold(&mut desired.slices, change) || first
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

/// The slice with what cannot be used of it; `None` when it belongs to no Service or has no IP addresses.
#[must_use]
pub fn slice_of(
    object: &discovery_v1::EndpointSlice,
) -> Option<(EndpointSlice, Vec<InvalidEndpointSlice>)> {
    let service = object.labels().get(SERVICE_NAME_LABEL)?;
    if object.address_type == "FQDN" {
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
        },
        problems,
    ))
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
