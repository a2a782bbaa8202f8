//! Where packets go, and what they look like there.

use tholepin_tests_dataplane::Hook::{HostEgress, OverlayIn, PodEgress};
use tholepin_tests_dataplane::stage::{OTHER_IFINDEX, Outcome};
use tholepin_tests_dataplane::wire::ping;
use tholepin_tests_dataplane::{tcp, udp};

use crate::{both, client_tcp, client_udp, service};

#[test]
fn udp_to_a_cluster_ip_is_translated_to_the_only_backend_and_back() {
    both(|stage, f| {
        service(stage, f, "10.96.0.10:53/udp", &["10.244.1.7:5353"]);
        stage.check(
            PodEgress,
            &client_udp(f),
            &f("pod .7: udp 10.244.1.2:4000 -> 10.244.1.7:5353 ttl 63; conntrack +2"),
        );
        stage.check(
            PodEgress,
            &udp(&f("10.244.1.7:5353 -> 10.244.1.2:4000")),
            &f("pod .2: udp 10.96.0.10:53 -> 10.244.1.2:4000 ttl 63"),
        );
        stage.check(
            PodEgress,
            &client_udp(f),
            &f("pod .7: udp 10.244.1.2:4000 -> 10.244.1.7:5353 ttl 63"),
        );
    });
}

#[test]
fn a_remote_backend_is_reached_through_the_overlay_and_answers_through_it() {
    both(|stage, f| {
        service(stage, f, "10.96.0.10:80/tcp", &["10.244.2.9:8080"]);
        stage.check(
            PodEgress,
            &client_tcp("S", f),
            &f("overlay: tcp 10.244.1.2:4000 -> 10.244.2.9:8080 ttl 63; conntrack +2"),
        );
        stage.check(
            OverlayIn,
            &tcp("SA", &f("10.244.2.9:8080 -> 10.244.1.2:4000")),
            &f("pod .2: tcp 10.96.0.10:80 -> 10.244.1.2:4000 ttl 64"),
        );
    });
}

#[test]
fn a_process_of_the_node_reaches_services_and_gets_its_answers() {
    both(|stage, f| {
        service(stage, f, "10.96.0.10:80/tcp", &["10.244.1.7:8080"]);
        stage.check(
            HostEgress,
            &tcp("S", &f("10.244.1.1:4000 -> 10.96.0.10:80")),
            &f("pod .7: tcp 10.244.1.1:4000 -> 10.244.1.7:8080 ttl 64; conntrack +2"),
        );
        stage.check(
            PodEgress,
            &tcp("SA", &f("10.244.1.7:8080 -> 10.244.1.1:4000")),
            &f("gateway: tcp 10.96.0.10:80 -> 10.244.1.1:4000 ttl 64"),
        );
    });
}

#[test]
fn a_node_socket_bound_elsewhere_is_answered_through_the_gateway_address() {
    both(|stage, f| {
        service(stage, f, "10.96.0.10:80/tcp", &["10.244.2.9:8080"]);
        stage.check(
            HostEgress,
            &tcp("S", &f("172.30.0.11:4000 -> 10.96.0.10:80")),
            &f("overlay: tcp 10.244.1.1:4000 -> 10.244.2.9:8080 ttl 64; conntrack +2"),
        );
        stage.check(
            OverlayIn,
            &tcp("SA", &f("10.244.2.9:8080 -> 10.244.1.1:4000")),
            &f("gateway: tcp 10.96.0.10:80 -> 172.30.0.11:4000 ttl 64"),
        );
    });
}

#[test]
fn a_pod_reaches_itself_through_its_service() {
    both(|stage, f| {
        service(stage, f, "10.96.0.10:80/tcp", &["10.244.1.2:8080"]);
        stage.check(
            PodEgress,
            &client_tcp("S", f),
            &f("pod .2: tcp 10.96.0.10:4000 -> 10.244.1.2:8080 ttl 63; conntrack +2"),
        );
        stage.check(
            PodEgress,
            &tcp("SA", &f("10.244.1.2:8080 -> 10.96.0.10:4000")),
            &f("pod .2: tcp 10.96.0.10:80 -> 10.244.1.2:4000 ttl 63"),
        );
    });
}

#[test]
fn traffic_between_pods_is_forwarded_untouched_and_untracked() {
    both(|stage, f| {
        let local = "10.244.1.2:1 -> 10.244.1.3:2";
        let remote = "10.244.1.2:1 -> 10.244.2.3:2";
        let incoming = "10.244.2.3:2 -> 10.244.1.2:1";
        stage.check(
            PodEgress,
            &udp(&f(local)),
            &f(&format!("pod .3: udp {local} ttl 63")),
        );
        stage.check(
            PodEgress,
            &udp(&f(remote)),
            &f(&format!("overlay: udp {remote} ttl 63")),
        );
        stage.check(
            OverlayIn,
            &udp(&f(incoming)),
            &f(&format!("pod .2: udp {incoming} ttl 64")),
        );
        let from_node = "10.244.1.1:1 -> 10.244.1.3:2";
        stage.check(
            HostEgress,
            &udp(&f(from_node)),
            &f(&format!("pod .3: udp {from_node} ttl 64")),
        );
        let to_node = "10.244.1.3:2 -> 10.244.1.1:1";
        stage.check(
            PodEgress,
            &udp(&f(to_node)),
            &f(&format!("gateway: udp {to_node} ttl 64")),
        );
        let to_underlay = "10.244.1.3:2 -> 172.30.0.11:10250";
        stage.check(
            PodEgress,
            &tcp("S", &f(to_underlay)),
            &f(&format!("pass: tcp {to_underlay} ttl 64")),
        );
    });
}

#[test]
fn pings_pass_between_pods_and_to_the_gateway() {
    both(|stage, f| {
        for (to, place, ttl) in [
            ("10.244.1.3", "pod .3", 63),
            ("10.244.2.3", "overlay", 63),
            ("10.244.1.1", "gateway", 64),
        ] {
            let packet = ping(&f(&format!("10.244.1.2 -> {to}")));
            let expected = format!("{place}: {packet} ttl {ttl}");
            stage.check(PodEgress, &packet, &expected);
        }
    });
}

#[test]
fn a_pod_may_not_use_another_address() {
    both(|stage, f| {
        service(stage, f, "10.96.0.10:53/udp", &["10.244.1.7:53"]);
        stage.workload(&f("10.244.1.50"), OTHER_IFINDEX, 50);
        for source in [
            "10.244.1.50:4000",
            "10.244.1.99:4000",
            "10.96.0.10:53",
            "8.8.8.8:53",
        ] {
            for destination in ["10.96.0.10:53", "10.244.1.3:53", "1.1.1.1:53"] {
                let packet = udp(&f(&format!("{source} -> {destination}")));
                stage.check(PodEgress, &packet, "drop; spoofed_source +1");
            }
        }
        let packet = ping(&f("10.244.1.50 -> 10.244.1.3"));
        stage.check(PodEgress, &packet, "drop; spoofed_source +1");
    });
}

#[test]
fn new_flows_spread_over_all_backends() {
    both(|stage, f| {
        let backends = ["10.244.1.3:53", "10.244.1.7:53", "10.244.2.9:53"];
        service(stage, f, "10.96.0.10:53/udp", &backends);
        let mut hits = [0; 3];
        for port in 1..=300 {
            let packet = udp(&f(&format!("10.244.1.2:{port} -> 10.96.0.10:53")));
            match stage.run(PodEgress, &packet) {
                Outcome::Pod(3, _) => hits[0] += 1,
                Outcome::Pod(7, _) => hits[1] += 1,
                Outcome::Overlay(_) => hits[2] += 1,
                other => panic!("{other:?}"),
            }
        }
        assert!(
            hits.iter().all(|hits| (60..=140).contains(hits)),
            "{hits:?}"
        );
    });
}

#[test]
fn options_and_extension_headers_do_not_hide_the_ports() {
    both(|stage, f| {
        service(stage, f, "10.96.0.10:53/udp", &["10.244.1.7:5353"]);
        stage.check(
            PodEgress,
            &client_udp(f).options(2),
            &f("pod .7: udp 10.244.1.2:4000 -> 10.244.1.7:5353 ttl 63; conntrack +2"),
        );
        stage.check(
            PodEgress,
            &udp(&f("10.244.1.7:5353 -> 10.244.1.2:4000")).options(1),
            &f("pod .2: udp 10.96.0.10:53 -> 10.244.1.2:4000 ttl 63"),
        );
    });
}
