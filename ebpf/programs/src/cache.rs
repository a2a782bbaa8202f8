//! The flows this processor has just forwarded packets of, in front of `CONNTRACK`.
//!
//! The kernel's hash is four function calls, which on machines that guard returns is a third of what an
//! established packet costs; an array's element is a few instructions. Each flow has one place, found
//! by a cheap hash, and the newest takes it. An element is good for one tick, in which the entry in the
//! map would not change with the flow's packets either, and only while no entry was replaced or removed
//! anywhere since it was copied: whoever does that says so with [`outdated`].

#![expect(unsafe_code, reason = "pointers into maps")]

use core::sync::atomic::{AtomicU64, Ordering};

use tholepin_ebpf_abi::ConntrackEntry;

use crate::lookup::TupleWords;
use crate::maps::{FLOW_CACHE, FLOW_EPOCH};

/// Places per processor; a power of two.
pub const PLACES: usize = 1024;

/// A copy of an entry.
#[repr(C)]
pub struct CachedFlow {
    key: [u64; 5],
    entry: ConntrackEntry,
    epoch: u64,
}

/// The place of a flow.
#[derive(Clone, Copy)]
pub struct Place {
    slot: *mut CachedFlow,
    epoch: u64,
}

impl Place {
    #[inline(always)]
    pub fn of(key: &TupleWords) -> Option<Self> {
        let slot = FLOW_CACHE.get_ptr_mut(key.spread() >> (64 - PLACES.ilog2()))?;
        Some(Self {
            slot,
            epoch: epoch(),
        })
    }

    /// The entry, if it is the flow's and its last packet was seen at `now`.
    #[inline(always)]
    pub fn entry(&self, key: &TupleWords, now: u32) -> Option<&'static ConntrackEntry> {
        // SAFETY: a live value of this CPU's own slot, which no other program writes meanwhile.
        let slot = unsafe { &*self.slot };
        let known =
            slot.key == *key.words() && slot.epoch == self.epoch && slot.entry.last_seen == now;
        known.then_some(&slot.entry)
    }

    /// Keeps a copy of the entry.
    #[inline(always)]
    pub fn keep(&self, key: &TupleWords, entry: &ConntrackEntry) {
        // SAFETY: as in `entry`.
        unsafe {
            (*self.slot).key = *key.words();
            (*self.slot).entry = *entry;
            (*self.slot).epoch = self.epoch;
        }
    }
}

/// How often entries were replaced or removed.
#[inline(always)]
fn epoch() -> u64 {
    // An array of one element is always there, which the verifier does not know.
    FLOW_EPOCH.get(0).copied().unwrap_or(0)
}

/// Says that an entry was replaced or removed. Call it afterwards: whoever copies an entry reads the
/// epoch first.
#[inline(always)]
pub fn outdated() {
    let Some(epoch) = FLOW_EPOCH.get_ptr_mut(0) else {
        return;
    };
    // SAFETY: a live, aligned word of the map.
    unsafe { AtomicU64::from_ptr(epoch) }.fetch_add(1, Ordering::Relaxed);
}
