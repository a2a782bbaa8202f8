//! Services as a stage has them: every kind of frontend the agent can write.

use aya::maps::lpm_trie::{Key, LpmTrie};
use tholepin_ebpf_abi::backend::BACKEND_SERVING;
use tholepin_ebpf_abi::names;
use tholepin_ebpf_abi::service::{
    FRONTEND_AFFINITY, FRONTEND_MAGLEV, FRONTEND_SOURCE_RANGES, SCOPE_CLUSTER, SCOPE_EXTERNAL,
};
use tholepin_ebpf_abi::*;

use crate::stage::{Stage, address};
use crate::wire::end;

/// A frontend and its list of backends.
#[derive(Clone, Debug, Default)]
pub struct Frontend<'a> {
    /// `address:port/protocol`.
    pub at: String,
    /// Its backends, those of this node first.
    pub backends: Vec<String>,
    /// How many are of this node.
    pub local: u16,
    pub flags: u16,
    /// Reached by clients outside as well.
    pub external: bool,
    /// Session affinity, for so many seconds.
    pub affinity: u32,
    /// A Maglev table, by the backends' ordinals.
    pub maglev: &'a [usize],
    /// Source ranges: address and length of the prefix, 96 bits longer for IPv4.
    pub ranges: Vec<(String, u32)>,
}

impl Stage {
    /// Adds a Service `address:port/protocol` and returns its backends' ids.
    pub fn service(&mut self, frontend: &str, backends: &[&str]) -> Vec<u32> {
        self.service_with(frontend, backends, 0, 0)
    }

    /// The same, with flags and the number of local backends.
    pub fn service_with(
        &mut self,
        frontend: &str,
        backends: &[&str],
        flags: u16,
        local_count: u16,
    ) -> Vec<u32> {
        self.front(&Frontend {
            at: frontend.to_owned(),
            backends: backends.iter().map(|&backend| backend.to_owned()).collect(),
            local: local_count,
            flags,
            ..Frontend::default()
        })
    }

    /// Adds a frontend of any kind and returns its backends' ids.
    pub fn front(&mut self, front: &Frontend<'_>) -> Vec<u32> {
        let (at, protocol) = front.at.split_once('/').expect("address:port/protocol");
        let protocol = match protocol {
            "udp" => 17,
            "sctp" => 132,
            _ => 6,
        };
        let service_id = self.new_id();
        let first_slot = self.next_slot;
        let mut ids = Vec::new();
        for backend in &front.backends {
            let id = self.new_id();
            self.backend(id, backend, protocol, BACKEND_SERVING, 1);
            self.add_slot(id, service_id);
            ids.push(id);
        }
        for ordinal in front.maglev {
            self.add_slot(ids[*ordinal], service_id);
        }
        let mut flags = front.flags;
        for (flag, wanted) in [
            (FRONTEND_AFFINITY, front.affinity > 0),
            (FRONTEND_MAGLEV, !front.maglev.is_empty()),
            (FRONTEND_SOURCE_RANGES, !front.ranges.is_empty()),
        ] {
            flags |= if wanted { flag } else { 0 };
        }
        let value = FrontendValue {
            service_id,
            first_slot,
            backend_count: ids.len() as u16,
            local_count: front.local,
            flags,
            maglev_size: front.maglev.len() as u16,
            affinity_timeout_s: front.affinity,
            ..FrontendValue::default()
        };
        for range in &front.ranges {
            self.source_range(service_id, range);
        }
        self.frontend(key(at, protocol, SCOPE_CLUSTER), value);
        if front.external {
            self.frontend(key(at, protocol, SCOPE_EXTERNAL), value);
        }
        ids
    }

    /// Gives a frontend for clients inside a list with one backend, as when the others terminate.
    pub fn narrow(&mut self, at: &str, protocol: u8, id: u32) {
        let key = key(at, protocol, SCOPE_CLUSTER);
        let value = self.hash::<_, FrontendValue>(names::FRONTENDS).get(&key, 0);
        let mut value: FrontendValue = value.expect("there is such a frontend");
        value.first_slot = self.next_slot;
        (value.backend_count, value.local_count) = (1, 1);
        self.add_slot(id, value.service_id);
        self.frontend(key, value);
    }

    /// Removes a frontend for clients outside.
    pub fn remove_front(&mut self, at: &str, protocol: u8) {
        let key = key(at, protocol, SCOPE_EXTERNAL);
        self.hash::<_, FrontendValue>(names::FRONTENDS)
            .remove(&key)
            .expect("it was there");
    }

    fn frontend(&mut self, key: FrontendKey, value: FrontendValue) {
        self.hash(names::FRONTENDS)
            .insert(key, value, 0)
            .expect("room for a frontend");
    }

    fn new_id(&mut self) -> u32 {
        let id = self.next_id;
        self.next_id += 1;
        id
    }

    fn add_slot(&mut self, backend_id: u32, service_id: u32) {
        let slot = SlotValue {
            backend_id,
            service_id,
        };
        let index = self.next_slot;
        self.next_slot += 1;
        self.set(names::BACKEND_SLOTS, index, slot);
    }

    fn source_range(&mut self, service_id: u32, (at, len): &(String, u32)) {
        let map = self
            .ebpf
            .map_mut(names::SOURCE_RANGES)
            .expect("the object has source ranges");
        let mut ranges: LpmTrie<_, [u8; 20], SourceRangeValue> = map.try_into().expect("a trie");
        let mut data = [0; 20];
        data[..4].copy_from_slice(&service_id.to_ne_bytes());
        data[4..].copy_from_slice(&address(at).octets);
        ranges
            .insert(&Key::new(32 + len, data), SourceRangeValue::default(), 0)
            .expect("room for a range");
    }
}

fn key(at: &str, protocol: u8, scope: u8) -> FrontendKey {
    let at = end(at);
    FrontendKey {
        address: at.ip().into(),
        port: Be16::new(at.port()),
        protocol,
        scope,
    }
}
