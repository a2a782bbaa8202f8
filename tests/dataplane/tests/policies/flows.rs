//! What becomes of flows: answers, changes of policy under way, ICMP, fragments, the node, Services.

use serde_json::{Value, json};
use tholepin_ebpf_abi::workload::POLICY_DENY_ALL;
use tholepin_model::policy::{Labels, ObjectName, Pod};
use tholepin_tests_dataplane::policies::Node;
use tholepin_tests_dataplane::stage::in_v6;
use tholepin_tests_dataplane::wire::{icmp_error, ping};
use tholepin_tests_dataplane::{Hook, Packet, stage, tcp, udp};

use Hook::{HostEgress, OverlayIn, PodEgress};

/// Turns the addresses of a text into a family's.
type Family = fn(&str) -> String;

/// The stage's pods .2 (`x/a`), .3 (`x/b`) and .7 (`y/c`), without policies yet.
struct World {
    node: Node,
    f: Family,
}

fn both(scenario: impl Fn(&mut World)) {
    let Some(stage) = stage() else { return };
    let mut node = Node::new(stage);
    for namespace in ["x", "y"] {
        node.namespace(namespace, &[("name", namespace)]);
    }
    for (namespace, name, last) in [("x", "a", 2), ("x", "b", 3), ("y", "c", 7)] {
        let addresses = [str::to_owned as Family, in_v6]
            .map(|f| f(&format!("10.244.1.{last}")).parse().expect("an address"));
        let pod = Pod {
            labels: Labels::from_iter([("pod", name)]),
            addresses: addresses.into(),
            named_ports: [].into(),
        };
        let object = ObjectName::new(namespace, name);
        node.pod(&object, pod);
        node.local(&object, &addresses);
    }
    let mut world = World {
        node,
        f: str::to_owned,
    };
    for f in [str::to_owned as Family, in_v6] {
        world.f = f;
        scenario(&mut world);
        for (namespace, name) in [("x", "p"), ("y", "p"), ("y", "q")] {
            world.node.delete(namespace, name);
        }
        world.node.stage().reset();
    }
}

impl World {
    fn only(&mut self, pod: &str, name: &str, rules: Value) {
        let mut spec = rules;
        spec["podSelector"] = json!({"matchLabels": {"pod": pod}});
        self.node.apply("x", name, spec);
    }

    fn tcp(&self, flags: &str, text: &str) -> Packet {
        tcp(flags, &(self.f)(text))
    }

    fn udp(&self, text: &str) -> Packet {
        udp(&(self.f)(text))
    }

    #[track_caller]
    fn passes(&self, hook: Hook, packet: &Packet) {
        let seen = self.node.stage().observe(hook, packet);
        assert!(
            !seen.starts_with("drop"),
            "{packet} enters {}: {seen}",
            hook.program()
        );
    }

    #[track_caller]
    fn drops(&self, hook: Hook, packet: &Packet, reason: &str) {
        let seen = self.node.stage().observe(hook, packet);
        assert_eq!(
            seen,
            format!("drop; {reason} +1"),
            "{packet} enters {}",
            hook.program()
        );
    }
}

#[test]
fn pods_that_no_policy_selects_leave_nothing_behind() {
    both(|world| {
        world.node.apply("y", "p", json!({"podSelector": {}}));
        let packet = world.tcp("S", "10.244.1.2:40000 -> 10.244.1.3:80");
        world.passes(PodEgress, &packet);
        assert!(world.node.stage().conntrack().is_empty());
    });
}

#[test]
fn answers_of_allowed_flows_pass_and_nothing_else_does() {
    both(|world| {
        let out =
            json!({"egress": [{"ports": [{"port": 80}]}], "policyTypes": ["Ingress", "Egress"]});
        world.only("a", "p", out);
        for (request, answer) in [("10.244.1.7", PodEgress), ("10.244.2.9", OverlayIn)] {
            let to = |port: &str| format!("10.244.1.2:40000 -> {request}:{port}");
            let from = |port: &str| format!("{request}:{port} -> 10.244.1.2:40000");
            world.drops(PodEgress, &world.tcp("S", &to("81")), "policy_egress");
            world.drops(answer, &world.tcp("SA", &from("81")), "policy_egress");
            world.passes(PodEgress, &world.tcp("S", &to("80")));
            world.passes(answer, &world.tcp("SA", &from("80")));
            world.passes(PodEgress, &world.tcp("A", &to("80")));
            world.passes(answer, &world.tcp("FA", &from("80")));
            // A request in the clothes of the flow's answers.
            world.drops(answer, &world.tcp("S", &from("80")), "policy_ingress");
            world.drops(
                answer,
                &world.tcp("S", &format!("{request}:5000 -> 10.244.1.2:80")),
                "policy_ingress",
            );
        }
    });
}

#[test]
fn a_flow_is_cut_by_a_policy_that_no_longer_allows_it_and_lives_on_with_one_that_does() {
    both(|world| {
        let allow = json!({"ingress": [{"ports": [{"port": 80}]}]});
        world.only("b", "p", allow.clone());
        let (there, back) = (
            "10.244.1.7:40000 -> 10.244.1.3:80",
            "10.244.1.3:80 -> 10.244.1.7:40000",
        );
        world.passes(PodEgress, &world.tcp("S", there));
        world.passes(PodEgress, &world.tcp("SA", back));
        world.passes(PodEgress, &world.tcp("A", there));
        world.only("b", "p", json!({}));
        world.drops(PodEgress, &world.tcp("A", there), "policy_ingress");
        world.drops(PodEgress, &world.tcp("A", back), "policy_ingress");
        world.only("b", "p", allow);
        world.passes(PodEgress, &world.tcp("A", back));
        world.passes(PodEgress, &world.tcp("A", there));
    });
}

#[test]
fn a_connection_older_than_the_policies_is_judged_by_who_has_opened_it() {
    both(|world| {
        world.node.recent();
        // The server speaks first, and nothing is known of the connection.
        world.only("b", "p", json!({"ingress": [{"ports": [{"port": 80}]}]}));
        world.passes(
            PodEgress,
            &world.tcp("A", "10.244.1.3:80 -> 10.244.1.7:40000"),
        );
        world.passes(
            PodEgress,
            &world.tcp("A", "10.244.1.7:40000 -> 10.244.1.3:80"),
        );
        world.drops(
            PodEgress,
            &world.tcp("A", "10.244.1.3:81 -> 10.244.1.7:40001"),
            "policy_ingress",
        );
        world.drops(
            PodEgress,
            &world.tcp("A", "10.244.1.7:40001 -> 10.244.1.3:81"),
            "policy_ingress",
        );
        world.drops(
            PodEgress,
            &world.udp("10.244.1.3:53 -> 10.244.1.7:40001"),
            "policy_ingress",
        );
        // What the pod itself has opened goes on.
        world.passes(
            PodEgress,
            &world.tcp("A", "10.244.1.3:40000 -> 10.244.1.7:80"),
        );
        world.passes(PodEgress, &world.udp("10.244.1.3:40000 -> 10.244.1.7:53"));
        // Nobody can tell who opened this one, so both must be allowed.
        world.drops(
            PodEgress,
            &world.tcp("A", "10.244.1.3:40000 -> 10.244.1.7:40000"),
            "policy_ingress",
        );
    });
}

#[test]
fn a_flow_that_is_over_is_judged_anew() {
    both(|world| {
        world.only("b", "p", json!({"policyTypes": ["Ingress"]}));
        let (there, back) = (
            "10.244.1.3:40000 -> 10.244.1.7:53",
            "10.244.1.7:53 -> 10.244.1.3:40000",
        );
        world.passes(PodEgress, &world.udp(there));
        world.passes(PodEgress, &world.udp(back));
        for text in [there, back] {
            let packet = world.udp(text);
            let mut entry = world.node.stage().entry(&packet).unwrap();
            entry.last_seen = entry.last_seen.saturating_sub(300);
            world.node.stage().set_entry(&packet, entry);
        }
        world.drops(PodEgress, &world.udp(back), "policy_ingress");
        world.passes(PodEgress, &world.udp(there));
        world.passes(PodEgress, &world.udp(back));
    });
}

#[test]
fn rules_with_ports_do_not_allow_ping_and_rules_without_do() {
    both(|world| {
        let echo = ping(&(world.f)("10.244.1.7 -> 10.244.1.3"));
        let whole = json!([{"protocol": "TCP"}, {"protocol": "UDP"}, {"protocol": "SCTP"}]);
        world.only("b", "p", json!({"ingress": [{"ports": whole}]}));
        world.drops(PodEgress, &echo, "policy_ingress");
        world.only("b", "p", json!({"ingress": [{}]}));
        world.passes(PodEgress, &echo);
    });
}

#[test]
fn errors_about_allowed_flows_pass_and_others_do_not() {
    both(|world| {
        world.only("a", "p", json!({"egress": [{"ports": [{"port": 53, "protocol": "UDP"}]}], "policyTypes": ["Ingress", "Egress"]}));
        let request = world.udp("10.244.1.2:40000 -> 10.244.2.9:53");
        world.passes(PodEgress, &request);
        let v4 = request.is_v4();
        let (kind, code) = if v4 { (3, 3) } else { (1, 4) };
        let error = |about: &Packet| {
            icmp_error(&(world.f)("10.244.2.9 -> 10.244.1.2"), kind, code, 0, about)
        };
        world.passes(OverlayIn, &error(&request));
        let other = world.udp("10.244.1.2:40001 -> 10.244.2.9:53");
        world.drops(OverlayIn, &error(&other), "policy_ingress");
    });
}

#[test]
fn a_pod_and_its_own_node_always_reach_each_other() {
    both(|world| {
        let deny = json!({"policyTypes": ["Ingress", "Egress"]});
        world.only("b", "p", deny);
        for node in ["10.244.1.1", "172.30.0.11"] {
            world.passes(
                HostEgress,
                &world.tcp("S", &format!("{node}:40000 -> 10.244.1.3:8080")),
            );
            world.passes(
                PodEgress,
                &world.tcp("SA", &format!("10.244.1.3:8080 -> {node}:40000")),
            );
            world.passes(
                PodEgress,
                &world.tcp("S", &format!("10.244.1.3:40000 -> {node}:10250")),
            );
        }
        // Another node is a peer like any other.
        world.drops(
            OverlayIn,
            &world.tcp("S", "10.244.2.1:40000 -> 10.244.1.3:8080"),
            "policy_ingress",
        );
        world.drops(
            PodEgress,
            &world.tcp("S", "10.244.1.3:40000 -> 172.30.0.12:10250"),
            "policy_egress",
        );
    });
}

#[test]
fn address_ranges_mean_pods_and_nodes_too() {
    both(|world| {
        let cidr = |text: &str, len: u8| {
            let (address, wide) = ((world.f)(text), (world.f)(text).contains(':'));
            format!("{address}/{}", if wide { 128 - (32 - len) } else { len })
        };
        let from = json!([{"ipBlock": {"cidr": cidr("10.244.2.1", 32)}}, {"ipBlock": {"cidr": cidr("10.244.1.7", 32)}}]);
        world.only("b", "p", json!({"ingress": [{"from": from}]}));
        world.passes(
            OverlayIn,
            &world.tcp("S", "10.244.2.1:40000 -> 10.244.1.3:80"),
        );
        world.passes(
            PodEgress,
            &world.tcp("S", "10.244.1.7:40000 -> 10.244.1.3:80"),
        );
        world.drops(
            OverlayIn,
            &world.tcp("S", "10.244.2.2:40000 -> 10.244.1.3:80"),
            "policy_ingress",
        );
        world.drops(
            PodEgress,
            &world.tcp("S", "10.244.1.2:40000 -> 10.244.1.3:80"),
            "policy_ingress",
        );
    });
}

#[test]
fn a_service_is_judged_by_the_backend_and_its_port() {
    both(|world| {
        let f = world.f;
        let backend = f("10.244.1.7:8080");
        world
            .node
            .stage()
            .service(&f("10.96.0.10:80/tcp"), &[&backend]);
        let syn = world.tcp("S", "10.244.1.2:40000 -> 10.96.0.10:80");
        let egress =
            |port: u16| json!({"egress": [{"ports": [{"port": port}]}], "policyTypes": ["Egress"]});
        world.only("a", "p", egress(80));
        world.drops(PodEgress, &syn, "policy_egress");
        assert!(
            world.node.stage().conntrack().is_empty(),
            "a flow that never was takes no room"
        );
        world.only("a", "p", egress(8080));
        world.passes(PodEgress, &syn);
        world.passes(
            PodEgress,
            &world.tcp("SA", "10.244.1.7:8080 -> 10.244.1.2:40000"),
        );
        // The backend's own policies see the client.
        world.node.apply(
            "y",
            "q",
            json!({"podSelector": {}, "ingress": [{"from": [{"podSelector": {}}]}]}),
        );
        world.drops(
            PodEgress,
            &world.tcp("A", "10.244.1.2:40000 -> 10.96.0.10:80"),
            "policy_ingress",
        );
    });
}

#[test]
fn a_pod_reaches_itself_through_its_service_whatever_its_policies_say() {
    both(|world| {
        let f = world.f;
        let backend = f("10.244.1.3:8080");
        world
            .node
            .stage()
            .service(&f("10.96.0.10:80/tcp"), &[&backend]);
        world.only("b", "p", json!({"policyTypes": ["Ingress", "Egress"]}));
        world.passes(
            PodEgress,
            &world.tcp("S", "10.244.1.3:40000 -> 10.96.0.10:80"),
        );
        world.passes(
            PodEgress,
            &world.tcp("SA", "10.244.1.3:8080 -> 10.96.0.10:40000"),
        );
    });
}

#[test]
fn what_a_pod_asks_of_the_outside_is_judged_and_its_answers_pass() {
    both(|world| {
        world.only(
            "a",
            "p",
            json!({"egress": [{"ports": [{"port": 443}]}], "policyTypes": ["Ingress", "Egress"]}),
        );
        world.drops(
            PodEgress,
            &world.tcp("S", "10.244.1.2:40000 -> 203.0.113.9:80"),
            "policy_egress",
        );
        assert!(world.node.stage().conntrack().is_empty());
        world.passes(
            PodEgress,
            &world.tcp("S", "10.244.1.2:40000 -> 203.0.113.9:443"),
        );
    });
}

#[test]
fn a_policy_that_is_not_in_the_maps_denies() {
    both(|world| {
        let address = (world.f)("10.244.1.3");
        for unknown in [4711, POLICY_DENY_ALL] {
            world.node.stage().change_workload(&address, |value| {
                value.ingress_policy = unknown;
                value.policy_generation += 1;
            });
            world.drops(
                PodEgress,
                &world.tcp("S", "10.244.1.7:40000 -> 10.244.1.3:80"),
                "policy_ingress",
            );
        }
    });
}
