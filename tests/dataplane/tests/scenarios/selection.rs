//! Which backend a client gets: session affinity, source ranges, Maglev.

use std::collections::BTreeSet;

use tholepin_ebpf_abi::conntrack::ticks;
use tholepin_tests_dataplane::Hook::{HostEgress, PodEgress, UnderlayIn};
use tholepin_tests_dataplane::stage::Outcome;
use tholepin_tests_dataplane::{Frontend, Hook, Stage, tcp, udp};

use crate::{Family, both, front};

const BACKENDS: [&str; 2] = ["10.244.1.3:8080", "10.244.1.7:8080"];

/// Which pod a new flow of `client` from a port reaches.
fn asks(stage: &mut Stage, f: Family, hook: Hook, client: &str, port: u16, to: &str) -> u8 {
    let packet = udp(&f(&format!("{client}:{port} -> {to}")));
    match stage.run(hook, &packet) {
        Outcome::Pod(last, _) => last,
        other => panic!("{packet}: {other:?}"),
    }
}

/// The pods that twenty new flows reach.
fn reached(
    stage: &mut Stage,
    f: Family,
    hook: Hook,
    client: &str,
    from: u16,
    to: &str,
) -> BTreeSet<u8> {
    (from..from + 20)
        .map(|port| asks(stage, f, hook, client, port, to))
        .collect()
}

fn affine<'a>(f: Family, at: &str) -> Frontend<'a> {
    Frontend {
        affinity: 10_800,
        ..front(f, at, &BACKENDS, 2)
    }
}

#[test]
fn a_client_keeps_its_backend_wherever_it_is() {
    both(|stage, f| {
        for (hook, client, to) in [
            (PodEgress, "10.244.1.2", "10.96.0.10:53"),
            (HostEgress, "10.244.1.1", "10.96.0.10:53"),
            (UnderlayIn, "192.168.7.7", "172.30.0.11:30080"),
        ] {
            let mut all = BTreeSet::new();
            for _ in 0..12 {
                stage.reset();
                stage.front(&affine(f, &format!("{to}/udp")));
                let pods = reached(stage, f, hook, client, 1000, to);
                assert_eq!(pods.len(), 1, "{client} -> {to}: {pods:?}");
                all.extend(pods);
            }
            assert_eq!(all.len(), 2, "another client may get another backend");
        }
    });
}

#[test]
fn without_affinity_a_client_s_flows_spread() {
    both(|stage, f| {
        stage.front(&front(f, "10.96.0.10:53/udp", &BACKENDS, 2));
        let pods = reached(stage, f, PodEgress, "10.244.1.2", 1000, "10.96.0.10:53");
        assert_eq!(pods.len(), 2);
    });
}

#[test]
fn affinity_ends_when_the_client_was_silent_for_its_time_and_not_before() {
    both(|stage, f| {
        let to = "10.96.0.10:53";
        stage.front(&Frontend {
            affinity: 20,
            ..affine(f, "10.96.0.10:53/udp")
        });
        let first = asks(stage, f, PodEgress, "10.244.1.2", 1000, to);
        for round in 0..30 {
            // Each new flow begins the time anew, so many waits together are no silence.
            stage.age_affinity(ticks(15));
            let port = 2000 + round;
            assert_eq!(asks(stage, f, PodEgress, "10.244.1.2", port, to), first);
        }
        let mut moved = false;
        for round in 0..40 {
            stage.age_affinity(ticks(22));
            let port = 3000 + round;
            moved |= asks(stage, f, PodEgress, "10.244.1.2", port, to) != first;
        }
        assert!(moved);
    });
}

#[test]
fn affinity_does_not_hold_on_to_a_backend_that_is_gone_or_no_longer_eligible() {
    both(|stage, f| {
        let to = "10.96.0.10:53";
        for gone in [true, false] {
            stage.reset();
            let ids = stage.front(&affine(f, "10.96.0.10:53/udp"));
            let first = asks(stage, f, PodEgress, "10.244.1.2", 1000, to);
            let (kept, other) = if first == 3 { (0, 7) } else { (1, 3) };
            if gone {
                stage.backend(ids[kept], &f(BACKENDS[kept]), 17, 0, 1);
                let to_other = (1001..1400).any(|port| {
                    let packet = udp(&f(&format!("10.244.1.2:{port} -> {to}")));
                    matches!(stage.run(PodEgress, &packet), Outcome::Pod(last, _) if last == other)
                });
                assert!(to_other, "a new choice");
            } else {
                // It terminates: it serves its flows, and another list is for new ones.
                stage.narrow(&f(to), 17, ids[1 - kept]);
                let pods = reached(stage, f, PodEgress, "10.244.1.2", 1001, to);
                assert_eq!(pods, BTreeSet::from([other]));
                assert_eq!(
                    asks(stage, f, PodEgress, "10.244.1.2", 1000, to),
                    first,
                    "its flow"
                );
            }
        }
    });
}

#[test]
fn source_ranges_let_in_whom_they_name_and_nobody_else() {
    both(|stage, f| {
        let bits = if f("1.1.1.1") == "1.1.1.1" {
            96 + 24
        } else {
            64
        };
        let at = "203.0.113.10:80";
        stage.front(&Frontend {
            ranges: vec![(f("192.168.7.0"), bits), (f("10.244.1.2"), 128)],
            ..front(f, &format!("{at}/tcp"), &["10.244.1.3:8080"], 1)
        });
        let syn = |client: &str| tcp("S", &f(&format!("{client}:5000 -> {at}")));
        let refused = "drop; source_range +1";
        for (hook, client, admitted) in [
            (UnderlayIn, "192.168.7.7", true),
            (UnderlayIn, "192.168.8.7", false),
            (PodEgress, "10.244.1.2", true),
            (PodEgress, "10.244.1.7", false),
            (HostEgress, "10.244.1.1", false),
        ] {
            if admitted {
                let outcome = stage.run(hook, &syn(client));
                assert!(
                    matches!(outcome, Outcome::Pod(3, _)),
                    "{client}: {outcome:?}"
                );
            } else {
                stage.check(hook, &syn(client), refused);
            }
        }
    });
}

#[test]
fn a_process_of_the_node_is_in_the_ranges_by_the_node_s_address() {
    both(|stage, f| {
        stage.front(&Frontend {
            ranges: vec![(f("172.30.0.11"), 128)],
            ..front(f, "203.0.113.10:80/tcp", &["10.244.1.3:8080"], 1)
        });
        let syn = tcp("S", &f("10.244.1.1:5000 -> 203.0.113.10:80"));
        assert!(matches!(stage.run(HostEgress, &syn), Outcome::Pod(3, _)));
    });
}

#[test]
fn maglev_gives_a_tuple_the_same_backend_on_every_node() {
    both(|stage, f| {
        let to = "203.0.113.10:53";
        let service = Frontend {
            maglev: &[0, 1, 1, 0, 0, 1, 1],
            ..front(f, &format!("{to}/udp"), &BACKENDS, 2)
        };
        stage.front(&service);
        let choices = |stage: &mut Stage| -> Vec<u8> {
            (1000..1040)
                .map(|port| asks(stage, f, UnderlayIn, "192.168.7.7", port, to))
                .collect()
        };
        let here = choices(stage);
        assert_eq!(here.iter().collect::<BTreeSet<_>>().len(), 2);
        let Some(mut there) = tholepin_tests_dataplane::stage() else {
            return;
        };
        there.front(&service);
        assert_eq!(choices(&mut there), here);
        // In mid-stream as well, on a node that never saw the flow.
        stage.reset_flows();
        assert_eq!(choices(stage), here);
    });
}
