//! One node's dataplane: the real programs and maps, loaded unpinned and gone with the process.
//!
//! The node has gateway 10.244.1.1 / fd00:10:244:1::1, pods .2, .3 and .7 in both families, and
//! knows that 10.244.2.0/24 and fd00:10:244:2::/64 are on 172.30.0.12. Its own underlay address is
//! 172.30.0.11 / fd00:172:30::11, and its routes are those of [`crate::uplink`].

mod events;
mod info;

use std::collections::BTreeSet;
use std::net::IpAddr;

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, MapData};
use aya::programs::{
    ProgramError, RawTracePoint, RawTracePointRunOptions, SchedClassifier, TestRun as _,
    TestRunOptions,
};
use aya::{Ebpf, EbpfLoader, Pod};
use tholepin_ebpf_abi::globals as global;
use tholepin_ebpf_abi::names::{self, HOST_MAC, OVERLAY_SOURCE_MAC};
use tholepin_ebpf_abi::workload::WORKLOAD_BACKEND;
use tholepin_ebpf_abi::*;
use tholepin_ebpf_object::OBJECT;
use tholepin_harness::skip;

pub use crate::family::in_v6;
use crate::wire::{Packet, end};

/// A hook a packet enters by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    PodEgress,
    HostEgress,
    OverlayIn,
    UnderlayIn,
    LocalOut,
}

impl Hook {
    pub const ALL: [Self; 5] = [
        Self::PodEgress,
        Self::HostEgress,
        Self::OverlayIn,
        Self::UnderlayIn,
        Self::LocalOut,
    ];

    pub fn program(self) -> &'static str {
        match self {
            Self::PodEgress => names::POD_EGRESS,
            Self::HostEgress => names::HOST_EGRESS,
            Self::OverlayIn => names::OVERLAY_IN,
            Self::UnderlayIn => names::UNDERLAY_IN,
            Self::LocalOut => names::LOCAL_OUT,
        }
    }
}

/// `BPF_PROG_TEST_RUN` gives packets the loopback device, so it stands for every pod's interface.
pub const IFINDEX: u32 = 1;
/// An interface that is not the one packets come from.
pub const OTHER_IFINDEX: u32 = 77;
pub const OVERLAY_MTU: u32 = 1450;
/// UDP port of the overlay.
pub const OVERLAY_PORT: u32 = 8472;
const GATEWAYS: [&str; 2] = ["10.244.1.1", "fd00:10:244:1::1"];
const PODS: [u8; 3] = [2, 3, 7];
/// The node's addresses in the underlay.
pub const NODES: [&str; 2] = ["172.30.0.11", "fd00:172:30::11"];

const TC_ACT_OK: u32 = 0;
const TC_ACT_SHOT: u32 = 2;
const TC_ACT_REDIRECT: u32 = 7;
/// `TC_ACT_UNSPEC`: other programs, then the kernel.
const TC_ACT_NEXT: u32 = u32::MAX;

/// The globals a test may choose.
#[derive(Clone, Copy, Debug)]
pub struct Globals {
    pub enforce_source: u32,
    pub redirect_peer: u32,
    pub csum_ipv6: u32,
    pub overlay: bool,
    pub masquerade: bool,
    pub mtu: u32,
    /// Places for flows.
    pub flows: u32,
}

impl Default for Globals {
    fn default() -> Self {
        Self {
            enforce_source: 1,
            redirect_peer: 1,
            csum_ipv6: 0,
            overlay: true,
            masquerade: true,
            mtu: OVERLAY_MTU,
            flows: 1024,
        }
    }
}

/// What came out of a hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// To a local pod, by its MAC's last byte.
    Pod(u8, Packet),
    Gateway(Packet),
    Overlay(Packet),
    /// Back to the sender.
    Answer(Packet),
    /// To the kernel's stack.
    Pass(Packet),
    /// Not changed, because there was nothing to read.
    PassRaw,
    Drop,
}

/// A loaded dataplane.
#[derive(Debug)]
pub struct Stage {
    pub(crate) ebpf: Ebpf,
    pub(crate) next_id: u32,
    pub(crate) next_slot: u32,
}

/// A stage, or `None` (reported) where eBPF may not be loaded. Under `CI` that is an error.
pub fn stage() -> Option<Stage> {
    stage_with(Globals::default())
}

/// A stage with other globals.
pub fn stage_with(globals: Globals) -> Option<Stage> {
    // eBPF programs can only be loaded as root.
    skip::unless(skip::root())?;
    Some(Stage::load(globals).unwrap_or_else(|error| panic!("{error:?}")))
}

impl Stage {
    /// Loads and verifies every program.
    pub fn load(globals: Globals) -> anyhow::Result<Self> {
        crate::uplink::ensure()?;
        let [v4, v6] = GATEWAYS.map(|text| address(text).octets);
        let [node_v4, node_v6] = match globals.masquerade {
            true => NODES.map(|text| address(text).octets),
            false => [[0; 16]; 2],
        };
        let overlay_ifindex = if globals.overlay { IFINDEX } else { 0 };
        let mut loader = EbpfLoader::new();
        loader
            .override_global(global::GATEWAY_V4, &v4, true)
            .override_global(global::GATEWAY_V6, &v6, true)
            .override_global(global::NODE_V4, &node_v4, true)
            .override_global(global::NODE_V6, &node_v6, true)
            .override_global(global::HOST_IFINDEX, &IFINDEX, true)
            .override_global(global::OVERLAY_IFINDEX, &overlay_ifindex, true)
            .override_global(global::OVERLAY_PORT, &OVERLAY_PORT, true)
            .override_global(global::OVERLAY_MTU, &globals.mtu, true)
            .override_global(global::ENFORCE_SOURCE, &globals.enforce_source, true)
            .override_global(global::REDIRECT_PEER, &globals.redirect_peer, true)
            .override_global(global::CSUM_IPV6, &globals.csum_ipv6, true);
        for map in [
            names::FRONTENDS,
            names::BACKEND_SLOTS,
            names::BACKENDS,
            names::POD_ROUTES,
            names::FRAGMENTS,
            names::AFFINITY,
        ] {
            loader.map_max_entries(map, 1024);
        }
        loader.map_max_entries(names::CONNTRACK, globals.flows);
        let ebpf = loader.load(OBJECT)?;
        let mut stage = Self {
            ebpf,
            next_id: 1,
            next_slot: 0,
        };
        for hook in Hook::ALL {
            patiently(|| stage.program(hook).load())?;
        }
        stage.cleaner().load()?;
        for last in PODS {
            stage.workload(&format!("10.244.1.{last}"), IFINDEX, last);
            stage.workload(&format!("fd00:10:244:1::{last}"), IFINDEX, last);
        }
        stage.route("10.244.2.0", 96 + 24, "172.30.0.12");
        stage.route("fd00:10:244:2::", 64, "172.30.0.12");
        Ok(stage)
    }

    /// Pins a map, so that somebody else can open it.
    pub fn pin(&mut self, name: &str, path: &std::path::Path) {
        let map = self.ebpf.map_mut(name);
        let map = map.unwrap_or_else(|| panic!("no map `{name}`"));
        map.pin(path)
            .unwrap_or_else(|error| panic!("map `{name}`: {error}"));
    }

    fn program(&mut self, hook: Hook) -> &mut SchedClassifier {
        let program = self
            .ebpf
            .program_mut(hook.program())
            .expect("the object has the hook");
        program.try_into().expect("hooks are classifiers")
    }

    pub(crate) fn hash<K: Pod, V: Pod>(&mut self, name: &str) -> HashMap<&mut MapData, K, V> {
        let map = self
            .ebpf
            .map_mut(name)
            .unwrap_or_else(|| panic!("no map `{name}`"));
        map.try_into()
            .unwrap_or_else(|error| panic!("map `{name}`: {error}"))
    }

    /// A trie, for those who fill it by another's code.
    pub(crate) fn trie<K: Pod, V: Pod>(&mut self, name: &str) -> LpmTrie<&mut MapData, K, V> {
        let map = self.ebpf.map_mut(name).expect("the object has the map");
        map.try_into().expect("a trie")
    }

    /// Adds a pod of this node.
    pub fn workload(&mut self, text: &str, ifindex: u32, last: u8) {
        let address = address(text);
        let value = WorkloadValue {
            netns_cookie: 1000 + u64::from(last),
            address,
            ifindex,
            mac: pod_mac(last),
            ..WorkloadValue::default()
        };
        self.set_workload(&address, value);
    }

    /// Changes what is known of a pod of this node.
    pub fn change_workload(&mut self, text: &str, change: impl FnOnce(&mut WorkloadValue)) {
        let address = address(text);
        let mut value = self
            .workloads()
            .get(&workload_index(&address), 0)
            .expect("a place for each address");
        assert_eq!(value.address, address, "{text} is a pod");
        change(&mut value);
        self.set_workload(&address, value);
    }

    fn set_workload(&mut self, address: &Address, value: WorkloadValue) {
        self.workloads()
            .set(workload_index(address), value, 0)
            .expect("a place for each address");
    }

    fn workloads(&mut self) -> Array<&mut MapData, WorkloadValue> {
        let map = self.ebpf.map_mut(names::WORKLOADS).expect("there are pods");
        map.try_into().expect("an array")
    }

    /// Removes a pod of this node.
    pub fn remove_workload(&mut self, text: &str) {
        self.set_workload(&address(text), WorkloadValue::default());
    }

    fn route(&mut self, text: &str, prefix_len: u32, endpoint: &str) {
        let map = self
            .ebpf
            .map_mut(names::POD_ROUTES)
            .expect("the object has routes");
        let mut routes: LpmTrie<_, [u8; 16], RouteValue> = map.try_into().expect("a trie");
        let value = RouteValue {
            tunnel_endpoint: address(endpoint),
            flags: 0,
        };
        let key = Key::new(prefix_len, address(text).octets);
        routes.insert(&key, value, 0).expect("room for a route");
    }

    /// Writes a backend; the pod behind it learns first that it is one.
    pub fn backend(&mut self, id: u32, at: &str, protocol: u8, flags: u8, generation: u32) {
        let at = end(at);
        let address = Address::from(at.ip());
        let workload = self.workloads().get(&workload_index(&address), 0);
        let mut workload = workload.expect("a place for each address");
        if workload.address == address {
            workload.flags |= WORKLOAD_BACKEND;
            self.set_workload(&address, workload);
        }
        let value = BackendValue {
            address: at.ip().into(),
            port: Be16::new(at.port()),
            protocol,
            flags,
            generation,
            service_id: 0,
        };
        self.set(names::BACKENDS, id, value);
    }

    /// Removes a backend, as when its endpoint is gone.
    pub fn remove_backend(&mut self, id: u32) {
        self.set(names::BACKENDS, id, BackendValue::default());
    }

    pub(crate) fn set<V: Pod>(&mut self, name: &str, index: u32, value: V) {
        let map = self
            .ebpf
            .map_mut(name)
            .unwrap_or_else(|| panic!("no map `{name}`"));
        let mut array: Array<_, V> = map
            .try_into()
            .unwrap_or_else(|error| panic!("map `{name}`: {error}"));
        array.set(index, value, 0).expect("room in the array");
    }

    /// Forgets Services, backends and flows.
    pub fn reset(&mut self) {
        self.clear::<FrontendKey, FrontendValue>(names::FRONTENDS);
        for index in 0..self.next_slot {
            self.set(names::BACKEND_SLOTS, index, SlotValue::default());
        }
        for id in 1..self.next_id {
            self.set(names::BACKENDS, id, BackendValue::default());
        }
        (self.next_slot, self.next_id) = (0, 1);
        self.clear::<FlowKey, ConntrackEntry>(names::CONNTRACK);
        self.clear::<AffinityKey, AffinityValue>(names::AFFINITY);
    }

    /// Forgets the flows only.
    pub fn reset_flows(&mut self) {
        self.clear::<FlowKey, ConntrackEntry>(names::CONNTRACK);
    }

    fn clear<K: Pod, V: Pod>(&mut self, name: &str) {
        let mut map = self.hash::<K, V>(name);
        let keys: Vec<K> = map.keys().map(|key| key.expect("readable")).collect();
        for key in keys {
            map.remove(&key).expect("it was there");
        }
    }

    /// Runs a packet through a hook.
    pub fn run(&mut self, hook: Hook, packet: &Packet) -> Outcome {
        self.run_frame(hook, &frame(packet))
    }

    /// Runs a frame through a hook without a look at what comes out.
    pub fn run_blind(&mut self, hook: Hook, frame: &[u8]) {
        let options = TestRunOptions {
            data_in: Some(frame),
            ..TestRunOptions::default()
        };
        self.program(hook)
            .test_run(options)
            .expect("the kernel runs the program");
    }

    /// Runs any frame through a hook.
    pub fn run_frame(&mut self, hook: Hook, frame: &[u8]) -> Outcome {
        let mut out = vec![0; frame.len() + 256];
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ..TestRunOptions::default()
        };
        let result = self
            .program(hook)
            .test_run(options)
            .expect("the kernel runs the program");
        out.truncate(result.data_size_out as usize);
        outcome(result.return_value, &out)
    }

    /// Lets the cleaner walk through the flows, and returns what it counted.
    pub fn clean(&mut self) -> FlowStats {
        self.cleaner()
            .test_run(RawTracePointRunOptions::new())
            .expect("the kernel runs the program");
        let map = self.ebpf.map(names::FLOW_STATS).expect("the cleaner's map");
        let stats: Array<_, FlowStats> = map.try_into().expect("an array");
        stats.get(&0, 0).expect("one element")
    }

    fn cleaner(&mut self) -> &mut RawTracePoint {
        let program = self.ebpf.program_mut(names::CLEANER);
        let program = program.expect("the object has the cleaner");
        program.try_into().expect("it is a raw tracepoint's")
    }

    /// The tracked flows, both halves.
    pub fn conntrack(&mut self) -> BTreeSet<FlowKey> {
        let map = self.hash::<FlowKey, ConntrackEntry>(names::CONNTRACK);
        map.keys().map(|key| key.expect("readable")).collect()
    }

    /// The entry of a packet's own tuple.
    pub fn entry(&mut self, packet: &Packet) -> Option<ConntrackEntry> {
        self.hash::<FlowKey, ConntrackEntry>(names::CONNTRACK)
            .get(&flow_key(packet), 0)
            .ok()
    }

    /// Makes what session affinity remembers older.
    pub fn age_affinity(&mut self, ticks: u32) {
        let mut map = self.hash::<AffinityKey, AffinityValue>(names::AFFINITY);
        let all: Vec<_> = map.iter().map(|entry| entry.expect("readable")).collect();
        for (key, mut value) in all {
            value.last_used = value.last_used.saturating_sub(ticks);
            map.insert(key, value, 0).expect("it was there");
        }
    }

    /// Overwrites the entry of a packet's own tuple, to make it as old as a test needs.
    pub fn set_entry(&mut self, packet: &Packet, entry: ConntrackEntry) {
        self.hash(names::CONNTRACK)
            .insert(flow_key(packet), entry, 0)
            .expect("room for an entry");
    }

    /// Forgets the entry of a packet's own tuple, as LRU eviction does.
    pub fn evict(&mut self, packet: &Packet) {
        let mut map = self.hash::<FlowKey, ConntrackEntry>(names::CONNTRACK);
        map.remove(&flow_key(packet)).expect("it was there");
    }

    /// Runs a packet and says in words what happened: where it went and what it had become, how
    /// many conntrack entries came or went, and which drops were counted.
    pub fn observe(&mut self, hook: Hook, packet: &Packet) -> String {
        let (flows, drops) = (self.conntrack(), self.all_drops());
        let mut text = describe(&self.run(hook, packet));
        let change = self.conntrack().len() as i64 - flows.len() as i64;
        if change != 0 {
            text += &format!("; conntrack {change:+}");
        }
        for (reason, count) in self.all_drops() {
            let before = drops
                .iter()
                .find(|(other, _)| *other == reason)
                .map_or(0, |(_, n)| *n);
            if count != before {
                text += &format!("; {} +{}", reason.label(), count - before);
            }
        }
        text
    }

    /// Checks [`Self::observe`].
    #[track_caller]
    pub fn check(&mut self, hook: Hook, packet: &Packet, expected: &str) {
        let observed = self.observe(hook, packet);
        assert_eq!(observed, expected, "{packet} enters {}", hook.program());
    }
}

fn describe(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Pod(last, packet) => format!("pod .{last}: {packet} ttl {}", packet.ttl),
        Outcome::Gateway(packet) => format!("gateway: {packet} ttl {}", packet.ttl),
        Outcome::Overlay(packet) => format!("overlay: {packet} ttl {}", packet.ttl),
        Outcome::Answer(packet) => format!("answer: {packet}"),
        Outcome::Pass(packet) => format!("pass: {packet} ttl {}", packet.ttl),
        Outcome::PassRaw => "pass".to_owned(),
        Outcome::Drop => "drop".to_owned(),
    }
}

fn outcome(action: u32, frame: &[u8]) -> Outcome {
    let packet = || Packet::from_ip_bytes(&frame[14..]).unwrap_or_else(|error| panic!("{error}"));
    let (to, from) = (&frame[..6], &frame[6..12]);
    match action {
        TC_ACT_SHOT => Outcome::Drop,
        TC_ACT_OK | TC_ACT_NEXT if !matches!(frame[12..14], [0x08, 0x00] | [0x86, 0xdd]) => {
            Outcome::PassRaw
        }
        TC_ACT_OK | TC_ACT_NEXT => Outcome::Pass(packet()),
        TC_ACT_REDIRECT if to == HOST_MAC && from == OVERLAY_SOURCE_MAC => {
            Outcome::Overlay(packet())
        }
        TC_ACT_REDIRECT if to == SENDER_MAC && from == HOST_MAC => Outcome::Answer(packet()),
        TC_ACT_REDIRECT if to == HOST_MAC && from == HOST_MAC => Outcome::Gateway(packet()),
        TC_ACT_REDIRECT if to[..5] == pod_mac(0)[..5] => Outcome::Pod(to[5], packet()),
        other => panic!("action {other} with {to:02x?} <- {from:02x?}"),
    }
}

/// What sends to the hooks, as far as an answer shows it.
const SENDER_MAC: [u8; 6] = [0x02, 0, 0, 0, 1, 1];

/// The frame that brings a packet to a hook.
pub fn frame(packet: &Packet) -> Vec<u8> {
    let mut frame = Vec::new();
    frame.extend(HOST_MAC);
    frame.extend(SENDER_MAC);
    frame.extend(if packet.is_v4() {
        [0x08, 0x00]
    } else {
        [0x86, 0xdd]
    });
    frame.extend(packet.ip_bytes());
    frame
}

fn pod_mac(last: u8) -> [u8; 6] {
    [0x02, 0, 0, 0, 0, last]
}

/// A frame with any Ethernet type.
pub fn raw_frame(ether_type: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    frame.extend(HOST_MAC);
    frame.extend(SENDER_MAC);
    frame.extend(ether_type.to_be_bytes());
    frame.extend(payload);
    frame
}

pub fn address(text: &str) -> Address {
    text.parse::<IpAddr>()
        .unwrap_or_else(|_| panic!("`{text}` is no address"))
        .into()
}

fn flow_key(packet: &Packet) -> FlowKey {
    FlowKey {
        source: packet.source.ip().into(),
        destination: packet.destination.ip().into(),
        source_port: Be16::new(packet.source.port()),
        destination_port: Be16::new(packet.destination.port()),
        protocol: packet.protocol(),
        _pad: [0; 3],
    }
}

/// Loads again while the verifier is interrupted: it gives up when the thread has a signal to see to.
pub fn patiently(mut load: impl FnMut() -> Result<(), ProgramError>) -> Result<(), ProgramError> {
    for _ in 0..4 {
        match load() {
            Err(ProgramError::LoadError { io_error, .. })
                if io_error.raw_os_error() == Some(libc::EAGAIN) => {}
            other => return other,
        }
    }
    load()
}
