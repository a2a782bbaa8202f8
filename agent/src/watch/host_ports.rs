//! Host ports of this node's pods, from the view the pod workers have too.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1 as api;
use tholepin_model::service::table::PodName;
use tholepin_model::service::{HostPort, HostPorts};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::changes::ServiceChanges;
use super::pods::PodsView;
use super::services::{port_number, protocol_of};

/// Follows the view until cancelled. A node has few pods, so the whole list is told each time; what has
/// not changed costs nothing further on.
pub async fn run(
    mut view: watch::Receiver<PodsView>,
    changes: ServiceChanges,
    cancel: CancellationToken,
) {
    loop {
        let (synced, all) = {
            let view = view.borrow_and_update();
            let pods = view.pods.values().map(|pod| &*pod.object);
            (
                view.synced,
                pods.filter_map(host_ports_of).collect::<Vec<_>>(),
            )
        };
        if synced {
            changes.change(|changes| {
                changes
                    .host_ports
                    .replace(all.into_iter().map(|(name, ports)| (name, Arc::new(ports))));
                changes.sync.host_ports = true;
            });
        }
        tokio::select! {
            () = cancel.cancelled() => return,
            changed = view.changed() => if changed.is_err() {
                return;
            },
        }
    }
}

/// The host ports of a pod that has an address and runs; `None` if it has none.
fn host_ports_of(pod: &api::Pod) -> Option<(PodName, HostPorts)> {
    let (spec, status) = (pod.spec.as_ref()?, pod.status.as_ref()?);
    let is_over = matches!(status.phase.as_deref(), Some("Succeeded" | "Failed"));
    if spec.host_network == Some(true) || is_over {
        return None;
    }
    let addresses = status
        .pod_ips
        .iter()
        .flatten()
        .map(|ip| ip.ip.parse::<IpAddr>());
    let pod_ips: Vec<IpAddr> = addresses.filter_map(Result::ok).collect();
    let sidecars = spec.init_containers.iter().flatten();
    let sidecars = sidecars.filter(|init| init.restart_policy.as_deref() == Some("Always"));
    let containers = spec.containers.iter().chain(sidecars);
    let ports = containers.flat_map(|container| container.ports.iter().flatten());
    let ports: Vec<HostPort> = ports.filter_map(host_port_of).collect();
    if ports.is_empty() || pod_ips.is_empty() {
        return None;
    }
    let name = (
        pod.metadata.namespace.clone().unwrap_or_default(),
        pod.metadata.name.clone().unwrap_or_default(),
    );
    let host_ports = HostPorts {
        uid: pod.metadata.uid.clone().unwrap_or_default(),
        created_at_secs: super::nodes::created_at_secs(&pod.metadata),
        pod_ips,
        ports,
    };
    Some((name, host_ports))
}

fn host_port_of(port: &api::ContainerPort) -> Option<HostPort> {
    let host_ip = port.host_ip.as_deref().filter(|ip| !ip.is_empty());
    Some(HostPort {
        // An address that cannot be read is nobody's; validation does not let it through.
        host_ip: host_ip.map(str::parse::<IpAddr>).transpose().ok()?,
        port: port_number(port.host_port?)?,
        protocol: protocol_of(port.protocol.as_deref().unwrap_or("TCP"))?,
        container_port: port_number(port.container_port)?,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};
    use tholepin_model::service::Protocol;

    use super::*;

    fn pod(spec: Value, phase: &str, ips: &[&str]) -> api::Pod {
        let ips: Vec<Value> = ips.iter().map(|ip| json!({"ip": ip})).collect();
        serde_json::from_value(json!({
            "metadata": {"namespace": "default", "name": "web"},
            "spec": spec, "status": {"phase": phase, "podIPs": ips},
        }))
        .unwrap()
    }

    fn container(ports: Value) -> Value {
        json!({"containers": [{"name": "a", "ports": ports}]})
    }

    #[test]
    fn a_pods_host_ports_are_found_with_address_and_protocol() {
        let spec = container(json!([
            {"containerPort": 80, "hostPort": 8080},
            {"containerPort": 53, "hostPort": 5353, "protocol": "UDP", "hostIP": "192.0.2.1"},
            {"containerPort": 443},
        ]));
        let (name, found) =
            host_ports_of(&pod(spec, "Running", &["10.244.0.5", "fd00::5"])).unwrap();
        assert_eq!(name, ("default".to_owned(), "web".to_owned()));
        assert_eq!(found.pod_ips.len(), 2);
        let [first, second] = &found.ports[..] else {
            panic!("{found:?}")
        };
        assert_eq!(
            (first.host_ip, first.port, first.container_port),
            (None, 8080, 80)
        );
        assert_eq!(second.host_ip, Some([192, 0, 2, 1].into()));
        assert_eq!(second.protocol, Protocol::Udp);
    }

    #[test]
    fn pods_of_the_hosts_network_without_address_or_that_are_over_have_none() {
        let ports = json!([{"containerPort": 80, "hostPort": 8080}]);
        assert!(host_ports_of(&pod(container(ports.clone()), "Running", &[])).is_none());
        assert!(
            host_ports_of(&pod(container(ports.clone()), "Succeeded", &["10.244.0.5"])).is_none()
        );
        let mut spec = container(ports);
        spec["hostNetwork"] = json!(true);
        assert!(host_ports_of(&pod(spec, "Running", &["192.0.2.1"])).is_none());
    }
}
