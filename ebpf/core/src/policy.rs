//! NetworkPolicy: what a packet is to the pods at its ends.
//!
//! Policies speak of who opens a flow, so every judgement first asks which end did. For a packet of a
//! flow with an entry the entry says so. Others open a flow, unless they can only be answers.

use tholepin_ebpf_abi::conntrack::{FLOW_REPLY, UDP_IDLE};
use tholepin_ebpf_abi::{Address, Be16, ConntrackEntry, FlowKey};

use crate::flow;
use crate::packet::{ICMP, ICMPV6, TCP, TCP_ACK, TCP_SYN};
use crate::rewrite::Translation;

/// First port that Linux gives to sockets that leave the choice to it.
const FIRST_EPHEMERAL_PORT: u16 = 32_768;

/// A flow, by who opened it and to where.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Ends {
    /// Who opened it, as pods see it.
    pub client: Address,
    /// To whom, after translation.
    pub server: Address,
    /// To which port, after translation.
    pub port: Be16,
    /// IANA protocol number.
    pub protocol: u8,
    /// Zero.
    pub _pad: u8,
}

impl Ends {
    /// Of a packet that goes from client to server.
    #[must_use]
    #[inline(always)]
    pub const fn of_request(flow: &FlowKey, to: &Translation) -> Self {
        Self {
            client: flow.source,
            server: to.destination,
            port: to.destination_port,
            protocol: flow.protocol,
            _pad: 0,
        }
    }

    /// Of a packet that goes from server to client.
    #[must_use]
    #[inline(always)]
    pub const fn of_answer(flow: &FlowKey, to: &Translation) -> Self {
        Self {
            client: to.destination,
            server: flow.source,
            port: flow.source_port,
            protocol: flow.protocol,
            _pad: 0,
        }
    }

    /// Of a packet whose flow has `entry`.
    #[must_use]
    #[inline(always)]
    pub const fn of_entry(entry: &ConntrackEntry, flow: &FlowKey, to: &Translation) -> Self {
        if entry.flags & FLOW_REPLY != 0 {
            Self::of_answer(flow, to)
        } else {
            Self::of_request(flow, to)
        }
    }
}

/// What a packet without an entry is taken for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Taken {
    /// It opens a flow.
    Request,
    /// It answers: the flow is older than the policies that look at it, or has lost its entry.
    Answer,
    /// It belongs to an older flow, and nobody can tell who opened it. Both must be allowed.
    Either,
}

/// What a packet without an entry is taken for. `recent` says that what the policies allow has
/// changed within the time for which a datagram's flow lives, so it may be older than they are.
///
/// A SYN opens and an echo says what it is. Other packets tell by their ports: sockets that ask have
/// one of those that the kernel chooses. Outside of that time every datagram that has no entry opens.
#[must_use]
#[inline(always)]
pub fn taken_for(flow: &FlowKey, tcp_flags: u8, recent: bool) -> Taken {
    let (from, to) = (flow.source_port.get(), flow.destination_port.get());
    let chosen = |port: u16| port >= FIRST_EPHEMERAL_PORT;
    match flow.protocol {
        TCP if flow::opens(TCP, tcp_flags) => Taken::Request,
        TCP if tcp_flags & (TCP_SYN | TCP_ACK) == TCP_SYN | TCP_ACK => Taken::Answer,
        TCP => match (chosen(from), chosen(to)) {
            (true, false) => Taken::Request,
            (false, true) => Taken::Answer,
            _ => Taken::Either,
        },
        // The identifier stands for the port of the side that asks.
        ICMP | ICMPV6 if from == 0 && to != 0 => Taken::Answer,
        _ if recent && !chosen(from) && chosen(to) => Taken::Answer,
        _ => Taken::Request,
    }
}

/// Whether what a pod's policies allow has changed within the life of a datagram's flow.
#[must_use]
#[inline(always)]
pub const fn is_recent(now: u32, policy_generation: u32) -> bool {
    // It runs ahead of the clock while there is more than one change in a tick.
    (now.wrapping_sub(policy_generation) as i32) < UDP_IDLE as i32
}

/// Whether a packet begins a new flow although there is an entry for its tuple, of one that is tracked
/// for policy only.
#[must_use]
#[inline(always)]
pub const fn begins_anew(
    protocol: u8,
    tcp_flags: u8,
    entry_flags: u32,
    flags_of_both: u32,
    idle: u32,
) -> bool {
    if protocol != TCP {
        return idle > UDP_IDLE;
    }
    flow::opens(TCP, tcp_flags)
        && (entry_flags & FLOW_REPLY != 0 || flow::is_over(TCP, flags_of_both, idle))
}

#[cfg(test)]
mod tests {
    use tholepin_ebpf_abi::conntrack::{FLOW_ESTABLISHED, FLOW_FIN, FLOW_SYN, ticks};

    use super::*;
    use crate::packet::UDP;

    fn flow(protocol: u8, source_port: u16, destination_port: u16) -> FlowKey {
        FlowKey {
            source: Address::from_v4([10, 244, 1, 2]),
            destination: Address::from_v4([10, 244, 2, 7]),
            source_port: Be16::new(source_port),
            destination_port: Be16::new(destination_port),
            protocol,
            _pad: [0; 3],
        }
    }

    #[test]
    fn a_syn_opens_whatever_its_ports_and_its_answer_does_not() {
        for ports in [(80, 40_000), (40_000, 80), (1, 2)] {
            let flow = flow(TCP, ports.0, ports.1);
            assert_eq!(taken_for(&flow, TCP_SYN, true), Taken::Request);
            assert_eq!(taken_for(&flow, TCP_SYN | TCP_ACK, false), Taken::Answer);
        }
    }

    #[test]
    fn a_segment_in_mid_stream_tells_by_its_ports_or_not_at_all() {
        let taken = |from, to| taken_for(&flow(TCP, from, to), TCP_ACK, false);
        assert_eq!(taken(40_000, 80), Taken::Request);
        assert_eq!(taken(80, 40_000), Taken::Answer);
        assert_eq!(taken(80, 81), Taken::Either);
        assert_eq!(taken(40_000, 40_001), Taken::Either);
    }

    #[test]
    fn a_datagram_opens_unless_it_may_be_older_than_the_policies() {
        let answer = flow(UDP, 53, 40_000);
        assert_eq!(taken_for(&answer, 0, false), Taken::Request);
        assert_eq!(taken_for(&answer, 0, true), Taken::Answer);
        assert_eq!(taken_for(&flow(UDP, 40_000, 53), 0, true), Taken::Request);
        assert_eq!(taken_for(&flow(UDP, 5000, 53), 0, true), Taken::Request);
        assert_eq!(
            taken_for(&flow(UDP, 40_000, 50_000), 0, true),
            Taken::Request
        );
    }

    #[test]
    fn an_echo_says_which_half_it_is() {
        assert_eq!(taken_for(&flow(ICMP, 7, 0), 0, true), Taken::Request);
        assert_eq!(taken_for(&flow(ICMP, 0, 7), 0, false), Taken::Answer);
        assert_eq!(taken_for(&flow(ICMPV6, 0, 0), 0, false), Taken::Request);
    }

    #[test]
    fn a_change_is_recent_for_as_long_as_a_datagram_flow_lives() {
        assert!(is_recent(1000, 1000) && is_recent(1000, 1003));
        assert!(is_recent(1000 + ticks(100), 1000));
        assert!(!is_recent(1001 + ticks(120), 1000));
    }

    #[test]
    fn ends_are_the_same_for_both_directions_of_a_translated_flow() {
        let request = flow(TCP, 40_000, 80);
        let to = Translation {
            source: request.source,
            destination: Address::from_v4([10, 244, 3, 3]),
            source_port: request.source_port,
            destination_port: Be16::new(8080),
        };
        let answer = to.reply_key(TCP);
        let back = Translation {
            source: request.destination,
            destination: request.source,
            source_port: request.destination_port,
            destination_port: request.source_port,
        };
        assert_eq!(
            Ends::of_request(&request, &to),
            Ends::of_answer(&answer, &back)
        );
        let entry = ConntrackEntry {
            flags: FLOW_REPLY,
            ..ConntrackEntry::default()
        };
        let by_entry = Ends::of_entry(&entry, &answer, &back);
        assert_eq!(by_entry, Ends::of_request(&request, &to));
    }

    #[test]
    fn a_tuple_is_used_again_after_its_flow_is_over_or_by_the_other_end() {
        let open = FLOW_SYN | FLOW_ESTABLISHED;
        assert!(!begins_anew(TCP, TCP_SYN, 0, FLOW_SYN, 1));
        assert!(begins_anew(TCP, TCP_SYN, 0, open | FLOW_FIN, 1));
        assert!(begins_anew(TCP, TCP_SYN, FLOW_REPLY, open, 1));
        assert!(!begins_anew(TCP, TCP_ACK, FLOW_REPLY, open | FLOW_FIN, 1));
        assert!(begins_anew(UDP, 0, FLOW_REPLY, 0, UDP_IDLE + 1));
        assert!(!begins_anew(UDP, 0, 0, 0, UDP_IDLE));
    }
}
