//! Headers: what the fixed words of a packet say.

use tholepin_ebpf_abi::{Address, DropReason};

/// Length of an Ethernet header, and so the offset of the IP header.
pub const ETHERNET_LEN: u32 = 14;
/// Length of an IPv4 header without options.
pub const IPV4_LEN: u32 = 20;
/// Length of the fixed IPv6 header.
pub const IPV6_LEN: u32 = 40;
/// Length of a UDP header, and of the fixed part of an ICMP one.
pub const UDP_LEN: u32 = 8;
/// Length of a TCP header without options.
pub const TCP_LEN: u32 = 20;

/// IANA protocol numbers.
pub const ICMP: u8 = 1;
/// TCP.
pub const TCP: u8 = 6;
/// UDP.
pub const UDP: u8 = 17;
/// ICMPv6.
pub const ICMPV6: u8 = 58;
/// SCTP.
pub const SCTP: u8 = 132;

/// TCP flag bits.
pub const TCP_FIN: u8 = 0x01;
/// SYN.
pub const TCP_SYN: u8 = 0x02;
/// RST.
pub const TCP_RST: u8 = 0x04;
/// ACK.
pub const TCP_ACK: u8 = 0x10;

const HOP_BY_HOP: u8 = 0;
const ROUTING: u8 = 43;
const FRAGMENT: u8 = 44;
const AUTHENTICATION: u8 = 51;
const NO_NEXT_HEADER: u8 = 59;
const DESTINATION_OPTIONS: u8 = 60;

/// Extension headers a packet may have; more is taken for an attack on whoever walks them.
const MAX_EXTENSIONS: u32 = 6;

/// Where a packet stands in its datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fragment {
    /// Not fragmented.
    Whole,
    /// The first fragment, the one with the ports; with the datagram's identification as on the wire.
    First(u32),
    /// A later fragment.
    Later(u32),
}

/// What the IP header says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    /// Source.
    pub source: Address,
    /// Destination.
    pub destination: Address,
    /// Protocol, or the first next-header value of IPv6.
    pub protocol: u8,
    /// TTL or hop limit.
    pub hop_limit: u8,
    /// Bytes of the header: with options for IPv4, 40 for IPv6.
    pub header_len: u32,
    /// Bytes of the whole packet, by the header.
    pub total_len: u32,
    /// IPv4 only; IPv6 fragments are found by [`walk_extensions`].
    pub fragment: Fragment,
    /// IPv4: whether routers may not fragment it. Always true for IPv6.
    pub dont_fragment: bool,
}

/// What carries the transport header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Transport {
    /// IANA protocol number.
    pub protocol: u8,
    /// Offset of the transport header from the IP header.
    pub offset: u32,
    /// Where the packet stands in its datagram.
    pub fragment: Fragment,
}

/// Reads the 20 fixed bytes of an IPv4 header.
#[inline(always)]
pub fn ipv4(words: &[u32; 5]) -> Result<Network, DropReason> {
    let [version_ihl, _, len_high, len_low] = words[0].to_ne_bytes();
    let [id_high, id_low, flags_high, offset_low] = words[1].to_ne_bytes();
    let [hop_limit, protocol, _, _] = words[2].to_ne_bytes();
    let header_len = u32::from(version_ihl & 0x0f) * 4;
    let total_len = u32::from(u16::from_be_bytes([len_high, len_low]));
    if version_ihl >> 4 != 4 || header_len < IPV4_LEN || total_len < header_len {
        return Err(DropReason::Malformed);
    }
    let identification = u32::from(u16::from_ne_bytes([id_high, id_low]));
    let offset = u16::from_be_bytes([flags_high & 0x1f, offset_low]);
    let more = flags_high & 0x20 != 0;
    let fragment = match (offset, more) {
        (0, false) => Fragment::Whole,
        (0, true) => Fragment::First(identification),
        _ => Fragment::Later(identification),
    };
    Ok(Network {
        source: Address::from_v4_word(words[3]),
        destination: Address::from_v4_word(words[4]),
        protocol,
        hop_limit,
        header_len,
        total_len,
        fragment,
        dont_fragment: flags_high & 0x40 != 0,
    })
}

/// Reads the fixed IPv6 header.
#[inline(always)]
pub fn ipv6(words: &[u32; 10]) -> Result<Network, DropReason> {
    let [len_high, len_low, protocol, hop_limit] = words[1].to_ne_bytes();
    if words[0].to_ne_bytes()[0] >> 4 != 6 {
        return Err(DropReason::Malformed);
    }
    Ok(Network {
        source: Address::from_words([words[2], words[3], words[4], words[5]]),
        destination: Address::from_words([words[6], words[7], words[8], words[9]]),
        protocol,
        hop_limit,
        header_len: IPV6_LEN,
        total_len: IPV6_LEN + u32::from(u16::from_be_bytes([len_high, len_low])),
        fragment: Fragment::Whole,
        dont_fragment: true,
    })
}

/// Whether `next_header` is an extension header that [`walk_extensions`] steps over.
#[must_use]
#[inline(always)]
pub const fn is_extension(next_header: u8) -> bool {
    matches!(
        next_header,
        HOP_BY_HOP | ROUTING | FRAGMENT | AUTHENTICATION | DESTINATION_OPTIONS
    )
}

/// Steps over IPv6 extension headers. `load` gives the 8 bytes at an offset from the IP header.
#[inline(always)]
pub fn walk_extensions(
    first: u8,
    mut load: impl FnMut(u32) -> Option<[u8; 8]>,
) -> Result<Transport, DropReason> {
    let mut walk = Walk {
        protocol: first,
        offset: IPV6_LEN,
        offset_and_more: 0,
        identification: 0,
    };
    // One after the other and in no loop: the compiler may place a loop so that its last instruction
    // falls through into its first, and verifiers before 6.8 let a loop end in a jump only.
    const { assert!(MAX_EXTENSIONS == 6) };
    let more = walk.step(&mut load)?
        && walk.step(&mut load)?
        && walk.step(&mut load)?
        && walk.step(&mut load)?
        && walk.step(&mut load)?
        && walk.step(&mut load)?;
    if more && is_extension(walk.protocol) {
        return Err(DropReason::Malformed);
    }
    Ok(Transport {
        protocol: walk.protocol,
        offset: walk.offset,
        fragment: match (walk.offset_and_more & 0xfff8, walk.offset_and_more & 1) {
            (0, 0) => Fragment::Whole, // An "atomic" fragment (RFC 6946) is a whole datagram.
            (0, _) => Fragment::First(walk.identification),
            _ => Fragment::Later(walk.identification),
        },
    })
}

/// A way over extension headers. Every word has a value at any time: the verifier refuses a copy of
/// what an enum leaves undefined.
struct Walk {
    protocol: u8,
    offset: u32,
    /// Of the fragment header, zero without one.
    offset_and_more: u16,
    identification: u32,
}

impl Walk {
    /// Steps over one header; whether there may be another.
    #[inline(always)]
    fn step(&mut self, load: &mut impl FnMut(u32) -> Option<[u8; 8]>) -> Result<bool, DropReason> {
        if !is_extension(self.protocol) {
            return Ok(false);
        }
        let header = load(self.offset).ok_or(DropReason::Malformed)?;
        let len = u32::from(header[1]);
        let step = match self.protocol {
            FRAGMENT => 8,
            AUTHENTICATION => (len + 2) * 4,
            _ => (len + 1) * 8,
        };
        if self.protocol == FRAGMENT {
            self.offset_and_more = u16::from_be_bytes([header[2], header[3]]);
            self.identification = u32::from_ne_bytes([header[4], header[5], header[6], header[7]]);
        }
        self.protocol = header[0];
        self.offset += step;
        // What follows a later fragment's header is payload, whatever the next-header value says.
        Ok(self.offset_and_more & 0xfff8 == 0)
    }
}

/// Whether the transport header of `protocol` starts with two ports that Services translate.
#[must_use]
#[inline(always)]
pub const fn has_ports(protocol: u8) -> bool {
    matches!(protocol, TCP | UDP | SCTP)
}

/// Whether `protocol` opens and closes its connections, so that a flow stays with its backend.
#[must_use]
#[inline(always)]
pub const fn has_connections(protocol: u8) -> bool {
    matches!(protocol, TCP | SCTP)
}

/// Offset of the type of an SCTP packet's first chunk from the start of its header.
pub const SCTP_CHUNK: u32 = 12;

/// What the first chunk of an SCTP packet does to its association, as the TCP flags that do the same
/// to a connection. What opens or ends an association is always the first chunk of its packet.
#[must_use]
#[inline(always)]
pub const fn flags_of_chunk(chunk: u8) -> u8 {
    match chunk {
        1 => TCP_SYN,           // INIT
        2 => TCP_SYN | TCP_ACK, // INIT ACK
        6 => TCP_RST,           // ABORT
        7 | 8 | 14 => TCP_FIN,  // SHUTDOWN, SHUTDOWN ACK, SHUTDOWN COMPLETE
        _ => TCP_ACK,
    }
}

/// Whether `address` is for the link, or for many: what a router does not forward.
#[must_use]
#[inline(always)]
pub fn is_link_scope(address: &Address) -> bool {
    let words = address.words();
    let [first, second, _, _] = words[0].to_ne_bytes();
    if address.is_v4() {
        let [a, b, _, _] = words[3].to_ne_bytes();
        return a >> 4 == 0xe || a == 0xff || a == 0 || (a, b) == (169, 254);
    }
    first == 0xff || (first == 0xfe && second & 0xc0 == 0x80) || *address == Address::UNSPECIFIED
}

/// Whether there is a transport at all behind this next-header value.
#[must_use]
pub const fn has_transport(protocol: u8) -> bool {
    protocol != NO_NEXT_HEADER
}

#[cfg(test)]
mod tests;
