//! Frontends, lists and flags of Services of every kind.

use super::*;
use crate::service::{
    Conditions, Endpoint, EndpointPort, HostPort, Protocol, ServiceName, SliceName,
};

const LOCAL: [u8; 4] = [10, 244, 1, 1];
const REMOTE: [u8; 4] = [10, 244, 2, 1];

fn node() -> NodeView {
    let addresses = vec![
        "192.0.2.11".parse().unwrap(),
        "2001:db8::11".parse().unwrap(),
    ];
    NodeView {
        name: "n1".to_owned(),
        zone: None,
        node_port_addresses: addresses.clone(),
        addresses,
        forwarding: Forwarding::Direct,
    }
}

fn web() -> Service {
    Service {
        name: ServiceName {
            namespace: "default".to_owned(),
            name: "web".to_owned(),
        },
        uid: String::new(),
        created_at_secs: 1,
        cluster_ips: vec![[10, 96, 0, 7].into()],
        external_ips: vec![],
        load_balancer_ips: vec![],
        source_ranges: vec![],
        ports: vec![ServicePort {
            name: String::new(),
            protocol: Protocol::Tcp,
            port: 80,
            node_port: None,
        }],
        internal_policy: TrafficPolicy::Cluster,
        external_policy: TrafficPolicy::Cluster,
        affinity_timeout_secs: None,
        selection: Selection::Random,
        forwarding: None,
        health_check_node_port: None,
        complaints: vec![],
    }
}

fn outside(service: &mut Service) {
    service.ports[0].node_port = Some(30_080);
    service.external_ips = vec![[198, 51, 100, 1].into()];
    service.load_balancer_ips = vec![[203, 0, 113, 1].into()];
}

fn endpoints(all: &[([u8; 4], bool, bool)]) -> EndpointSlice {
    let endpoint = |(address, ready, draining): &([u8; 4], bool, bool)| Endpoint {
        address: (*address).into(),
        conditions: Conditions {
            ready: *ready,
            serving: *ready || *draining,
            terminating: *draining,
        },
        node_name: Some(format!("n{}", address[2])),
        node_hints: vec![],
        zone_hints: vec![],
    };
    EndpointSlice {
        name: SliceName {
            namespace: "default".to_owned(),
            name: "web-1".to_owned(),
        },
        service: web().name,
        ports: vec![EndpointPort {
            name: String::new(),
            protocol: Protocol::Tcp,
            port: 8080,
        }],
        endpoints: all.iter().map(endpoint).collect(),
        triggered_at: None,
    }
}

fn folded(service: &Service, slice: &EndpointSlice) -> ServiceEntry {
    let folded = super::service(service, &[slice], &node());
    let [entry] = <[ServiceEntry; 1]>::try_from(folded.entries).unwrap();
    entry
}

fn flags(entry: &ServiceEntry, address: &str, scope: Scope) -> Option<(usize, FrontendFlags)> {
    let wanted = entry.frontends.iter().find(|wanted| {
        wanted.frontend.address.to_string() == address && wanted.frontend.scope == scope
    });
    wanted.map(|wanted| (wanted.list, wanted.flags))
}

fn addresses(list: &BackendList) -> Vec<String> {
    list.backends
        .iter()
        .map(|backend| backend.address.to_string())
        .collect()
}

#[test]
fn an_external_address_has_a_frontend_for_the_cluster_and_one_for_the_world() {
    let mut service = web();
    outside(&mut service);
    let entry = folded(
        &service,
        &endpoints(&[(LOCAL, true, false), (REMOTE, true, false)]),
    );
    for address in ["192.0.2.11", "198.51.100.1", "203.0.113.1"] {
        assert!(
            flags(&entry, address, Scope::Cluster).is_some(),
            "{address}"
        );
        assert!(
            flags(&entry, address, Scope::External).is_some(),
            "{address}"
        );
    }
    assert!(flags(&entry, "10.96.0.7", Scope::External).is_none());
    let (_, node_port) = flags(&entry, "192.0.2.11", Scope::External).unwrap();
    assert!(node_port.node_port && !node_port.local_only);
    assert_eq!(
        addresses(&entry.lists[0]),
        ["10.244.1.1", "10.244.2.1"],
        "local ones first"
    );
    assert_eq!(entry.lists[0].local_count, 1);
}

#[test]
fn external_traffic_policy_binds_the_world_and_not_the_cluster() {
    let mut service = web();
    outside(&mut service);
    service.external_policy = TrafficPolicy::Local;
    let entry = folded(
        &service,
        &endpoints(&[(LOCAL, true, false), (REMOTE, true, false)]),
    );
    assert_eq!(entry.lists.len(), 1, "one list serves both");
    assert!(
        !flags(&entry, "203.0.113.1", Scope::Cluster)
            .unwrap()
            .1
            .local_only
    );
    assert!(
        flags(&entry, "203.0.113.1", Scope::External)
            .unwrap()
            .1
            .local_only
    );
    assert!(
        !flags(&entry, "10.96.0.7", Scope::Cluster)
            .unwrap()
            .1
            .local_only
    );
    assert!(!entry.no_local_external);
}

#[test]
fn a_local_endpoint_that_drains_serves_local_traffic_alone() {
    let mut service = web();
    outside(&mut service);
    service.external_policy = TrafficPolicy::Local;
    let entry = folded(
        &service,
        &endpoints(&[(LOCAL, false, true), (REMOTE, true, false)]),
    );
    assert_eq!(entry.lists.len(), 2);
    assert_eq!(addresses(&entry.lists[0]), ["10.244.2.1"]);
    assert_eq!(
        entry.lists[0].spare.len(),
        1,
        "other nodes may still choose it"
    );
    assert_eq!(addresses(&entry.lists[1]), ["10.244.1.1"]);
    assert_eq!(flags(&entry, "203.0.113.1", Scope::External).unwrap().0, 1);
    assert_eq!(flags(&entry, "203.0.113.1", Scope::Cluster).unwrap().0, 0);
}

#[test]
fn none_here_but_elsewhere_is_told_from_none_anywhere() {
    let mut service = web();
    service.internal_policy = TrafficPolicy::Local;
    let entry = folded(&service, &endpoints(&[(REMOTE, true, false)]));
    let list = &entry.lists[0];
    assert!(
        flags(&entry, "10.96.0.7", Scope::Cluster)
            .unwrap()
            .1
            .local_only
    );
    assert_eq!((list.local_count, list.backends.len()), (0, 1), "drop");
    assert!(entry.no_local_internal);
    let entry = folded(&service, &endpoints(&[(REMOTE, false, false)]));
    assert_eq!(entry.lists[0].backends.len(), 0, "reject");
    assert!(!entry.no_local_internal);
}

#[test]
fn a_maglev_table_of_local_traffic_has_local_backends_only() {
    let mut service = web();
    outside(&mut service);
    service.external_policy = TrafficPolicy::Local;
    service.selection = Selection::Maglev;
    let entry = folded(
        &service,
        &endpoints(&[(LOCAL, true, false), (REMOTE, true, false)]),
    );
    assert_eq!(entry.lists.len(), 2);
    assert!(entry.lists.iter().all(|list| list.maglev));
    assert_eq!(addresses(&entry.lists[1]), ["10.244.1.1"]);
    let none_here = folded(&service, &endpoints(&[(REMOTE, true, false)]));
    assert!(!none_here.lists[none_here.lists.len() - 1].maglev);
}

#[test]
fn only_load_balancer_addresses_have_source_ranges_and_a_node_in_one_brings_their_own_address() {
    let mut service = web();
    outside(&mut service);
    service.source_ranges = vec!["203.0.113.0/25".parse().unwrap()];
    let entry = folded(&service, &endpoints(&[(LOCAL, true, false)]));
    assert!(
        flags(&entry, "203.0.113.1", Scope::Cluster)
            .unwrap()
            .1
            .source_ranges
    );
    assert!(
        flags(&entry, "203.0.113.1", Scope::External)
            .unwrap()
            .1
            .source_ranges
    );
    for open in ["198.51.100.1", "192.0.2.11"] {
        assert!(
            !flags(&entry, open, Scope::External)
                .unwrap()
                .1
                .source_ranges,
            "{open}"
        );
    }
    assert_eq!(entry.source_ranges.len(), 1);
    service.source_ranges.push("192.0.2.0/24".parse().unwrap());
    let entry = folded(&service, &endpoints(&[]));
    let ranges: Vec<String> = entry
        .source_ranges
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(ranges, ["192.0.2.0/24", "203.0.113.0/25", "203.0.113.1/32"]);
    // A family without ranges of its own is open, as with kube-proxy.
    service.source_ranges = vec!["2001:db8::/32".parse().unwrap()];
    let entry = folded(&service, &endpoints(&[]));
    assert!(
        !flags(&entry, "203.0.113.1", Scope::External)
            .unwrap()
            .1
            .source_ranges
    );
}

#[test]
fn masquerade_is_for_the_world_under_a_cluster_policy() {
    let mut service = web();
    outside(&mut service);
    service.forwarding = Some(Forwarding::Masquerade);
    let entry = folded(&service, &endpoints(&[(REMOTE, true, false)]));
    assert!(
        flags(&entry, "203.0.113.1", Scope::External)
            .unwrap()
            .1
            .masquerade
    );
    assert!(
        !flags(&entry, "203.0.113.1", Scope::Cluster)
            .unwrap()
            .1
            .masquerade
    );
    service.external_policy = TrafficPolicy::Local;
    let entry = folded(&service, &endpoints(&[(REMOTE, true, false)]));
    assert!(
        !flags(&entry, "203.0.113.1", Scope::External)
            .unwrap()
            .1
            .masquerade
    );
}

#[test]
fn health_checks_count_this_nodes_ready_addresses_once() {
    let mut service = web();
    service.health_check_node_port = Some(31_000);
    let slice = endpoints(&[
        (LOCAL, true, false),
        (REMOTE, true, false),
        ([10, 244, 1, 2], false, true),
    ]);
    let folded = super::service(&service, &[&slice, &slice], &node());
    assert_eq!(folded.health_check, Some((31_000, 1)));
}

#[test]
fn host_ports_are_at_the_nodes_addresses_of_the_pods_families_or_at_the_one_they_name() {
    let port = |host_ip: Option<&str>, protocol| HostPort {
        host_ip: host_ip.map(|ip| ip.parse().unwrap()),
        port: 54_321,
        protocol,
        container_port: 80,
    };
    let pod = HostPorts {
        uid: String::new(),
        created_at_secs: 5,
        pod_ips: vec![LOCAL.into()],
        ports: vec![
            port(None, Protocol::Tcp),
            port(Some("127.0.0.1"), Protocol::Tcp),
            port(Some("192.0.2.11"), Protocol::Udp),
        ],
    };
    let folded = host_ports(&pod, &node());
    let frontends: Vec<String> = folded
        .entries
        .iter()
        .flat_map(|entry| &entry.frontends)
        .map(|wanted| format!("{} {:?}", wanted.frontend, wanted.frontend.scope))
        .collect();
    // Other addresses and protocols are other frontends, so these ports do not conflict.
    assert_eq!(
        frontends,
        [
            "192.0.2.11:54321/tcp Cluster",
            "192.0.2.11:54321/tcp External",
            "127.0.0.1:54321/tcp Cluster",
            "192.0.2.11:54321/udp Cluster",
            "192.0.2.11:54321/udp External",
        ]
    );
}
