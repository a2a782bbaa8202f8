//! `POLICY_PEERS` and `POLICY_PORTS`: what the policies of this node's pods allow.

use std::net::IpAddr;

use aya::maps::LpmTrie;
use aya::maps::lpm_trie::Key;
use ipnet::IpNet;
use tholepin_ebpf_abi::route::v4_prefix_len;
use tholepin_ebpf_abi::{Address, PolicyPeerValue, PolicyPortValue, names};
use tholepin_model::policy::Protocol;
use tholepin_model::policy::ports::PortPrefix;

use super::{MapAccessError, Pinned, access, entries, open, opened, removed};
use crate::dataplane::pin::PinDirectory;

/// `POLICY_PEERS` behind its length: a policy id and an address.
pub type PeerBytes = [u8; 20];
/// `POLICY_PORTS` behind its length: a set, a zero, a protocol and a port.
pub type PortBytes = [u8; 8];

/// One entry of `POLICY_PEERS`: policy id, prefix and port set.
pub type PeerEntry = (u32, IpNet, u32);
/// One entry of `POLICY_PORTS`: port set and ports.
pub type PortEntry = (u32, PortPrefix);

/// The pinned maps.
#[derive(Debug)]
pub struct Policies {
    peers: LpmTrie<Pinned, PeerBytes, PolicyPeerValue>,
    ports: LpmTrie<Pinned, PortBytes, PolicyPortValue>,
}

impl Policies {
    /// Opens both.
    pub fn open(pins: &PinDirectory) -> Result<Self, MapAccessError> {
        let peers = open(pins, names::POLICY_PEERS)?;
        let ports = open(pins, names::POLICY_PORTS)?;
        Ok(Self {
            peers: opened(pins, names::POLICY_PEERS, LpmTrie::try_from(peers))?,
            ports: opened(pins, names::POLICY_PORTS, LpmTrie::try_from(ports))?,
        })
    }

    /// Inserts or replaces.
    pub fn upsert_peer(
        &mut self,
        policy_id: u32,
        prefix: &IpNet,
        port_set: u32,
    ) -> Result<(), MapAccessError> {
        let written = self.peers.insert(
            &peer_key(policy_id, prefix),
            PolicyPeerValue { port_set },
            0,
        );
        access("write", names::POLICY_PEERS, written)
    }

    /// Removes; succeeds when it is not there.
    pub fn remove_peer(&mut self, policy_id: u32, prefix: &IpNet) -> Result<(), MapAccessError> {
        let key = peer_key(policy_id, prefix);
        removed(names::POLICY_PEERS, self.peers.remove(&key))
    }

    /// Inserts; succeeds when it is there.
    pub fn add_port(&mut self, port_set: u32, ports: PortPrefix) -> Result<(), MapAccessError> {
        let value = PolicyPortValue { flags: 0 };
        let written = self.ports.insert(&port_key(port_set, ports), value, 0);
        access("write", names::POLICY_PORTS, written)
    }

    /// Removes; succeeds when it is not there.
    pub fn remove_port(&mut self, port_set: u32, ports: PortPrefix) -> Result<(), MapAccessError> {
        let key = port_key(port_set, ports);
        removed(names::POLICY_PORTS, self.ports.remove(&key))
    }

    /// Every peer.
    pub fn read_peers(&self) -> Result<Vec<PeerEntry>, MapAccessError> {
        let raw = entries(names::POLICY_PEERS, self.peers.iter())?;
        Ok(raw
            .into_iter()
            .filter_map(|(key, value)| {
                let (policy_id, prefix) = peer_of(&key)?;
                Some((policy_id, prefix, value.port_set))
            })
            .collect())
    }

    /// Every port.
    pub fn read_ports(&self) -> Result<Vec<PortEntry>, MapAccessError> {
        let raw = entries(names::POLICY_PORTS, self.ports.iter())?;
        Ok(raw
            .into_iter()
            .filter_map(|(key, _)| port_of(&key))
            .collect())
    }
}

/// The key of a peer.
#[must_use]
pub fn peer_key(policy_id: u32, prefix: &IpNet) -> Key<PeerBytes> {
    let mut bytes = [0; 20];
    bytes[..4].copy_from_slice(&policy_id.to_ne_bytes());
    bytes[4..].copy_from_slice(&Address::from(prefix.network()).octets);
    let len = u32::from(prefix.prefix_len());
    let len = match prefix {
        IpNet::V4(_) => v4_prefix_len(len),
        IpNet::V6(_) => len,
    };
    Key::new(32 + len, bytes)
}

fn peer_of(key: &Key<PeerBytes>) -> Option<(u32, IpNet)> {
    let bytes = key.data();
    let policy_id = u32::from_ne_bytes(bytes[..4].try_into().ok()?);
    let octets: [u8; 16] = bytes[4..].try_into().ok()?;
    let len = key.prefix_len().checked_sub(32)?;
    // A range of IPv6 may begin like a mapped address and be larger than all of them.
    let address = match Address::from_v6(octets).to_ip() {
        IpAddr::V4(_) if len < 96 => IpAddr::from(octets),
        address => address,
    };
    let len = if address.is_ipv4() { len - 96 } else { len };
    let prefix = IpNet::new(address, u8::try_from(len).ok()?).ok()?;
    Some((policy_id, prefix))
}

/// The key of ports.
#[must_use]
pub fn port_key(port_set: u32, ports: PortPrefix) -> Key<PortBytes> {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&port_set.to_ne_bytes());
    bytes[5] = ports.protocol.number();
    bytes[6..].copy_from_slice(&ports.port.to_be_bytes());
    Key::new(48 + u32::from(ports.len), bytes)
}

fn port_of(key: &Key<PortBytes>) -> Option<PortEntry> {
    let bytes = key.data();
    let port_set = u32::from_ne_bytes(bytes[..4].try_into().ok()?);
    let ports = PortPrefix {
        protocol: Protocol::from_number(bytes[5])?,
        port: u16::from_be_bytes([bytes[6], bytes[7]]),
        len: u8::try_from(key.prefix_len().checked_sub(48)?).ok()?,
    };
    Some((port_set, ports))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        for prefix in ["10.0.0.0/8", "0.0.0.0/0", "::/0", "fd00::1/128", "::/80"] {
            let prefix: IpNet = prefix.parse().unwrap();
            assert_eq!(peer_of(&peer_key(7, &prefix)), Some((7, prefix)));
        }
        let ports = PortPrefix {
            protocol: Protocol::Sctp,
            port: 0x1230,
            len: 12,
        };
        assert_eq!(port_of(&port_key(9, ports)), Some((9, ports)));
    }

    #[test]
    fn keys_are_the_abi_s() {
        assert_eq!(
            size_of::<PeerBytes>() + 4,
            size_of::<tholepin_ebpf_abi::PolicyPeerKey>()
        );
        assert_eq!(
            size_of::<PortBytes>() + 4,
            size_of::<tholepin_ebpf_abi::PolicyPortKey>()
        );
        let v4 = peer_key(1, &"10.0.0.0/8".parse().unwrap());
        assert_eq!(v4.prefix_len(), 32 + 96 + 8);
    }
}
