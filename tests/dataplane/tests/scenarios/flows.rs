//! What a flow remembers, and when it is over.

use tholepin_ebpf_abi::backend::BACKEND_SERVING;
use tholepin_ebpf_abi::conntrack::UDP_IDLE;
use tholepin_tests_dataplane::Hook::PodEgress;
use tholepin_tests_dataplane::stage::{OTHER_IFINDEX, Outcome};
use tholepin_tests_dataplane::{stage, tcp, udp};

use crate::{both, client_tcp, client_udp, ever_moves, reaches, service};

#[test]
fn a_tracked_flow_does_not_let_another_pod_use_its_address() {
    both(|stage, f| {
        service(stage, f, "10.96.0.10:53/udp", &["10.244.1.7:53"]);
        stage.check(
            PodEgress,
            &client_udp(f),
            &f("pod .7: udp 10.244.1.2:4000 -> 10.244.1.7:53 ttl 63; conntrack +2"),
        );
        let mut entry = stage.entry(&client_udp(f)).unwrap();
        entry.ifindex = OTHER_IFINDEX; // The flow came from there, and this packet does not.
        stage.set_entry(&client_udp(f), entry);
        stage.workload(&f("10.244.1.2"), OTHER_IFINDEX, 2);
        stage.check(PodEgress, &client_udp(f), "drop; spoofed_source +1");
    });
}

#[test]
fn a_retransmitted_syn_keeps_its_backend() {
    if stage().is_none() {
        return;
    }
    let syn = client_tcp("S", str::to_owned);
    assert!(!ever_moves(str::to_owned, |_, _| {}, &syn, &[&syn, &syn]));
}

#[test]
fn a_syn_after_the_end_of_a_connection_is_balanced_anew() {
    if stage().is_none() {
        return;
    }
    let syn = client_tcp("S", str::to_owned);
    for end in ["FA", "RA"] {
        let end = client_tcp(end, str::to_owned);
        assert!(ever_moves(str::to_owned, |_, _| {}, &syn, &[&end, &syn]));
    }
}

#[test]
fn tcp_stays_with_a_backend_that_stops_serving_until_its_next_syn() {
    both(|stage, f| {
        let ids = service(stage, f, "10.96.0.10:80/tcp", &["10.244.1.7:80"]);
        assert_eq!(reaches(stage, &client_tcp("S", f)), 7);
        stage.backend(ids[0], &f("10.244.1.3:80"), 6, BACKEND_SERVING, 2);
        assert_eq!(reaches(stage, &client_tcp("A", f)), 7);
        assert_eq!(reaches(stage, &client_tcp("S", f)), 3);
    });
}

#[test]
fn udp_leaves_a_backend_that_is_gone_with_its_next_packet() {
    both(|stage, f| {
        let ids = service(stage, f, "10.96.0.10:53/udp", &["10.244.1.7:53"]);
        assert_eq!(reaches(stage, &client_udp(f)), 7);
        // Another endpoint under the same id: a new generation.
        stage.backend(ids[0], &f("10.244.1.3:53"), 17, BACKEND_SERVING, 2);
        assert_eq!(reaches(stage, &client_udp(f)), 3);
        // No longer serving, and a new one comes.
        stage.backend(ids[0], &f("10.244.1.3:53"), 17, 0, 2);
        stage.backend(ids[0], &f("10.244.1.7:53"), 17, BACKEND_SERVING, 3);
        assert_eq!(reaches(stage, &client_udp(f)), 7);
        assert_eq!(stage.conntrack().len(), 2, "the old reply halves are gone");
    });
}

#[test]
fn udp_stays_with_a_backend_that_terminates_but_serves() {
    both(|stage, f| {
        service(stage, f, "10.96.0.10:53/udp", &["10.244.1.7:53"]);
        assert_eq!(reaches(stage, &client_udp(f)), 7);
        // New flows no longer go there; the endpoint itself is as it was.
        service(stage, f, "10.96.0.10:53/udp", &["10.244.1.3:53"]);
        assert_eq!(reaches(stage, &client_udp(f)), 7);
        let other = udp(&f("10.244.1.2:4001 -> 10.96.0.10:53"));
        assert_eq!(reaches(stage, &other), 3);
    });
}

#[test]
fn an_idle_udp_flow_is_a_new_flow() {
    both(|stage, f| {
        service(stage, f, "10.96.0.10:53/udp", &["10.244.1.7:53"]);
        assert_eq!(reaches(stage, &client_udp(f)), 7);
        let mut entry = stage.entry(&client_udp(f)).unwrap();
        let Some(long_ago) = entry.last_seen.checked_sub(UDP_IDLE + 1) else {
            return;
        };
        entry.last_seen = long_ago;
        stage.set_entry(&client_udp(f), entry);
        service(stage, f, "10.96.0.10:53/udp", &["10.244.1.3:53"]);
        assert_eq!(reaches(stage, &client_udp(f)), 3);
    });
}

#[test]
fn a_half_lost_to_eviction_is_put_back_by_the_other() {
    both(|stage, f| {
        service(stage, f, "10.96.0.10:53/udp", &["10.244.1.7:53"]);
        assert_eq!(reaches(stage, &client_udp(f)), 7);
        let reply = udp(&f("10.244.1.7:53 -> 10.244.1.2:4000"));
        stage.evict(&reply);
        let mut entry = stage.entry(&client_udp(f)).unwrap();
        entry.last_seen = entry.last_seen.saturating_sub(2);
        stage.set_entry(&client_udp(f), entry);
        assert_eq!(reaches(stage, &client_udp(f)), 7);
        stage.check(
            PodEgress,
            &reply,
            &f("pod .2: udp 10.96.0.10:53 -> 10.244.1.2:4000 ttl 63"),
        );
    });
}

#[test]
fn two_services_with_one_backend_do_not_mix_up_a_client_s_flows() {
    both(|stage, f| {
        service(stage, f, "10.96.0.10:80/tcp", &["10.244.1.7:8080"]);
        service(stage, f, "10.96.0.11:80/tcp", &["10.244.1.7:8080"]);
        assert_eq!(reaches(stage, &client_tcp("S", f)), 7);
        let other = tcp("S", &f("10.244.1.2:4000 -> 10.96.0.11:80"));
        let Outcome::Pod(7, sent) = stage.run(PodEgress, &other) else {
            panic!("not forwarded")
        };
        assert_ne!(
            sent.source.port(),
            4000,
            "the second flow needs a tuple of its own"
        );
        let reply = tcp("SA", &format!("{} -> {}", sent.destination, sent.source));
        stage.check(
            PodEgress,
            &reply,
            &f("pod .2: tcp 10.96.0.11:80 -> 10.244.1.2:4000 ttl 63"),
        );
    });
}

#[test]
fn a_stray_reset_to_a_service_makes_no_flow() {
    both(|stage, f| {
        service(stage, f, "10.96.0.10:80/tcp", &["10.244.1.7:80"]);
        stage.check(PodEgress, &client_tcp("R", f), "drop; untracked_reset +1");
    });
}

#[test]
fn a_direct_connection_is_told_from_one_through_the_service_with_the_same_port() {
    both(|stage, f| {
        service(stage, f, "10.96.0.10:80/tcp", &["10.244.1.7:8080"]);
        assert_eq!(reaches(stage, &client_tcp("S", f)), 7);
        let direct = tcp("S", &f("10.244.1.2:4000 -> 10.244.1.7:8080"));
        let Outcome::Pod(7, sent) = stage.run(PodEgress, &direct) else {
            panic!("not forwarded")
        };
        assert_ne!(sent.source.port(), 4000, "the backend sees two connections");
        let answer =
            |to: &dyn std::fmt::Display| tcp("SA", &format!("{} -> {to}", sent.destination));
        for (to, from) in [
            (sent.source.to_string(), "10.244.1.7:8080"),
            (f("10.244.1.2:4000"), "10.96.0.10:80"),
        ] {
            let expected = f(&format!("pod .2: tcp {from} -> 10.244.1.2:4000 ttl 63"));
            stage.check(PodEgress, &answer(&to), &expected);
        }
        // A connection that shares nothing stays as it is, and untracked.
        let other = "10.244.1.2:4001 -> 10.244.1.7:8080";
        let expected = f(&format!("pod .7: tcp {other} ttl 63"));
        stage.check(PodEgress, &tcp("S", &f(other)), &expected);
    });
}
