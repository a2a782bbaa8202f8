//! What EndpointSlices and Endpoints have in common: which pods serve a Service, under which ports.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{ObjectReference, Pod, Service, ServicePort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tholepin_informer::{Caches, Change, ObjectKey, Selector, WorkQueue, is_pod_terminal};

/// An IP family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Family {
    V4,
    V6,
}

impl Family {
    /// The `addressType` of an EndpointSlice, which is also the name in `spec.ipFamilies`.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        }
    }

    fn of(address: &str) -> Self {
        if address.contains(':') {
            Self::V6
        } else {
            Self::V4
        }
    }
}

/// A port of a slice as one pod serves it.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct ResolvedPort {
    pub(crate) name: String,
    pub(crate) protocol: String,
    pub(crate) port: i32,
    pub(crate) app_protocol: Option<String>,
}

/// The families a Service wants, the primary one first.
pub(crate) fn families(service: &Service) -> Vec<Family> {
    let Some(spec) = service.spec.as_ref() else {
        return vec![Family::V4];
    };
    let named: Vec<Family> = spec
        .ip_families
        .iter()
        .flatten()
        .map(|family| {
            if family == "IPv6" {
                Family::V6
            } else {
                Family::V4
            }
        })
        .collect();
    if !named.is_empty() {
        return named;
    }
    match spec.cluster_ip.as_deref() {
        Some(address) if address != "None" && !address.is_empty() => vec![Family::of(address)],
        _ => vec![Family::V4],
    }
}

/// The pod's address of a family.
pub(crate) fn address(pod: &Pod, family: Family) -> Option<String> {
    let status = pod.status.as_ref()?;
    let listed = status.pod_ips.iter().flatten().map(|address| &address.ip);
    let all = listed.chain(status.pod_ip.as_ref());
    all.filter(|ip| !ip.is_empty())
        .find(|ip| Family::of(ip) == family)
        .cloned()
}

/// Whether a pod belongs into endpoints at all.
pub(crate) fn is_candidate(pod: &Pod, include_terminating: bool) -> bool {
    let has_address = pod.status.as_ref().is_some_and(|status| {
        status.pod_ip.as_ref().is_some_and(|ip| !ip.is_empty())
            || status.pod_ips.as_ref().is_some_and(|ips| !ips.is_empty())
    });
    has_address
        && !is_pod_terminal(pod)
        && (include_terminating || pod.metadata.deletion_timestamp.is_none())
}

/// The ports a pod serves a Service under. One it does not have (an unknown name) is left out.
pub(crate) fn resolve_ports(service: &Service, pod: &Pod) -> Vec<ResolvedPort> {
    let ports = service.spec.as_ref().and_then(|spec| spec.ports.as_ref());
    let mut resolved: Vec<ResolvedPort> = ports
        .into_iter()
        .flatten()
        .filter_map(|port| {
            Some(ResolvedPort {
                name: port.name.clone().unwrap_or_default(),
                protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
                port: target_port(port, pod)?,
                app_protocol: port.app_protocol.clone(),
            })
        })
        .collect();
    resolved.sort();
    resolved
}

fn target_port(port: &ServicePort, pod: &Pod) -> Option<i32> {
    match port.target_port.as_ref() {
        None | Some(IntOrString::Int(0)) => Some(port.port),
        Some(IntOrString::Int(number)) => Some(*number),
        Some(IntOrString::String(name)) if name.is_empty() => Some(port.port),
        Some(IntOrString::String(name)) => {
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
            containers
                .flat_map(|container| container.ports.iter().flatten())
                .find(|candidate| {
                    candidate.name.as_deref() == Some(name)
                        && candidate.protocol.as_deref().unwrap_or("TCP") == protocol
                })
                .map(|candidate| candidate.container_port)
        }
    }
}

/// A reference to the pod behind an endpoint.
pub(crate) fn pod_reference(pod: &Pod) -> ObjectReference {
    ObjectReference {
        kind: Some("Pod".to_owned()),
        namespace: pod.metadata.namespace.clone(),
        name: pod.metadata.name.clone(),
        uid: pod.metadata.uid.clone(),
        ..Default::default()
    }
}

/// The host name a pod has below a headless Service.
pub(crate) fn hostname(service: &Service, pod: &Pod) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let here = spec.subdomain.as_ref() == service.metadata.name.as_ref()
        && pod.metadata.namespace == service.metadata.namespace;
    spec.hostname
        .clone()
        .filter(|name| here && !name.is_empty())
}

pub(crate) fn node_name(pod: &Pod) -> Option<String> {
    pod.spec
        .as_ref()?
        .node_name
        .clone()
        .filter(|name| !name.is_empty())
}

pub(crate) fn publishes_not_ready(service: &Service) -> bool {
    service
        .spec
        .as_ref()
        .and_then(|spec| spec.publish_not_ready_addresses)
        == Some(true)
}

pub(crate) fn is_headless(service: &Service) -> bool {
    service
        .spec
        .as_ref()
        .and_then(|spec| spec.cluster_ip.as_deref())
        == Some("None")
}

/// The selector, if the Service has one: without it its endpoints are somebody else's.
pub(crate) fn selector(service: &Service) -> Option<Selector> {
    let spec = service.spec.as_ref()?;
    if spec.type_.as_deref() == Some("ExternalName") {
        return None;
    }
    let labels = spec.selector.as_ref().filter(|labels| !labels.is_empty())?;
    Some(Selector::from_labels(Some(labels)))
}

/// The pods a Service selects, in name order.
pub(crate) fn selected_pods(caches: &Caches, service: &Service) -> Vec<Arc<Pod>> {
    let Some(selector) = selector(service) else {
        return Vec::new();
    };
    let namespace = service.metadata.namespace.as_deref().unwrap_or_default();
    let mut pods = caches.pods.list_in(namespace);
    pods.retain(|pod| selector.matches(pod.metadata.labels.as_ref()));
    pods
}

/// Puts every Service into `queue` whose endpoints a change of a pod may touch.
pub(crate) fn enqueue_services_of_pods(caches: &Arc<Caches>, queue: &Arc<WorkQueue<ObjectKey>>) {
    let (services, queue) = (caches.services.clone(), queue.clone());
    caches.pods.on_change(move |change: &Change<Pod>| {
        if !matters(change) {
            return;
        }
        let Some(pod) = change.latest() else { return };
        let before = change
            .old
            .as_ref()
            .and_then(|pod| pod.metadata.labels.as_ref());
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        for service in services.list_in(namespace) {
            let Some(selector) = selector(&service) else {
                continue;
            };
            let now = selector.matches(pod.metadata.labels.as_ref());
            if now || change.old.is_some() && selector.matches(before) {
                queue.add(ObjectKey::of(&service.metadata));
            }
        }
    });
}

/// Leaves out changes that no endpoint shows, such as a heartbeat of a container status.
fn matters(change: &Change<Pod>) -> bool {
    let (Some(old), Some(new)) = (&change.old, &change.new) else {
        return true;
    };
    let shown = |pod: &Pod| {
        (
            pod.metadata.labels.clone(),
            pod.metadata.uid.clone(),
            pod.metadata.deletion_timestamp.is_some(),
            pod.status
                .as_ref()
                .map(|status| (status.pod_ips.clone(), status.pod_ip.clone())),
            is_pod_terminal(pod),
            tholepin_informer::is_pod_ready(pod),
            node_name(pod),
        )
    };
    shown(old) != shown(new)
}
