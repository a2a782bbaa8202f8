//! `POD_ROUTES`: which tunnel endpoint a remote pod range is behind.

use std::net::IpAddr;

use aya::maps::LpmTrie;
use aya::maps::lpm_trie::Key;
use ipnet::IpNet;
use tholepin_ebpf_abi::route::v4_prefix_len;
use tholepin_ebpf_abi::{Address, RouteValue, names};
use tholepin_model::route::RouteTable;

use super::{MapAccessError, Pinned, access, entries, open, opened, removed};
use crate::dataplane::pin::PinDirectory;

/// The pinned map.
#[derive(Debug)]
pub struct PodRoutes(LpmTrie<Pinned, Address, RouteValue>);

impl PodRoutes {
    /// Opens the pinned map.
    pub fn open(pins: &PinDirectory) -> Result<Self, MapAccessError> {
        let map = open(pins, names::POD_ROUTES)?;
        Ok(Self(opened(
            pins,
            names::POD_ROUTES,
            LpmTrie::try_from(map),
        )?))
    }

    /// Inserts or replaces.
    pub fn upsert(&mut self, range: &IpNet, endpoint: IpAddr) -> Result<(), MapAccessError> {
        let value = RouteValue {
            tunnel_endpoint: endpoint.into(),
            flags: 0,
        };
        access(
            "write",
            names::POD_ROUTES,
            self.0.insert(&key(range), value, 0),
        )
    }

    /// Removes; succeeds when it is not there.
    pub fn remove(&mut self, range: &IpNet) -> Result<(), MapAccessError> {
        removed(names::POD_ROUTES, self.0.remove(&key(range)))
    }

    /// Everything.
    pub fn read(&self) -> Result<RouteTable, MapAccessError> {
        let raw = entries(names::POD_ROUTES, self.0.iter())?;
        Ok(raw
            .into_iter()
            .filter_map(|(key, value)| {
                let address = key.data().to_ip();
                let prefix = key.prefix_len();
                let prefix = if address.is_ipv4() {
                    prefix.checked_sub(96)?
                } else {
                    prefix
                };
                let range = IpNet::new(address, u8::try_from(prefix).ok()?).ok()?;
                Some((range, value.tunnel_endpoint.to_ip()))
            })
            .collect())
    }
}

fn key(range: &IpNet) -> Key<Address> {
    let prefix = u32::from(range.prefix_len());
    let prefix = if range.addr().is_ipv4() {
        v4_prefix_len(prefix)
    } else {
        prefix
    };
    Key::new(prefix, range.network().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv4_prefix_counts_the_mapped_bits() {
        let v4 = key(&"10.244.1.0/24".parse().unwrap());
        assert_eq!(v4.prefix_len(), 120);
        let v6 = key(&"fd00:10:244:1::/64".parse().unwrap());
        assert_eq!(v6.prefix_len(), 64);
    }
}
