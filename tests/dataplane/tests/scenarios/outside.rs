//! What leaves the pod network, and the answers to it.

use tholepin_tests_dataplane::Hook::{HostEgress, OverlayIn, PodEgress, UnderlayIn};
use tholepin_tests_dataplane::stage::Outcome;
use tholepin_tests_dataplane::wire::{Body, icmp_error, ping};
use tholepin_tests_dataplane::{Hook, Packet, Stage, tcp, udp};

use crate::{Family, both, service};

/// What a packet becomes on its way out of the node: handed to the node's stack with the node's
/// address and one of the ports kept for that.
fn masqueraded(stage: &mut Stage, f: Family, hook: Hook, packet: &Packet) -> Packet {
    let Outcome::Gateway(sent) = stage.run(hook, packet) else {
        panic!("{packet} is not handed to the node's stack")
    };
    assert_eq!(sent.source.ip().to_string(), f("172.30.0.11"));
    sent
}

/// The packet that answers `packet`.
fn answer(packet: &Packet) -> Packet {
    let ends = format!("{} -> {}", packet.destination, packet.source);
    match packet.protocol() {
        6 => tcp("SA", &ends),
        _ => udp(&ends),
    }
}

#[test]
fn a_pod_s_traffic_to_the_outside_is_masqueraded_and_its_answers_come_back() {
    both(|stage, f| {
        for text in ["192.168.7.7:443", "172.30.0.1:6443", "172.30.0.12:10250"] {
            for protocol in [6, 17] {
                let ends = f(&format!("10.244.1.2:4000 -> {text}"));
                let ask = match protocol {
                    6 => tcp("S", &ends),
                    _ => udp(&ends),
                };
                let sent = masqueraded(stage, f, PodEgress, &ask);
                assert!(sent.source.port() >= 61_440, "{sent}");
                assert_eq!((sent.destination, sent.ttl), (ask.destination, ask.ttl));
                let name = if ask.protocol() == 6 { "tcp" } else { "udp" };
                let back = f(&format!("pod .2: {name} {text} -> 10.244.1.2:4000 ttl 64"));
                stage.check(UnderlayIn, &answer(&sent), &back);
                assert_eq!(masqueraded(stage, f, PodEgress, &ask), sent, "one flow");
            }
        }
    });
}

#[test]
fn a_pod_s_ping_to_the_outside_is_masqueraded_and_its_answer_comes_back() {
    both(|stage, f| {
        let ask = ping(&f("10.244.1.2 -> 192.168.7.7"));
        let sent = masqueraded(stage, f, PodEgress, &ask);
        let (Body::Icmp { word, .. }, Body::Icmp { kind, .. }) = (&sent.body, &ask.body) else {
            panic!("{sent}")
        };
        assert!(word >> 16 >= 61_440, "{word:x}");
        let reply = |from: &str, to: &str, word: u32| {
            let mut reply = ping(&format!("{from} -> {to}"));
            let Body::Icmp {
                kind: old,
                word: old_word,
                ..
            } = &mut reply.body
            else {
                panic!("{reply}")
            };
            (*old, *old_word) = (if *kind == 8 { 0 } else { 129 }, word);
            reply
        };
        let answer = reply(&f("192.168.7.7"), &f("172.30.0.11"), *word);
        let Body::Icmp { word: asked, .. } = ask.body else {
            panic!("{ask}")
        };
        let expected = reply(&f("192.168.7.7"), &f("10.244.1.2"), asked);
        assert_eq!(stage.run(UnderlayIn, &answer), Outcome::Pod(2, expected));
        // An echo with another identifier is the node's own.
        let own = reply(&f("192.168.7.7"), &f("172.30.0.11"), 7 << 16);
        assert_eq!(stage.run(UnderlayIn, &own), Outcome::Pass(own));
    });
}

#[test]
fn a_service_s_backend_on_the_underlay_answers_pods_and_processes_of_the_node() {
    both(|stage, f| {
        service(stage, f, "10.96.0.1:443/tcp", &["172.30.0.1:6443"]);
        for (hook, client, place) in [
            (PodEgress, "10.244.1.2:4000", "pod .2"),
            (HostEgress, "10.244.1.1:4000", "gateway"),
            (HostEgress, "172.30.0.11:4000", "gateway"),
        ] {
            let ask = tcp("S", &f(&format!("{client} -> 10.96.0.1:443")));
            let sent = masqueraded(stage, f, hook, &ask);
            assert!(sent.source.port() >= 61_440, "{sent}");
            assert_eq!(sent.destination.to_string(), f("172.30.0.1:6443"));
            let back = f(&format!("{place}: tcp 10.96.0.1:443 -> {client} ttl 64"));
            stage.check(UnderlayIn, &answer(&sent), &back);
            let data = tcp("A", &f(&format!("{client} -> 10.96.0.1:443")));
            assert_eq!(masqueraded(stage, f, hook, &data).source, sent.source);
        }
    });
}

#[test]
fn a_service_s_backend_on_this_node_answers_pods_and_processes_of_the_node() {
    both(|stage, f| {
        // Any address of the node, not only the one others know it by.
        for node in ["172.30.0.11:6443", "172.17.0.1:6443"] {
            stage.reset();
            service(stage, f, "10.96.0.1:443/tcp", &[node]);
            let from_pod = f(&format!(
                "pass: tcp 10.244.1.2:4000 -> {node} ttl 64; conntrack +2"
            ));
            let ask = tcp("S", &f("10.244.1.2:4000 -> 10.96.0.1:443"));
            stage.check(PodEgress, &ask, &from_pod);
            let back = f("pod .2: tcp 10.96.0.1:443 -> 10.244.1.2:4000 ttl 64");
            let reply = tcp("SA", &f(&format!("{node} -> 10.244.1.2:4000")));
            stage.check(HostEgress, &reply, &back);

            // The Service's address as source is what brings the answer back.
            let from_node = f(&format!(
                "gateway: tcp 10.96.0.1:4000 -> {node} ttl 64; conntrack +2"
            ));
            let ask = tcp("S", &f("10.244.1.1:4000 -> 10.96.0.1:443"));
            stage.check(HostEgress, &ask, &from_node);
            let back = f("gateway: tcp 10.96.0.1:443 -> 10.244.1.1:4000 ttl 64");
            let reply = tcp("SA", &f(&format!("{node} -> 10.96.0.1:4000")));
            stage.check(HostEgress, &reply, &back);
        }
    });
}

#[test]
fn what_the_node_or_the_pod_network_has_is_not_masqueraded() {
    both(|stage, f| {
        for to in [
            "172.30.0.11:22",
            "172.17.0.1:53",
            "10.244.9.9:80",
            "10.96.0.99:80",
        ] {
            let ends = format!("10.244.1.2:4000 -> {to}");
            let expected = f(&format!("pass: udp {ends} ttl 64"));
            stage.check(PodEgress, &udp(&f(&ends)), &expected);
        }
    });
}

#[test]
fn answers_to_those_outside_who_have_reached_a_pod_keep_the_pod_s_address() {
    both(|stage, f| {
        for flags in ["SA", "A", "FA", "R"] {
            let ends = "10.244.1.2:8080 -> 192.168.7.7:5000";
            let packet = tcp(flags, &f(ends));
            let expected = format!("pass: {packet} ttl 64");
            stage.check(PodEgress, &packet, &expected);
        }
    });
}

#[test]
fn the_node_s_own_traffic_on_the_underlay_is_not_touched() {
    both(|stage, f| {
        for ends in [
            "172.30.0.1:6443 -> 172.30.0.11:40000",
            "172.30.0.1:6443 -> 172.30.0.11:61500",
            "172.30.0.12:8472 -> 172.30.0.11:8472",
            "172.30.0.12:1 -> 192.168.7.7:61500",
            "172.30.0.12:1 -> 10.244.1.2:61500",
        ] {
            for packet in [
                udp(&f(ends)),
                tcp("A", &f(ends)),
                tcp("A", &f(ends)).options(1),
            ] {
                let expected = format!("pass: {packet} ttl 64");
                stage.check(UnderlayIn, &packet, &expected);
            }
        }
        let about = udp(&f("172.30.0.11:40000 -> 172.30.0.1:53"));
        let (kind, code) = if about.is_v4() { (3, 3) } else { (1, 4) };
        let error = icmp_error(&f("172.30.0.1 -> 172.30.0.11"), kind, code, 0, &about);
        assert_eq!(stage.run(UnderlayIn, &error), Outcome::Pass(error));
    });
}

#[test]
fn an_icmp_error_about_a_masqueraded_packet_reaches_the_pod() {
    both(|stage, f| {
        let ask = udp(&f("10.244.1.2:4000 -> 192.168.7.7:53"));
        let sent = masqueraded(stage, f, PodEgress, &ask);
        let (kind, code) = if ask.is_v4() { (3, 3) } else { (1, 4) };
        let error = icmp_error(&f("192.168.7.7 -> 172.30.0.11"), kind, code, 0, &sent);
        let expected = icmp_error(&f("192.168.7.7 -> 10.244.1.2"), kind, code, 0, &ask);
        assert_eq!(stage.run(UnderlayIn, &error), Outcome::Pod(2, expected));
    });
}

#[test]
fn an_answer_to_a_pod_that_is_gone_is_dropped_by_name() {
    both(|stage, f| {
        stage.workload(
            &f("10.244.1.50"),
            tholepin_tests_dataplane::stage::IFINDEX,
            50,
        );
        let ask = udp(&f("10.244.1.50:4000 -> 192.168.7.7:53"));
        let sent = masqueraded(stage, f, PodEgress, &ask);
        stage.remove_workload(&f("10.244.1.50"));
        stage.check(UnderlayIn, &answer(&sent), "drop; unknown_workload +1");
    });
}

#[test]
fn the_hop_limit_ends_a_masqueraded_packet_s_way_where_the_pod_can_hear_of_it() {
    both(|stage, f| {
        let ask = udp(&f("10.244.1.2:4000 -> 192.168.7.7:53")).ttl(1);
        assert!(matches!(stage.run(PodEgress, &ask), Outcome::Answer(_)));
    });
}

#[test]
fn flows_of_many_pods_to_one_address_never_share_a_port() {
    both(|stage, f| {
        let mut ports = std::collections::BTreeSet::new();
        for port in 1..=200 {
            for pod in ["10.244.1.2", "10.244.1.3"] {
                let ask = udp(&f(&format!("{pod}:{port} -> 192.168.7.7:53")));
                let sent = masqueraded(stage, f, PodEgress, &ask);
                assert!(ports.insert(sent.source.port()), "{sent}");
            }
        }
    });
}

#[test]
fn what_claims_to_be_an_answer_in_the_overlay_gets_nowhere() {
    both(|stage, f| {
        let packet = udp(&f("10.244.2.9:53 -> 172.30.0.11:61500"));
        stage.check(OverlayIn, &packet, "drop; unknown_workload +1");
    });
}
