//! What the programs tell a listener, and that they tell nothing while there is none.

use tholepin_ebpf_abi::event::{EVENT_CAPTURE, EVENT_DROP, EVENT_FLOW};
use tholepin_ebpf_abi::{DropReason, EventSwitch};
use tholepin_tests_dataplane::Hook::PodEgress;
use tholepin_tests_dataplane::stage::frame;
use tholepin_tests_dataplane::{Stage, udp};

use crate::{both, client_udp, service};

const NEVER: u32 = u32::MAX;
const SPOOFED: u64 = 1 << DropReason::SpoofedSource as u32;

fn listen(stage: &mut Stage, drops: u64, flow_sample: u32, until: u32) {
    stage.listen(EventSwitch {
        drops,
        until,
        flow_sample,
    });
}

#[test]
fn a_dropped_packet_is_reported_as_its_sender_sent_it() {
    both(|stage, f| {
        listen(stage, SPOOFED, 0, NEVER);
        for len in [0, 1, 37, 500] {
            let packet = udp(&f("10.244.1.99:4000 -> 10.244.1.3:53")).payload(&vec![7; len]);
            let sent = frame(&packet);
            stage.check(PodEgress, &packet, "drop; spoofed_source +1");
            let events = stage.events();
            assert_eq!(events.len(), 1, "{len}");
            let event = events[0];
            assert_eq!(
                (event.kind, event.detail),
                (EVENT_DROP, DropReason::SpoofedSource as u32)
            );
            assert_eq!(event.packet_len as usize, sent.len());
            let captured = sent.len().min(EVENT_CAPTURE);
            assert_eq!(event.captured as usize, captured);
            assert_eq!(event.bytes(), &sent[..captured]);
            assert!(event.at_ns > 0);
        }
    });
}

#[test]
fn nothing_is_reported_that_nobody_listens_to() {
    both(|stage, f| {
        let packet = udp(&f("10.244.1.99:4000 -> 10.244.1.3:53"));
        for (drops, until) in [(0, NEVER), (!SPOOFED, NEVER), (SPOOFED, 0), (SPOOFED, 1)] {
            listen(stage, drops, 0, until);
            stage.check(PodEgress, &packet, "drop; spoofed_source +1");
            assert_eq!(stage.events(), [], "{drops:x} until {until}");
        }
    });
}

#[test]
fn a_new_flow_is_reported_once_with_its_service_and_backend() {
    both(|stage, f| {
        let ids = service(stage, f, "10.96.0.10:53/udp", &["10.244.1.7:5353"]);
        listen(stage, 0, 1, NEVER);
        for _ in 0..3 {
            stage.run(PodEgress, &client_udp(f));
        }
        let events = stage.events();
        assert_eq!(events.len(), 1);
        assert_eq!((events[0].kind, events[0].backend_id), (EVENT_FLOW, ids[0]));
        assert!(events[0].detail > 0);
    });
}
