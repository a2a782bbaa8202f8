//! Tells a listener, while there is one, about dropped packets and new flows.

#![expect(unsafe_code, reason = "a record is written where the kernel keeps it")]

use tholepin_ebpf_abi::event::{EVENT_DROP, EVENT_FLOW};
use tholepin_ebpf_abi::{DropReason, EventSwitch};

use crate::maps::{EVENT_SWITCH, EVENTS};
use crate::skb::{self, Skb};

/// A packet is dropped. Called before anything of it has changed.
#[inline(always)]
pub fn dropped(skb: &Skb, reason: DropReason) {
    if let Some(switch) = listener() {
        if switch.drops >> (reason as u32 % 64) & 1 != 0 {
            record(skb, EVENT_DROP, reason as u32, 0);
        }
    }
}

/// A flow was made for the packet, which has not been changed yet.
#[inline(always)]
pub fn flow_made(skb: &Skb, service_id: u32, backend_id: u32) {
    if let Some(switch) = listener() {
        if skb::random().checked_rem(switch.flow_sample) == Some(0) {
            record(skb, EVENT_FLOW, service_id, backend_id);
        }
    }
}

/// What somebody listens to. `None` after a load and a comparison, as a rule.
#[inline(always)]
fn listener() -> Option<&'static EventSwitch> {
    EVENT_SWITCH.get(0).filter(|switch| switch.until != 0)
}

/// Writes a record if the listener's time is not over. A full buffer loses it: the counters do not.
#[inline(never)]
fn record(skb: &Skb, kind: u32, detail: u32, backend_id: u32) -> u32 {
    let until = EVENT_SWITCH.get(0).map_or(0, |switch| switch.until);
    let at_ns = skb::now_ns();
    if skb::ticks_of(at_ns) >= until {
        return 0;
    }
    let Some(mut entry) = EVENTS.reserve(0) else {
        return 0;
    };
    let event = entry.as_mut_ptr();
    let packet_len = skb.len();
    // SAFETY: `event` is a record of the ring buffer that is ours until it is submitted; every field is
    // written before that, except bytes of `packet` beyond `captured`, which nobody reads.
    unsafe {
        (&raw mut (*event).at_ns).write(at_ns);
        (&raw mut (*event).kind).write(kind);
        (&raw mut (*event).detail).write(detail);
        (&raw mut (*event).backend_id).write(backend_id);
        (&raw mut (*event).ifindex).write(skb.ifindex());
        (&raw mut (*event).packet_len).write(packet_len);
        let data = (&raw mut (*event).packet).cast::<u8>();
        let captured = skb.copy_start(packet_len, data);
        (&raw mut (*event).captured).write(captured);
    }
    entry.submit(0);
    1
}
