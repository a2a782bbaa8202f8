//! The life of a translated flow: what packets do to it and when it is over.

use tholepin_ebpf_abi::backend::BACKEND_SERVING;
use tholepin_ebpf_abi::conntrack::*;
use tholepin_ebpf_abi::{BackendValue, ConntrackEntry};

use crate::packet::{SCTP, TCP_ACK, TCP_FIN, TCP_RST, TCP_SYN, has_connections};

/// The `FLOW_*` bits a packet sets in the half of its direction. The flags of an SCTP packet are
/// those of [`crate::packet::flags_of_chunk`], here and below.
#[must_use]
#[inline(always)]
pub const fn observed(protocol: u8, tcp_flags: u8) -> u32 {
    if !has_connections(protocol) {
        return FLOW_SEEN;
    }
    let mut bits = if tcp_flags & TCP_SYN != 0 {
        FLOW_SYN
    } else {
        FLOW_ESTABLISHED
    };
    if tcp_flags & TCP_FIN != 0 {
        bits |= FLOW_FIN;
    }
    if tcp_flags & TCP_RST != 0 {
        bits |= FLOW_RST;
    }
    bits
}

/// Whether a packet asks for a new connection.
#[must_use]
#[inline(always)]
pub const fn opens(protocol: u8, tcp_flags: u8) -> bool {
    has_connections(protocol) && tcp_flags & (TCP_SYN | TCP_ACK) == TCP_SYN
}

/// Whether a connection was seen to end, in either direction.
#[must_use]
#[inline(always)]
pub const fn is_closing(flags_of_both: u32) -> bool {
    flags_of_both & (FLOW_FIN | FLOW_RST) != 0
}

/// How many ticks a flow may be idle before it counts as over.
#[must_use]
#[inline(always)]
pub const fn idle_limit(protocol: u8, flags_of_both: u32) -> u32 {
    let (opening, established, closing) = match protocol {
        SCTP => (SCTP_OPENING_IDLE, SCTP_ESTABLISHED_IDLE, SCTP_CLOSING_IDLE),
        _ => (TCP_OPENING_IDLE, TCP_ESTABLISHED_IDLE, TCP_CLOSING_IDLE),
    };
    if !has_connections(protocol) {
        UDP_IDLE
    } else if is_closing(flags_of_both) {
        closing
    } else if flags_of_both & FLOW_ESTABLISHED == 0 {
        opening
    } else {
        established
    }
}

/// Whether a flow is over, so that its tuple may be given to another.
#[must_use]
#[inline(always)]
pub const fn is_over(protocol: u8, flags_of_both: u32, idle: u32) -> bool {
    has_connections(protocol) && is_closing(flags_of_both)
        || idle > idle_limit(protocol, flags_of_both)
}

/// Whether the backend an entry was made for is still the one behind its id, and serves.
#[must_use]
#[inline(always)]
pub fn is_current(entry: &ConntrackEntry, backend: Option<&BackendValue>) -> bool {
    serves(entry.backend_generation, backend)
}

/// Whether what is at a backend's id is of a generation, and serves.
#[must_use]
#[inline(always)]
pub fn serves(generation: u32, backend: Option<&BackendValue>) -> bool {
    match backend {
        Some(backend) => backend.generation == generation && backend.flags & BACKEND_SERVING != 0,
        None => false,
    }
}

/// Whether a SYN of an existing flow keeps its backend: a retransmission does, and so does one
/// that a stray packet provoked; one that opens a new connection on a used tuple does not.
#[must_use]
#[inline(always)]
pub const fn syn_keeps_backend(
    protocol: u8,
    flags_of_both: u32,
    idle: u32,
    backend_is_current: bool,
) -> bool {
    backend_is_current && !is_over(protocol, flags_of_both, idle)
}

#[cfg(test)]
mod tests {
    use tholepin_ebpf_abi::{Address, Be16};

    use super::*;
    use crate::packet::{SCTP, TCP, UDP, flags_of_chunk};

    fn backend(generation: u32, flags: u8) -> BackendValue {
        let (address, port) = (Address::from_v4([10, 244, 1, 7]), Be16::new(80));
        BackendValue {
            address,
            port,
            protocol: TCP,
            flags,
            generation,
            service_id: 1,
        }
    }

    #[test]
    fn a_connection_is_followed_from_syn_to_fin() {
        assert_eq!(observed(TCP, TCP_SYN), FLOW_SYN);
        assert_eq!(observed(TCP, TCP_SYN | TCP_ACK), FLOW_SYN);
        assert_eq!(observed(TCP, TCP_ACK), FLOW_ESTABLISHED);
        assert_eq!(
            observed(TCP, TCP_FIN | TCP_ACK),
            FLOW_ESTABLISHED | FLOW_FIN
        );
        assert_eq!(observed(TCP, TCP_RST), FLOW_ESTABLISHED | FLOW_RST);
        assert_eq!(observed(UDP, 0xff), FLOW_SEEN);
    }

    #[test]
    fn only_a_bare_syn_opens() {
        assert!(opens(TCP, TCP_SYN));
        assert!(!opens(TCP, TCP_SYN | TCP_ACK));
        assert!(!opens(UDP, TCP_SYN));
    }

    #[test]
    fn a_retransmitted_syn_keeps_its_backend() {
        assert!(syn_keeps_backend(TCP, FLOW_SYN, ticks(3), true));
    }

    #[test]
    fn a_syn_is_balanced_anew_after_the_end_of_the_last_connection() {
        for over in [FLOW_FIN, FLOW_RST] {
            let flags = FLOW_SYN | FLOW_ESTABLISHED | over;
            assert!(!syn_keeps_backend(TCP, flags, 0, true));
        }
    }

    #[test]
    fn a_syn_is_balanced_anew_when_the_backend_is_gone() {
        assert!(!syn_keeps_backend(TCP, FLOW_SYN, 0, false));
    }

    #[test]
    fn a_backend_is_current_while_generation_and_state_agree() {
        let entry = ConntrackEntry {
            backend_generation: 4,
            ..ConntrackEntry::default()
        };
        assert!(is_current(&entry, Some(&backend(4, BACKEND_SERVING))));
        assert!(!is_current(&entry, Some(&backend(5, BACKEND_SERVING))));
        assert!(!is_current(&entry, Some(&backend(4, 0))));
        assert!(!is_current(&entry, None));
    }

    #[test]
    fn an_association_is_followed_from_init_to_shutdown_or_abort() {
        let seen = |chunk| observed(SCTP, flags_of_chunk(chunk));
        assert_eq!((seen(1), seen(2)), (FLOW_SYN, FLOW_SYN));
        assert_eq!((seen(0), seen(10)), (FLOW_ESTABLISHED, FLOW_ESTABLISHED));
        assert!(is_closing(seen(6)) && is_closing(seen(7)) && is_closing(seen(14)));
        assert!(opens(SCTP, flags_of_chunk(1)) && !opens(SCTP, flags_of_chunk(2)));
        assert!(is_over(SCTP, FLOW_SYN | FLOW_ESTABLISHED, ticks(300)));
        assert!(!is_over(SCTP, FLOW_SYN | FLOW_ESTABLISHED, ticks(200)));
        assert!(is_over(SCTP, FLOW_SYN, ticks(60)));
        assert!(syn_keeps_backend(SCTP, FLOW_SYN, 1, true));
    }

    #[test]
    fn idle_flows_end_by_their_state() {
        let hour = ticks(3600);
        assert!(is_over(UDP, FLOW_SEEN, hour));
        assert!(!is_over(UDP, FLOW_SEEN, ticks(1)));
        assert!(is_over(TCP, FLOW_SYN, hour));
        assert!(!is_over(TCP, FLOW_SYN | FLOW_ESTABLISHED, hour));
        assert!(is_over(TCP, FLOW_SYN | FLOW_ESTABLISHED, 6 * 24 * hour));
    }
}
