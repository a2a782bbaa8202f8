//! What arrives from the network the nodes are in.
//!
//! Only answers to masqueraded flows are ours; everything else goes on untouched, and most of it
//! after a look at its addresses and ports alone.

use tholepin_ebpf_abi::DropReason;
use tholepin_ebpf_abi::conntrack::{FLOW_REPLY, MASQUERADE_FIRST_PORT};
use tholepin_ebpf_core::packet::{self, ETHERNET_LEN, Fragment};
use tholepin_ebpf_core::rewrite::ports_of_word;
use tholepin_ebpf_core::{Origin, Translation, Verdict, icmp};

use crate::globals::{node_v4, node_v6};
use crate::lookup::Half;
use crate::parse::{PLAIN_V4, PLAIN_V6, parse};
use crate::pipeline::route;
use crate::scratch::{Scratch, scratch};
use crate::skb::{ETH_P_IP, ETH_P_IPV6, Skb};
use crate::{conntrack, deliver, policy, refuse, related};

/// `TC_ACT_UNSPEC`, which is also `TCX_NEXT`: other programs on the interface, which is not ours
/// alone, see the packet as well.
const NEXT: i32 = -1;

/// One packet from the underlay.
#[inline(always)]
pub fn run(skb: &Skb) -> i32 {
    if !may_be_an_answer(skb) {
        return NEXT;
    }
    let Ok(scratch) = scratch() else {
        return NEXT;
    };
    match parse(skb, &mut scratch.packet) {
        Ok(true) => {}
        // What cannot be read is the kernel's to judge: it is not known to be ours.
        Ok(false) | Err(_) => return NEXT,
    }
    match answer(skb, scratch) {
        Ok(Some(verdict)) => verdict.into_tc_action(),
        Ok(None) => NEXT,
        Err(reason) => refuse::drop(skb, reason),
    }
}

/// Whether a packet is to one of the ports kept for masqueraded flows, or must be looked at closer.
#[inline(always)]
fn may_be_an_answer(skb: &Skb) -> bool {
    const IP: usize = ETHERNET_LEN as usize;
    match skb.protocol() {
        ETH_P_IP => {
            let Some(words) = skb.read::<IP, 5>() else {
                return true;
            };
            if words[4] != node_v4().words()[3] {
                return false;
            }
            let Ok(network) = packet::ipv4(&words) else {
                return false;
            };
            let plain = network.header_len + ETHERNET_LEN == PLAIN_V4;
            if !packet::has_ports(network.protocol) || !plain || network.fragment != Fragment::Whole
            {
                return true;
            }
            skb.read::<{ PLAIN_V4 as usize }, 1>()
                .is_none_or(|[ports]| is_kept(ports))
        }
        ETH_P_IPV6 => {
            let Some(words) = skb.read::<IP, 10>() else {
                return true;
            };
            if [words[6], words[7], words[8], words[9]] != node_v6().words() {
                return false;
            }
            let Ok(network) = packet::ipv6(&words) else {
                return false;
            };
            if !packet::has_ports(network.protocol) {
                return true;
            }
            skb.read::<{ PLAIN_V6 as usize }, 1>()
                .is_none_or(|[ports]| is_kept(ports))
        }
        _ => false,
    }
}

/// Whether the destination port is one of those kept for masqueraded flows.
#[inline(always)]
fn is_kept(ports: u32) -> bool {
    ports_of_word(ports).1.get() >= MASQUERADE_FIRST_PORT
}

/// Translates and delivers an answer; `None` for what is none.
#[inline(always)]
fn answer(skb: &Skb, scratch: &mut Scratch) -> Result<Option<Verdict>, DropReason> {
    let packet = &scratch.packet;
    if packet.flow.destination != packet.node() {
        return Ok(None);
    }
    if packet.may_be_tracked() {
        let half = Half::find(&packet.flow).filter(|half| half.entry().flags & FLOW_REPLY != 0);
        let Some(half) = half else {
            return Ok(None);
        };
        conntrack::advance(skb, scratch, half, Origin::Underlay)?;
    } else {
        if !icmp::is_error(packet.flow.protocol, packet.icmp_type) || !packet.has_header {
            return Ok(None);
        }
        scratch.translation = Translation::identity(&packet.flow);
        related::translate(skb, &mut scratch.packet, &mut scratch.translation)?;
        if scratch.translation.destination == scratch.packet.flow.destination {
            return Ok(None);
        }
    }
    let route = route(scratch, Origin::Underlay);
    policy::enforce(skb, scratch, route, Origin::Underlay)?;
    let (packet, translation) = (&scratch.packet, &scratch.translation);
    deliver::send(skb, packet, translation, route, Origin::Underlay).map(Some)
}
