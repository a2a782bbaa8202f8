//! What the cleaner removes and what it leaves.

use tholepin_ebpf_abi::conntrack::ticks;
use tholepin_tests_dataplane::Hook::PodEgress;
use tholepin_tests_dataplane::{Packet, Stage, tcp, udp};

use super::{Family, both, client_tcp, client_udp, service};

fn age(stage: &mut Stage, packet: &Packet, seconds: u64) {
    let mut entry = stage.entry(packet).expect("a tracked flow");
    entry.last_seen -= ticks(seconds);
    stage.set_entry(packet, entry);
}

fn answer_udp(f: Family) -> Packet {
    udp(&f("10.244.1.7:5353 -> 10.244.1.2:4000"))
}

fn answer_tcp(flags: &str, f: Family) -> Packet {
    tcp(flags, &f("10.244.1.7:8080 -> 10.244.1.2:4000"))
}

#[test]
fn a_flow_that_is_over_loses_both_halves_and_a_young_one_none() {
    both(|stage, f| {
        service(stage, f, "10.96.0.10:53/udp", &["10.244.1.7:5353"]);
        stage.run(PodEgress, &client_udp(f));
        let young = udp(&f("10.244.1.2:4001 -> 10.96.0.10:53"));
        stage.run(PodEgress, &young);
        age(stage, &client_udp(f), 200);
        age(stage, &answer_udp(f), 200);
        let stats = stage.clean();
        assert_eq!(
            (stats.entries, stats.removed, stats.udp),
            (2, 2, 1),
            "{stats:?}"
        );
        assert!(stage.entry(&young).is_some());
        assert_eq!(stage.conntrack().len(), 2);
    });
}

#[test]
fn a_flow_lives_while_either_direction_does() {
    both(|stage, f| {
        service(stage, f, "10.96.0.10:53/udp", &["10.244.1.7:5353"]);
        for old in [client_udp(f), answer_udp(f)] {
            stage.reset_flows();
            stage.run(PodEgress, &client_udp(f));
            age(stage, &old, 200);
            assert_eq!(stage.clean().removed, 0, "{old}");
            assert_eq!(stage.conntrack().len(), 2);
        }
    });
}

#[test]
fn a_half_whose_other_half_was_evicted_goes_when_it_is_old() {
    both(|stage, f| {
        service(stage, f, "10.96.0.10:53/udp", &["10.244.1.7:5353"]);
        stage.run(PodEgress, &client_udp(f));
        stage.evict(&answer_udp(f));
        assert_eq!(stage.clean().removed, 0);
        age(stage, &client_udp(f), 200);
        assert_eq!(stage.clean().removed, 1);
    });
}

#[test]
fn a_connection_goes_by_its_state() {
    both(|stage, f| {
        service(stage, f, "10.96.0.10:80/tcp", &["10.244.1.7:8080"]);
        // Opened and no more; established; ended by the backend only.
        for (packets, removed) in [
            (vec![client_tcp("S", f)], 2),
            (
                vec![client_tcp("S", f), answer_tcp("SA", f), client_tcp("A", f)],
                0,
            ),
            (
                vec![
                    client_tcp("S", f),
                    answer_tcp("SA", f),
                    client_tcp("A", f),
                    answer_tcp("FA", f),
                ],
                2,
            ),
        ] {
            stage.reset_flows();
            for packet in &packets {
                stage.run(PodEgress, packet);
            }
            age(stage, &client_tcp("A", f), 200);
            age(stage, &answer_tcp("A", f), 200);
            assert_eq!(
                stage.clean().removed,
                removed,
                "after {} packets",
                packets.len()
            );
        }
    });
}

#[test]
fn flows_are_counted_by_their_state() {
    both(|stage, f| {
        service(stage, f, "10.96.0.10:80/tcp", &["10.244.1.7:8080"]);
        service(stage, f, "10.96.0.10:53/udp", &["10.244.1.7:5353"]);
        let of =
            |flags: &str, port: u16| tcp(flags, &f(&format!("10.244.1.2:{port} -> 10.96.0.10:80")));
        for (flags, port) in [("S", 1), ("S", 2), ("A", 2), ("S", 3), ("A", 3), ("FA", 3)] {
            stage.run(PodEgress, &of(flags, port));
        }
        stage.run(PodEgress, &client_udp(f));
        let stats = stage.clean();
        assert_eq!(
            (stats.entries, stats.removed, stats.other),
            (8, 0, 0),
            "{stats:?}"
        );
        let tcp = (stats.tcp_opening, stats.tcp_established, stats.tcp_closing);
        assert_eq!((tcp, stats.udp), ((1, 1, 1), 1), "{stats:?}");
    });
}
