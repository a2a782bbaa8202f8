//! Clients outside the cluster: NodePorts, external and LoadBalancer addresses.

use tholepin_ebpf_abi::backend::BACKEND_SERVING;
use tholepin_ebpf_abi::service::{FRONTEND_LOCAL_ONLY, FRONTEND_MASQUERADE, FRONTEND_NODE_PORT};
use tholepin_tests_dataplane::Hook::{HostEgress, OverlayIn, PodEgress, UnderlayIn};
use tholepin_tests_dataplane::stage::Outcome;
use tholepin_tests_dataplane::wire::{Body, icmp_error};
use tholepin_tests_dataplane::{Frontend, Hook, Packet, Stage, sctp, tcp, udp};

use crate::{both, front};

/// A NodePort, and an address that is no node's.
const ADDRESSES: [(&str, u16); 2] = [
    ("172.30.0.11:30080", FRONTEND_NODE_PORT),
    ("203.0.113.10:80", 0),
];
const CLIENT: &str = "192.168.7.7:5000";

/// A packet that opens a flow of a protocol.
fn opener(protocol: &str, ends: &str) -> Packet {
    match protocol {
        "tcp" => tcp("S", ends),
        "sctp" => sctp(1, ends),
        _ => udp(ends),
    }
}

/// What a packet becomes where it leaves by a hook for the node's stack.
fn to_stack(stage: &mut Stage, hook: Hook, packet: &Packet) -> Packet {
    match stage.run(hook, packet) {
        Outcome::Gateway(sent) => sent,
        other => panic!("{packet}: {other:?}"),
    }
}

fn answer(packet: &Packet) -> Packet {
    let ends = format!("{} -> {}", packet.destination, packet.source);
    match packet.protocol() {
        6 => tcp("SA", &ends),
        132 => sctp(2, &ends),
        _ => udp(&ends),
    }
}

#[test]
fn a_client_outside_reaches_a_pod_of_this_node_and_keeps_its_address() {
    both(|stage, f| {
        for (at, flags) in ADDRESSES {
            for protocol in ["tcp", "udp", "sctp"] {
                stage.reset();
                for flags in [flags, flags | FRONTEND_LOCAL_ONLY] {
                    stage.reset();
                    let name = format!("{at}/{protocol}");
                    stage.front(&Frontend {
                        flags,
                        ..front(f, &name, &["10.244.1.3:8080"], 1)
                    });
                    let ask = opener(protocol, &f(&format!("{CLIENT} -> {at}")));
                    let there = format!(
                        "pod .3: {protocol} {CLIENT} -> 10.244.1.3:8080 ttl 64; conntrack +2"
                    );
                    stage.check(UnderlayIn, &ask, &f(&there));
                    let reply = answer(&opener(
                        protocol,
                        &f(&format!("{CLIENT} -> 10.244.1.3:8080")),
                    ));
                    let back = format!("gateway: {protocol} {at} -> {CLIENT} ttl 64");
                    stage.check(PodEgress, &reply, &f(&back));
                }
            }
        }
    });
}

#[test]
fn a_backend_of_another_node_is_handed_the_packet_as_it_is() {
    both(|stage, f| {
        for (at, flags) in ADDRESSES {
            for protocol in ["tcp", "udp", "sctp"] {
                stage.reset();
                stage.front(&Frontend {
                    flags,
                    ..front(f, &format!("{at}/{protocol}"), &["10.244.2.9:8080"], 0)
                });
                let ends = format!("{CLIENT} -> {at}");
                let ask = opener(protocol, &f(&ends));
                let expected = f(&format!("overlay: {protocol} {ends} ttl 64; conntrack +1"));
                stage.check(UnderlayIn, &ask, &expected);
                let more = match protocol {
                    "tcp" => tcp("A", &f(&ends)),
                    "sctp" => sctp(0, &f(&ends)),
                    _ => ask,
                };
                let expected = f(&format!("overlay: {protocol} {ends} ttl 64"));
                stage.check(UnderlayIn, &more, &expected);
            }
        }
    });
}

#[test]
fn a_local_policy_drops_what_is_elsewhere_and_rejects_what_is_nowhere() {
    both(|stage, f| {
        for (at, flags) in ADDRESSES {
            stage.reset();
            stage.front(&Frontend {
                flags: flags | FRONTEND_LOCAL_ONLY,
                ..front(f, &format!("{at}/tcp"), &["10.244.2.9:8080"], 0)
            });
            stage.front(&Frontend {
                flags: flags | FRONTEND_LOCAL_ONLY,
                ..front(f, &format!("{at}/udp"), &[], 0)
            });
            stage.front(&Frontend {
                flags,
                ..front(f, &format!("{at}/sctp"), &[], 0)
            });
            let ends = f(&format!("{CLIENT} -> {at}"));
            stage.check(UnderlayIn, &tcp("S", &ends), "drop; no_local_backend +1");
            for (name, packet) in [("udp", udp(&ends)), ("sctp", sctp(1, &ends))] {
                let code = if packet.is_v4() { "3/3" } else { "1/4" };
                let back = f(&format!(
                    "{} -> {}",
                    at.rsplit_once(':').unwrap().0,
                    "192.168.7.7"
                ));
                let expected = format!("answer: icmp {code} {back} about {ends}; no_backend +1");
                assert_eq!(stage.observe(UnderlayIn, &packet), expected, "{name}");
            }
        }
    });
}

#[test]
fn a_service_without_endpoints_refuses_connections_from_outside() {
    both(|stage, f| {
        for (at, flags) in ADDRESSES {
            stage.reset();
            stage.front(&Frontend {
                flags,
                ..front(f, &format!("{at}/tcp"), &[], 0)
            });
            let ends = f(&format!("{CLIENT} -> {at}"));
            let expected = f(&format!("answer: tcp {at} -> {CLIENT} RST; no_backend +1"));
            stage.check(UnderlayIn, &tcp("S", &ends), &expected);
            stage.check(UnderlayIn, &tcp("R", &ends), "drop; untracked_reset +1");
        }
    });
}

#[test]
fn by_option_a_client_is_masqueraded_and_answered_through_this_node() {
    both(|stage, f| {
        for (at, flags) in ADDRESSES {
            for (backend, local) in [("10.244.2.9:8080", 0), ("10.244.1.3:8080", 1)] {
                stage.reset();
                stage.front(&Frontend {
                    flags: flags | FRONTEND_MASQUERADE,
                    ..front(f, &format!("{at}/tcp"), &[backend], local)
                });
                let ask = tcp("S", &f(&format!("{CLIENT} -> {at}")));
                let (sent, hook) = match stage.run(UnderlayIn, &ask) {
                    Outcome::Overlay(sent) if local == 0 => (sent, OverlayIn),
                    Outcome::Pod(3, sent) if local == 1 => (sent, PodEgress),
                    other => panic!("{other:?}"),
                };
                assert_eq!(sent.source.ip().to_string(), f("10.244.1.1"));
                assert!(sent.source.port() >= 61_440, "{sent}");
                assert_eq!(sent.destination.to_string(), f(backend));
                let back = f(&format!("gateway: tcp {at} -> {CLIENT} ttl 64"));
                stage.check(hook, &answer(&sent), &back);
            }
        }
    });
}

#[test]
fn a_backend_in_the_network_of_another_node_is_asked_from_this_one() {
    both(|stage, f| {
        for (at, flags) in ADDRESSES {
            stage.reset();
            stage.front(&Frontend {
                flags,
                ..front(f, &format!("{at}/tcp"), &["172.30.0.12:8080"], 0)
            });
            let ask = tcp("S", &f(&format!("{CLIENT} -> {at}")));
            let sent = to_stack(stage, UnderlayIn, &ask);
            assert_eq!(sent.source.ip().to_string(), f("172.30.0.11"));
            assert!(sent.source.port() >= 61_440, "{sent}");
            assert_eq!(sent.destination.to_string(), f("172.30.0.12:8080"));
            let back = f(&format!("gateway: tcp {at} -> {CLIENT} ttl 64"));
            stage.check(UnderlayIn, &answer(&sent), &back);
        }
    });
}

#[test]
fn a_backend_in_the_network_of_this_node_answers_by_the_pod_network() {
    both(|stage, f| {
        for (at, flags) in ADDRESSES {
            stage.reset();
            stage.front(&Frontend {
                flags,
                ..front(f, &format!("{at}/tcp"), &["172.30.0.11:8080"], 1)
            });
            let ask = tcp("S", &f(&format!("{CLIENT} -> {at}")));
            let sent = to_stack(stage, UnderlayIn, &ask);
            // Nobody has this address, and the node's routes lead it into the pod network.
            assert_eq!(sent.source.to_string(), f("10.244.1.0:5000"));
            assert_eq!(sent.destination.to_string(), f("172.30.0.11:8080"));
            let back = f(&format!("gateway: tcp {at} -> {CLIENT} ttl 64"));
            stage.check(HostEgress, &answer(&sent), &back);
        }
    });
}

#[test]
fn what_is_to_no_frontend_is_left_to_the_node() {
    both(|stage, f| {
        stage.front(&Frontend {
            flags: FRONTEND_NODE_PORT,
            ..front(f, "172.30.0.11:30080/tcp", &["10.244.1.3:8080"], 1)
        });
        for ends in [
            "192.168.7.7:5000 -> 172.30.0.11:22",
            "192.168.7.7:5000 -> 172.30.0.11:30081",
            "192.168.7.7:5000 -> 203.0.113.10:80",
            "192.168.7.7:30080 -> 172.30.0.11:40000",
        ] {
            for packet in [
                tcp("S", &f(ends)),
                tcp("A", &f(ends)),
                udp(&f(ends)),
                sctp(1, &f(ends)),
            ] {
                let expected = format!("pass: {packet} ttl 64");
                stage.check(UnderlayIn, &packet, &expected);
            }
        }
        // The port is a Service's in one protocol only.
        let other = udp(&f("192.168.7.7:5000 -> 172.30.0.11:30080"));
        stage.check(UnderlayIn, &other, &format!("pass: {other} ttl 64"));
    });
}

#[test]
fn a_pod_s_address_is_not_believed_in_the_underlay() {
    both(|stage, f| {
        stage.front(&front(f, "172.30.0.11:30080/tcp", &["10.244.1.3:8080"], 1));
        for client in ["10.244.1.2", "10.244.2.9", "10.244.1.1"] {
            let packet = tcp("S", &f(&format!("{client}:5000 -> 172.30.0.11:30080")));
            stage.check(UnderlayIn, &packet, "drop; spoofed_source +1");
        }
    });
}

#[test]
fn a_packet_that_the_overlay_cannot_carry_is_answered_with_what_it_can() {
    both(|stage, f| {
        stage.front(&front(f, "172.30.0.11:30080/udp", &["10.244.2.9:8080"], 0));
        let ends = f("192.168.7.7:5000 -> 172.30.0.11:30080");
        let packet = udp(&ends).payload(&[7; 1440]);
        let code = if packet.is_v4() { "3/4" } else { "2/0" };
        let back = f("172.30.0.11 -> 192.168.7.7");
        let expected = format!(
            "answer: icmp {code} {back} mtu 1450 about {ends}; conntrack +1; packet_too_big +1"
        );
        stage.check(UnderlayIn, &packet, &expected);
    });
}

fn unreachable(text: &str, about: &Packet) -> Packet {
    let (kind, code) = if about.is_v4() { (3, 3) } else { (1, 4) };
    icmp_error(text, kind, code, 0, about)
}

#[test]
fn icmp_errors_about_external_flows_find_their_way() {
    both(|stage, f| {
        let at = "172.30.0.11:30080";
        stage.front(&front(f, "172.30.0.11:30080/udp", &["10.244.1.3:8080"], 1));
        let ask = udp(&f(&format!("{CLIENT} -> {at}")));
        assert!(matches!(stage.run(UnderlayIn, &ask), Outcome::Pod(3, _)));
        // The backend's, about what it was sent.
        let seen = udp(&f(&format!("{CLIENT} -> 10.244.1.3:8080")));
        let error = unreachable(&f("10.244.1.3 -> 192.168.7.7"), &seen);
        let expected = unreachable(&f("172.30.0.11 -> 192.168.7.7"), &ask);
        assert_eq!(stage.run(PodEgress, &error), Outcome::Gateway(expected));
        // The client's, about what it was answered.
        let answered = udp(&f(&format!("{at} -> {CLIENT}")));
        let error = unreachable(&f("192.168.7.7 -> 172.30.0.11"), &answered);
        let sent = udp(&f(&format!("10.244.1.3:8080 -> {CLIENT}")));
        let expected = unreachable(&f("192.168.7.7 -> 10.244.1.3"), &sent);
        assert_eq!(stage.run(UnderlayIn, &error), Outcome::Pod(3, expected));
    });
}

#[test]
fn a_client_s_icmp_error_follows_its_flow_to_the_backend_s_node() {
    both(|stage, f| {
        let at = "203.0.113.10:53";
        stage.front(&front(f, "203.0.113.10:53/udp", &["10.244.2.9:8080"], 0));
        let ask = udp(&f(&format!("{CLIENT} -> {at}")));
        assert!(matches!(stage.run(UnderlayIn, &ask), Outcome::Overlay(_)));
        let answered = udp(&f(&format!("{at} -> {CLIENT}")));
        let error = unreachable(&f("192.168.7.7 -> 203.0.113.10"), &answered);
        assert_eq!(stage.run(UnderlayIn, &error), Outcome::Overlay(error));
    });
}

#[test]
fn datagrams_leave_a_backend_that_is_gone_and_connections_do_not() {
    both(|stage, f| {
        for protocol in ["udp", "tcp"] {
            stage.reset();
            let number = if protocol == "udp" { 17 } else { 6 };
            let name = format!("172.30.0.11:30080/{protocol}");
            let ids = stage.front(&front(f, &name, &["10.244.2.9:8080"], 0));
            let ends = f(&format!("{CLIENT} -> 172.30.0.11:30080"));
            assert!(matches!(
                stage.run(UnderlayIn, &opener(protocol, &ends)),
                Outcome::Overlay(_)
            ));
            // Its place is taken by a pod of this node.
            stage.backend(ids[0], &f("10.244.1.3:8080"), number, BACKEND_SERVING, 2);
            let more = if protocol == "udp" {
                udp(&ends)
            } else {
                tcp("A", &ends)
            };
            let moved = matches!(stage.run(UnderlayIn, &more), Outcome::Pod(3, _));
            assert_eq!(moved, protocol == "udp");
        }
    });
}

#[test]
fn a_connection_outlives_its_service_and_a_datagram_s_flow_does_not() {
    both(|stage, f| {
        for (at, _) in ADDRESSES {
            stage.reset();
            let tcp_ids = stage.front(&front(f, &format!("{at}/tcp"), &["10.244.1.3:8080"], 1));
            let udp_ids = stage.front(&front(f, &format!("{at}/udp"), &["10.244.1.3:8080"], 1));
            let ends = f(&format!("{CLIENT} -> {at}"));
            for packet in [tcp("S", &ends), udp(&ends)] {
                assert!(matches!(stage.run(UnderlayIn, &packet), Outcome::Pod(3, _)));
            }
            for (ids, protocol) in [(tcp_ids, 6), (udp_ids, 17)] {
                stage.remove_front(&f(at), protocol);
                stage.remove_backend(ids[0]);
            }
            assert!(matches!(
                stage.run(UnderlayIn, &tcp("A", &ends)),
                Outcome::Pod(3, _)
            ));
            let packet = udp(&ends);
            assert_eq!(stage.run(UnderlayIn, &packet), Outcome::Pass(packet));
        }
    });
}

#[test]
fn a_service_s_own_address_is_balanced_for_those_who_route_it_here() {
    both(|stage, f| {
        crate::service(stage, f, "10.96.0.10:80/tcp", &["10.244.2.9:8080"]);
        // The node routes it into the pod network, with the client's address.
        let ask = tcp("S", &f(&format!("{CLIENT} -> 10.96.0.10:80")));
        let Outcome::Overlay(sent) = stage.run(HostEgress, &ask) else {
            panic!("not sent")
        };
        assert_eq!(sent.source.to_string(), f("10.244.1.1:5000"), "masqueraded");
        let back = f(&format!("gateway: tcp 10.96.0.10:80 -> {CLIENT} ttl 64"));
        stage.check(OverlayIn, &answer(&sent), &back);
    });
}

#[test]
fn an_echo_to_a_service_s_external_address_is_nobody_s_flow() {
    both(|stage, f| {
        stage.front(&front(f, "203.0.113.10:53/udp", &["10.244.1.3:8080"], 1));
        let ping = tholepin_tests_dataplane::wire::ping(&f("192.168.7.7 -> 203.0.113.10"));
        assert!(matches!(ping.body, Body::Icmp { .. }));
        assert_eq!(stage.run(UnderlayIn, &ping), Outcome::Pass(ping));
    });
}
