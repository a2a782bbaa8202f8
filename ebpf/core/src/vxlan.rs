//! The headers around a packet in the overlay, for where there is no VXLAN device to put them there.

use tholepin_ebpf_abi::Be16;

use crate::csum::Sum;
use crate::packet::{ETHERNET_LEN, IPV4_LEN, UDP, UDP_LEN};

/// Length of a VXLAN header.
const VXLAN_LEN: u32 = 8;
/// Bytes before the inner Ethernet header, over IPv4.
pub const OUTER_LEN: u32 = ETHERNET_LEN + IPV4_LEN + UDP_LEN + VXLAN_LEN;

/// TTL of the outer header, as the device's.
const TTL: u8 = 64;
/// "Do not fragment": all pieces would have the same identification, which is always zero.
const DONT_FRAGMENT: u8 = 0x40;
/// The VXLAN header says that it has an identifier.
const HAS_VNI: u8 = 0x08;
/// Source ports are taken from here up, like other ephemeral ones.
const FIRST_PORT: u16 = 0xc000;

/// Where a tunnel leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// Destination and source MAC as three words in memory order.
    pub macs: [u32; 3],
    /// This node, in memory order.
    pub source: u32,
    /// The other node.
    pub destination: u32,
    /// UDP port of the overlay.
    pub port: Be16,
}

/// The outer headers of a tunnel without what differs from packet to packet.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Template {
    /// As [`Outer`], up to the UDP header.
    words: [u32; 10],
    /// The IP header's sum.
    sum: u32,
}

/// The outer headers as they are on the wire: twelve words, and two bytes in the lower half of the
/// last.
pub type Outer = [u32; 13];

impl Tunnel {
    /// What all packets have in common.
    #[must_use]
    #[inline(always)]
    pub const fn template(&self) -> Template {
        let [s0, s1, s2, s3] = self.source.to_ne_bytes();
        let [d0, d1, d2, d3] = self.destination.to_ne_bytes();
        let [to_high, to_low] = self.port.be.to_ne_bytes();
        let sum = Sum::ZERO
            .add(u32::from_ne_bytes([0x45, 0, 0, 0]))
            .add(u32::from_ne_bytes([0, 0, DONT_FRAGMENT, 0]))
            .add(u32::from_ne_bytes([TTL, UDP, 0, 0]))
            .add(self.source)
            .add(self.destination);
        Template {
            words: [
                self.macs[0],
                self.macs[1],
                self.macs[2],
                u32::from_ne_bytes([0x08, 0x00, 0x45, 0]),
                0,
                u32::from_ne_bytes([DONT_FRAGMENT, 0, TTL, UDP]),
                u32::from_ne_bytes([0, 0, s0, s1]),
                u32::from_ne_bytes([s2, s3, d0, d1]),
                u32::from_ne_bytes([d2, d3, 0, 0]),
                u32::from_ne_bytes([to_high, to_low, 0, 0]),
            ],
            sum: sum.difference(),
        }
    }
}

impl Template {
    /// The headers around a frame whose IP packet has `inner_len` bytes. Packets of the same `flow`
    /// get the same source port, so that they stay in order wherever paths are chosen by it.
    #[must_use]
    #[inline(always)]
    pub const fn outer(&self, inner_len: u32, flow: u32, vni: u32) -> Outer {
        let udp_len = UDP_LEN + VXLAN_LEN + ETHERNET_LEN + inner_len;
        let ip_len = ((IPV4_LEN + udp_len) as u16).to_be();
        let udp_len = (udp_len as u16).to_be();
        let sum = Sum::ZERO.add(self.sum).add(upper(ip_len)).finish();
        let [_, v0, v1, v2] = vni.to_be_bytes();
        let words = &self.words;
        [
            words[0],
            words[1],
            words[2],
            words[3],
            lower(ip_len),
            words[5],
            words[6] | lower(sum),
            words[7],
            words[8] | upper(source_port(flow).to_be()),
            words[9] | upper(udp_len),
            // No UDP checksum: over IPv4 the inner ones are enough.
            u32::from_ne_bytes([0, 0, HAS_VNI, 0]),
            u32::from_ne_bytes([0, 0, v0, v1]),
            u32::from_ne_bytes([v2, 0, 0, 0]),
        ]
    }
}

/// A word whose first two bytes are those of `half`.
#[inline(always)]
const fn lower(half: u16) -> u32 {
    let [a, b] = half.to_ne_bytes();
    u32::from_ne_bytes([a, b, 0, 0])
}

/// A word whose last two bytes are those of `half`.
#[inline(always)]
const fn upper(half: u16) -> u32 {
    let [a, b] = half.to_ne_bytes();
    u32::from_ne_bytes([0, 0, a, b])
}

/// An ephemeral port that follows from words of a flow's tuple.
const fn source_port(flow: u32) -> u16 {
    // The upper bits of a product with the golden ratio depend on all bits of the factor.
    FIRST_PORT | (flow.wrapping_mul(0x9e37_79b1) >> 18) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    const TUNNEL: Tunnel = Tunnel {
        macs: [
            u32::from_ne_bytes([2, 0, 0, 0]),
            u32::from_ne_bytes([0, 1, 2, 0]),
            u32::from_ne_bytes([0, 0, 0, 2]),
        ],
        source: u32::from_ne_bytes([172, 30, 0, 11]),
        destination: u32::from_ne_bytes([172, 30, 0, 12]),
        port: Be16::new(8472),
    };

    fn bytes(outer: Outer) -> Vec<u8> {
        let mut bytes: Vec<u8> = outer.into_iter().flat_map(u32::to_ne_bytes).collect();
        bytes.truncate(OUTER_LEN as usize);
        bytes
    }

    #[test]
    fn the_outer_headers_are_those_of_rfc_7348() {
        let all = bytes(TUNNEL.template().outer(100, 7, 2));
        let (ethernet, rest) = all.split_at(14);
        assert_eq!(ethernet[..6], [2, 0, 0, 0, 0, 1]);
        assert_eq!(ethernet[6..], [2, 0, 0, 0, 0, 2, 0x08, 0x00]);
        let (ip, rest) = rest.split_at(20);
        assert_eq!((ip[0], ip[8], ip[9]), (0x45, 64, 17));
        assert_eq!(ip[2..4], (20_u16 + 8 + 8 + 14 + 100).to_be_bytes());
        assert_eq!(ip[12..], [172, 30, 0, 11, 172, 30, 0, 12]);
        let words: [u32; 5] =
            core::array::from_fn(|i| u32::from_ne_bytes(ip[4 * i..][..4].try_into().unwrap()));
        assert_eq!(
            Sum::ZERO.add_words(&words).finish(),
            0,
            "the checksum checks"
        );
        let (udp, vxlan) = rest.split_at(8);
        assert!(udp[0] >= 0xc0, "an ephemeral port");
        assert_eq!(udp[2..4], 8472_u16.to_be_bytes());
        assert_eq!(udp[4..6], (8_u16 + 8 + 14 + 100).to_be_bytes());
        assert_eq!(udp[6..], [0, 0]);
        assert_eq!(vxlan, [8, 0, 0, 0, 0, 0, 2, 0]);
    }

    #[test]
    fn a_flow_keeps_its_source_port_and_flows_differ() {
        let port = |flow| bytes(TUNNEL.template().outer(100, flow, 2))[34..36].to_vec();
        assert_eq!(port(5), port(5));
        let ports: std::collections::BTreeSet<_> = (0..100).map(port).collect();
        assert!(ports.len() > 90, "{}", ports.len());
    }
}
