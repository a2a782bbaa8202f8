//! Map look-ups. What they return stays readable for the rest of the program's run.

#![expect(unsafe_code, reason = "references into hash maps")]

use aya_ebpf::btf_maps::{HashMap, LruHashMap};
use tholepin_ebpf_abi::conntrack::FLOW_DIRECT;
use tholepin_ebpf_abi::*;

use crate::maps::*;

/// A value of a hash map.
///
/// An entry's memory stays mapped until the program ends, but may be given to another key by an
/// update from elsewhere: what must be consistent is copied at once, and words are all that is
/// relied on.
#[inline(always)]
fn hash<'a, K, V, const N: usize, const FLAGS: usize>(
    map: &'a HashMap<K, V, N, FLAGS>,
    key: &K,
) -> Option<&'a V> {
    // SAFETY: see above; the values are integers without invariants between them.
    unsafe { map.get(key) }
}

#[inline(always)]
pub fn frontend(key: &FrontendKey) -> Option<&'static FrontendValue> {
    hash(&FRONTENDS, key)
}

#[inline(always)]
pub fn slot(index: u32) -> Option<&'static SlotValue> {
    BACKEND_SLOTS.get(index)
}

/// What is at an id, which may be nothing: see [`BackendValue::flags`].
#[inline(always)]
pub fn backend(backend_id: u32) -> Option<&'static BackendValue> {
    BACKENDS.get(backend_id)
}

/// The pod of this node that has `address`.
#[inline(always)]
pub fn workload(address: &Address) -> Option<&'static WorkloadValue> {
    let workload = WORKLOADS.get(workload_index(address))?;
    (workload.address.words() == address.words()).then_some(workload)
}

/// Whether sockets of a network namespace are balanced.
#[inline(always)]
pub fn socket_netns(key: &SocketNetnsKey) -> Option<&'static SocketNetnsValue> {
    hash(&SOCKET_NETNS, key)
}

#[inline(always)]
pub fn pod_route(key: &RouteKey) -> Option<&'static RouteValue> {
    POD_ROUTES.get(key)
}

#[inline(always)]
fn lru<K, V, const N: usize>(map: &LruHashMap<K, V, N>, key: &K) -> Option<*mut V> {
    map.get_ptr_mut(key)
}

#[inline(always)]
pub fn fragment(key: &FragmentKey) -> Option<FragmentValue> {
    // SAFETY: the pointer is to a live value; it is copied before anything else happens.
    lru(&FRAGMENTS, key).map(|value| unsafe { *value })
}

/// A packet's tuple in words that hashing and comparing read back as they were written. A [`FlowKey`]
/// on the stack may be written by halves of them, which a processor cannot hand on before all of it
/// has reached the cache.
#[repr(C, align(8))]
pub struct TupleWords([u64; 5]);

impl TupleWords {
    #[inline(always)]
    pub fn new(source: [u32; 4], destination: [u32; 4], ports: u32, protocol: u8) -> Self {
        // The machines are little-endian, which the object's build script makes sure of.
        let pair = |low: u32, high: u32| u64::from(low) | u64::from(high) << 32;
        Self([
            pair(source[0], source[1]),
            pair(source[2], source[3]),
            pair(destination[0], destination[1]),
            pair(destination[2], destination[3]),
            pair(ports, u32::from(protocol)),
        ])
    }
}

const _: () = assert!(size_of::<TupleWords>() == size_of::<FlowKey>());

/// What is remembered of a client, in the map.
#[derive(Clone, Copy)]
pub struct Remembered {
    value: *mut AffinityValue,
}

#[inline(always)]
pub fn affinity(key: &AffinityKey) -> Option<Remembered> {
    lru(&AFFINITY, key).map(|value| Remembered { value })
}

impl Remembered {
    #[inline(always)]
    pub fn entry(&self) -> &AffinityValue {
        // SAFETY: as in `Half::entry`.
        unsafe { &*self.value }
    }

    #[inline(always)]
    pub fn set_last_used(&self, now: u32) {
        // SAFETY: as in `Half::entry`; an aligned word.
        unsafe { (&raw mut (*self.value).last_used).write_volatile(now) };
    }
}

/// Whether a client is in one of a Service's source ranges.
#[inline(always)]
pub fn in_source_ranges(key: &SourceRangeKey) -> bool {
    SOURCE_RANGES.get(key).is_some()
}

/// One half of a flow, in the map.
#[derive(Clone, Copy)]
pub struct Half {
    entry: *mut ConntrackEntry,
}

impl Half {
    /// The half under `key`.
    #[inline(always)]
    pub fn find(key: &FlowKey) -> Option<Self> {
        lru(&CONNTRACK, key).map(|entry| Self { entry })
    }

    /// The half under `key`, if the flow is translated and not only tracked for policy.
    #[inline(always)]
    pub fn find_translated(key: &FlowKey) -> Option<Self> {
        Self::find(key).filter(|half| half.entry().flags & FLOW_DIRECT == 0)
    }

    /// The half under a key in words.
    #[inline(always)]
    pub fn find_words(key: &TupleWords) -> Option<Self> {
        // SAFETY: as many bytes, aligned stricter, and every bit pattern is valid.
        Self::find(unsafe { &*core::ptr::from_ref(key).cast::<FlowKey>() })
    }

    #[inline(always)]
    pub fn entry(&self) -> &ConntrackEntry {
        // SAFETY: the pointer came from a look-up of this run of the program. Other processors
        // may write words of it meanwhile, each of which is valid by itself.
        unsafe { &*self.entry }
    }

    /// Sets `FLOW_*` bits. Lost updates of a race are made again by the next packet.
    #[inline(always)]
    pub fn set_flags(&self, bits: u32) {
        let flags = self.entry().flags;
        if flags & bits != bits {
            // SAFETY: as in `entry`; an aligned word.
            unsafe { (&raw mut (*self.entry).flags).write_volatile(flags | bits) };
        }
    }

    #[inline(always)]
    pub fn set_last_seen(&self, now: u32) {
        // SAFETY: as in `entry`; an aligned word.
        unsafe { (&raw mut (*self.entry).last_seen).write_volatile(now) };
    }

    #[inline(always)]
    pub fn set_policy_generation(&self, generation: u32) {
        // SAFETY: as in `entry`; an aligned word.
        unsafe { (&raw mut (*self.entry).policy_generation).write_volatile(generation) };
    }

    #[inline(always)]
    pub fn set_ifindex(&self, ifindex: u32) {
        // SAFETY: as in `entry`; an aligned word.
        unsafe { (&raw mut (*self.entry).ifindex).write_volatile(ifindex) };
    }
}
