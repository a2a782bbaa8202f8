//! The same cases end to end: objects through the agent's parsers and planner into the maps, packets
//! through the programs, in both families.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use serde_json::{Value, json};
use tholepin_tests_dataplane::address_plan::AddressPlan;
use tholepin_tests_dataplane::cases::{self, Flow};
use tholepin_tests_dataplane::reference::{Answer, Protocol, Question, World};
use tholepin_tests_dataplane::stage::NODES;

use crate::model::{is_upstreams_bug, services_of, stale_endpoint, stale_objects};
use crate::node::{Client, Node, Observed, client_of, opening, reached};

/// What the programs may do, by the model.
fn allowed(answer: &Answer) -> BTreeSet<Observed> {
    match answer {
        Answer::To(endpoints) => endpoints
            .iter()
            .map(|(at, hidden)| Observed::To(*at, *hidden))
            .collect(),
        Answer::Drop => [Observed::Drop].into(),
        Answer::Reject => [Observed::Reject].into(),
        Answer::Untouched => [Observed::Untouched].into(),
    }
}

/// Asks until everything allowed was seen, and a few times more; whatever is not allowed is told.
fn compare(node: &mut Node, world: &World, question: &Question, name: &str) -> Option<String> {
    let expected = allowed(&world.ask(question));
    let client = client_of(question.from);
    let mut seen = BTreeSet::new();
    // A fair die with six sides misses one of them in 200 throws once in 10^15 times.
    for round in 0..200 {
        seen.insert(node.ask(question, client));
        if !seen.is_subset(&expected) || (seen == expected && round >= 3) {
            break;
        }
    }
    (seen != expected)
        .then(|| format!("{name}: {question:?}\n  is      {seen:?}\n  must be {expected:?}"))
}

/// Families a case is run in.
fn families(case: &Value) -> &'static [bool] {
    if case["case"]
        .as_str()
        .is_some_and(|name| name.starts_with("ipv6"))
    {
        &[true]
    } else {
        &[false, true]
    }
}

/// Flows that the stage cannot send: what a load balancer's cloud would have made of a packet of the
/// node, and what the kernel keeps from ever leaving its own stack.
fn is_unreal(flow: &Flow) -> bool {
    flow.name.starts_with("same node to LB") || flow.question.from.is_loopback()
}

/// External traffic and SCTP are not in the programs yet; these flows join when they are.
const EXTERNAL: bool = false;

fn is_pending(protocol: Protocol, to: SocketAddr) -> bool {
    let cluster_ip = to.ip().to_string();
    let cluster_ip = cluster_ip.starts_with("10.") || cluster_ip.starts_with("fd00:10:");
    !EXTERNAL && (protocol == Protocol::Sctp || !cluster_ip)
}

#[test]
fn the_programs_do_with_every_packet_of_kube_proxys_cases_what_the_model_says() {
    let Some(mut node) = Node::start() else {
        return;
    };
    let (mut wrong, mut checked) = (Vec::new(), 0);
    for case in cases::load("packet_flows") {
        for v6 in families(&case) {
            let plan = AddressPlan::of(&case, *v6);
            let node_ports: Vec<IpAddr> = match case["nodePortAddresses"].as_array() {
                Some(list) => {
                    let texts: Vec<_> = list.iter().filter_map(Value::as_str).collect();
                    let own = cases::addresses(&texts).into_iter().map(|ip| plan.ip(ip));
                    own.filter(|ip| !ip.is_loopback()).collect()
                }
                None => cases::addresses(&NODES),
            };
            for step in case["steps"].as_array().expect("steps") {
                let services = plan.objects(&step["services"]);
                let slices = plan.objects(&step["slices"]);
                node.apply(&services, &slices, &node_ports);
                let world = plan.world(&services, &slices, &node_ports);
                for flow in step["flows"].as_array().expect("flows") {
                    let flow = Flow::read(flow);
                    if is_unreal(&flow) {
                        continue;
                    }
                    let question = Question {
                        from: plan.ip(flow.question.from),
                        to: plan.socket(flow.question.to),
                        ..flow.question
                    };
                    if is_pending(question.protocol, question.to) {
                        continue;
                    }
                    let name = format!("{}/{}", cases::name(&case), flow.name);
                    wrong.extend(compare(&mut node, &world, &question, &name));
                    checked += 1;
                }
            }
        }
    }
    println!("{checked} packets of kube-proxy's cases");
    assert!(
        wrong.is_empty(),
        "{} of {checked}\n{}",
        wrong.len(),
        wrong.join("\n")
    );
}

#[test]
fn lists_of_backends_are_those_of_categorize_endpoints() {
    let Some(mut node) = Node::start() else {
        return;
    };
    let mut wrong = Vec::new();
    for case in cases::load("categorize_endpoints") {
        for v6 in [false, true] {
            let plan = AddressPlan::of(&case, v6);
            let is = |key: &str| case[key] == true;
            let policy = |local: bool| if local { "Local" } else { "Cluster" };
            let address = "172.30.0.41";
            let mut port = json!({"name": "http", "port": 80, "protocol": "TCP"});
            if is("external") {
                port["nodePort"] = json!(8080);
            }
            let service = json!([{
                "metadata": {"namespace": "ns", "name": "svc"},
                "spec": {
                    "type": if is("external") { "NodePort" } else { "ClusterIP" },
                    "clusterIP": address,
                    "clusterIPs": [address],
                    "externalTrafficPolicy": policy(is("externalLocal")),
                    "internalTrafficPolicy": policy(is("internalLocal")),
                    "ports": [port],
                },
            }]);
            let slice = json!([{
                "metadata": {
                    "namespace": "ns",
                    "name": "svc-1",
                    "labels": {"kubernetes.io/service-name": "svc"},
                },
                "addressType": "IPv4",
                "ports": [{"name": "http", "port": 80, "protocol": "TCP"}],
                "endpoints": case["endpoints"],
            }]);
            let (services, slices) = (plan.objects(&service), plan.objects(&slice));
            node.name = case["node"].as_str().expect("a node").to_owned();
            node.zone = case["zone"].as_str().map(str::to_owned);
            let node_ports = cases::addresses(&NODES);
            node.apply(&services, &slices, &node_ports);
            let mut world = plan.world(&services, &slices, &node_ports);
            (world.node, world.zone) = (node.name.clone(), node.zone.clone());
            // The rows say the lists themselves; the model was compared with them elsewhere.
            let inside = plan.socket("172.30.0.41:80".parse().expect("a socket"));
            let outside = plan.socket("192.168.0.2:8080".parse().expect("a socket"));
            let client = plan.ip("203.0.113.2".parse().expect("an address"));
            let pod = cases::addresses(&[if v6 { "fd00:10:244:1::2" } else { "10.244.1.2" }]);
            let mut asked = vec![(pod[0], inside)];
            if is("external") {
                asked.extend([(client, outside), (pod[0], outside)]);
            }
            asked.retain(|(_, to)| !is_pending(Protocol::Tcp, *to));
            for (from, to) in asked {
                let question = Question {
                    from,
                    protocol: Protocol::Tcp,
                    to,
                };
                wrong.extend(compare(&mut node, &world, &question, &cases::name(&case)));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn endpoints_change_in_the_maps_as_in_kube_proxys_endpoints_map() {
    let Some(mut node) = Node::start() else {
        return;
    };
    for case in cases::load("update_endpoints_map") {
        for v6 in [false, true] {
            let plan = AddressPlan::of(&case, v6);
            for state in ["before", "after"] {
                let services = services_of(&case["after"]);
                let (services, slices) = (plan.objects(&services), plan.objects(&case[state]));
                node.apply(&services, &slices, &[]);
            }
            let services = plan.objects(&services_of(&case["after"]));
            let world = plan.world(&services, &plan.objects(&case["after"]), &[]);
            let pod = cases::addresses(&[if v6 { "fd00:10:244:1::2" } else { "10.244.1.2" }]);
            for service in &world.services {
                for port in &service.ports {
                    let name = format!("{service}:{}", port.name);
                    let expected = cases::sockets(&case["expected"][&name]);
                    let expected: BTreeSet<_> =
                        expected.into_iter().map(|at| plan.socket(at)).collect();
                    let mut seen = BTreeSet::new();
                    for _ in 0..40 {
                        let question = Question {
                            from: pod[0],
                            protocol: port.protocol,
                            to: SocketAddr::new(service.cluster_ips[0], port.port),
                        };
                        seen.insert(node.ask(&question, Client::Pod));
                    }
                    assert_eq!(
                        reached(&seen),
                        expected,
                        "{}: {name}: {seen:?}",
                        cases::name(&case)
                    );
                    assert_eq!(seen.contains(&Observed::Reject), expected.is_empty());
                }
            }
        }
    }
}

#[test]
fn flows_leave_backends_as_kube_proxys_conntrack_is_cleaned() {
    let Some(mut node) = Node::start() else {
        return;
    };
    let node_ports = cases::addresses(&NODES);
    for case in cases::load("stale_flows") {
        let endpoint = case["endpoint"].as_str().expect("an endpoint");
        let protocol = Protocol::named(&case["protocol"]);
        let front = match case["frontend"].as_str() {
            Some("clusterIP") => "172.30.1.1:8000",
            Some("loadBalancerIP") => "1.2.3.4:8000",
            Some("externalIP") => "192.168.99.100:8000",
            Some("nodePort") => "192.168.0.2:32000",
            other => panic!("{other:?} is no frontend"),
        };
        if is_pending(
            protocol,
            if front.starts_with("172.30") {
                "10.96.0.1:1"
            } else {
                front
            }
            .parse()
            .expect("a socket"),
        ) {
            continue;
        }
        let (services, mut after) = stale_objects(endpoint);
        // Upstream's row leaves `ready` open, which makes it true: a flow that left could come back.
        for endpoint in after[0]["endpoints"].as_array_mut().expect("endpoints") {
            let serving = endpoint["conditions"]["serving"].clone();
            endpoint["conditions"]["ready"] = serving;
        }
        let old = stale_endpoint(endpoint);
        // Before the change the row's endpoint is the only one.
        let mut before = after.clone();
        before[0]["endpoints"] = json!([{"addresses": [old.ip().to_string()]}]);
        for port in before[0]["ports"].as_array_mut().expect("ports") {
            port["port"] = json!(old.port());
        }
        let all = json!({"a": before, "b": after, "from": "10.0.0.2"});
        let plan = AddressPlan::of(&all, false);
        node.apply(
            &plan.objects(&services),
            &plan.objects(&before),
            &node_ports,
        );
        let pod = plan.ip("10.0.0.2".parse().expect("an address"));
        let to = plan.socket(front.parse().expect("a socket"));
        let packet = opening(protocol, SocketAddr::new(pod, 4242), to);
        let first = node.send(&packet, Client::Pod);
        assert!(
            matches!(first, Observed::To(at, _) if at == plan.socket(old)),
            "{case}: {first:?}"
        );
        node.apply(&plan.objects(&services), &plan.objects(&after), &node_ports);
        let mut next = packet.clone();
        if let tholepin_tests_dataplane::wire::Body::Tcp { flags, .. } = &mut next.body {
            *flags = 16;
        }
        let moved = node.send(&next, Client::Pod);
        let kept = case["kept"] == true && !is_upstreams_bug(&case);
        assert_eq!(moved == first, kept, "{case}: {first:?}, then {moved:?}");
        node.stage.reset_flows();
    }
}
