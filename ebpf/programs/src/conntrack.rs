//! Packets of flows that are known already.

use tholepin_ebpf_abi::conntrack::{FLOW_DSR, FLOW_EXTERNAL, FLOW_HANDED, FLOW_REPLY, UDP_IDLE};
use tholepin_ebpf_abi::{ConntrackEntry, DropReason, FlowKey};
use tholepin_ebpf_core::packet::has_connections;
use tholepin_ebpf_core::{Origin, Translation, flow, rewrite};

use crate::balance;
use crate::lookup::{self, Half};
use crate::maps::CONNTRACK;
use crate::parse::Packet;
use crate::scratch::{Scratch, settle};
use crate::skb::{self, Skb};

/// The translation of a packet whose flow has `half`. Data packets of TCP cost nothing beyond the
/// look-up that found it; UDP looks whether its backend still serves; a SYN takes the slow path.
#[inline(always)]
pub fn advance(
    skb: &Skb,
    scratch: &mut Scratch,
    half: Half,
    origin: Origin,
) -> Result<(), DropReason> {
    let entry = half.entry();
    let now = skb::now();
    let idle = now.saturating_sub(entry.last_seen);
    if entry.flags & FLOW_REPLY == 0 && !keeps_backend(&scratch.packet, entry, now, idle) {
        return balance::again(skb, scratch, origin);
    }
    scratch.translation = Translation::of_entry(entry);
    scratch.packet.translated = true;
    if matches!(origin, Origin::Underlay | Origin::Overlay) {
        scratch.packet.external = entry.flags & FLOW_EXTERNAL != 0;
        scratch.packet.handed = entry.flags & FLOW_HANDED != 0;
    }
    half.set_flags(flow::observed(
        scratch.packet.flow.protocol,
        scratch.packet.tcp_flags,
    ));
    if idle > 0 {
        refresh(&scratch.packet.flow, now);
    }
    Ok(())
}

/// Whether a half is that of answers which leave for the client's address from here, although the
/// client may be a masqueraded one of this node: it asked another node, which handed it back.
#[inline(always)]
pub fn answers_directly(half: Half) -> bool {
    half.entry().flags & (FLOW_DSR | FLOW_REPLY) == FLOW_DSR | FLOW_REPLY
}

/// Goes on with the answer of such a flow to the one who asked, if that is a flow of this node.
#[inline(always)]
pub fn answer_own_client(scratch: &mut Scratch) {
    let seen = scratch.translation.reply_key(scratch.packet.flow.protocol);
    scratch.reply_key = seen.reversed();
    settle();
    if let Some(half) = Half::find_translated(&scratch.reply_key) {
        if half.entry().flags & FLOW_REPLY != 0 {
            scratch.translation = Translation::of_entry(half.entry());
        }
    }
}

#[inline(always)]
fn keeps_backend(packet: &Packet, entry: &ConntrackEntry, now: u32, idle: u32) -> bool {
    if !has_connections(packet.flow.protocol) {
        return idle <= UDP_IDLE && is_current(entry);
    }
    !flow::opens(packet.flow.protocol, packet.tcp_flags)
        || syn_keeps_backend(&packet.flow, now) != 0
}

/// Whether the flow's backend is still there and serves. Flows that are only masqueraded have none.
#[inline(always)]
fn is_current(entry: &ConntrackEntry) -> bool {
    entry.backend_id == 0 || flow::is_current(entry, lookup::backend(entry.backend_id))
}

/// Whether a SYN of a known flow keeps its backend.
#[inline(never)]
fn syn_keeps_backend(key: &FlowKey, now: u32) -> u32 {
    let Some(half) = Half::find(key) else {
        return 0;
    };
    let entry = half.entry();
    let idle = now.saturating_sub(entry.last_seen);
    let flags = flags_of_both(key, half);
    let keeps = flow::syn_keeps_backend(key.protocol, flags, idle, is_current(entry));
    u32::from(keeps)
}

/// The `FLOW_*` bits of both directions.
#[inline(always)]
pub fn flags_of_both(key: &FlowKey, half: Half) -> u32 {
    let entry = half.entry();
    let other = Translation::of_entry(entry).reply_key(key.protocol);
    entry.flags | Half::find(&other).map_or(0, |other| other.entry().flags)
}

/// Marks both halves as used, so that a flow of one direction does not lose the other to LRU
/// eviction, and puts the other half back if it did. At most once a second for a flow.
#[inline(never)]
fn refresh(key: &FlowKey, now: u32) -> u32 {
    let Some(half) = Half::find(key) else {
        return 0;
    };
    half.set_last_seen(now);
    if half.entry().flags & FLOW_HANDED != 0 {
        return 0;
    }
    let other_key = Translation::of_entry(half.entry()).reply_key(key.protocol);
    if let Some(other) = Half::find(&other_key) {
        other.set_last_seen(now);
        return 1;
    }
    let other = rewrite::other_half(key, half.entry());
    // Without room the flow goes on in this direction, and the next second tries again.
    CONNTRACK.insert(other_key, other, 0).ok();
    2
}
