//! `SOURCE_RANGES`: who may use a Service with `loadBalancerSourceRanges`.

use crate::Address;

map_type! {
    /// Key of `SOURCE_RANGES`, a longest-prefix-match trie.
    pub struct SourceRangeKey {
        /// Bits of what follows that count: 32 for `service_id`, and those of the address (an IPv4
        /// prefix is 96 bits longer than it is written).
        pub prefix_len: u32,
        /// [`crate::FrontendValue::service_id`].
        pub service_id: u32,
        /// The range, bits beyond the prefix zero.
        pub address: Address,
    }
}

/// [`SourceRangeKey::prefix_len`] of a whole key.
pub const SOURCE_RANGE_BITS: u32 = 32 + 128;

map_type! {
    /// Value of `SOURCE_RANGES`: that there is an entry lets the client in.
    pub struct SourceRangeValue {
        /// Zero.
        pub flags: u32,
    }
}
