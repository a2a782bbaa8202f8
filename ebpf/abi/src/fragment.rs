//! `FRAGMENTS`: the ports of fragmented datagrams, learned from their first fragment.

use crate::{Address, Be16};

map_type! {
    /// Key of `FRAGMENTS`: what all fragments of one datagram share.
    pub struct FragmentKey {
        /// Source address.
        pub source: Address,
        /// Destination address.
        pub destination: Address,
        /// The datagram's identification, as on the wire (IPv4: 16 bits).
        pub identification: u32,
        /// IANA protocol number of the datagram.
        pub protocol: u8,
        /// Zero.
        pub _pad: [u8; 3],
    }
}

map_type! {
    /// Value of `FRAGMENTS`.
    pub struct FragmentValue {
        /// Source port.
        pub source_port: Be16,
        /// Destination port.
        pub destination_port: Be16,
    }
}
