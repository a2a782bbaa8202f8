//! Services of every shape, as kube-proxy reads them.

use serde_json::{Value, json};

use super::*;

fn object(metadata: Value, spec: Value, ingress: Value) -> core_v1::Service {
    let status = json!({"loadBalancer": {"ingress": ingress}});
    let object = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec, "status": status,
    });
    serde_json::from_value(object).unwrap()
}

fn parse_with(labels: Value, annotations: Value, spec: Value) -> Option<Service> {
    let metadata = json!({
        "name": "web", "namespace": "default", "labels": labels, "annotations": annotations,
    });
    service_of(&object(metadata, spec, json!([]))).unwrap()
}

fn parse(spec: Value) -> Option<Service> {
    parse_with(json!({}), json!({}), spec)
}

fn parse_load_balancer(spec: Value, ingress: Value) -> Service {
    let metadata = json!({"name": "web", "namespace": "default"});
    service_of(&object(metadata, spec, ingress))
        .unwrap()
        .unwrap()
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

#[test]
fn a_dual_stack_service_has_an_address_per_family() {
    let service = parse(json!({
        "clusterIP": "10.96.0.7", "clusterIPs": ["10.96.0.7", "fd00:10:96::7"],
        "ports": [
            {"port": 80}, {"name": "dns", "port": 53, "protocol": "UDP"},
            {"name": "sig", "port": 9, "protocol": "SCTP"},
        ],
    }))
    .unwrap();
    assert_eq!(service.cluster_ips, [ip("10.96.0.7"), ip("fd00:10:96::7")]);
    let protocols: Vec<_> = service.ports.iter().map(|port| port.protocol).collect();
    assert_eq!(protocols, [Protocol::Tcp, Protocol::Udp, Protocol::Sctp]);
    assert_eq!(service.complaints, [""; 0]);
}

#[test]
fn headless_external_name_and_foreign_services_are_ignored() {
    let ports = json!([{"port": 80}]);
    assert!(parse(json!({"clusterIP": "None", "ports": ports})).is_none());
    assert!(parse(json!({"clusterIP": "", "ports": ports})).is_none());
    assert!(parse(json!({"type": "ExternalName", "externalName": "x.example"})).is_none());
    let spec = json!({"clusterIP": "10.96.0.7", "ports": ports});
    assert!(parse_with(json!({PROXY_NAME_LABEL: "other"}), json!({}), spec).is_none());
}

#[test]
fn a_bad_port_is_named_and_costs_only_itself() {
    let service = parse(json!({
        "clusterIP": "10.96.0.7",
        "ports": [{"port": 80}, {"name": "s", "port": 9, "protocol": "DCCP"}, {"name": "z", "port": 70000}],
    }))
    .unwrap();
    assert_eq!(service.ports.len(), 1);
    assert_eq!(
        service.complaints,
        [
            "protocol DCCP of port 9 is not known",
            "port 70000 is not between 1 and 65535"
        ]
    );
}

#[test]
fn node_ports_are_those_of_node_port_and_load_balancer_services() {
    for (kind, expected) in [
        ("ClusterIP", None),
        ("NodePort", Some(30_080)),
        ("LoadBalancer", Some(30_080)),
    ] {
        let ports = json!([{"port": 80, "nodePort": 30080}]);
        let spec = json!({"type": kind, "clusterIP": "10.96.0.7", "ports": ports});
        assert_eq!(parse(spec).unwrap().ports[0].node_port, expected, "{kind}");
    }
    let none = json!({"type": "LoadBalancer", "clusterIP": "10.96.0.7", "ports": [{"port": 80}]});
    assert_eq!(parse(none).unwrap().ports[0].node_port, None);
}

#[test]
fn load_balancer_addresses_in_proxy_mode_and_host_names_are_left_alone() {
    let spec = json!({
        "type": "LoadBalancer", "clusterIP": "10.96.0.7", "ports": [{"port": 80}],
        "externalIPs": ["198.51.100.1", "x"],
        "loadBalancerSourceRanges": [" 203.0.113.0/25", "192.0.2.9/24", "bad"],
    });
    let ingress = json!([
        {"ip": "192.0.2.1"}, {"ip": "192.0.2.2", "ipMode": "VIP"}, {"ip": "192.0.2.3", "ipMode": "Proxy"},
        {"hostname": "lb.example"},
    ]);
    let service = parse_load_balancer(spec, ingress);
    assert_eq!(
        service.load_balancer_ips,
        [ip("192.0.2.1"), ip("192.0.2.2")]
    );
    assert_eq!(service.external_ips, [ip("198.51.100.1")]);
    let ranges: Vec<String> = service
        .source_ranges
        .iter()
        .map(ToString::to_string)
        .collect();
    assert_eq!(ranges, ["203.0.113.0/25", "192.0.2.0/24"]);
    assert_eq!(service.complaints.len(), 2);
}

#[test]
fn source_ranges_of_which_none_can_be_read_let_nobody_in() {
    let spec = json!({
        "type": "LoadBalancer", "clusterIP": "10.96.0.7", "ports": [{"port": 80}],
        "loadBalancerSourceRanges": ["everybody"],
    });
    let service = parse_load_balancer(spec, json!([{"ip": "192.0.2.1"}]));
    assert_eq!(service.source_ranges.len(), 2);
    assert!(
        service
            .source_ranges
            .iter()
            .all(|range| range.addr().is_unspecified())
    );
}

#[test]
fn affinity_has_upstreams_default_and_limits() {
    let with = |config: Value| {
        parse(json!({
            "clusterIP": "10.96.0.7", "ports": [{"port": 80}], "sessionAffinity": "ClientIP",
            "sessionAffinityConfig": config,
        }))
        .unwrap()
    };
    assert_eq!(with(json!(null)).affinity_timeout_secs, Some(10_800));
    let timeout = |secs: i32| with(json!({"clientIP": {"timeoutSeconds": secs}}));
    assert_eq!(timeout(30).affinity_timeout_secs, Some(30));
    for wrong in [0, -1, 86_401] {
        let service = timeout(wrong);
        assert_eq!(service.affinity_timeout_secs, Some(10_800));
        assert_eq!(service.complaints.len(), 1, "{wrong}");
    }
    let none = parse(json!({"clusterIP": "10.96.0.7", "ports": [], "sessionAffinity": "None"}));
    assert_eq!(none.unwrap().affinity_timeout_secs, None);
}

#[test]
fn the_health_check_port_counts_only_for_local_load_balancers() {
    for (kind, policy, expected) in [
        ("LoadBalancer", "Local", Some(31_000)),
        ("LoadBalancer", "Cluster", None),
        ("NodePort", "Local", None),
    ] {
        let spec = json!({
            "type": kind, "clusterIP": "10.96.0.7", "ports": [{"port": 80}],
            "externalTrafficPolicy": policy, "healthCheckNodePort": 31000,
        });
        assert_eq!(parse(spec).unwrap().health_check_node_port, expected);
    }
}

#[test]
fn annotations_choose_the_table_and_the_way_back_and_wrong_ones_are_named() {
    let spec = json!({"clusterIP": "10.96.0.7", "ports": [{"port": 80}]});
    let with = |annotations: Value| parse_with(json!({}), annotations, spec.clone()).unwrap();
    let service = with(json!({SELECTION_ANNOTATION: "maglev", FORWARDING_ANNOTATION: "snat"}));
    assert_eq!(service.selection, Selection::Maglev);
    assert_eq!(service.forwarding, Some(Forwarding::Masquerade));
    let service = with(json!({SELECTION_ANNOTATION: "best", FORWARDING_ANNOTATION: "nat"}));
    assert_eq!(
        (service.selection, service.forwarding),
        (Selection::Random, None)
    );
    assert_eq!(
        service.complaints,
        [
            "tholepin.io/forwarding \"nat\" is not known; the node's default is used",
            "tholepin.io/load-balancing \"best\" is not known; random is used",
        ]
    );
}
