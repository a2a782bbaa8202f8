//! The reference model answers kube-proxy's cases as kube-proxy does.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;

use serde_json::{Value, json};
use tholepin_tests_dataplane::cases::{self, Expected, Flow};
use tholepin_tests_dataplane::reference::{Answer, Endpoint, Protocol, Style, categorize};

/// One answer as upstream writes it: the masquerade mark is set or not, whatever the endpoint.
pub(crate) fn as_upstream(answer: Answer) -> Expected {
    match answer {
        Answer::To(endpoints) => {
            let masqueraded = endpoints.values().any(|masqueraded| *masqueraded);
            Expected::To(endpoints.into_keys().collect(), masqueraded)
        }
        Answer::Drop => Expected::Drop,
        Answer::Reject => Expected::Reject,
        Answer::Untouched => Expected::Untouched,
    }
}

#[test]
fn packets_become_what_kube_proxy_makes_of_them() {
    let (mut wrong, mut checked) = (Vec::new(), 0);
    for case in cases::load("packet_flows") {
        for (mode, style) in [("nftables", Style::Nftables), ("iptables", Style::Iptables)] {
            if case["only"].as_str().is_some_and(|only| only != mode) {
                continue;
            }
            for step in case["steps"].as_array().expect("a case has steps") {
                let mut world = cases::world(style, &step["services"], &step["slices"]);
                if let Some(list) = case["nodePortAddresses"].as_array() {
                    let texts: Vec<_> = list.iter().filter_map(Value::as_str).collect();
                    world.node_port_addresses = cases::addresses(&texts);
                }
                for flow in step["flows"].as_array().expect("a step has flows") {
                    let flow = Flow::read(flow);
                    if flow.only.as_deref().is_some_and(|only| only != mode) {
                        continue;
                    }
                    let found = as_upstream(world.ask(&flow.question));
                    checked += 1;
                    if found != flow.expected {
                        wrong.push(format!(
                            "{}/{} ({mode}): {found:?} instead of {:?}",
                            cases::name(&case),
                            flow.name,
                            flow.expected
                        ));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(checked >= 250, "only {checked} packets");
}

#[test]
fn endpoints_are_categorized_as_by_kube_proxy() {
    for case in cases::load("categorize_endpoints") {
        let node = case["node"].as_str().expect("a node");
        let list = case["endpoints"].as_array().expect("endpoints");
        let read = |endpoint: &Value| {
            let mut endpoint = Endpoint::read(endpoint);
            endpoint.at.set_port(80);
            endpoint.local = endpoint.node.as_deref() == Some(node);
            endpoint
        };
        let endpoints: Vec<_> = list.iter().map(read).collect();
        let is = |key: &str| case[key] == true;
        let choice = categorize(
            &endpoints,
            !is("internalLocal") || is("external"),
            is("internalLocal") || (is("externalLocal") && is("external")),
            node,
            case["zone"].as_str().unwrap_or_default(),
        );
        let expected = |key: &str| -> Option<BTreeSet<SocketAddr>> {
            case[key].as_array().map(|_| cases::sockets(&case[key]))
        };
        let name = cases::name(&case);
        assert_eq!(choice.cluster, expected("cluster"), "{name}: cluster");
        assert_eq!(choice.local, expected("local"), "{name}: local");
        assert_eq!(choice.any, is("any"), "{name}: any");
    }
}

/// A Service for every slice's Service, with all ports that its slices have.
pub(crate) fn services_of(slices: &Value) -> Value {
    let mut ports: BTreeMap<(String, String), BTreeMap<String, Value>> = BTreeMap::new();
    for slice in slices.as_array().into_iter().flatten() {
        let meta = &slice["metadata"];
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        let key = (
            text(&meta["namespace"]),
            text(&meta["labels"]["kubernetes.io/service-name"]),
        );
        let all = ports.entry(key).or_default();
        for port in slice["ports"].as_array().into_iter().flatten() {
            let mut number = 1000 + all.len();
            let name = text(&port["name"]);
            if let Some(known) = all.get(&name) {
                number = known["port"].as_u64().unwrap_or_default() as usize;
            }
            let port = json!({"name": name, "port": number, "protocol": port["protocol"]});
            all.insert(name, port);
        }
    }
    let service =
        |(index, ((namespace, name), ports)): (usize, ((String, String), BTreeMap<_, _>))| {
            let address = format!("172.30.9.{}", index + 1);
            json!({
                "metadata": {"namespace": namespace, "name": name},
                "spec": {
                    "type": "ClusterIP",
                    "clusterIP": address,
                    "clusterIPs": [address],
                    "ports": ports.into_values().collect::<Vec<Value>>(),
                },
            })
        };
    Value::Array(ports.into_iter().enumerate().map(service).collect())
}

#[test]
fn endpoints_maps_change_as_in_kube_proxy() {
    for case in cases::load("update_endpoints_map") {
        let name = cases::name(&case);
        let world = cases::world(
            Style::Nftables,
            &services_of(&case["after"]),
            &case["after"],
        );
        let mut found = BTreeMap::new();
        for service in &world.services {
            for (index, port) in service.ports.iter().enumerate() {
                let endpoints = world.endpoints(service, index, true);
                let at: BTreeSet<_> = endpoints.into_iter().map(|one| one.at).collect();
                if !at.is_empty() {
                    found.insert(format!("{service}:{}", port.name), at);
                }
            }
        }
        let expected = case["expected"].as_object().expect("what is expected");
        let expected: BTreeMap<_, _> = expected
            .iter()
            .map(|(port, list)| (port.clone(), cases::sockets(list)))
            .collect();
        assert_eq!(found, expected, "{name}");
        let ready = case["localReady"].as_object().expect("counts");
        let ready: BTreeMap<_, _> = ready
            .iter()
            .map(|(service, count)| (service.clone(), count.as_u64().unwrap_or_default() as usize))
            .collect();
        assert_eq!(world.local_ready(), ready, "{name}: ready here");
    }
}

#[test]
fn services_have_the_ports_and_health_checks_of_kube_proxy() {
    for case in cases::load("service_map") {
        for (number, step) in case["steps"].as_array().expect("steps").iter().enumerate() {
            let name = format!("{}, step {number}", cases::name(&case));
            let world = cases::world(Style::Nftables, &step["services"], &Value::Null);
            assert_eq!(Some(world.ports() as u64), step["ports"].as_u64(), "{name}");
            let checks = json!(world.health_checks());
            assert_eq!(checks, step["healthChecks"], "{name}");
        }
    }
}

/// The objects of `TestCleanStaleEntries` after the change that makes entries stale.
pub(crate) fn stale_objects(endpoint: &str) -> (Value, Value) {
    let port = |protocol: &str| {
        let name = format!("test-{}", protocol.to_lowercase());
        json!({"name": name, "port": 8000, "nodePort": 32000, "protocol": protocol})
    };
    let protocols = ["TCP", "UDP", "SCTP"];
    let service = json!([{
        "metadata": {"namespace": "test", "name": "cleanup-test"},
        "spec": {
            "type": "LoadBalancer",
            "clusterIP": "172.30.1.1",
            "clusterIPs": ["172.30.1.1"],
            "externalIPs": ["192.168.99.100"],
            "ports": protocols.map(port),
        },
        "status": {"loadBalancer": {"ingress": [{"ip": "1.2.3.4"}]}},
    }]);
    let target = |protocol: &str| {
        let name = format!("test-{}", protocol.to_lowercase());
        json!({"name": name, "port": 9090, "protocol": protocol})
    };
    let mut endpoints = vec![
        json!({"addresses": ["10.240.0.4"], "conditions": {"serving": true}}),
        json!({"addresses": ["10.240.1.5"], "conditions": {"serving": false}}),
    ];
    if endpoint == "all deleted" {
        endpoints.clear();
    }
    let slices = json!([{
        "metadata": {
            "namespace": "test",
            "name": "cleanup-test-0",
            "labels": {"kubernetes.io/service-name": "cleanup-test"},
        },
        "addressType": "IPv4",
        "ports": protocols.map(target),
        "endpoints": endpoints,
    }]);
    (service, slices)
}

/// Where the flow of a row went before the change.
pub(crate) fn stale_endpoint(endpoint: &str) -> SocketAddr {
    let text = match endpoint {
        "serving" => "10.240.0.4:9090",
        "not serving" => "10.240.1.5:9090",
        "deleted" | "all deleted" => "10.240.2.6:9090",
        "other port" => "10.240.0.4:8080",
        other => panic!("`{other}` is no row"),
    };
    text.parse().expect("an address and a port")
}

/// Rows where kube-proxy keeps what the rules want gone: its bug 139628.
pub(crate) fn is_upstreams_bug(case: &Value) -> bool {
    case["test"] == "TestServiceWithoutEndpoints"
}

#[test]
fn stale_flows_are_cut_as_by_kube_proxy_but_for_its_bug() {
    for case in cases::load("stale_flows") {
        let endpoint = case["endpoint"].as_str().expect("an endpoint");
        let (services, slices) = stale_objects(endpoint);
        let world = cases::world(Style::Nftables, &services, &slices);
        let service = &world.services[0];
        let protocol = Protocol::named(&case["protocol"]);
        let port = service
            .ports
            .iter()
            .position(|port| port.protocol == protocol);
        let stays = world.stays(service, port.expect("its port"), stale_endpoint(endpoint));
        let kept = case["kept"] == true && !is_upstreams_bug(&case);
        assert_eq!(stays, kept, "{case}");
    }
}
