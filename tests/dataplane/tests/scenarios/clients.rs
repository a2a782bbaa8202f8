//! Pods and processes of the node that ask for a Service at an address meant for the outside.

use tholepin_ebpf_abi::service::{FRONTEND_LOCAL_ONLY, FRONTEND_NODE_PORT};
use tholepin_tests_dataplane::Hook::{HostEgress, LocalOut, OverlayIn, PodEgress, UnderlayIn};
use tholepin_tests_dataplane::stage::Outcome;
use tholepin_tests_dataplane::{Frontend, tcp, udp};

use crate::{both, front};

#[test]
fn a_pod_reaches_a_service_at_its_own_node_s_port_and_at_external_addresses() {
    both(|stage, f| {
        for at in ["172.30.0.11:30080", "203.0.113.10:80"] {
            for (backend, place, hook) in [
                ("10.244.1.3:8080", "pod .3", PodEgress),
                ("10.244.2.9:8080", "overlay", OverlayIn),
            ] {
                stage.reset();
                stage.front(&front(f, &format!("{at}/udp"), &[backend], 0));
                let ask = udp(&f(&format!("10.244.1.2:4000 -> {at}")));
                let there = f(&format!(
                    "{place}: udp 10.244.1.2:4000 -> {backend} ttl 63; conntrack +2"
                ));
                stage.check(PodEgress, &ask, &there);
                let reply = udp(&f(&format!("{backend} -> 10.244.1.2:4000")));
                let ttl = if hook == PodEgress { 63 } else { 64 };
                let back = f(&format!("pod .2: udp {at} -> 10.244.1.2:4000 ttl {ttl}"));
                stage.check(hook, &reply, &back);
            }
        }
    });
}

#[test]
fn a_pod_reaches_itself_through_its_node_s_port() {
    both(|stage, f| {
        stage.front(&front(f, "172.30.0.11:30080/tcp", &["10.244.1.2:8080"], 1));
        let ask = tcp("S", &f("10.244.1.2:4000 -> 172.30.0.11:30080"));
        let there = f("pod .2: tcp 172.30.0.11:4000 -> 10.244.1.2:8080 ttl 63; conntrack +2");
        stage.check(PodEgress, &ask, &there);
        let reply = tcp("SA", &f("10.244.1.2:8080 -> 172.30.0.11:4000"));
        let back = f("pod .2: tcp 172.30.0.11:30080 -> 10.244.1.2:4000 ttl 63");
        stage.check(PodEgress, &reply, &back);
    });
}

#[test]
fn the_external_policy_binds_clients_outside_only() {
    both(|stage, f| {
        // Two lists: the one for clients outside has no backend here.
        let outside = Frontend {
            flags: FRONTEND_LOCAL_ONLY | FRONTEND_NODE_PORT,
            ..front(f, "172.30.0.11:30080/tcp", &["10.244.2.9:8080"], 0)
        };
        stage.front(&outside);
        stage.service(&f("172.30.0.11:30080/tcp"), &[&f("10.244.2.9:8080")]);
        let ask = |client: &str| tcp("S", &f(&format!("{client} -> 172.30.0.11:30080")));
        let dropped = "drop; no_local_backend +1";
        stage.check(UnderlayIn, &ask("192.168.7.7:5000"), dropped);
        let sent = stage.run(PodEgress, &ask("10.244.1.2:4000"));
        assert!(matches!(sent, Outcome::Overlay(_)), "{sent:?}");
        let sent = stage.run(LocalOut, &ask("172.30.0.11:4000"));
        assert!(matches!(sent, Outcome::Overlay(_)), "{sent:?}");
    });
}

#[test]
fn a_process_of_the_node_reaches_a_service_at_the_node_s_own_port() {
    both(|stage, f| {
        for (backend, place, hook) in [
            ("10.244.1.3:8080", "pod .3", PodEgress),
            ("10.244.2.9:8080", "overlay", OverlayIn),
        ] {
            stage.reset();
            stage.front(&front(f, "172.30.0.11:30080/tcp", &[backend], 0));
            let ask = tcp("S", &f("172.30.0.11:4000 -> 172.30.0.11:30080"));
            let there = f(&format!(
                "{place}: tcp 10.244.1.1:4000 -> {backend} ttl 64; conntrack +2"
            ));
            stage.check(LocalOut, &ask, &there);
            let reply = tcp("SA", &f(&format!("{backend} -> 10.244.1.1:4000")));
            let back = f("gateway: tcp 172.30.0.11:30080 -> 172.30.0.11:4000 ttl 64");
            stage.check(hook, &reply, &back);
        }
    });
}

#[test]
fn a_process_of_the_node_reaches_one_of_the_node_by_its_port() {
    both(|stage, f| {
        stage.front(&Frontend {
            flags: FRONTEND_NODE_PORT,
            ..front(f, "172.30.0.11:30080/tcp", &["172.30.0.11:8080"], 1)
        });
        let ask = tcp("S", &f("172.30.0.11:4000 -> 172.30.0.11:30080"));
        let there = f("gateway: tcp 10.244.1.0:4000 -> 172.30.0.11:8080 ttl 64; conntrack +2");
        stage.check(LocalOut, &ask, &there);
        let reply = tcp("SA", &f("172.30.0.11:8080 -> 10.244.1.0:4000"));
        let back = f("gateway: tcp 172.30.0.11:30080 -> 172.30.0.11:4000 ttl 64");
        stage.check(HostEgress, &reply, &back);
    });
}

#[test]
fn a_process_of_the_node_reaches_a_service_at_an_external_address() {
    both(|stage, f| {
        stage.front(&front(f, "203.0.113.10:80/tcp", &["10.244.1.3:8080"], 1));
        // The agent's route leads it into the pod network.
        let ask = tcp("S", &f("10.244.1.1:4000 -> 203.0.113.10:80"));
        let there = f("pod .3: tcp 10.244.1.1:4000 -> 10.244.1.3:8080 ttl 64; conntrack +2");
        stage.check(HostEgress, &ask, &there);
        let reply = tcp("SA", &f("10.244.1.3:8080 -> 10.244.1.1:4000"));
        let back = f("gateway: tcp 203.0.113.10:80 -> 10.244.1.1:4000 ttl 64");
        stage.check(PodEgress, &reply, &back);
    });
}

#[test]
fn what_the_node_sends_to_itself_is_left_alone_if_it_is_to_no_service() {
    both(|stage, f| {
        stage.front(&front(f, "172.30.0.11:30080/tcp", &["10.244.1.3:8080"], 1));
        stage.front(&front(f, "127.0.0.1:30080/tcp", &["10.244.1.3:8080"], 1));
        for ends in [
            "172.30.0.11:4000 -> 172.30.0.11:6443",
            "127.0.0.1:4000 -> 127.0.0.1:30081",
            "172.30.0.11:30080 -> 172.30.0.11:4000",
        ] {
            for packet in [tcp("S", &f(ends)), udp(&f(ends))] {
                assert_eq!(stage.run(LocalOut, &packet), Outcome::Pass(packet));
            }
        }
        let loopback = tcp("S", "127.0.0.1:4000 -> 127.0.0.1:30080");
        assert_eq!(stage.run(LocalOut, &loopback), Outcome::Pass(loopback));
    });
}

#[test]
fn a_pod_s_traffic_to_its_own_node_s_other_ports_stays_as_it_is() {
    both(|stage, f| {
        stage.front(&front(f, "172.30.0.11:30080/tcp", &["10.244.1.3:8080"], 1));
        for to in ["172.30.0.11:22", "172.30.0.11:30081"] {
            let packet = tcp("S", &f(&format!("10.244.1.2:4000 -> {to}")));
            let expected = format!("pass: {packet} ttl 64");
            stage.check(PodEgress, &packet, &expected);
        }
    });
}
