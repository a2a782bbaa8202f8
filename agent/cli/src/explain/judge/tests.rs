//! Packets over maps of the tests' making.

use tholepin_ebpf_abi::{AffinityValue, ConntrackEntry};

use super::*;
use crate::maps::fake::Fake;

fn addresses() -> Addresses {
    Addresses {
        gateways: vec!["10.244.0.1".parse().expect("an address")],
        node: vec!["172.30.0.11".parse().expect("an address")],
    }
}

fn node() -> Fake {
    let mut fake = Fake::default();
    fake.pod("10.244.0.5", 7);
    fake.pod("10.244.0.6", 8);
    let range = "10.244.1.0/24".parse().expect("a range");
    fake.routes
        .insert(range, "172.30.0.12".parse().expect("an address"));
    fake
}

fn explain(fake: &Fake, packet: &str, from: From) -> (String, Outcome) {
    let names = Names::of(
        &[("10.96.0.10", 80, 6, "default/web", "http")],
        &[("10.244.0.5", "default/client")],
    );
    let addresses = addresses();
    let judge = Judge {
        maps: fake,
        names: &names,
        addresses: &addresses,
        now: 1000,
    };
    let words = [packet.to_owned()];
    let question = Question::parse(&words).expect(packet);
    let (steps, outcome) = judge.explain(&question, from).expect("the fake answers");
    let lines: Vec<String> = steps
        .iter()
        .map(|step| format!("{}: {}", step.stage, step.finding))
        .collect();
    (lines.join("\n"), outcome)
}

fn dropped(fake: &Fake, packet: &str, from: From) -> DropReason {
    let (steps, outcome) = explain(fake, packet, from);
    outcome
        .reason()
        .unwrap_or_else(|| panic!("{packet}: {outcome}\n{steps}"))
}

#[test]
fn a_service_leads_to_its_backend_with_the_names_of_both() {
    let mut fake = node();
    fake.service("10.96.0.10", 80, TCP, &["10.244.0.6:8080"], 1);
    let (steps, outcome) = explain(&fake, "tcp 10.244.0.5 10.96.0.10:80", From::Pod);
    assert_eq!(
        outcome,
        Outcome::Goes("delivered to 10.244.0.6, interface 8".to_owned())
    );
    for expected in [
        "CONNTRACK: no entry for this tuple",
        "WORKLOADS: 10.244.0.5 (default/client) may be used by interface 7 only",
        "is default/web:http: 1 backends, 1 of them on this node",
        "BACKENDS: 10.244.0.6:8080",
    ] {
        assert!(steps.contains(expected), "{steps}");
    }
}

#[test]
fn refusals_have_the_reason_that_the_counters_have() {
    let mut fake = node();
    fake.service("10.96.0.10", 80, TCP, &[], 0);
    let (key, value) = fake.service("10.96.0.11", 80, TCP, &["10.244.1.6:8080"], 0);
    let local_only = FrontendValue {
        flags: FRONTEND_LOCAL_ONLY,
        ..value
    };
    fake.frontends.insert(key, local_only);
    let pod = |packet: &str| dropped(&fake, packet, From::Pod);
    assert_eq!(pod("tcp 10.244.0.5 10.96.0.10:80"), DropReason::NoBackend);
    assert_eq!(
        pod("tcp 10.244.0.5 10.96.0.11:80"),
        DropReason::NoLocalBackend
    );
    assert_eq!(
        pod("tcp 10.244.0.99 10.96.0.10:80"),
        DropReason::SpoofedSource
    );
    let node = dropped(&fake, "tcp 10.244.0.1 10.97.0.1:80", From::Node);
    assert_eq!(node, DropReason::NoRoute);
    let overlay = dropped(&fake, "tcp 10.244.1.6 10.244.0.77:80", From::Overlay);
    assert_eq!(overlay, DropReason::UnknownWorkload);
}

#[test]
fn policies_are_asked_for_both_ends_and_name_the_peer() {
    let mut fake = node();
    fake.pod("10.244.0.6", 8).ingress_policy = 3;
    fake.peers
        .push((3, "10.244.0.5/32".parse().expect("a range"), 9));
    fake.ports.push((9, TCP, 8080));
    let (steps, outcome) = explain(&fake, "tcp 10.244.0.5 10.244.0.6:8080", From::Pod);
    assert!(outcome.reason().is_none(), "{steps}");
    assert!(
        steps.contains("POLICY: in: 10.244.0.5 may use port 8080"),
        "{steps}"
    );
    let other = dropped(&fake, "tcp 10.244.0.5 10.244.0.6:9090", From::Pod);
    assert_eq!(other, DropReason::PolicyIngress);
    let stranger = dropped(&fake, "tcp 10.244.1.9 10.244.0.6:8080", From::Overlay);
    assert_eq!(stranger, DropReason::PolicyIngress);
    let (steps, outcome) = explain(&fake, "tcp 10.244.0.1 10.244.0.6:9090", From::Node);
    assert!(
        outcome.reason().is_none(),
        "the node itself is let in: {steps}"
    );
    fake.pod("10.244.0.5", 7).egress_policy = POLICY_DENY_ALL;
    let out = dropped(&fake, "tcp 10.244.0.5 10.244.0.6:8080", From::Pod);
    assert_eq!(out, DropReason::PolicyEgress);
}

#[test]
fn a_known_flow_keeps_its_backend_and_a_datagram_leaves_one_that_is_gone() {
    let mut fake = node();
    fake.service("10.96.0.10", 53, 17, &["10.244.0.6:53"], 1);
    let packet = "udp 10.244.0.5:4000 -> 10.96.0.10:53";
    let question = Question::parse(&[packet.to_owned()]).expect(packet);
    let entry = ConntrackEntry {
        source: question.source.into(),
        destination: "10.244.1.9".parse::<IpAddr>().expect("an address").into(),
        source_port: Be16::new(4000),
        destination_port: Be16::new(5353),
        backend_id: 1,
        backend_generation: 1,
        last_seen: 999,
        ..ConntrackEntry::default()
    };
    fake.flows.insert(question.key(), entry);
    let (steps, outcome) = explain(&fake, packet, From::Pod);
    assert_eq!(
        outcome,
        Outcome::Goes("sent through the overlay to the node 172.30.0.12".to_owned()),
        "{steps}"
    );
    fake.backends[0].generation = 2;
    let (steps, outcome) = explain(&fake, packet, From::Pod);
    assert!(
        steps.contains("its backend does not serve any more: decided anew"),
        "{steps}"
    );
    assert_eq!(
        outcome,
        Outcome::Goes("delivered to 10.244.0.6, interface 8".to_owned())
    );
}

#[test]
fn clients_from_outside_have_a_scope_of_their_own_with_ranges_and_affinity() {
    let mut fake = node();
    let (key, value) = fake.service(
        "172.30.0.11",
        30080,
        TCP,
        &["10.244.0.6:80", "10.244.1.6:80"],
        1,
    );
    let outside = FrontendKey {
        scope: SCOPE_EXTERNAL,
        ..key
    };
    let flags = FRONTEND_SOURCE_RANGES | FRONTEND_AFFINITY;
    fake.frontends.insert(
        outside,
        FrontendValue {
            flags,
            affinity_timeout_s: 60,
            ..value
        },
    );
    fake.source_ranges
        .push((value.service_id, "203.0.113.0/24".parse().expect("a range")));
    let stranger = dropped(&fake, "tcp 198.51.100.1 172.30.0.11:30080", From::Outside);
    assert_eq!(stranger, DropReason::SourceRange);
    let packet = "tcp 203.0.113.9 172.30.0.11:30080";
    let (_, outcome) = explain(&fake, packet, From::Outside);
    assert_eq!(
        outcome,
        Outcome::Goes("chance chooses one of 2 backends".to_owned())
    );
    let client = "203.0.113.9".parse().expect("an address");
    let kept = AffinityValue {
        last_used: 990,
        backend_id: 1,
        backend_generation: 1,
    };
    fake.affinity.insert((value.service_id, client), kept);
    let (steps, outcome) = explain(&fake, packet, From::Outside);
    assert!(
        steps.contains("AFFINITY: the client keeps backend 1"),
        "{steps}"
    );
    assert_eq!(
        outcome,
        Outcome::Goes("delivered to 10.244.0.6, interface 8".to_owned())
    );
}
