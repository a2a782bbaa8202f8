//! What a refused packet is answered with: TCP RST and ICMP errors, headers and checksums.

use tholepin_ebpf_abi::Address;

use crate::csum::{Sum, pseudo_header};
use crate::icmp;
use crate::packet::{ICMP, ICMPV6, TCP, TCP_ACK, TCP_FIN, TCP_LEN, TCP_RST, TCP_SYN, UDP_LEN};
use crate::verdict::Answer;

/// Hop limit of packets we send.
const HOP_LIMIT: u8 = 64;

/// Words of an answer's IP header: 5 or 10, the rest zero.
pub type IpWords = [u32; 10];

/// Words quoted at most: an IPv6 and a TCP header.
pub const MAX_QUOTE_WORDS: usize = 15;

/// An IPv4 header without options.
#[must_use]
#[inline(always)]
pub fn ipv4_header(source: Address, destination: Address, protocol: u8, payload: u32) -> [u32; 5] {
    let [len_high, len_low] = ((20 + payload) as u16).to_be_bytes();
    let mut words = [
        u32::from_ne_bytes([0x45, 0, len_high, len_low]),
        u32::from_ne_bytes([0, 0, 0x40, 0]), // Not fragmented, and may not be.
        u32::from_ne_bytes([HOP_LIMIT, protocol, 0, 0]),
        source.words()[3],
        destination.words()[3],
    ];
    let [high, low] = Sum::ZERO.add_words(&words).finish().to_ne_bytes();
    words[2] = u32::from_ne_bytes([HOP_LIMIT, protocol, high, low]);
    words
}

/// An IPv6 header.
#[must_use]
#[inline(always)]
pub fn ipv6_header(source: Address, destination: Address, protocol: u8, payload: u32) -> [u32; 10] {
    let [len_high, len_low] = (payload as u16).to_be_bytes();
    let (s, d) = (source.words(), destination.words());
    [
        u32::from_ne_bytes([0x60, 0, 0, 0]),
        u32::from_ne_bytes([len_high, len_low, protocol, HOP_LIMIT]),
        s[0],
        s[1],
        s[2],
        s[3],
        d[0],
        d[1],
        d[2],
        d[3],
    ]
}

/// The TCP segment that refuses `segment` (its first five words), from the refused packet's
/// destination to its source. `payload` is the segment's length without its header.
///
/// `None` for an RST, which is never answered.
#[must_use]
#[inline(always)]
pub fn tcp_reset(
    segment: &[u32; 5],
    payload: u32,
    source: Address,
    destination: Address,
) -> Option<[u32; 5]> {
    let [sport_high, sport_low, dport_high, dport_low] = segment[0].to_ne_bytes();
    let flags = segment[3].to_ne_bytes()[1];
    if flags & TCP_RST != 0 {
        return None;
    }
    // RFC 9293, 3.10.7.1: what has an ACK is refused with its number, anything else by
    // acknowledging all it carries.
    let (sequence, acknowledgement, flags) = if flags & TCP_ACK != 0 {
        (segment[2], 0, TCP_RST)
    } else {
        let carried = payload + u32::from(flags & TCP_SYN != 0) + u32::from(flags & TCP_FIN != 0);
        (
            0,
            u32::from_be(segment[1]).wrapping_add(carried).to_be(),
            TCP_RST | TCP_ACK,
        )
    };
    let mut reset = [
        u32::from_ne_bytes([dport_high, dport_low, sport_high, sport_low]),
        sequence,
        acknowledgement,
        u32::from_ne_bytes([5 << 4, flags, 0, 0]),
        0,
    ];
    let sum = pseudo_header(source.words(), destination.words(), TCP, TCP_LEN).add_words(&reset);
    let [high, low] = sum.finish().to_ne_bytes();
    reset[4] = u32::from_ne_bytes([high, low, 0, 0]);
    Some(reset)
}

/// Type, code and whether the message carries the MTU, for an answer in a family.
#[inline(always)]
const fn type_and_code(answer: Answer, v4: bool) -> (u8, u8) {
    match (answer, v4) {
        (Answer::TooBig, true) => (icmp::UNREACHABLE, icmp::CODE_FRAGMENTATION_NEEDED),
        (Answer::TooBig, false) => (icmp::V6_TOO_BIG, 0),
        (Answer::TimeExceeded, true) => (icmp::TIME_EXCEEDED, 0),
        (Answer::TimeExceeded, false) => (icmp::V6_TIME_EXCEEDED, 0),
        (_, true) => (icmp::UNREACHABLE, icmp::CODE_PORT),
        (_, false) => (icmp::V6_UNREACHABLE, icmp::V6_CODE_PORT),
    }
}

/// Bytes an error quotes: the IP header and as much of the transport's as a sender needs to
/// recognise its packet.
#[must_use]
#[inline(always)]
pub const fn quote_len(v4: bool, protocol: u8) -> u32 {
    (if v4 { 20 } else { 40 }) + if protocol == TCP { TCP_LEN } else { UDP_LEN }
}

/// The two words of an ICMP error's header. `quote` is zero beyond `quote_len` bytes.
#[must_use]
#[inline(always)]
pub fn icmp_error(
    answer: Answer,
    mtu: u32,
    quote: &[u32; MAX_QUOTE_WORDS],
    quote_len: u32,
    source: Address,
    destination: Address,
) -> [u32; 2] {
    let v4 = destination.is_v4();
    let (icmp_type, code) = type_and_code(answer, v4);
    let mtu = if matches!(answer, Answer::TooBig) {
        mtu.to_be()
    } else {
        0
    };
    let header = [u32::from_ne_bytes([icmp_type, code, 0, 0]), mtu];
    let mut sum = Sum::ZERO.add_words(&header).add_words(quote);
    if !v4 {
        let pseudo = pseudo_header(
            source.words(),
            destination.words(),
            ICMPV6,
            UDP_LEN + quote_len,
        );
        sum = sum.add(pseudo.difference());
    }
    let [high, low] = sum.finish().to_ne_bytes();
    [u32::from_ne_bytes([icmp_type, code, high, low]), mtu]
}

/// Whether an error may be sent about a packet of this protocol and ICMP type: never about another
/// error (RFC 1122, RFC 4443).
#[must_use]
#[inline(always)]
pub const fn may_answer(protocol: u8, icmp_type: u8) -> bool {
    !icmp::is_error(protocol, icmp_type)
}

/// The protocol number of ICMP in a family.
#[must_use]
#[inline(always)]
pub const fn icmp_protocol(v4: bool) -> u8 {
    if v4 { ICMP } else { ICMPV6 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::packet::{self, Fragment, UDP};

    const V4: (Address, Address) = (
        Address::from_v4([10, 96, 0, 10]),
        Address::from_v4([10, 244, 1, 2]),
    );
    const V6: (Address, Address) = (
        Address::from_v6([0xfd, 0, 0, 0x10, 0, 0x96, 0, 0, 0, 0, 0, 0, 0, 0, 0, 10]),
        Address::from_v6([0xfd, 0, 0, 0x10, 2, 0x44, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2]),
    );

    fn segment(flags: u8) -> [u32; 5] {
        [
            u32::from_ne_bytes([0x12, 0x34, 0, 80]),
            1000_u32.to_be(),
            7000_u32.to_be(),
            u32::from_ne_bytes([5 << 4, flags, 0, 0]),
            0,
        ]
    }

    #[test]
    fn a_syn_is_refused_by_acknowledging_it() {
        for (source, destination) in [V4, V6] {
            let reset = tcp_reset(&segment(TCP_SYN), 0, source, destination).unwrap();
            assert_eq!(reset[0].to_ne_bytes(), [0, 80, 0x12, 0x34]);
            assert_eq!((reset[1], u32::from_be(reset[2])), (0, 1001));
            assert_eq!(reset[3].to_ne_bytes()[1], TCP_RST | TCP_ACK);
            let check = pseudo_header(source.words(), destination.words(), TCP, 20);
            assert_eq!(check.add_words(&reset).finish(), 0);
        }
    }

    #[test]
    fn data_with_an_ack_is_refused_at_its_acknowledgement() {
        let reset = tcp_reset(&segment(TCP_ACK), 100, V4.0, V4.1).unwrap();
        assert_eq!((u32::from_be(reset[1]), reset[2]), (7000, 0));
        assert_eq!(reset[3].to_ne_bytes()[1], TCP_RST);
    }

    #[test]
    fn a_fin_without_ack_counts_its_payload() {
        let reset = tcp_reset(&segment(TCP_FIN), 100, V4.0, V4.1).unwrap();
        assert_eq!(u32::from_be(reset[2]), 1101);
    }

    #[test]
    fn a_reset_is_never_answered() {
        assert_eq!(tcp_reset(&segment(TCP_RST), 0, V4.0, V4.1), None);
    }

    #[test]
    fn headers_read_back_as_they_were_made() {
        let network = packet::ipv4(&ipv4_header(V4.0, V4.1, UDP, 36)).unwrap();
        assert_eq!((network.source, network.destination), V4);
        assert_eq!((network.protocol, network.total_len), (UDP, 56));
        assert_eq!(network.fragment, Fragment::Whole);
        assert_eq!(
            Sum::ZERO
                .add_words(&ipv4_header(V4.0, V4.1, UDP, 36))
                .finish(),
            0
        );

        let network = packet::ipv6(&ipv6_header(V6.0, V6.1, ICMPV6, 56)).unwrap();
        assert_eq!((network.source, network.destination), V6);
        assert_eq!((network.protocol, network.total_len), (ICMPV6, 96));
    }

    #[test]
    fn icmp_errors_carry_type_mtu_and_a_correct_checksum() {
        let mut quote = [0; MAX_QUOTE_WORDS];
        quote[..7].copy_from_slice(&[0x4500_001c, 1, 2, 3, 4, 5, 6]);
        let error = icmp_error(Answer::TooBig, 1450, &quote, 28, V4.0, V4.1);
        assert_eq!(error[0].to_ne_bytes()[..2], [3, 4]);
        assert_eq!(u32::from_be(error[1]), 1450);
        assert_eq!(Sum::ZERO.add_words(&error).add_words(&quote).finish(), 0);

        let error = icmp_error(Answer::Unreachable, 0, &quote, 48, V6.0, V6.1);
        assert_eq!(error[0].to_ne_bytes()[..2], [1, 4]);
        let check = pseudo_header(V6.0.words(), V6.1.words(), ICMPV6, 56);
        assert_eq!(check.add_words(&error).add_words(&quote).finish(), 0);
    }

    #[test]
    fn errors_are_not_answered_with_errors() {
        assert!(!may_answer(ICMP, 3) && !may_answer(ICMPV6, 1));
        assert!(may_answer(ICMP, 8) && may_answer(UDP, 3));
    }
}
