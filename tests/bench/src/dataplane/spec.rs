//! The Services of a measurement, in one neutral form from which Kubernetes objects and both rule sets
//! are made, so that every variant balances the same. Pure.

use std::net::Ipv4Addr;

use k8s_openapi::api::core::v1 as core_v1;
use k8s_openapi::api::discovery::v1 as discovery_v1;
use serde_json::json;

/// First port of the load's server.
pub(crate) const FIRST_PORT: u16 = 9000;
/// How many ports of each kind it has: they stand for that many endpoints at one address.
pub(crate) const PORTS_PER_KIND: u16 = 5;
/// Bulk and one-way ports, see the toolbox.
pub(crate) const SINK_OFFSET: u16 = 100;
/// The port that says how many one-way datagrams came.
pub(crate) const CONTROL_OFFSET: u16 = 200;
/// Service port that answers, TCP and UDP.
pub(crate) const ANSWER: u16 = 80;
/// Service port that swallows, TCP and UDP.
pub(crate) const SINK: u16 = 81;
/// Endpoints of every Service.
pub(crate) const ENDPOINTS: u32 = 5;

/// One port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct PortSpec {
    pub(crate) name: &'static str,
    pub(crate) protocol: &'static str,
    pub(crate) port: u16,
    /// Where endpoints listen; several numbers stand for several endpoints at one address.
    pub(crate) targets: Vec<u16>,
}

/// A Service with its endpoints.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ServiceSpec {
    pub(crate) name: String,
    pub(crate) address: Ipv4Addr,
    pub(crate) ports: Vec<PortSpec>,
    pub(crate) endpoints: Vec<Ipv4Addr>,
}

impl PortSpec {
    /// Every endpoint of the port.
    pub(crate) fn backends<'a>(
        &'a self,
        service: &'a ServiceSpec,
    ) -> impl Iterator<Item = (Ipv4Addr, u16)> + 'a {
        let addresses = service.endpoints.iter();
        addresses.flat_map(|address| self.targets.iter().map(move |port| (*address, *port)))
    }
}

/// A Service that traffic goes to: four ports, five endpoints each, all at one pod.
pub(crate) fn hot(name: &str, address: Ipv4Addr, pod: Ipv4Addr) -> ServiceSpec {
    let answering: Vec<u16> = (FIRST_PORT..FIRST_PORT + PORTS_PER_KIND).collect();
    let sinks: Vec<u16> = answering.iter().map(|port| port + SINK_OFFSET).collect();
    let port = |name, protocol, port, targets: &[u16]| PortSpec {
        name,
        protocol,
        port,
        targets: targets.to_vec(),
    };
    ServiceSpec {
        name: name.to_owned(),
        address,
        ports: vec![
            port("answer", "TCP", ANSWER, &answering),
            port("sink", "TCP", SINK, &sinks),
            port("uanswer", "UDP", ANSWER, &answering),
            port("usink", "UDP", SINK, &sinks),
        ],
        endpoints: vec![pod],
    }
}

/// The number-th Service that nobody talks to: one port, five endpoints at addresses of their own.
pub(crate) fn idle(number: u32) -> ServiceSpec {
    let offset = |base: [u8; 4], add: u32| Ipv4Addr::from(u32::from(Ipv4Addr::from(base)) + add);
    ServiceSpec {
        name: format!("idle-{number:05}"),
        // 10.96.0.x is for the hot ones.
        address: offset([10, 96, 1, 0], number),
        ports: vec![PortSpec {
            name: "http",
            protocol: "TCP",
            port: ANSWER,
            targets: vec![8080],
        }],
        endpoints: (0..ENDPOINTS)
            .map(|index| offset([10, 128, 0, 1], number * ENDPOINTS + index))
            .collect(),
    }
}

/// The hot ones in the middle of enough idle ones to make `total`. The middle is what an average Service
/// has in a list that is searched from its start.
pub(crate) fn services(hot: &[ServiceSpec], total: u32) -> Vec<ServiceSpec> {
    let idle_count = total.saturating_sub(1);
    let half = idle_count / 2;
    let mut all: Vec<ServiceSpec> = (0..half).map(idle).collect();
    all.extend(hot.iter().cloned());
    all.extend((half..idle_count).map(idle));
    all
}

/// The Service object, as the API would give it.
pub(crate) fn service_object(spec: &ServiceSpec) -> core_v1::Service {
    let ports: Vec<_> = spec
        .ports
        .iter()
        .map(|port| json!({"name": port.name, "protocol": port.protocol, "port": port.port}))
        .collect();
    let address = spec.address.to_string();
    let object = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": spec.name, "namespace": "bench"},
        "spec": {"type": "ClusterIP", "clusterIP": address, "clusterIPs": [address], "ports": ports},
    });
    serde_json::from_value(object).expect("a Service has this shape")
}

/// The EndpointSlices of a Service: one, or one per target port where endpoints share an address.
pub(crate) fn slice_objects(spec: &ServiceSpec) -> Vec<discovery_v1::EndpointSlice> {
    let count = spec.ports.iter().map(|port| port.targets.len()).max();
    let slice = |index: usize| {
        let ports: Vec<_> = spec
            .ports
            .iter()
            .filter_map(|port| {
                let target = port.targets.get(index)?;
                Some(json!({"name": port.name, "protocol": port.protocol, "port": target}))
            })
            .collect();
        let endpoints: Vec<_> = spec
            .endpoints
            .iter()
            .map(|address| json!({"addresses": [address], "conditions": {"ready": true}}))
            .collect();
        let object = json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {
                "name": format!("{}-{index}", spec.name), "namespace": "bench",
                "labels": {"kubernetes.io/service-name": spec.name},
            },
            "endpoints": endpoints, "ports": ports,
        });
        serde_json::from_value(object).expect("an EndpointSlice has this shape")
    };
    (0..count.unwrap_or(0)).map(slice).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_hot_service_has_five_backends_per_port_over_one_slice_each() {
        let spec = hot("hot", [10, 96, 0, 10].into(), [10, 244, 1, 3].into());
        for port in &spec.ports {
            assert_eq!(port.backends(&spec).count(), 5);
        }
        let slices = slice_objects(&spec);
        assert_eq!(slices.len(), 5);
        assert_eq!(slices[0].ports.as_ref().unwrap().len(), 4);
    }

    #[test]
    fn idle_services_share_nothing() {
        let mut addresses: Vec<Ipv4Addr> = (0..30_000).map(|number| idle(number).address).collect();
        addresses.dedup();
        assert_eq!(addresses.len(), 30_000);
        let [first, second] = [idle(0), idle(1)];
        assert!(!first.endpoints.contains(&second.endpoints[0]));
        assert_eq!(
            idle(29_999).address.octets()[..2],
            [10, 96],
            "in the Service range"
        );
    }

    #[test]
    fn the_hot_service_is_in_the_middle_of_the_given_number() {
        let spec = hot("hot", [10, 96, 0, 10].into(), [10, 244, 1, 3].into());
        let all = services(std::slice::from_ref(&spec), 1001);
        assert_eq!(all.len(), 1001);
        assert_eq!(all[500].name, "hot");
        assert_eq!(services(&[spec], 1).len(), 1);
    }
}
