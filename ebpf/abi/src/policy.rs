//! `POLICY_PEERS` and `POLICY_PORTS`: what NetworkPolicies allow.
//!
//! A policy id stands for everything that allows traffic in one direction of a pod: the union of
//! the rules of all policies that select it. Two look-ups answer for a flow: the peer's address
//! leads to a set of ports, and the set says whether the port is in it. A trie answers with the
//! longest match only, so the agent gives every prefix the ports of all ranges that cover it.

use crate::{Address, Be16};

map_type! {
    /// Key of `POLICY_PEERS`, a longest-prefix-match trie.
    pub struct PolicyPeerKey {
        /// Bits of what follows that count: 32 for `policy_id`, and those of the address (an IPv4
        /// prefix is 96 bits longer than it is written).
        pub prefix_len: u32,
        /// [`crate::WorkloadValue::ingress_policy`] or `egress_policy`.
        pub policy_id: u32,
        /// The other end, bits beyond the prefix zero.
        pub address: Address,
    }
}

map_type! {
    /// Value of `POLICY_PEERS`.
    pub struct PolicyPeerValue {
        /// [`PORTS_NONE`], [`PORTS_ALL`], or a set of `POLICY_PORTS`.
        pub port_set: u32,
    }
}

/// [`PolicyPeerKey::prefix_len`] of a whole key.
pub const POLICY_PEER_BITS: u32 = 32 + 128;

/// Nothing: an `except` cut out of a larger range.
pub const PORTS_NONE: u32 = 0;
/// Every port of every protocol.
pub const PORTS_ALL: u32 = u32::MAX;

map_type! {
    /// Key of `POLICY_PORTS`, a longest-prefix-match trie: a range of ports is a few prefixes.
    pub struct PolicyPortKey {
        /// Bits of what follows that count: 48 for the set and the protocol, and 0 to 16 of the port.
        pub prefix_len: u32,
        /// [`PolicyPeerValue::port_set`].
        pub port_set: u32,
        /// Zero.
        pub _pad: u8,
        /// IANA protocol number.
        pub protocol: u8,
        /// Destination port of the flow, after translation.
        pub port: Be16,
    }
}

map_type! {
    /// Value of `POLICY_PORTS`: that there is an entry allows the flow.
    pub struct PolicyPortValue {
        /// Zero.
        pub flags: u32,
    }
}

/// [`PolicyPortKey::prefix_len`] of a whole key.
pub const POLICY_PORT_BITS: u32 = 48 + 16;
