//! Services: from the API's objects to what the dataplane serves.

use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1 as core_v1;
use kube::{Api, Client, ResourceExt};
use tholepin_model::service::{
    Forwarding, Protocol, Selection, Service, ServiceName, ServicePort, TrafficPolicy,
};
use tokio_util::sync::CancellationToken;

use super::changes::{ServiceChanges, record};
use super::follow::{Change, Parsed, follow};

/// Another proxy implements Services with this label.
pub(super) const PROXY_NAME_LABEL: &str = "service.kubernetes.io/service-proxy-name";
/// `maglev` or `random`: how this Service's backends are chosen.
const SELECTION_ANNOTATION: &str = "tholepin.io/load-balancing";
/// `dsr` or `snat`: whether this Service's backends see clients from outside.
const FORWARDING_ANNOTATION: &str = "tholepin.io/forwarding";
/// Upstream's default of `sessionAffinityConfig.clientIP.timeoutSeconds`.
const AFFINITY_TIMEOUT_SECS: u32 = 10_800;
/// Upstream's largest: a day.
const AFFINITY_TIMEOUT_MAX_SECS: u32 = 86_400;

/// Why a Service, or part of it, is not served as it says.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidService {
    #[error("spec is missing")]
    MissingSpec,
    #[error("{field} {address:?} is not an IP address")]
    InvalidAddress {
        field: &'static str,
        address: String,
    },
    #[error("loadBalancerSourceRanges {range:?} is not an IP range; nobody comes in by it")]
    InvalidRange { range: String },
    #[error("{field} {port} is not between 1 and 65535")]
    InvalidPort { field: &'static str, port: i32 },
    #[error("protocol {protocol} of port {port} is not known")]
    UnknownProtocol { protocol: String, port: i32 },
    #[error("{field} {value:?} is not known; {used} is used")]
    UnknownValue {
        field: &'static str,
        value: String,
        used: &'static str,
    },
    #[error(
        "the affinity timeout of {secs} s is not between 1 and 86400 s; {AFFINITY_TIMEOUT_SECS} s are used"
    )]
    InvalidTimeout { secs: i32 },
}

/// Follows Services until cancelled.
pub async fn watch(client: Client, changes: ServiceChanges, cancel: CancellationToken) {
    let parse = |object: &core_v1::Service| {
        let name = name_of(object);
        match service_of(object) {
            Ok(Some(service)) => Parsed::Wanted(name, service),
            Ok(None) => Parsed::Unwanted(name),
            Err(error) => {
                tracing::warn!(service = %name, reason = %error, "Service is ignored");
                Parsed::Unwanted(name)
            }
        }
    };
    let apply = |change| {
        changes.know(&change);
        changes.change(|changes| {
            changes.sync.services |= matches!(change, Change::Replace(_));
            record(&mut changes.services, change);
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

/// Collects what of an object could not be used.
#[derive(Default)]
struct Complaints(Vec<String>);

impl Complaints {
    fn add(&mut self, problem: &InvalidService) {
        self.0.push(problem.to_string());
    }

    fn addresses<'a>(
        &mut self,
        field: &'static str,
        texts: impl IntoIterator<Item = &'a String>,
    ) -> Vec<IpAddr> {
        let mut addresses = Vec::new();
        for text in texts {
            match text.trim().parse::<IpAddr>() {
                Ok(address) if !addresses.contains(&address) => addresses.push(address),
                Ok(_) => {}
                Err(_) => self.add(&InvalidService::InvalidAddress {
                    field,
                    address: text.clone(),
                }),
            }
        }
        addresses
    }

    /// One of a few words; the first is the default.
    fn choice<T: Copy>(
        &mut self,
        field: &'static str,
        value: Option<&str>,
        known: [(&'static str, T); 2],
    ) -> T {
        match known.iter().find(|(word, _)| Some(*word) == value) {
            Some((_, chosen)) => *chosen,
            None => {
                if let Some(value) = value.filter(|value| !value.is_empty()) {
                    self.add(&InvalidService::UnknownValue {
                        field,
                        value: value.to_owned(),
                        used: known[0].0,
                    });
                }
                known[0].1
            }
        }
    }
}

/// The Service, with complaints about what of it is not used; `None` when it is none of the
/// dataplane's business: headless, ExternalName, or another proxy's.
pub fn service_of(object: &core_v1::Service) -> Result<Option<Service>, InvalidService> {
    let spec = object.spec.as_ref().ok_or(InvalidService::MissingSpec)?;
    let kind = spec.type_.as_deref().unwrap_or("ClusterIP");
    if object.labels().contains_key(PROXY_NAME_LABEL) || kind == "ExternalName" {
        return Ok(None);
    }
    let first = spec.cluster_ip.as_ref();
    if first.is_none_or(|ip| ip.is_empty() || ip == "None") {
        return Ok(None);
    }
    let mut complaints = Complaints::default();
    let listed = spec.cluster_ips.as_deref().unwrap_or_default();
    let listed: Vec<&String> = match listed.is_empty() {
        true => first.into_iter().collect(),
        false => listed.iter().collect(),
    };
    let cluster_ips = complaints.addresses("clusterIP", listed);
    let has_node_ports = kind == "NodePort" || kind == "LoadBalancer";
    let mut ports = Vec::new();
    for port in spec.ports.as_deref().unwrap_or_default() {
        match port_of(port, has_node_ports) {
            Ok(port) => ports.push(port),
            Err(problem) => complaints.add(&problem),
        }
    }
    let external_ips = complaints.addresses(
        "externalIPs",
        spec.external_ips.as_deref().unwrap_or_default(),
    );
    let load_balancer_ips = match kind {
        "LoadBalancer" => complaints.addresses("load balancer address", ingress_ips(object)),
        _ => Vec::new(),
    };
    let policies = [
        ("Cluster", TrafficPolicy::Cluster),
        ("Local", TrafficPolicy::Local),
    ];
    let internal = spec.internal_traffic_policy.as_deref();
    let external = spec.external_traffic_policy.as_deref();
    let annotation = |name: &str| object.annotations().get(name).map(String::as_str);
    let external_policy = complaints.choice("externalTrafficPolicy", external, policies);
    let needs_health_check = kind == "LoadBalancer" && external_policy == TrafficPolicy::Local;
    let selections = [("random", Selection::Random), ("maglev", Selection::Maglev)];
    let forwardings = [
        ("dsr", Forwarding::Direct),
        ("snat", Forwarding::Masquerade),
    ];
    let forwarding = annotation(FORWARDING_ANNOTATION)
        .filter(|value| {
            ["dsr", "snat"].contains(value) || {
                complaints.add(&InvalidService::UnknownValue {
                    field: FORWARDING_ANNOTATION,
                    value: (*value).to_owned(),
                    used: "the node's default",
                });
                false
            }
        })
        .map(|value| complaints.choice(FORWARDING_ANNOTATION, Some(value), forwardings));
    Ok(Some(Service {
        name: name_of(object),
        uid: object.uid().unwrap_or_default(),
        created_at_secs: super::nodes::created_at_secs(&object.metadata),
        cluster_ips,
        external_ips,
        load_balancer_ips,
        source_ranges: source_ranges(spec, &mut complaints),
        ports,
        internal_policy: complaints.choice("internalTrafficPolicy", internal, policies),
        external_policy,
        affinity_timeout_secs: affinity_timeout(spec, &mut complaints),
        selection: complaints.choice(
            SELECTION_ANNOTATION,
            annotation(SELECTION_ANNOTATION),
            selections,
        ),
        forwarding,
        health_check_node_port: spec
            .health_check_node_port
            .filter(|_| needs_health_check)
            .and_then(port_number),
        complaints: complaints.0,
    }))
}

/// Addresses that reach the nodes as they are. In mode Proxy the load balancer answers for itself.
fn ingress_ips(object: &core_v1::Service) -> impl Iterator<Item = &String> {
    let status = object
        .status
        .as_ref()
        .and_then(|status| status.load_balancer.as_ref());
    let ingress = status.and_then(|status| status.ingress.as_deref());
    let ours = ingress.unwrap_or_default().iter();
    ours.filter(|ingress| ingress.ip_mode.as_deref() != Some("Proxy"))
        .filter_map(|ingress| ingress.ip.as_ref().filter(|ip| !ip.is_empty()))
}

/// A range that cannot be read lets nobody in, but it still says that the Service is not for everybody.
fn source_ranges(spec: &core_v1::ServiceSpec, complaints: &mut Complaints) -> Vec<IpNet> {
    let listed = spec
        .load_balancer_source_ranges
        .as_deref()
        .unwrap_or_default();
    let mut ranges = Vec::new();
    for text in listed {
        match text.trim().parse::<IpNet>() {
            Ok(range) => ranges.push(range.trunc()),
            Err(_) => complaints.add(&InvalidService::InvalidRange {
                range: text.clone(),
            }),
        }
    }
    if ranges.is_empty() && !listed.is_empty() {
        let nobody = ["0.0.0.0/32", "::/128"].map(|text| text.parse().expect("a constant range"));
        ranges.extend::<[IpNet; 2]>(nobody);
    }
    ranges
}

fn affinity_timeout(spec: &core_v1::ServiceSpec, complaints: &mut Complaints) -> Option<u32> {
    let known = [("None", false), ("ClientIP", true)];
    if !complaints.choice("sessionAffinity", spec.session_affinity.as_deref(), known) {
        return None;
    }
    let config = spec.session_affinity_config.as_ref();
    let client_ip = config.and_then(|config| config.client_ip.as_ref());
    let Some(secs) = client_ip.and_then(|client_ip| client_ip.timeout_seconds) else {
        return Some(AFFINITY_TIMEOUT_SECS);
    };
    let valid = u32::try_from(secs)
        .ok()
        .filter(|s| (1..=AFFINITY_TIMEOUT_MAX_SECS).contains(s));
    if valid.is_none() {
        complaints.add(&InvalidService::InvalidTimeout { secs });
    }
    Some(valid.unwrap_or(AFFINITY_TIMEOUT_SECS))
}

fn port_of(
    port: &core_v1::ServicePort,
    has_node_ports: bool,
) -> Result<ServicePort, InvalidService> {
    let protocol = port.protocol.as_deref().unwrap_or("TCP");
    let number = |field, port| port_number(port).ok_or(InvalidService::InvalidPort { field, port });
    let node_port = port.node_port.filter(|port| has_node_ports && *port != 0);
    Ok(ServicePort {
        name: port.name.clone().unwrap_or_default(),
        protocol: protocol_of(protocol).ok_or_else(|| InvalidService::UnknownProtocol {
            protocol: protocol.to_owned(),
            port: port.port,
        })?,
        port: number("port", port.port)?,
        node_port: node_port.map(|port| number("nodePort", port)).transpose()?,
    })
}

/// The protocols the dataplane balances.
pub(super) fn protocol_of(name: &str) -> Option<Protocol> {
    match name {
        "TCP" => Some(Protocol::Tcp),
        "UDP" => Some(Protocol::Udp),
        "SCTP" => Some(Protocol::Sctp),
        _ => None,
    }
}

/// A port as the wire has it.
pub(super) fn port_number(port: i32) -> Option<u16> {
    u16::try_from(port).ok().filter(|port| *port != 0)
}

#[cfg(test)]
mod tests;
