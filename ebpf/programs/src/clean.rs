//! The walk through `CONNTRACK` that removes flows that are over, and counts the others.
//!
//! The table would evict the oldest entries by itself, but only once it is full, and then each new flow
//! pays for it. The agent starts a walk every now and then; no packet is involved.

#![expect(unsafe_code, reason = "a callback from the kernel")]

use core::ffi::c_void;
use core::ptr;

use aya_ebpf::helpers::generated::bpf_for_each_map_elem;
use tholepin_ebpf_abi::conntrack::{FLOW_ESTABLISHED, FLOW_REPLY, SHORTEST_IDLE};
use tholepin_ebpf_abi::flow_stats::FlowStats;
use tholepin_ebpf_abi::{ConntrackEntry, FlowKey};
use tholepin_ebpf_core::packet::{TCP, UDP};
use tholepin_ebpf_core::{Translation, flow};

use crate::lookup::Half;
use crate::maps::{CONNTRACK, FLOW_STATS};
use crate::skb;

/// What one visit leaves for the next.
struct Walk {
    now: u32,
    stats: FlowStats,
}

/// Visits every entry.
#[inline(always)]
pub fn run() -> i32 {
    let mut walk = Walk {
        now: skb::now(),
        stats: FlowStats::default(),
    };
    // SAFETY: the map is a hash with keys and values of the types that `visit` takes, and `walk` lives
    // until the helper returns.
    unsafe {
        bpf_for_each_map_elem(
            ptr::from_ref(&CONNTRACK).cast_mut().cast(),
            visit as *mut c_void,
            ptr::from_mut(&mut walk).cast(),
            0,
        );
    }
    // An array of one element is always there, which the verifier does not know.
    FLOW_STATS.set(0, walk.stats, 0).ok();
    0
}

/// Looks at one entry; 0 for "go on".
#[inline(never)]
extern "C" fn visit(
    _map: *mut c_void,
    key: *const FlowKey,
    entry: *const ConntrackEntry,
    walk: *mut Walk,
) -> i64 {
    // SAFETY: the kernel hands in a live key and value of the map, and what `run` gave it.
    let (key, entry, walk) = unsafe { (&*key, &*entry, &mut *walk) };
    if walk.now.saturating_sub(entry.last_seen) > SHORTEST_IDLE && remove(key, entry, walk) {
        return 0;
    }
    walk.stats.entries += 1;
    if entry.flags & FLOW_REPLY == 0 {
        count(key.protocol, entry.flags, &mut walk.stats);
    }
    0
}

#[inline(always)]
fn count(protocol: u8, flags: u32, stats: &mut FlowStats) {
    match protocol {
        TCP if flow::is_closing(flags) => stats.tcp_closing += 1,
        TCP if flags & FLOW_ESTABLISHED == 0 => stats.tcp_opening += 1,
        TCP => stats.tcp_established += 1,
        UDP => stats.udp += 1,
        _ => stats.other += 1,
    }
}

/// Removes both halves of a flow that is over, by what both of them say.
#[inline(always)]
fn remove(key: &FlowKey, entry: &ConntrackEntry, walk: &mut Walk) -> bool {
    let other_key = Translation::of_entry(entry).reply_key(key.protocol);
    let (mut flags, mut last_seen) = (entry.flags, entry.last_seen);
    let other = Half::find(&other_key);
    if let Some(other) = other {
        flags |= other.entry().flags;
        last_seen = last_seen.max(other.entry().last_seen);
    }
    // A packet refreshes both halves; so if either is young now, there has been one meanwhile.
    let idle = walk.now.saturating_sub(last_seen);
    if idle <= flow::idle_limit(key.protocol, flags) {
        return false;
    }
    // Either may be gone already, which is as good.
    if other.is_some() && CONNTRACK.remove(&other_key).is_ok() {
        walk.stats.removed += 1;
    }
    if CONNTRACK.remove(key).is_ok() {
        walk.stats.removed += 1;
    }
    true
}
