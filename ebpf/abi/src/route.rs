//! `POD_ROUTES`: which node a range of pod addresses is on.

use crate::Address;

map_type! {
    /// Key of `POD_ROUTES`, a longest-prefix-match trie.
    pub struct RouteKey {
        /// Bits of `address` that count; an IPv4 prefix is 96 bits longer than it is written.
        pub prefix_len: u32,
        /// The range, bits beyond the prefix zero.
        pub address: Address,
    }
}

map_type! {
    /// Value of `POD_ROUTES`.
    pub struct RouteValue {
        /// The node's underlay address, where VXLAN packets go.
        pub tunnel_endpoint: Address,
        /// Zero; reserved for `ROUTE_*` bits.
        pub flags: u32,
    }
}

/// The prefix length of `POD_ROUTES` for an IPv4 prefix.
#[must_use]
pub const fn v4_prefix_len(prefix_len: u32) -> u32 {
    96 + prefix_len
}
