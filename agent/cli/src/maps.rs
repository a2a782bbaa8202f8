//! The live maps, read as they are: ABI layouts, no domain types, no writing.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use aya::Pod;
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray};
use nix::time::{ClockId, clock_gettime};
use tholepin_agent::dataplane::maps::batch_read::read_all;
use tholepin_agent::dataplane::pin::PinDirectory;
use tholepin_ebpf_abi::conntrack::TICK_SHIFT;
use tholepin_ebpf_abi::*;

use crate::Place;

/// Nothing is pinned where it should be.
#[derive(Debug)]
pub(crate) struct NoDataplane {
    directory: PathBuf,
}

impl std::fmt::Display for NoDataplane {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "no dataplane of ABI version {ABI_VERSION} is pinned in {}: either no agent has run here \
             since the last boot, or it has another --bpffs-root",
            self.directory.display()
        )
    }
}

impl std::error::Error for NoDataplane {}

/// What one look-up in each map answers; fakes in tests, [`Live`] otherwise.
pub(crate) trait Maps {
    fn frontend(&self, key: &FrontendKey) -> Result<Option<FrontendValue>>;
    /// The backend ids of a frontend's list, in order, local ones first.
    fn slots(&self, frontend: &FrontendValue) -> Result<Vec<u32>>;
    fn backend(&self, id: u32) -> Result<Option<BackendValue>>;
    fn flow(&self, key: &FlowKey) -> Result<Option<ConntrackEntry>>;
    fn workload(&self, address: IpAddr) -> Result<Option<WorkloadValue>>;
    /// The node behind the longest prefix that covers the address.
    fn route(&self, address: IpAddr) -> Result<Option<RouteValue>>;
    fn in_source_ranges(&self, service_id: u32, client: IpAddr) -> Result<bool>;
    fn affinity(&self, service_id: u32, client: IpAddr) -> Result<Option<AffinityValue>>;
    /// The port set of the longest prefix that covers the peer.
    fn policy_peer(&self, policy_id: u32, peer: IpAddr) -> Result<Option<u32>>;
    fn policy_port(&self, port_set: u32, protocol: u8, port: u16) -> Result<bool>;
}

/// The pinned maps of a node.
#[derive(Debug)]
pub(crate) struct Live {
    pins: PinDirectory,
}

impl Live {
    /// Fails with [`NoDataplane`] where nothing is pinned.
    pub(crate) fn open(place: &Place) -> Result<Self> {
        let pins = PinDirectory::at(&place.bpffs_root);
        let probe = pins.map(names::FRONTENDS);
        if !probe.exists() {
            let directory = probe.parent().map(PathBuf::from).unwrap_or_default();
            return Err(NoDataplane { directory }.into());
        }
        Ok(Self { pins })
    }

    pub(crate) fn pins(&self) -> &PinDirectory {
        &self.pins
    }

    fn data(&self, name: &str) -> Result<MapData> {
        let path = self.pins.map(name);
        MapData::from_pin(&path).with_context(|| format!("cannot open {}", path.display()))
    }

    pub(crate) fn map(&self, name: &str) -> Result<Map> {
        Map::from_map_data(self.data(name)?).with_context(|| format!("cannot use {name}"))
    }

    /// Every entry of a hash map.
    fn all<K: Pod, V: Pod>(&self, name: &str) -> Result<Vec<(K, V)>> {
        read_all(self.data(name)?.fd().as_fd()).with_context(|| format!("cannot read {name}"))
    }

    fn get<K: Pod, V: Pod>(&self, name: &str, key: &K) -> Result<Option<V>> {
        let map: HashMap<_, K, V> = self
            .map(name)?
            .try_into()
            .with_context(|| format!("cannot use {name}"))?;
        found(map.get(key, 0)).with_context(|| format!("cannot read {name}"))
    }

    fn at<V: Pod>(&self, name: &str, index: u32) -> Result<Option<V>> {
        let map: Array<_, V> = self
            .map(name)?
            .try_into()
            .with_context(|| format!("cannot use {name}"))?;
        match map.get(&index, 0) {
            Err(MapError::OutOfBounds { .. }) => Ok(None),
            other => found(other).with_context(|| format!("cannot read {name}")),
        }
    }

    fn longest<K: Pod, V: Pod>(&self, name: &str, bits: u32, data: K) -> Result<Option<V>> {
        let map: LpmTrie<_, K, V> = self
            .map(name)?
            .try_into()
            .with_context(|| format!("cannot use {name}"))?;
        found(map.get(&Key::new(bits, data), 0)).with_context(|| format!("cannot read {name}"))
    }

    /// Every entry of a trie, with its prefix length.
    fn trie<K: Pod, V: Pod>(&self, name: &str) -> Result<Vec<(u32, K, V)>> {
        let map: LpmTrie<_, K, V> = self
            .map(name)?
            .try_into()
            .with_context(|| format!("cannot use {name}"))?;
        let entries = map.iter().map(|entry| {
            let (key, value) = entry.with_context(|| format!("cannot read {name}"))?;
            Ok((key.prefix_len(), key.data(), value))
        });
        entries.collect()
    }

    pub(crate) fn frontends(&self) -> Result<Vec<(FrontendKey, FrontendValue)>> {
        self.all(names::FRONTENDS)
    }

    pub(crate) fn flows(&self) -> Result<BTreeMap<FlowKey, ConntrackEntry>> {
        Ok(self.all(names::CONNTRACK)?.into_iter().collect())
    }

    /// The pods of this node.
    pub(crate) fn workloads(&self) -> Result<BTreeMap<IpAddr, WorkloadValue>> {
        let map: Array<_, WorkloadValue> = self
            .map(names::WORKLOADS)?
            .try_into()
            .context("cannot use WORKLOADS")?;
        let mut workloads = BTreeMap::new();
        for index in 0..map.len() {
            let value = map.get(&index, 0).context("cannot read WORKLOADS")?;
            if value.address != Address::UNSPECIFIED {
                workloads.insert(value.address.to_ip(), value);
            }
        }
        Ok(workloads)
    }

    /// What every policy id allows: bits, id and address of each prefix, and its port set.
    pub(crate) fn policy_peers(&self) -> Result<Vec<(u32, PolicyPeer, u32)>> {
        let entries: Vec<(u32, PolicyPeer, PolicyPeerValue)> = self.trie(names::POLICY_PEERS)?;
        Ok(entries
            .into_iter()
            .map(|(bits, key, value)| (bits, key, value.port_set))
            .collect())
    }

    pub(crate) fn policy_ports(&self) -> Result<Vec<(u32, PolicyPort)>> {
        let entries: Vec<(u32, PolicyPort, PolicyPortValue)> = self.trie(names::POLICY_PORTS)?;
        Ok(entries
            .into_iter()
            .map(|(bits, key, _)| (bits, key))
            .collect())
    }

    /// Packets per reason, over all processors.
    pub(crate) fn drops(&self) -> Result<Vec<(DropReason, u64)>> {
        let map: PerCpuArray<_, u64> = self
            .map(names::DROPS)?
            .try_into()
            .context("cannot use DROPS")?;
        let count = |reason: &DropReason| {
            let values = map.get(&(*reason as u32), 0).context("cannot read DROPS")?;
            Ok((*reason, values.iter().sum()))
        };
        DropReason::ALL.iter().map(count).collect()
    }
}

impl Maps for Live {
    fn frontend(&self, key: &FrontendKey) -> Result<Option<FrontendValue>> {
        self.get(names::FRONTENDS, key)
    }

    fn slots(&self, frontend: &FrontendValue) -> Result<Vec<u32>> {
        let mut ids = Vec::new();
        for ordinal in 0..u32::from(frontend.backend_count) {
            let slot: Option<SlotValue> =
                self.at(names::BACKEND_SLOTS, frontend.first_slot + ordinal)?;
            ids.push(slot.map_or(0, |slot| slot.backend_id));
        }
        Ok(ids)
    }

    fn backend(&self, id: u32) -> Result<Option<BackendValue>> {
        let value: Option<BackendValue> = self.at(names::BACKENDS, id)?;
        Ok(value.filter(|value| id != 0 && value.generation != 0))
    }

    fn flow(&self, key: &FlowKey) -> Result<Option<ConntrackEntry>> {
        self.get(names::CONNTRACK, key)
    }

    fn workload(&self, address: IpAddr) -> Result<Option<WorkloadValue>> {
        let address = Address::from(address);
        let value: Option<WorkloadValue> = self.at(names::WORKLOADS, workload_index(&address))?;
        Ok(value.filter(|value| value.address == address))
    }

    fn route(&self, address: IpAddr) -> Result<Option<RouteValue>> {
        self.longest(names::POD_ROUTES, 128, Address::from(address))
    }

    fn in_source_ranges(&self, service_id: u32, client: IpAddr) -> Result<bool> {
        let key = SourceRange {
            service_id,
            address: client.into(),
        };
        let value: Option<SourceRangeValue> = self.longest(names::SOURCE_RANGES, 160, key)?;
        Ok(value.is_some())
    }

    fn affinity(&self, service_id: u32, client: IpAddr) -> Result<Option<AffinityValue>> {
        let key = AffinityKey {
            client: client.into(),
            service_id,
        };
        self.get(names::AFFINITY, &key)
    }

    fn policy_peer(&self, policy_id: u32, peer: IpAddr) -> Result<Option<u32>> {
        let key = PolicyPeer {
            policy_id,
            address: peer.into(),
        };
        let value: Option<PolicyPeerValue> = self.longest(names::POLICY_PEERS, 160, key)?;
        Ok(value.map(|value| value.port_set))
    }

    fn policy_port(&self, port_set: u32, protocol: u8, port: u16) -> Result<bool> {
        let key = PolicyPort {
            port_set,
            pad: 0,
            protocol,
            port: Be16::new(port),
        };
        let value: Option<PolicyPortValue> = self.longest(names::POLICY_PORTS, 64, key)?;
        Ok(value.is_some())
    }
}

fn found<T>(result: Result<T, MapError>) -> Result<Option<T>, MapError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(MapError::KeyNotFound) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The keys of tries as aya has them: without the prefix length, which it keeps apart.
macro_rules! trie_key {
    ($($(#[$doc:meta])* $name:ident { $($field:ident: $ty:ty),+ } of $whole:ty;)+) => {$(
        $(#[$doc])*
        #[repr(C)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub(crate) struct $name { $(pub(crate) $field: $ty),+ }
        const _: () = assert!(size_of::<$name>() + 4 == size_of::<$whole>());
        #[expect(unsafe_code, reason = "the marker of plain data")]
        // SAFETY: `repr(C)`, and as large as the fields of the ABI's key, which has no padding; every bit
        // pattern of integers and byte arrays is valid.
        unsafe impl Pod for $name {}
    )+};
}

trie_key! {
    /// Of `SOURCE_RANGES`.
    SourceRange { service_id: u32, address: Address } of SourceRangeKey;
    /// Of `POLICY_PEERS`.
    PolicyPeer { policy_id: u32, address: Address } of PolicyPeerKey;
    /// Of `POLICY_PORTS`.
    PolicyPort { port_set: u32, pad: u8, protocol: u8, port: Be16 } of PolicyPortKey;
}

/// The clock of the flows' entries, in ticks.
pub(crate) fn now_ticks() -> u32 {
    // The clock is there since 2.6.32; without it every flow looks new.
    let now = clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).map_or(0, |time| {
        time.tv_sec().cast_unsigned() * 1_000_000_000 + time.tv_nsec().cast_unsigned()
    });
    (now >> TICK_SHIFT) as u32
}

/// A number of ticks in seconds.
pub(crate) fn seconds(ticks: u32) -> u64 {
    (u64::from(ticks) << TICK_SHIFT) / 1_000_000_000
}

#[cfg(test)]
pub(crate) mod fake;
