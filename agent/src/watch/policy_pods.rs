//! The pods of the whole cluster, as far as policies look at them: labels, addresses, named ports.

use std::net::IpAddr;

use k8s_openapi::api::core::v1 as core_v1;
use kube::{Api, Client, ResourceExt};
use tholepin_model::policy::{Labels, NamedPort, ObjectName, Pod, PortName};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::follow::{Parsed, follow};
use super::namespaces::is_wanted;
use super::network_policies::protocol_of;
use crate::reconcile::policies::{Input, PolicyGate};

/// Follows pods until cancelled, as soon as there is a policy.
pub async fn watch(
    client: Client,
    gate: PolicyGate,
    wanted: watch::Receiver<bool>,
    cancel: CancellationToken,
) {
    if !is_wanted(wanted, &cancel).await {
        return;
    }
    let parse = |object: &core_v1::Pod| {
        let namespace = object.namespace().unwrap_or_default();
        let name = ObjectName::new(&namespace, &object.name_any());
        match pod_of(object) {
            Some(pod) => Parsed::Wanted(name, pod),
            None => Parsed::Unwanted(name),
        }
    };
    let apply = |change| gate.send(Input::Pod(change));
    follow(Api::all(client), parse, apply, cancel).await;
}

/// The pod as a peer. `None` if its addresses are the node's, or no longer its own.
#[must_use]
pub fn pod_of(object: &core_v1::Pod) -> Option<Pod> {
    let spec = object.spec.as_ref()?;
    let status = object.status.clone().unwrap_or_default();
    let has_ended = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
    if spec.host_network == Some(true) || has_ended {
        return None;
    }
    let listed = status.pod_ips.unwrap_or_default();
    let listed = listed.into_iter().map(|one| one.ip);
    let mut addresses: Vec<IpAddr> = listed
        .chain(status.pod_ip)
        .filter_map(|text| text.parse().ok())
        .collect();
    addresses.sort();
    addresses.dedup();
    // An init container that is restarted always runs beside the others.
    let beside = spec.init_containers.iter().flatten();
    let beside = beside.filter(|one| one.restart_policy.as_deref() == Some("Always"));
    let ports = spec.containers.iter().chain(beside);
    let ports = ports.flat_map(|container| container.ports.iter().flatten());
    let mut named_ports: Vec<NamedPort> = ports
        .filter_map(|port| {
            Some(NamedPort {
                name: PortName {
                    name: port.name.as_deref()?.into(),
                    protocol: protocol_of(port.protocol.as_deref().unwrap_or("TCP"))?,
                },
                port: super::services::port_number(port.container_port)?,
            })
        })
        .collect();
    named_ports.sort();
    named_ports.dedup();
    Some(Pod {
        labels: object.labels().clone().into_iter().collect::<Labels>(),
        addresses: addresses.into(),
        named_ports: named_ports.into(),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use tholepin_model::policy::Protocol;

    use super::*;

    fn parse(spec: Value, status: Value) -> Option<Pod> {
        let metadata = json!({"name": "p", "namespace": "x", "labels": {"b": "2", "a": "1"}});
        let object = json!({"metadata": metadata, "spec": spec, "status": status});
        pod_of(&serde_json::from_value(object).unwrap())
    }

    #[test]
    fn labels_addresses_and_named_ports_are_kept() {
        let ports = json!([
            {"name": "web", "containerPort": 80}, {"containerPort": 81},
            {"name": "dns", "containerPort": 53, "protocol": "UDP"},
        ]);
        let spec = json!({"containers": [{"name": "c", "ports": ports}]});
        let ips = json!([{"ip": "10.244.0.5"}, {"ip": "fd00::5"}]);
        let pod = parse(spec, json!({"podIP": "10.244.0.5", "podIPs": ips})).unwrap();
        assert_eq!(pod.labels.get("b"), Some("2"));
        assert_eq!(pod.addresses.len(), 2);
        let protocols: Vec<_> = pod
            .named_ports
            .iter()
            .map(|one| (one.port, one.name.protocol))
            .collect();
        assert_eq!(protocols, [(53, Protocol::Udp), (80, Protocol::Tcp)]);
    }

    #[test]
    fn pods_whose_addresses_are_not_theirs_are_no_peers() {
        let spec = json!({"containers": [], "hostNetwork": true});
        assert_eq!(parse(spec, json!({"podIP": "172.30.0.11"})), None);
        for phase in ["Succeeded", "Failed"] {
            let status = json!({"podIP": "10.244.0.5", "phase": phase});
            assert_eq!(parse(json!({"containers": []}), status), None);
        }
        assert!(parse(json!({"containers": []}), json!({})).is_some());
    }
}
