//! What is refused, what the sender is told, and errors about translated packets.

use tholepin_ebpf_abi::DropReason;
use tholepin_ebpf_abi::service::FRONTEND_LOCAL_ONLY;
use tholepin_tests_dataplane::Hook::{HostEgress, OverlayIn, PodEgress};
use tholepin_tests_dataplane::stage::{Outcome, raw_frame};
use tholepin_tests_dataplane::wire::{icmp_error, ping};
use tholepin_tests_dataplane::{stage, tcp, udp};

use crate::{both, client_tcp, client_udp, reaches, service};

#[test]
fn a_service_without_backends_refuses_tcp_with_a_reset() {
    both(|stage, f| {
        service(stage, f, "10.96.0.10:80/tcp", &[]);
        stage.check(
            PodEgress,
            &client_tcp("S", f),
            &f("answer: tcp 10.96.0.10:80 -> 10.244.1.2:4000 RST; no_backend +1"),
        );
        stage.check(
            PodEgress,
            &client_tcp("A", f).payload(&[7; 1000]),
            &f("answer: tcp 10.96.0.10:80 -> 10.244.1.2:4000 RST; no_backend +1"),
        );
        stage.check(
            HostEgress,
            &tcp("S", &f("10.244.1.1:4000 -> 10.96.0.10:80")),
            &f("gateway: tcp 10.96.0.10:80 -> 10.244.1.1:4000 RST ttl 64; no_backend +1"),
        );
    });
}

#[test]
fn a_service_without_backends_refuses_udp_with_port_unreachable() {
    both(|stage, f| {
        service(stage, f, "10.96.0.10:53/udp", &[]);
        let kind = if client_udp(f).is_v4() { "3/3" } else { "1/4" };
        for payload in [0, 1, 3, 700] {
            stage.check(
                PodEgress,
                &client_udp(f).payload(&vec![1; payload]),
                &f(&format!(
                    "answer: icmp {kind} 10.96.0.10 -> 10.244.1.2 \
                     about 10.244.1.2:4000 -> 10.96.0.10:53; no_backend +1"
                )),
            );
        }
    });
}

#[test]
fn a_local_only_service_drops_rather_than_going_elsewhere() {
    both(|stage, f| {
        let backends = [f("10.244.2.9:53")];
        stage.service_with(
            &f("10.96.0.10:53/udp"),
            &[&backends[0]],
            FRONTEND_LOCAL_ONLY,
            0,
        );
        stage.check(PodEgress, &client_udp(f), "drop; no_local_backend +1");
        let backends = [f("10.244.1.7:53"), f("10.244.2.9:53")];
        let backends: Vec<_> = backends.iter().map(String::as_str).collect();
        stage.service_with(&f("10.96.0.11:53/udp"), &backends, FRONTEND_LOCAL_ONLY, 1);
        for port in 1..30 {
            let packet = udp(&f(&format!("10.244.1.2:{port} -> 10.96.0.11:53")));
            assert!(matches!(stage.run(PodEgress, &packet), Outcome::Pod(7, _)));
        }
    });
}

#[test]
fn udp_to_a_service_scaled_to_zero_is_refused_at_once() {
    both(|stage, f| {
        let ids = service(stage, f, "10.96.0.10:53/udp", &["10.244.1.7:53"]);
        assert_eq!(reaches(stage, &client_udp(f)), 7);
        service(stage, f, "10.96.0.10:53/udp", &[]);
        stage.remove_backend(ids[0]);
        assert!(matches!(
            stage.run(PodEgress, &client_udp(f)),
            Outcome::Answer(_)
        ));
        assert_eq!(stage.drops(DropReason::NoBackend), 1);
        assert_eq!(stage.conntrack().len(), 0);
    });
}

#[test]
fn the_hop_limit_ends_a_packet_s_way_with_time_exceeded() {
    both(|stage, f| {
        let packet = udp(&f("10.244.1.2:1 -> 10.244.2.3:2")).ttl(1);
        let kind = if packet.is_v4() { "11/0" } else { "3/0" };
        stage.check(
            PodEgress,
            &packet,
            &f(&format!(
                "answer: icmp {kind} 10.244.1.1 -> 10.244.1.2 about \
                 10.244.1.2:1 -> 10.244.2.3:2; ttl_exceeded +1"
            )),
        );
        let to_gateway = udp(&f("10.244.1.2:1 -> 10.244.1.1:2")).ttl(1);
        assert!(matches!(
            stage.run(PodEgress, &to_gateway),
            Outcome::Gateway(_)
        ));
    });
}

#[test]
fn what_the_overlay_cannot_carry_is_answered_with_its_mtu() {
    both(|stage, f| {
        for packet in [
            udp(&f("10.244.1.2:1 -> 10.244.2.3:2")).payload(&[0; 1500]),
            tcp("A", &f("10.244.1.2:1 -> 10.244.2.3:2")).payload(&[0; 1500]),
        ] {
            let kind = if packet.is_v4() { "3/4" } else { "2/0" };
            stage.check(
                PodEgress,
                &packet,
                &f(&format!(
                    "answer: icmp {kind} 10.244.1.1 -> 10.244.1.2 mtu 1450 about \
                     10.244.1.2:1 -> 10.244.2.3:2; packet_too_big +1"
                )),
            );
        }
    });
}

#[test]
fn a_backend_s_icmp_error_reaches_the_client_as_one_of_the_service() {
    both(|stage, f| {
        service(stage, f, "10.96.0.10:53/udp", &["10.244.1.7:5353"]);
        let Outcome::Pod(7, sent) = stage.run(PodEgress, &client_udp(f)) else {
            panic!()
        };
        let (v4, code, mtu) = (sent.is_v4(), if sent.is_v4() { 3 } else { 4 }, 0);
        let kind = if v4 { 3 } else { 1 };
        let error = icmp_error(&f("10.244.1.7 -> 10.244.1.2"), kind, code, mtu, &sent);
        stage.check(
            PodEgress,
            &error,
            &f(&format!(
                "pod .2: icmp {kind}/{code} 10.96.0.10 -> 10.244.1.2 about \
                 10.244.1.2:4000 -> 10.96.0.10:53 ttl 63"
            )),
        );
    });
}

#[test]
fn a_router_s_too_big_reaches_the_client_with_its_mtu() {
    both(|stage, f| {
        service(stage, f, "10.96.0.10:80/tcp", &["10.244.2.9:8080"]);
        let Outcome::Overlay(sent) = stage.run(PodEgress, &client_tcp("S", f)) else {
            panic!()
        };
        let (kind, code) = if sent.is_v4() { (3, 4) } else { (2, 0) };
        let error = icmp_error(&f("10.244.2.1 -> 10.244.1.2"), kind, code, 1400, &sent);
        stage.check(
            OverlayIn,
            &error,
            &f(&format!(
                "pod .2: icmp {kind}/{code} 10.244.2.1 -> 10.244.1.2 mtu 1400 about \
                 10.244.1.2:4000 -> 10.96.0.10:80 ttl 64"
            )),
        );
    });
}

#[test]
fn a_client_s_icmp_error_about_a_reply_reaches_the_backend() {
    both(|stage, f| {
        service(stage, f, "10.96.0.10:53/udp", &["10.244.1.7:5353"]);
        assert_eq!(reaches(stage, &client_udp(f)), 7);
        let seen = udp(&f("10.96.0.10:53 -> 10.244.1.2:4000"));
        let (kind, code) = if seen.is_v4() { (3, 3) } else { (1, 4) };
        let error = icmp_error(&f("10.244.1.2 -> 10.96.0.10"), kind, code, 0, &seen);
        stage.check(
            PodEgress,
            &error,
            &f(&format!(
                "pod .7: icmp {kind}/{code} 10.244.1.2 -> 10.244.1.7 about \
                 10.244.1.7:5353 -> 10.244.1.2:4000 ttl 63"
            )),
        );
    });
}

#[test]
fn destinations_that_do_not_exist_are_refused_by_name() {
    both(|stage, f| {
        stage.check(
            OverlayIn,
            &udp(&f("10.244.2.3:1 -> 10.244.1.99:2")),
            "drop; unknown_workload +1",
        );
        stage.check(
            HostEgress,
            &tcp("S", &f("10.244.1.1:1 -> 10.96.7.7:80")),
            &f("gateway: tcp 10.96.7.7:80 -> 10.244.1.1:1 RST ttl 64; no_route +1"),
        );
    });
}

#[test]
fn neighbour_discovery_is_the_kernels_business_and_other_multicast_is_dropped() {
    let Some(mut stage) = stage() else { return };
    let mut solicitation = ping("fe80::2 -> ff02::1:ff00:1");
    let tholepin_tests_dataplane::wire::Body::Icmp { kind, .. } = &mut solicitation.body else {
        unreachable!("a ping is ICMP");
    };
    *kind = 135;
    stage.check(
        PodEgress,
        &solicitation,
        "pass: icmp 135/0 fe80::2 -> ff02::1:ff00:1 ttl 64",
    );
    stage.check(
        PodEgress,
        &ping("10.244.1.2 -> 224.0.0.1"),
        "drop; unsupported_multicast +1",
    );
    stage.check(
        PodEgress,
        &udp("10.244.1.2:5353 -> 224.0.0.251:5353"),
        "drop; unsupported_multicast +1",
    );
}

#[test]
fn frames_that_are_not_ip_are_passed_or_dropped_by_name() {
    let Some(mut stage) = stage() else { return };
    assert_eq!(
        stage.run_frame(PodEgress, &raw_frame(0x0806, &[0; 28])),
        Outcome::PassRaw
    );
    assert_eq!(
        stage.run_frame(PodEgress, &raw_frame(0x88cc, &[0; 28])),
        Outcome::Drop
    );
    // The kernel itself refuses to run a program on less than a header.
    for (ether_type, version) in [(0x0800, 0x44), (0x0800, 0x65), (0x86dd, 0x45)] {
        let mut header = [0; 40];
        header[0] = version;
        let frame = raw_frame(ether_type, &header);
        assert_eq!(stage.run_frame(PodEgress, &frame), Outcome::Drop);
    }
    let drops = [
        (DropReason::Malformed, 3),
        (DropReason::UnsupportedEtherType, 1),
    ];
    assert_eq!(stage.all_drops(), drops);
}
