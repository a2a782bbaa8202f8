//! `SOCKET_NETNS`: the network namespaces whose sockets are balanced.

use std::collections::BTreeMap;

use aya::maps::HashMap;
use tholepin_ebpf_abi::{SocketNetnsKey, SocketNetnsValue, names};

use super::{MapAccessError, Pinned, access, entries, open, opened, removed};
use crate::dataplane::pin::PinDirectory;

/// The pinned map.
#[derive(Debug)]
pub struct SocketNetns {
    map: HashMap<Pinned, SocketNetnsKey, SocketNetnsValue>,
    /// What it holds: flags by cookie.
    written: BTreeMap<u64, u32>,
}

impl SocketNetns {
    /// Opens the pinned map.
    pub fn open(pins: &PinDirectory) -> Result<Self, MapAccessError> {
        let map = open(pins, names::SOCKET_NETNS)?;
        let map: HashMap<_, SocketNetnsKey, SocketNetnsValue> =
            opened(pins, names::SOCKET_NETNS, HashMap::try_from(map))?;
        let written = entries(names::SOCKET_NETNS, map.iter())?
            .into_iter()
            .map(|(key, value)| (key.netns_cookie, value.flags))
            .collect();
        Ok(Self { map, written })
    }

    /// Makes these the map's content.
    pub fn replace(&mut self, wanted: &BTreeMap<u64, u32>) -> Result<(), MapAccessError> {
        for (&netns_cookie, &flags) in wanted {
            if self.written.get(&netns_cookie) == Some(&flags) {
                continue;
            }
            let (key, value) = (SocketNetnsKey { netns_cookie }, SocketNetnsValue { flags });
            let result = self.map.insert(key, value, 0);
            access("write", names::SOCKET_NETNS, result)?;
            self.written.insert(netns_cookie, flags);
        }
        let gone: Vec<u64> = self
            .written
            .keys()
            .filter(|cookie| !wanted.contains_key(cookie))
            .copied()
            .collect();
        for netns_cookie in gone {
            let key = SocketNetnsKey { netns_cookie };
            removed(names::SOCKET_NETNS, self.map.remove(&key))?;
            self.written.remove(&netns_cookie);
        }
        Ok(())
    }
}
