//! The fold of everything the network half watches, and what it implies for this node.
//!
//! Watches write it, reconcilers read snapshots of it. Objects are shared, so a snapshot is cheap.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::route::{self, Node, RouteProblem, RouteTable};
use crate::service::{
    BackendAddress, Candidate, EndpointSlice, Frontend, Service, ServiceName, ServicePort,
    SliceName, choose,
};

/// Which sources have been seen whole at least once. Nothing is pruned before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SyncState {
    /// Services were listed.
    pub services: bool,
    /// EndpointSlices were listed.
    pub endpoint_slices: bool,
    /// Nodes were listed.
    pub nodes: bool,
}

impl SyncState {
    /// Services and their endpoints are complete.
    #[must_use]
    pub fn service_sources(self) -> bool {
        self.services && self.endpoint_slices
    }
}

/// Everything the dataplane is judged against.
#[derive(Clone, Debug, Default)]
pub struct Desired {
    /// Services by name.
    pub services: BTreeMap<ServiceName, Arc<Service>>,
    /// Slices by their own name.
    pub slices: BTreeMap<SliceName, Arc<EndpointSlice>>,
    /// Nodes by name, this one included.
    pub nodes: BTreeMap<String, Arc<Node>>,
    /// What has synced.
    pub sync: SyncState,
}

/// One port of one Service in one family: frontends that share their backends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceEntry {
    /// The Service.
    pub service: ServiceName,
    /// Name of its port.
    pub port_name: String,
    /// Creation time of the Service.
    pub created_at_secs: i64,
    /// Where clients connect to.
    pub frontends: Vec<Frontend>,
    /// Eligible for new flows, local ones first.
    pub backends: Vec<BackendAddress>,
    /// How many of them are local.
    pub local_count: usize,
    /// Everything that still serves; a superset of `backends`.
    pub serving: Vec<BackendAddress>,
    /// Only the local ones may be chosen.
    pub local_only: bool,
}

/// What the service maps should say, oldest Service first.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceTable {
    /// One per Service, port and family.
    pub entries: Vec<ServiceEntry>,
}

impl Desired {
    /// What the service maps of node `node_name` should say.
    #[must_use]
    pub fn service_table(&self, node_name: &str) -> ServiceTable {
        let mut slices_of: BTreeMap<&ServiceName, Vec<&EndpointSlice>> = BTreeMap::new();
        for slice in self.slices.values() {
            slices_of.entry(&slice.service).or_default().push(slice);
        }
        let mut entries = Vec::new();
        for service in self.services.values() {
            let slices = slices_of.get(&service.name).map_or(&[][..], Vec::as_slice);
            for port in &service.ports {
                for address in &service.cluster_ips {
                    entries.push(entry(service, port, *address, slices, node_name));
                }
            }
        }
        entries
            .sort_by(|a, b| (a.created_at_secs, &a.service).cmp(&(b.created_at_secs, &b.service)));
        ServiceTable { entries }
    }

    /// Routes to the other nodes.
    #[must_use]
    pub fn route_table(
        &self,
        node_name: &str,
        own_addresses: &[IpAddr],
    ) -> (RouteTable, Vec<RouteProblem>) {
        route::fold(
            self.nodes.values().map(Arc::as_ref),
            node_name,
            own_addresses,
        )
    }

    /// Pod ranges of the node, once the control plane has handed them out.
    #[must_use]
    pub fn pod_ranges(&self, node_name: &str) -> Option<Vec<IpNet>> {
        let ranges = &self.nodes.get(node_name)?.pod_ranges;
        (!ranges.is_empty()).then(|| ranges.clone())
    }
}

fn entry(
    service: &Service,
    port: &ServicePort,
    address: IpAddr,
    slices: &[&EndpointSlice],
    node_name: &str,
) -> ServiceEntry {
    let candidates = candidates(port, address.is_ipv4(), slices, node_name);
    let choice = choose(&candidates, service.internal_policy);
    ServiceEntry {
        service: service.name.clone(),
        port_name: port.name.clone(),
        created_at_secs: service.created_at_secs,
        frontends: vec![Frontend {
            address,
            port: port.port,
            protocol: port.protocol,
        }],
        backends: choice.backends,
        local_count: choice.local_count,
        serving: choice.serving,
        local_only: choice.local_only,
    }
}

/// Endpoints of one port and family over all slices. An endpoint may be in two slices while the
/// controller moves it; the copy in the better condition counts.
fn candidates(
    port: &ServicePort,
    v4: bool,
    slices: &[&EndpointSlice],
    node_name: &str,
) -> Vec<Candidate> {
    let mut by_backend: BTreeMap<BackendAddress, Candidate> = BTreeMap::new();
    let rank = |candidate: &Candidate| (candidate.conditions.ready, candidate.conditions.serving);
    for slice in slices {
        for target in &slice.ports {
            if target.name != port.name || target.protocol != port.protocol {
                continue;
            }
            for endpoint in slice.endpoints.iter().filter(|e| e.address.is_ipv4() == v4) {
                let candidate = Candidate {
                    backend: BackendAddress {
                        address: endpoint.address,
                        port: target.port,
                        protocol: target.protocol,
                    },
                    conditions: endpoint.conditions,
                    local: endpoint.node_name.as_deref() == Some(node_name),
                };
                by_backend
                    .entry(candidate.backend)
                    .and_modify(|known| {
                        if rank(&candidate) > rank(known) {
                            *known = candidate;
                        }
                    })
                    .or_insert(candidate);
            }
        }
    }
    by_backend.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::{Conditions, Endpoint, EndpointPort, Protocol, TrafficPolicy};

    fn name(name: &str) -> ServiceName {
        ServiceName {
            namespace: "default".to_owned(),
            name: name.to_owned(),
        }
    }

    fn slice(id: &str, port: u16, address: &str, ready: bool) -> Arc<EndpointSlice> {
        Arc::new(EndpointSlice {
            name: SliceName {
                namespace: "default".to_owned(),
                name: id.to_owned(),
            },
            service: name("web"),
            ports: vec![EndpointPort {
                name: "http".to_owned(),
                protocol: Protocol::Tcp,
                port,
            }],
            endpoints: vec![Endpoint {
                address: address.parse().unwrap(),
                conditions: Conditions {
                    ready,
                    serving: ready,
                    terminating: !ready,
                },
                node_name: Some("n1".to_owned()),
            }],
        })
    }

    fn desired(slices: Vec<Arc<EndpointSlice>>) -> Desired {
        let service = Service {
            name: name("web"),
            created_at_secs: 1,
            cluster_ips: vec![
                "10.96.0.7".parse().unwrap(),
                "fd00:10:96::7".parse().unwrap(),
            ],
            ports: vec![ServicePort {
                name: "http".to_owned(),
                protocol: Protocol::Tcp,
                port: 80,
            }],
            internal_policy: TrafficPolicy::Cluster,
        };
        Desired {
            services: [(name("web"), Arc::new(service))].into(),
            slices: slices.into_iter().map(|s| (s.name.clone(), s)).collect(),
            ..Desired::default()
        }
    }

    #[test]
    fn each_family_gets_the_endpoints_of_its_own_family() {
        let desired = desired(vec![
            slice("a", 8080, "10.244.0.5", true),
            slice("b", 8080, "fd00::5", true),
        ]);
        let table = desired.service_table("n1");
        assert_eq!(table.entries.len(), 2);
        for entry in &table.entries {
            assert_eq!(entry.backends.len(), 1);
            assert_eq!(entry.local_count, 1);
            assert_eq!(
                entry.backends[0].address.is_ipv4(),
                entry.frontends[0].address.is_ipv4()
            );
        }
    }

    #[test]
    fn an_endpoint_in_two_slices_counts_once_in_its_better_condition() {
        let desired = desired(vec![
            slice("a", 8080, "10.244.0.5", false),
            slice("b", 8080, "10.244.0.5", true),
        ]);
        assert_eq!(desired.service_table("n1").entries[0].backends.len(), 1);
    }

    #[test]
    fn a_service_without_slices_still_has_its_frontends() {
        let table = desired(vec![]).service_table("n1");
        assert_eq!(table.entries.len(), 2);
        assert!(table.entries.iter().all(|entry| entry.backends.is_empty()));
    }
}
