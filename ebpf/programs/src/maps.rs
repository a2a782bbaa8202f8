//! The maps. Static name = kernel name = pin name; layouts and capacities are the ABI crate's.

use aya_ebpf::bindings::BPF_F_NO_PREALLOC;
use aya_ebpf::btf_maps::{Array, HashMap, LruHashMap, PerCpuArray, RingBuf, SkStorage};
use aya_ebpf::macros::btf_map;
use tholepin_ebpf_abi::drop_reason::DROP_REASON_SLOTS;
use tholepin_ebpf_abi::event::EVENTS_BYTES;
use tholepin_ebpf_abi::names::*;
use tholepin_ebpf_abi::*;

use crate::lpm::LpmTrie;
use crate::scratch::{Clock, Scratch};
use crate::xdp::{HOPS, Hop};

#[btf_map]
pub static FRONTENDS: HashMap<
    FrontendKey,
    FrontendValue,
    FRONTENDS_CAPACITY,
    { BPF_F_NO_PREALLOC as usize },
> = HashMap::new();

#[btf_map]
pub static BACKEND_SLOTS: Array<SlotValue, BACKEND_SLOTS_CAPACITY> = Array::new();

#[btf_map]
pub static BACKENDS: Array<BackendValue, BACKENDS_CAPACITY> = Array::new();

#[btf_map]
pub static CONNTRACK: LruHashMap<FlowKey, ConntrackEntry, CONNTRACK_CAPACITY> = LruHashMap::new();

#[btf_map]
pub static WORKLOADS: Array<WorkloadValue, WORKLOADS_CAPACITY> = Array::new();

#[btf_map]
pub static POD_ROUTES: LpmTrie<RouteKey, RouteValue, POD_ROUTES_CAPACITY> = LpmTrie::new();

#[btf_map]
pub static FRAGMENTS: LruHashMap<FragmentKey, FragmentValue, FRAGMENTS_CAPACITY> =
    LruHashMap::new();

#[btf_map]
pub static AFFINITY: LruHashMap<AffinityKey, AffinityValue, AFFINITY_CAPACITY> = LruHashMap::new();

#[btf_map]
pub static SOURCE_RANGES: LpmTrie<SourceRangeKey, SourceRangeValue, SOURCE_RANGES_CAPACITY> =
    LpmTrie::new();

#[btf_map]
pub static POLICY_PEERS: LpmTrie<PolicyPeerKey, PolicyPeerValue, POLICY_PEERS_CAPACITY> =
    LpmTrie::new();

#[btf_map]
pub static POLICY_PORTS: LpmTrie<PolicyPortKey, PolicyPortValue, POLICY_PORTS_CAPACITY> =
    LpmTrie::new();

#[btf_map]
pub static SOCKETS: SkStorage<SocketValue> = SkStorage::new();

#[btf_map]
pub static SOCKET_NETNS: HashMap<
    SocketNetnsKey,
    SocketNetnsValue,
    SOCKET_NETNS_CAPACITY,
    { BPF_F_NO_PREALLOC as usize },
> = HashMap::new();

#[btf_map]
pub static DROPS: PerCpuArray<u64, { DROP_REASON_SLOTS as usize }> = PerCpuArray::new();

#[btf_map]
pub static EVENTS: RingBuf<Event, EVENTS_BYTES> = RingBuf::new();

#[btf_map]
pub static EVENT_SWITCH: Array<EventSwitch, 1> = Array::new();

#[btf_map]
pub static FLOW_STATS: Array<FlowStats, 1> = Array::new();

/// What the front door knows of the ways to backends, see [`Hop`]. Not pinned either.
#[btf_map]
pub static XDP_HOPS: PerCpuArray<Hop, HOPS> = PerCpuArray::new();

/// Working memory, see [`Scratch`]. Not pinned: its layout belongs to this object alone.
#[btf_map]
pub static SCRATCH: PerCpuArray<Scratch, 1> = PerCpuArray::new();

/// The time as of the last jiffy, see [`Clock`]. Not pinned either.
#[btf_map]
pub static CLOCK: PerCpuArray<Clock, 1> = PerCpuArray::new();
