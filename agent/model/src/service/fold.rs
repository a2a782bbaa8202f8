//! From a Service and its endpoints to what the maps should say about it.

use std::net::IpAddr;

use ipnet::IpNet;

use super::categorize::{Candidate, Categories, Place, categorize};
use super::{
    BackendAddress, EndpointSlice, Forwarding, Frontend, HostPorts, NodeView, Scope, Selection,
    Service, ServicePort, TrafficPolicy,
};

/// Backends of one list, in the order of the slots.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BackendList {
    /// Backends of this node that only flows sent here by other nodes may have.
    pub spare: Vec<BackendAddress>,
    /// Eligible for new flows, local ones first.
    pub backends: Vec<BackendAddress>,
    /// How many of `backends`, from the front, are on this node.
    pub local_count: usize,
    /// Has a Maglev table.
    pub maglev: bool,
}

/// How a frontend behaves.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FrontendFlags {
    /// Only local backends may be chosen; without them packets are dropped, not rejected.
    pub local_only: bool,
    /// Only clients in the source ranges may come in.
    pub source_ranges: bool,
    /// Clients from outside get the node's address.
    pub masquerade: bool,
    /// An address of this node, of which others have the same.
    pub node_port: bool,
}

/// A frontend of an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EntryFrontend {
    /// Where clients connect to.
    pub frontend: Frontend,
    /// Index of its list.
    pub list: usize,
    /// Behaviour.
    pub flags: FrontendFlags,
    /// One of the Service's own addresses.
    pub cluster_ip: bool,
}

/// One port of one owner in one family.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceEntry {
    /// Name of the port.
    pub port_name: String,
    /// Its lists: one, or two where the Cluster and the Local choice differ.
    pub lists: Vec<BackendList>,
    /// Where clients connect to.
    pub frontends: Vec<EntryFrontend>,
    /// Everything that serves; a superset of what is in the lists.
    pub serving: Vec<BackendAddress>,
    /// Seconds a client keeps its backend; 0 without affinity.
    pub affinity_timeout_secs: u32,
    /// Who may use frontends with that flag.
    pub source_ranges: Vec<IpNet>,
    /// Traffic under `internalTrafficPolicy: Local` finds nothing here.
    pub no_local_internal: bool,
    /// Traffic under `externalTrafficPolicy: Local` finds nothing here.
    pub no_local_external: bool,
}

/// What an owner wants of the maps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Folded {
    /// Age, which decides who keeps a contested frontend.
    pub created_at_secs: i64,
    /// Ports and families.
    pub entries: Vec<ServiceEntry>,
    /// What of the object could not be used.
    pub complaints: Vec<String>,
    /// The port of its health check, and the number of ready endpoints on this node.
    pub health_check: Option<(u16, usize)>,
}

/// Folds a Service with the slices that belong to it.
#[must_use]
pub fn service(service: &Service, slices: &[&EndpointSlice], node: &NodeView) -> Folded {
    let mut entries = Vec::with_capacity(service.ports.len() * service.cluster_ips.len());
    for port in &service.ports {
        for v4 in families(service) {
            entries.push(entry(service, port, v4, slices, node));
        }
    }
    Folded {
        created_at_secs: service.created_at_secs,
        entries,
        complaints: service.complaints.clone(),
        health_check: service
            .health_check_node_port
            .map(|port| (port, local_ready(slices, node))),
    }
}

/// The families the Service has an address of its own in; a family without has no frontends.
fn families(service: &Service) -> impl Iterator<Item = bool> {
    let has = |v4: bool| service.cluster_ips.iter().any(|ip| ip.is_ipv4() == v4);
    [true, false].into_iter().filter(move |v4| has(*v4))
}

fn entry(
    service: &Service,
    port: &ServicePort,
    v4: bool,
    slices: &[&EndpointSlice],
    node: &NodeView,
) -> ServiceEntry {
    let of_family = |ips: &[IpAddr]| -> Vec<IpAddr> {
        let ips = ips.iter().copied();
        ips.filter(|ip| ip.is_ipv4() == v4).collect()
    };
    let external_ips = of_family(&service.external_ips);
    let load_balancer_ips = of_family(&service.load_balancer_ips);
    let node_port = port
        .node_port
        .filter(|_| !node.node_port_addresses.is_empty());
    let is_external =
        port.node_port.is_some() || !external_ips.is_empty() || !load_balancer_ips.is_empty();
    let internal_local = service.internal_policy == TrafficPolicy::Local;
    let external_local = service.external_policy == TrafficPolicy::Local && is_external;

    let candidates = candidates(port, v4, slices, node);
    let place = Place {
        node: &node.name,
        zone: node.zone.as_deref(),
    };
    let chosen = categorize(&candidates, place);
    let uses_cluster = !internal_local || is_external;
    let (lists, local_list) = lists(
        &candidates,
        &chosen,
        uses_cluster,
        internal_local || external_local,
        service.selection == Selection::Maglev,
        is_external,
    );

    let mut frontends = Vec::new();
    let mut add = |address: IpAddr, number: u16, scope: Scope, flags: FrontendFlags| {
        frontends.push(EntryFrontend {
            frontend: Frontend {
                address,
                port: number,
                protocol: port.protocol,
                scope,
            },
            list: if flags.local_only { local_list } else { 0 },
            flags,
            cluster_ip: number == port.port && service.cluster_ips.contains(&address),
        });
    };
    for address in of_family(&service.cluster_ips) {
        let flags = FrontendFlags {
            local_only: internal_local,
            ..FrontendFlags::default()
        };
        add(address, port.port, Scope::Cluster, flags);
    }
    let source_ranges = source_ranges(service, node, &load_balancer_ips, v4);
    let forwarding = service.forwarding.unwrap_or(node.forwarding);
    // From inside the cluster an external address is a short cut: the policy does not bind.
    let mut add_external = |address: IpAddr, port: u16, flags: FrontendFlags| {
        add(address, port, Scope::Cluster, flags);
        let flags = FrontendFlags {
            local_only: external_local,
            masquerade: forwarding == Forwarding::Masquerade && !external_local,
            ..flags
        };
        add(address, port, Scope::External, flags);
    };
    if let Some(node_port) = node_port {
        let flags = FrontendFlags {
            node_port: true,
            ..FrontendFlags::default()
        };
        for address in of_family(&node.node_port_addresses) {
            add_external(address, node_port, flags);
        }
    }
    for address in &external_ips {
        add_external(*address, port.port, FrontendFlags::default());
    }
    for address in load_balancer_ips
        .iter()
        .filter(|ip| !external_ips.contains(ip))
    {
        let flags = FrontendFlags {
            source_ranges: !source_ranges.is_empty(),
            ..FrontendFlags::default()
        };
        add_external(*address, port.port, flags);
    }
    let none_local = chosen.local.is_empty() && !chosen.cluster.is_empty();
    ServiceEntry {
        port_name: port.name.clone(),
        lists,
        frontends,
        serving: candidates
            .iter()
            .filter(|candidate| candidate.serves())
            .map(|candidate| candidate.backend)
            .collect(),
        affinity_timeout_secs: service.affinity_timeout_secs.unwrap_or(0),
        source_ranges,
        no_local_internal: internal_local && none_local,
        no_local_external: external_local && none_local,
    }
}

/// Endpoints of one port and family over all slices, in the order of their addresses. An endpoint may
/// be in two slices while the controller moves it; the copy in the better condition counts.
fn candidates<'a>(
    port: &ServicePort,
    v4: bool,
    slices: &[&'a EndpointSlice],
    node: &NodeView,
) -> Vec<Candidate<'a>> {
    let mut candidates = Vec::new();
    for slice in slices {
        for target in &slice.ports {
            if target.name != port.name || target.protocol != port.protocol {
                continue;
            }
            for endpoint in slice.endpoints.iter().filter(|e| e.address.is_ipv4() == v4) {
                candidates.push(Candidate {
                    backend: BackendAddress {
                        address: endpoint.address,
                        port: target.port,
                        protocol: target.protocol,
                    },
                    conditions: endpoint.conditions,
                    local: endpoint.node_name.as_deref() == Some(node.name.as_str()),
                    node_hints: &endpoint.node_hints,
                    zone_hints: &endpoint.zone_hints,
                });
            }
        }
    }
    let rank = |c: &Candidate<'_>| (!c.conditions.ready, !c.conditions.serving);
    candidates.sort_unstable_by_key(|candidate| (candidate.backend, rank(candidate)));
    candidates.dedup_by_key(|candidate| candidate.backend);
    candidates
}

/// The lists of a port, and which of them Local traffic uses. One list does for both where its local
/// part is what Local traffic may choose.
fn lists(
    candidates: &[Candidate<'_>],
    chosen: &Categories,
    uses_cluster: bool,
    uses_local: bool,
    maglev: bool,
    is_external: bool,
) -> (Vec<BackendList>, usize) {
    let backend = |index: &usize| candidates[*index].backend;
    let (mut here, elsewhere): (Vec<usize>, Vec<usize>) =
        chosen.cluster.iter().partition(|i| candidates[**i].local);
    let local_of_cluster = here.clone();
    here.extend(elsewhere);
    let spare = candidates
        .iter()
        .enumerate()
        .filter(|(index, c)| c.local && c.serves() && is_external && !here.contains(index))
        .map(|(_, c)| c.backend);
    let cluster = BackendList {
        spare: spare.collect(),
        backends: here.iter().map(backend).collect(),
        local_count: local_of_cluster.len(),
        maglev: maglev && !here.is_empty(),
    };
    if !uses_local {
        return (vec![cluster], 0);
    }
    // Without a local endpoint the list still says that there are others: drop, not reject.
    let local = if chosen.local.is_empty() {
        BackendList {
            maglev: false,
            spare: Vec::new(),
            ..cluster.clone()
        }
    } else {
        BackendList {
            backends: chosen.local.iter().map(backend).collect(),
            local_count: chosen.local.len(),
            maglev,
            spare: Vec::new(),
        }
    };
    if !uses_cluster {
        return (vec![local], 0);
    }
    let one_does = chosen.local == local_of_cluster
        && (!cluster.maglev || local.maglev && local.backends == cluster.backends);
    if one_does {
        (vec![cluster], 0)
    } else {
        (vec![cluster, local], 1)
    }
}

/// The ranges of a family. A node in one of them may also come with the load balancer's address,
/// which its own routes can make its source.
fn source_ranges(
    service: &Service,
    node: &NodeView,
    load_balancer_ips: &[IpAddr],
    v4: bool,
) -> Vec<IpNet> {
    let of_family = service
        .source_ranges
        .iter()
        .filter(|r| r.addr().is_ipv4() == v4);
    let mut ranges: Vec<IpNet> = of_family.copied().collect();
    let holds_node = |range: &IpNet| node.addresses.iter().any(|address| range.contains(address));
    if ranges.iter().any(holds_node) {
        ranges.extend(load_balancer_ips.iter().copied().map(IpNet::from));
    }
    ranges.sort_unstable();
    ranges.dedup();
    ranges
}

/// Addresses of this node's ready endpoints, over all ports: what a load balancer's health check asks.
fn local_ready(slices: &[&EndpointSlice], node: &NodeView) -> usize {
    let all = slices.iter().flat_map(|slice| &slice.endpoints);
    let here =
        all.filter(|e| e.conditions.ready && e.node_name.as_deref() == Some(node.name.as_str()));
    let mut addresses: Vec<IpAddr> = here.map(|endpoint| endpoint.address).collect();
    addresses.sort_unstable();
    addresses.dedup();
    addresses.len()
}

/// Folds the host ports of a pod: frontends with one backend.
#[must_use]
pub fn host_ports(pod: &HostPorts, node: &NodeView) -> Folded {
    let mut entries = Vec::new();
    for port in &pod.ports {
        for pod_ip in &pod.pod_ips {
            let v4 = pod_ip.is_ipv4();
            let addresses: Vec<IpAddr> = match port.host_ip {
                Some(address) if !address.is_unspecified() => vec![address],
                _ => node.addresses.clone(),
            };
            let mut frontends = Vec::new();
            for address in addresses.into_iter().filter(|a| a.is_ipv4() == v4) {
                // Nobody outside reaches a loopback address.
                let scopes = [Scope::Cluster, Scope::External];
                for scope in &scopes[..if address.is_loopback() { 1 } else { 2 }] {
                    frontends.push(EntryFrontend {
                        frontend: Frontend {
                            address,
                            port: port.port,
                            protocol: port.protocol,
                            scope: *scope,
                        },
                        list: 0,
                        flags: FrontendFlags {
                            node_port: true,
                            ..FrontendFlags::default()
                        },
                        cluster_ip: false,
                    });
                }
            }
            let backend = BackendAddress {
                address: *pod_ip,
                port: port.container_port,
                protocol: port.protocol,
            };
            if frontends.is_empty() {
                continue;
            }
            entries.push(ServiceEntry {
                port_name: format!("{}/{}", port.port, port.protocol),
                lists: vec![BackendList {
                    backends: vec![backend],
                    local_count: 1,
                    ..BackendList::default()
                }],
                frontends,
                serving: vec![backend],
                ..ServiceEntry::default()
            });
        }
    }
    Folded {
        created_at_secs: pod.created_at_secs,
        entries,
        ..Folded::default()
    }
}

#[cfg(test)]
mod tests;
