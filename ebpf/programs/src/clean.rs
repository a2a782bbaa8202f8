//! The walk through `CONNTRACK` that removes flows that are over, and counts the others.
//!
//! The table would evict the oldest entries by itself, but only once it is full, and then each new flow
//! pays for it. The agent starts a walk every now and then; no packet is involved.

#![expect(unsafe_code, reason = "a callback from the kernel")]

use core::ffi::c_void;
use core::ptr;

use aya_ebpf::helpers::bpf_ktime_get_ns;
use aya_ebpf::helpers::generated::bpf_for_each_map_elem;
use tholepin_ebpf_abi::conntrack::{FLOW_ESTABLISHED, FLOW_REPLY, SHORTEST_IDLE, TICK_SHIFT};
use tholepin_ebpf_abi::flow_stats::FlowStats;
use tholepin_ebpf_abi::{ConntrackEntry, FlowKey};
use tholepin_ebpf_core::packet::{TCP, UDP};
use tholepin_ebpf_core::{Translation, flow};

use crate::lookup::Half;
use crate::maps::{CONNTRACK, FLOW_STATS};

/// Visits every entry.
#[inline(always)]
pub fn run() -> i32 {
    // An array of one element is always there, which the verifier does not know.
    FLOW_STATS.set(0, FlowStats::default(), 0).ok();
    // Not the coarse clock, which programs of this type may not ask; this is the same, a jiffy ahead.
    // SAFETY: no pointers.
    let mut now = (unsafe { bpf_ktime_get_ns() } >> TICK_SHIFT) as u32;
    // SAFETY: the map is a hash with keys and values of the types that `visit` takes, and `now` lives
    // until the helper returns.
    unsafe {
        bpf_for_each_map_elem(
            ptr::from_ref(&CONNTRACK).cast_mut().cast(),
            visit as *mut c_void,
            ptr::from_mut(&mut now).cast(),
            0,
        );
    }
    0
}

/// Looks at one entry; 0 for "go on".
///
/// It counts in the map and not in the memory of `run`: there the verifier follows each number through
/// one visit after the other (127,000 instructions on 6.18), here it does not know them.
#[inline(never)]
extern "C" fn visit(
    _map: *mut c_void,
    key: *const FlowKey,
    entry: *const ConntrackEntry,
    now: *const u32,
) -> i64 {
    // SAFETY: the kernel hands in a live key and value of the map, and what `run` gave it.
    let (key, entry, now) = unsafe { (&*key, &*entry, *now) };
    let Some(stats) = FLOW_STATS.get_ptr_mut(0) else {
        return 0;
    };
    // SAFETY: a live value, which only the one walk at a time writes.
    let stats = unsafe { &mut *stats };
    let old = now.saturating_sub(entry.last_seen) > SHORTEST_IDLE;
    if old && remove(key, entry, now, stats) {
        return 0;
    }
    stats.entries += 1;
    if entry.flags & FLOW_REPLY == 0 {
        count(key.protocol, entry.flags, stats);
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
fn remove(key: &FlowKey, entry: &ConntrackEntry, now: u32, stats: &mut FlowStats) -> bool {
    let other_key = Translation::of_entry(entry).reply_key(key.protocol);
    let (mut flags, mut last_seen) = (entry.flags, entry.last_seen);
    let other = Half::find(&other_key);
    if let Some(other) = other {
        flags |= other.entry().flags;
        last_seen = last_seen.max(other.entry().last_seen);
    }
    // A packet refreshes both halves; so if either is young now, there has been one meanwhile.
    let idle = now.saturating_sub(last_seen);
    if idle <= flow::idle_limit(key.protocol, flags) {
        return false;
    }
    // Either may be gone already, which is as good.
    if other.is_some() && CONNTRACK.remove(&other_key).is_ok() {
        stats.removed += 1;
    }
    if CONNTRACK.remove(key).is_ok() {
        stats.removed += 1;
    }
    true
}
