//! Network-order integers and the 16-byte address: byte order lives in the type, not in comments.

#![expect(
    unsafe_code,
    reason = "an address as bytes and as words, and `aya::Pod`"
)]

use core::mem::transmute;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

map_type! {
    /// A 16-bit integer in network order.
    pub struct Be16 {
        /// The value as it is on the wire.
        pub be: u16
    }
}

impl Be16 {
    /// From host order.
    #[must_use]
    #[inline(always)]
    pub const fn new(value: u16) -> Self {
        Self { be: value.to_be() }
    }

    /// From a value that is already in network order.
    #[must_use]
    #[inline(always)]
    pub const fn from_wire(be: u16) -> Self {
        Self { be }
    }

    /// In host order.
    #[must_use]
    #[inline(always)]
    pub const fn get(self) -> u16 {
        u16::from_be(self.be)
    }
}

map_type! {
    /// A 32-bit integer in network order.
    pub struct Be32 {
        /// The value as it is on the wire.
        pub be: u32
    }
}

impl Be32 {
    /// From host order.
    #[must_use]
    #[inline(always)]
    pub const fn new(value: u32) -> Self {
        Self { be: value.to_be() }
    }

    /// In host order.
    #[must_use]
    #[inline(always)]
    pub const fn get(self) -> u32 {
        u32::from_be(self.be)
    }
}

/// An IPv6 address, or an IPv4 address in its mapped form `::ffff:a.b.c.d`.
///
/// One form for both families is what keeps the programs one code path. Aligned to 4, so that it
/// is copied and compared by words in eBPF.
#[repr(C, align(4))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Address {
    /// In network order.
    pub octets: [u8; 16],
}

const _: () = assert!(size_of::<Address>() == 16 && align_of::<Address>() == 4);

// SAFETY: sixteen bytes without padding (asserted above), for which every bit pattern is valid.
#[cfg(feature = "user")]
unsafe impl aya::Pod for Address {}

/// The third word of a mapped IPv4 address, as it is in memory.
pub const MAPPED_V4_WORD: u32 = 0x0000_ffff_u32.to_be();

impl Address {
    /// `::`, which also stands for "none".
    pub const UNSPECIFIED: Self = Self { octets: [0; 16] };

    /// From four words in memory order.
    #[must_use]
    #[inline(always)]
    pub const fn from_words(words: [u32; 4]) -> Self {
        // Going byte by byte instead makes the eBPF compiler keep sixteen separate bytes.
        // SAFETY: both are sixteen bytes without padding, for which every bit pattern is valid.
        let octets = unsafe { transmute::<[u32; 4], [u8; 16]>(words) };
        Self { octets }
    }

    /// The mapped form of the IPv4 address whose four bytes are `word` in memory order.
    #[must_use]
    #[inline(always)]
    pub const fn from_v4_word(word: u32) -> Self {
        Self::from_words([0, 0, MAPPED_V4_WORD, word])
    }

    /// The mapped form of an IPv4 address.
    #[must_use]
    pub const fn from_v4(octets: [u8; 4]) -> Self {
        Self::from_v4_word(u32::from_ne_bytes(octets))
    }

    /// From an IPv6 address.
    #[must_use]
    pub const fn from_v6(octets: [u8; 16]) -> Self {
        Self { octets }
    }

    /// Four words in memory order.
    #[must_use]
    #[inline(always)]
    pub const fn words(&self) -> [u32; 4] {
        // SAFETY: as in `from_words`.
        unsafe { transmute::<[u8; 16], [u32; 4]>(self.octets) }
    }

    /// Whether this is a mapped IPv4 address.
    #[must_use]
    #[inline(always)]
    pub const fn is_v4(&self) -> bool {
        let [a, b, c, _] = self.words();
        a | b == 0 && c == MAPPED_V4_WORD
    }

    /// As the standard library's type; mapped addresses become IPv4.
    #[must_use]
    pub fn to_ip(self) -> IpAddr {
        Ipv6Addr::from(self.octets).to_canonical()
    }
}

impl From<IpAddr> for Address {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => v4.into(),
            IpAddr::V6(v6) => v6.into(),
        }
    }
}

impl From<Ipv4Addr> for Address {
    fn from(address: Ipv4Addr) -> Self {
        Self::from_v4(address.octets())
    }
}

impl From<Ipv6Addr> for Address {
    fn from(address: Ipv6Addr) -> Self {
        Self::from_v6(address.octets())
    }
}

impl From<Address> for IpAddr {
    fn from(address: Address) -> Self {
        address.to_ip()
    }
}

impl core::fmt::Display for Address {
    fn fmt(&self, formatter: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        self.to_ip().fmt(formatter)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv4_address_survives_the_mapped_form() {
        let address = Address::from(Ipv4Addr::new(10, 96, 0, 10));
        assert!(address.is_v4());
        assert_eq!(address.to_ip(), IpAddr::from([10, 96, 0, 10]));
        assert_eq!(&address.octets[10..], &[0xff, 0xff, 10, 96, 0, 10]);
    }

    #[test]
    fn an_ipv6_address_is_kept_as_it_is() {
        let address = Address::from("fd00:10:96::a".parse::<Ipv6Addr>().unwrap());
        assert!(!address.is_v4());
        assert_eq!(Address::from_words(address.words()), address);
    }

    #[test]
    fn ports_are_in_network_order_in_memory() {
        assert_eq!(Be16::new(0x1234).be.to_ne_bytes(), [0x12, 0x34]);
        assert_eq!(Be32::new(1).be.to_ne_bytes(), [0, 0, 0, 1]);
    }
}
