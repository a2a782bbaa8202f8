//! ICMP: which messages are about another packet, and how such a message is translated.
//!
//! An error travels against the packet it quotes, so in the direction of that packet's reply. Its
//! flow is therefore found under the reversed tuple of the quotation, and what is quoted must in
//! the end look like the packet its sender sent.

use tholepin_ebpf_abi::{Address, FlowKey};

use crate::packet::{ICMP, ICMPV6};
use crate::rewrite::Translation;

/// IPv4: destination unreachable.
pub const UNREACHABLE: u8 = 3;
/// IPv4: time exceeded.
pub const TIME_EXCEEDED: u8 = 11;
/// IPv4: parameter problem.
pub const PARAMETER_PROBLEM: u8 = 12;
/// IPv4 unreachable code: port.
pub const CODE_PORT: u8 = 3;
/// IPv4 unreachable code: fragmentation needed.
pub const CODE_FRAGMENTATION_NEEDED: u8 = 4;
/// ICMPv6: destination unreachable.
pub const V6_UNREACHABLE: u8 = 1;
/// ICMPv6: packet too big.
pub const V6_TOO_BIG: u8 = 2;
/// ICMPv6: time exceeded.
pub const V6_TIME_EXCEEDED: u8 = 3;
/// ICMPv6: parameter problem.
pub const V6_PARAMETER_PROBLEM: u8 = 4;
/// ICMPv6 unreachable code: port.
pub const V6_CODE_PORT: u8 = 4;

/// Whether a message quotes a packet.
#[must_use]
#[inline(always)]
pub const fn is_error(protocol: u8, icmp_type: u8) -> bool {
    match protocol {
        ICMP => matches!(icmp_type, UNREACHABLE | TIME_EXCEEDED | PARAMETER_PROBLEM),
        ICMPV6 => icmp_type >= V6_UNREACHABLE && icmp_type <= V6_PARAMETER_PROBLEM,
        _ => false,
    }
}

/// Whether an ICMPv6 message is multicast listener or neighbour discovery, which the link's own
/// kernel answers or ignores.
#[must_use]
#[inline(always)]
pub const fn is_link_control(protocol: u8, icmp_type: u8) -> bool {
    protocol == ICMPV6 && matches!(icmp_type, 130..=137 | 143)
}

/// Which half of an echo a message is. Its identifier stands for the port of the side that asks, so
/// that request and answer have tuples that are each other's reverse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Echo {
    /// The identifier is the source's.
    Request,
    /// The identifier is the destination's.
    Reply,
}

/// Whether a message is an echo, and which half.
#[must_use]
#[inline(always)]
pub const fn echo(protocol: u8, icmp_type: u8) -> Option<Echo> {
    match (protocol, icmp_type) {
        (ICMP, 8) | (ICMPV6, 128) => Some(Echo::Request),
        (ICMP, 0) | (ICMPV6, 129) => Some(Echo::Reply),
        _ => None,
    }
}

/// A translated error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TranslatedError {
    /// Outer source.
    pub source: Address,
    /// Outer destination.
    pub destination: Address,
    /// The quoted packet's tuple.
    pub quoted: Translation,
}

/// Translates an error from `source` that quotes `quoted`. `translation` is what the flow's entry
/// under `quoted.reversed()` holds.
#[must_use]
#[inline(always)]
pub fn translate(source: Address, quoted: &FlowKey, translation: &Translation) -> TranslatedError {
    let from_peer = source == quoted.destination;
    TranslatedError {
        // A router on the way keeps its address; the peer hides behind what the client talks to.
        source: if from_peer {
            translation.source
        } else {
            source
        },
        destination: translation.destination,
        quoted: Translation {
            source: translation.destination,
            destination: translation.source,
            source_port: translation.destination_port,
            destination_port: translation.source_port,
        },
    }
}

#[cfg(test)]
mod tests {
    use tholepin_ebpf_abi::Be16;

    use super::*;
    use crate::packet::UDP;

    const CLIENT: Address = Address::from_v4([10, 244, 1, 2]);
    const SERVICE: Address = Address::from_v4([10, 96, 0, 10]);
    const BACKEND: Address = Address::from_v4([10, 244, 2, 7]);

    fn flow(source: Address, sport: u16, destination: Address, dport: u16) -> FlowKey {
        FlowKey {
            source,
            destination,
            source_port: Be16::new(sport),
            destination_port: Be16::new(dport),
            protocol: UDP,
            _pad: [0; 3],
        }
    }

    fn translation(source: Address, sport: u16, destination: Address, dport: u16) -> Translation {
        Translation::identity(&flow(source, sport, destination, dport))
    }

    #[test]
    fn an_error_of_the_backend_speaks_of_the_service() {
        let quoted = flow(CLIENT, 4000, BACKEND, 8053);
        let reply_half = translation(SERVICE, 53, CLIENT, 4000);
        let error = translate(BACKEND, &quoted, &reply_half);
        assert_eq!((error.source, error.destination), (SERVICE, CLIENT));
        assert_eq!(error.quoted, translation(CLIENT, 4000, SERVICE, 53));
    }

    #[test]
    fn an_error_of_a_router_keeps_the_router_s_address() {
        let router = Address::from_v4([172, 30, 0, 1]);
        let quoted = flow(CLIENT, 4000, BACKEND, 8053);
        let error = translate(router, &quoted, &translation(SERVICE, 53, CLIENT, 4000));
        assert_eq!((error.source, error.destination), (router, CLIENT));
    }

    #[test]
    fn an_error_of_the_client_speaks_of_itself_to_the_backend() {
        let quoted = flow(SERVICE, 53, CLIENT, 4000);
        let forward_half = translation(CLIENT, 4000, BACKEND, 8053);
        let error = translate(CLIENT, &quoted, &forward_half);
        assert_eq!((error.source, error.destination), (CLIENT, BACKEND));
        assert_eq!(error.quoted, translation(BACKEND, 8053, CLIENT, 4000));
    }

    #[test]
    fn echo_and_neighbour_discovery_are_not_errors() {
        assert!(!is_error(ICMP, 8) && !is_error(ICMP, 0));
        assert_eq!(
            (echo(ICMP, 8), echo(ICMPV6, 128)),
            (Some(Echo::Request), Some(Echo::Request))
        );
        assert_eq!(
            (echo(ICMP, 0), echo(ICMPV6, 129)),
            (Some(Echo::Reply), Some(Echo::Reply))
        );
        assert_eq!(
            (echo(ICMP, 128), echo(ICMPV6, 8), echo(UDP, 8)),
            (None, None, None)
        );
        assert!(!is_error(ICMPV6, 128) && !is_error(ICMPV6, 135));
        assert!(is_link_control(ICMPV6, 135) && is_link_control(ICMPV6, 143));
        assert!(!is_link_control(ICMPV6, 128) && !is_link_control(ICMP, 135));
        assert!(is_error(ICMP, UNREACHABLE) && is_error(ICMPV6, V6_TOO_BIG));
    }
}
