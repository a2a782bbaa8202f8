//! The XDP front door sends on what needs no decision, and touches nothing else.

use tholepin_ebpf_abi::ConntrackEntry;
use tholepin_ebpf_abi::backend::BACKEND_SERVING;
use tholepin_ebpf_abi::conntrack::*;
use tholepin_tests_dataplane::front::{self, BACKEND_ID, Front, FrontStage, tick};
use tholepin_tests_dataplane::stage::{address, frame, in_v6};
use tholepin_tests_dataplane::wire::end;
use tholepin_tests_dataplane::{Packet, stage, tcp, udp};

const CLIENT: &str = "192.168.7.9:4000";
const NODE_PORT: &str = "172.30.0.11:30080";
const BACKEND: &str = "10.244.2.7:8080";
const MASQUERADE: &str = "172.30.0.11:61500";

const OPEN: u32 = FLOW_SYN | FLOW_ESTABLISHED | FLOW_EXTERNAL;

fn front() -> Option<FrontStage> {
    stage().map(|stage| FrontStage::new(stage).unwrap_or_else(|error| panic!("{error:?}")))
}

/// The families' forms of a text. The client and the node's IPv6 addresses have no other meaning.
const FAMILIES: [fn(&str) -> String; 2] = [str::to_owned, in_v6];

/// An entry of a flow from outside to a backend on the other node, handed on or masqueraded.
fn entry(family: fn(&str) -> String, packet: &Packet, flags: u32) -> ConntrackEntry {
    let source = match flags & FLOW_HANDED {
        0 => end(&family(MASQUERADE)),
        _ => packet.source,
    };
    front::entry(source, end(&family(BACKEND)), flags)
}

/// Runs a packet of a flow whose entry was seen in this tick, and again if the tick ended meanwhile.
fn run(front: &mut FrontStage, packet: &Packet, entry: ConntrackEntry, age: u32) -> Front {
    loop {
        let now = tick();
        let entry = ConntrackEntry {
            last_seen: now - age,
            ..entry
        };
        front.stage.set_entry(packet, entry);
        let outcome = front.run(packet);
        if tick() == now {
            return outcome;
        }
    }
}

#[test]
fn packets_of_flows_that_are_handed_on_go_to_the_backend_s_node_as_they_are() {
    let Some(mut front) = front() else { return };
    for family in FAMILIES {
        front
            .stage
            .backend(BACKEND_ID, &family(BACKEND), 17, BACKEND_SERVING, 1);
        let ends = family(&format!("{CLIENT} -> {NODE_PORT}"));
        let data = tcp("A", &ends).payload(&[7; 300]);
        let entry_of = |packet: &Packet, flags| entry(family, packet, flags | FLOW_HANDED);
        let sent = run(&mut front, &data, entry_of(&data, OPEN), 0);
        assert_eq!(sent, Front::Sent(2, data));
        let datagram = udp(&ends);
        let seen = entry_of(&datagram, FLOW_SEEN | FLOW_EXTERNAL);
        let sent = run(&mut front, &datagram, seen, 0);
        assert_eq!(sent, Front::Sent(2, datagram));
    }
}

#[test]
fn packets_of_masqueraded_flows_are_translated_and_their_checksums_are_right() {
    let Some(mut front) = front() else { return };
    for family in FAMILIES {
        front
            .stage
            .backend(BACKEND_ID, &family(BACKEND), 17, BACKEND_SERVING, 1);
        let ends = family(&format!("{CLIENT} -> {NODE_PORT}"));
        let after = family(&format!("{MASQUERADE} -> {BACKEND}"));
        for size in [0, 1, 7, 1200] {
            let payload = vec![0xa5; size];
            let data = tcp("A", &ends).payload(&payload);
            let flags = OPEN | FLOW_SOURCE_TRANSLATED;
            let sent = run(&mut front, &data, entry(family, &data, flags), 0);
            assert_eq!(sent, Front::Sent(1, tcp("A", &after).payload(&payload)));
            let datagram = udp(&ends).payload(&payload);
            let flags = FLOW_SEEN | FLOW_EXTERNAL | FLOW_SOURCE_TRANSLATED;
            let sent = run(&mut front, &datagram, entry(family, &datagram, flags), 0);
            assert_eq!(sent, Front::Sent(1, udp(&after).payload(&payload)));
        }
    }
}

#[test]
fn a_datagram_without_checksum_stays_without() {
    let Some(mut front) = front() else { return };
    front
        .stage
        .backend(BACKEND_ID, BACKEND, 17, BACKEND_SERVING, 1);
    let datagram = udp(&format!("{CLIENT} -> {NODE_PORT}"));
    let mut bytes = frame(&datagram);
    bytes[40..42].copy_from_slice(&[0, 0]);
    let flags = FLOW_SEEN | FLOW_SOURCE_TRANSLATED;
    loop {
        let now = tick();
        let entry = ConntrackEntry {
            last_seen: now,
            ..entry(str::to_owned, &datagram, flags)
        };
        front.stage.set_entry(&datagram, entry);
        let checksum = front
            .run_raw(&bytes)
            .map(|out| out[50 + 40..50 + 42].to_vec());
        if tick() == now {
            assert_eq!(checksum, Some(vec![0, 0]));
            return;
        }
    }
}

#[test]
fn padding_of_short_frames_is_left_outside_of_the_overlay_packet() {
    let Some(mut front) = front() else { return };
    let data = tcp("A", &format!("{CLIENT} -> {NODE_PORT}")).payload(&[]);
    let mut bytes = frame(&data);
    bytes.resize(60, 0);
    loop {
        let now = tick();
        let entry = ConntrackEntry {
            last_seen: now,
            ..entry(str::to_owned, &data, OPEN | FLOW_HANDED)
        };
        front.stage.set_entry(&data, entry);
        let out = front.run_raw(&bytes);
        if tick() == now {
            let out = out.expect("it is sent on");
            let len = u16::from_be_bytes([out[16], out[17]]);
            assert_eq!(len, 20 + 8 + 8 + 14 + 40, "of the outer packet");
            return;
        }
    }
}

#[test]
fn what_needs_a_decision_is_passed_on_untouched() {
    let Some(mut front) = front() else { return };
    for family in FAMILIES {
        front
            .stage
            .backend(BACKEND_ID, &family(BACKEND), 17, BACKEND_SERVING, 1);
        let ends = family(&format!("{CLIENT} -> {NODE_PORT}"));
        let open = |packet: &Packet| entry(family, packet, OPEN | FLOW_HANDED);
        let mut check = |what: &str, packet: Packet, entry: ConntrackEntry, age| {
            let outcome = run(&mut front, &packet, entry, age);
            assert_eq!(outcome, Front::Untouched, "{what}");
        };
        let data = tcp("A", &ends);
        check("a SYN", tcp("S", &ends), open(&data), 0);
        check("the first FIN", tcp("FA", &ends), open(&data), 0);
        check("an RST", tcp("RA", &ends), open(&data), 0);
        check("the first packet of a tick", data.clone(), open(&data), 1);
        check("options", tcp("A", &ends).options(2), open(&data), 0);
        check("the last hop", tcp("A", &ends).ttl(1), open(&data), 0);
        let big = tcp("A", &ends).payload(&[0; 1500]);
        check("too big for the overlay", big.clone(), open(&big), 0);
        let with = |flags| ConntrackEntry {
            flags,
            ..open(&data)
        };
        let half_open = with(FLOW_SYN | FLOW_HANDED);
        check("the first after the SYN", data.clone(), half_open, 0);
        check("an answer", data.clone(), with(OPEN | FLOW_REPLY), 0);
        let judged = with(OPEN | FLOW_DIRECT);
        check("tracked for policy only", data.clone(), judged, 0);
        let judged = ConntrackEntry {
            policy_generation: 7,
            ..open(&data)
        };
        check("judged by a policy", data.clone(), judged, 0);
        let local = ConntrackEntry {
            destination: address(&family("10.244.1.7")),
            backend_generation: 2,
            ..open(&data)
        };
        check("a backend on this node", data.clone(), local, 0);
        let outside = ConntrackEntry {
            backend_id: 0,
            ..open(&data)
        };
        check("only masqueraded", data.clone(), outside, 0);
        let datagram = udp(&ends);
        let gone = ConntrackEntry {
            backend_generation: 9,
            ..entry(family, &datagram, FLOW_SEEN | FLOW_HANDED)
        };
        check(
            "a datagram to a backend that is gone",
            datagram.clone(),
            gone,
            0,
        );
        let idle = entry(family, &datagram, FLOW_HANDED);
        check("the first datagram", datagram, idle, 0);
        front.stage.reset_flows();
        assert_eq!(front.run(&data), Front::Untouched, "an unknown flow");
        let overlay = udp(&family("172.30.0.12:50000 -> 172.30.0.11:8472"));
        assert_eq!(front.run(&overlay), Front::Untouched, "the overlay's own");
    }
    assert_eq!(
        front.run_frame(&[0; 20]),
        Front::Untouched,
        "no packet at all"
    );
}

#[test]
fn nothing_is_sent_where_the_neighbour_is_not_known() {
    let Some(mut front) = front() else { return };
    front.take_away_the_neighbour().expect("it was there");
    let data = tcp("A", &format!("{CLIENT} -> {NODE_PORT}"));
    let handed = entry(str::to_owned, &data, OPEN | FLOW_HANDED);
    assert_eq!(run(&mut front, &data, handed, 0), Front::Untouched);
}

#[test]
#[ignore = "a measurement; run it with --ignored --nocapture on a quiet machine"]
fn cost_of_the_front_door() {
    let Some(mut front) = front() else { return };
    let _stats = aya::sys::enable_stats(aya::sys::Stats::RunTime).expect("statistics");
    for family in FAMILIES {
        let ends = family(&format!("{CLIENT} -> {NODE_PORT}"));
        let data = tcp("A", &ends);
        let handed = entry(family, &data, OPEN | FLOW_HANDED);
        let masqueraded = entry(family, &data, OPEN | FLOW_SOURCE_TRANSLATED);
        for (name, entry) in [("handed on", handed), ("masqueraded", masqueraded)] {
            let mut means: Vec<_> = (0..400).map(|_| front.cost(&data, entry, 20)).collect();
            means.sort_by(f64::total_cmp);
            println!("{ends}, {name}: {:.0} ns", means[means.len() / 2]);
        }
    }
}
