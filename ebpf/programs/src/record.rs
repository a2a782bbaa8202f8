//! Writing the two halves of a flow into `CONNTRACK`, and taking them out again.

use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use tholepin_ebpf_abi::conntrack::FLOW_SOURCE_TRANSLATED;
use tholepin_ebpf_abi::{Be16, ConntrackEntry, DropReason, FlowKey};
use tholepin_ebpf_core::{Translation, flow, rewrite};

use crate::conntrack::flags_of_both;
use crate::lookup::Half;
use crate::maps::CONNTRACK;
use crate::scratch::{Scratch, settle};
use crate::skb;

/// Source ports tried while they collide.
const ATTEMPTS: u32 = 4;

const EEXIST: i32 = -17;

/// Writes both halves, the reply's first: it is what tells whether the translated tuple is free.
#[inline(always)]
pub fn record(scratch: &mut Scratch) -> Result<(), DropReason> {
    let flow = &scratch.packet.flow;
    if scratch.packet.handed {
        settle();
        return insert(flow, &scratch.forward, BPF_ANY);
    }
    let mut attempt = 0;
    while attempt < ATTEMPTS {
        attempt += 1;
        scratch.reply_key = scratch.translation.reply_key(flow.protocol);
        scratch.reply = rewrite::reply_half(flow, &scratch.forward);
        settle();
        if claim(&scratch.reply_key, &scratch.reply)? {
            scratch.packet.translated = true;
            return insert(flow, &scratch.forward, BPF_ANY);
        }
        // Two flows of one client that differ only in the Service's address would become the same
        // behind it, so one of them gets another source port.
        let random = skb::random();
        let port = if scratch.masquerade {
            rewrite::masquerade_port(random)
        } else {
            Be16::new(32_768 | random as u16)
        };
        scratch.translation.source_port = port;
        scratch.forward.source_port = port;
        scratch.forward.flags |= FLOW_SOURCE_TRANSLATED;
    }
    Err(DropReason::SourcePortCollision)
}

/// Takes a reply tuple, unless a live flow has it.
#[inline(always)]
fn claim(key: &FlowKey, reply: &ConntrackEntry) -> Result<bool, DropReason> {
    match CONNTRACK.insert(key, reply, u64::from(BPF_NOEXIST)) {
        Ok(()) => return Ok(true),
        Err(EEXIST) => {}
        Err(_) => return Err(DropReason::ConntrackFull),
    }
    if !may_take_over(key, reply) {
        return Ok(false);
    }
    insert(key, reply, BPF_ANY).map(|()| true)
}

/// Whether the flow that has a reply tuple is over, or is the one that asks. A flow that is over
/// loses its forward half, which would lead to a reply half that is no longer its own.
#[inline(always)]
fn may_take_over(key: &FlowKey, reply: &ConntrackEntry) -> bool {
    let Some(owner) = Half::find(key) else {
        return true;
    };
    let entry = owner.entry();
    if Translation::of_entry(entry) == Translation::of_entry(reply) {
        return true;
    }
    let idle = reply.last_seen.saturating_sub(entry.last_seen);
    if !flow::is_over(key.protocol, flags_of_both(key, owner), idle) {
        return false;
    }
    // It may be gone already, which is as good.
    CONNTRACK
        .remove(Translation::of_entry(entry).reply_key(key.protocol))
        .ok();
    true
}

#[inline(always)]
fn insert(key: &FlowKey, entry: &ConntrackEntry, flags: u32) -> Result<(), DropReason> {
    CONNTRACK
        .insert(key, entry, u64::from(flags))
        .map_err(|_| DropReason::ConntrackFull)
}

/// Removes both halves.
#[inline(always)]
pub fn forget(flow: &FlowKey) {
    if let Some(half) = Half::find(flow) {
        let reply_key = Translation::of_entry(half.entry()).reply_key(flow.protocol);
        // They may be gone already, which is as good.
        CONNTRACK.remove(reply_key).ok();
        CONNTRACK.remove(flow).ok();
    }
}
