//! Services: from the API's objects to what the dataplane serves.

use std::net::IpAddr;

use k8s_openapi::api::core::v1 as core_v1;
use kube::{Api, Client, ResourceExt};
use tholepin_model::desired::Desired;
use tholepin_model::service::{Protocol, Service, ServiceName, ServicePort, TrafficPolicy};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::follow::{Change, Parsed, fold, follow};

/// Another proxy implements Services with this label.
const PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";

/// Why a Service, or one port of it, is not served.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidService {
    #[error("spec is missing")]
    MissingSpec,
    #[error("clusterIP {address:?} is not an IP address")]
    InvalidAddress { address: String },
    #[error("port {port} is not between 1 and 65535")]
    InvalidPort { port: i32 },
    #[error("protocol {protocol} of port {port} is not supported yet")]
    UnsupportedProtocol { protocol: String, port: i32 },
}

/// Follows Services until cancelled.
pub async fn watch(client: Client, desired: watch::Sender<Desired>, cancel: CancellationToken) {
    let parse = |object: &core_v1::Service| {
        let name = name_of(object);
        match service_of(object) {
            Ok(Some((service, problems))) => {
                for problem in problems {
                    tracing::warn!(service = %name, reason = %problem, "a Service port is ignored");
                }
                Parsed::Wanted(name, service)
            }
            Ok(None) => Parsed::Unwanted(name),
            Err(error) => {
                tracing::warn!(service = %name, reason = %error, "Service is ignored");
                Parsed::Unwanted(name)
            }
        }
    };
    let apply = |change| {
        desired.send_if_modified(|desired| {
            let whole = matches!(change, Change::Replace(_));
            let first = whole && !desired.sync.services;
            desired.sync.services |= whole;
            fold(&mut desired.services, change) || first
        });
    };
    follow(Api::all(client), parse, apply, cancel).await;
}

fn name_of(object: &core_v1::Service) -> ServiceName {
    ServiceName {
        namespace: object.namespace().unwrap_or_default(),
        name: object.name_any(),
    }
}

/// The Service with the ports it cannot serve; `None` when it is none of the dataplane's business:
/// headless, ExternalName, or another proxy's.
pub fn service_of(
    object: &core_v1::Service,
) -> Result<Option<(Service, Vec<InvalidService>)>, InvalidService> {
    let spec = object.spec.as_ref().ok_or(InvalidService::MissingSpec)?;
    if object.labels().contains_key(PROXY_NAME_LABEL)
        || spec.type_.as_deref() == Some("ExternalName")
    {
        return Ok(None);
    }
    let listed = spec.cluster_ips.as_deref().unwrap_or_default();
    let addresses: Vec<&str> = if listed.is_empty() {
        spec.cluster_ip.iter().map(String::as_str).collect()
    } else {
        listed.iter().map(String::as_str).collect()
    };
    if addresses.is_empty() || addresses.iter().any(|a| a.is_empty() || *a == "None") {
        return Ok(None);
    }
    let parse = |address: &&str| {
        address
            .parse::<IpAddr>()
            .map_err(|_| InvalidService::InvalidAddress {
                address: (*address).to_owned(),
            })
    };
    let cluster_ips = addresses.iter().map(parse).collect::<Result<Vec<_>, _>>()?;
    let mut ports = Vec::new();
    let mut problems = Vec::new();
    for port in spec.ports.as_deref().unwrap_or_default() {
        match port_of(port) {
            Ok(port) => ports.push(port),
            Err(problem) => problems.push(problem),
        }
    }
    let local = spec.internal_traffic_policy.as_deref() == Some("Local");
    let service = Service {
        name: name_of(object),
        created_at_secs: super::nodes::created_at_secs(&object.metadata),
        cluster_ips,
        ports,
        internal_policy: if local {
            TrafficPolicy::Local
        } else {
            TrafficPolicy::Cluster
        },
    };
    Ok(Some((service, problems)))
}

fn port_of(port: &core_v1::ServicePort) -> Result<ServicePort, InvalidService> {
    let protocol = port.protocol.as_deref().unwrap_or("TCP");
    Ok(ServicePort {
        name: port.name.clone().unwrap_or_default(),
        protocol: protocol_of(protocol).ok_or_else(|| InvalidService::UnsupportedProtocol {
            protocol: protocol.to_owned(),
            port: port.port,
        })?,
        port: port_number(port.port).ok_or(InvalidService::InvalidPort { port: port.port })?,
    })
}

/// The protocols the dataplane balances.
pub(super) fn protocol_of(name: &str) -> Option<Protocol> {
    match name {
        "TCP" => Some(Protocol::Tcp),
        "UDP" => Some(Protocol::Udp),
        _ => None,
    }
}

/// A port as the wire has it.
pub(super) fn port_number(port: i32) -> Option<u16> {
    u16::try_from(port).ok().filter(|port| *port != 0)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn parse(
        spec: serde_json::Value,
        labels: serde_json::Value,
    ) -> Option<(Service, Vec<InvalidService>)> {
        let metadata = json!({"name": "web", "namespace": "default", "labels": labels});
        let object =
            json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec});
        service_of(&serde_json::from_value(object).unwrap()).unwrap()
    }

    #[test]
    fn a_dual_stack_service_has_an_address_per_family() {
        let spec = json!({
            "clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7", "fd00:10:96::7"],
            "ports": [{"port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"}],
        });
        let (service, problems) = parse(spec, json!({})).unwrap();
        assert_eq!(service.cluster_ips.len(), 2);
        assert_eq!(service.ports[0].protocol, Protocol::Tcp);
        assert_eq!(service.ports[1].protocol, Protocol::Udp);
        assert_eq!(problems, []);
    }

    #[test]
    fn headless_external_name_and_foreign_services_are_ignored() {
        let ports = json!([{"port": 80}]);
        assert!(parse(json!({"clusterIP": "None", "ports": ports}), json!({})).is_none());
        let external = json!({"type": "ExternalName", "externalName": "x.example"});
        assert!(parse(external, json!({})).is_none());
        let foreign = json!({PROXY_NAME_LABEL: "other"});
        assert!(parse(json!({"clusterIP": "10.96.0.7", "ports": ports}), foreign).is_none());
    }

    #[test]
    fn a_bad_port_is_named_and_costs_only_itself() {
        let spec = json!({
            "clusterIP": "10.96.0.7",
            "ports": [{"port": 80}, {"name": "s", "port": 9, "protocol": "SCTP"}, {"name": "z", "port": 70000}],
        });
        let (service, problems) = parse(spec, json!({})).unwrap();
        assert_eq!(service.ports.len(), 1);
        assert_eq!(
            problems[0].to_string(),
            "protocol SCTP of port 9 is not supported yet"
        );
        assert_eq!(problems[1], InvalidService::InvalidPort { port: 70000 });
    }
}
