//! Refused packets: counted by reason, and answered where the protocol has an answer.

#![expect(unsafe_code, reason = "the counter is a pointer into a per-CPU map")]

use tholepin_ebpf_abi::DropReason;
use tholepin_ebpf_abi::names::HOST_MAC;
use tholepin_ebpf_core::answer::{self, MAX_QUOTE_WORDS};
use tholepin_ebpf_core::packet::{ETHERNET_LEN, IPV4_LEN, IPV6_LEN, TCP, TCP_LEN, UDP_LEN};
use tholepin_ebpf_core::verdict::{self, Answer};
use tholepin_ebpf_core::{Origin, Verdict};

use crate::events;
use crate::globals::{HOST_IFINDEX, OVERLAY_MTU};
use crate::maps::DROPS;
use crate::parse::{PLAIN_V4, PLAIN_V6, Packet};
use crate::scratch::{Scratch, settle};
use crate::skb::{self, ETH_P_IP, ETH_P_IPV6, Skb};

/// `TC_ACT_SHOT`.
const SHOT: i32 = 2;

/// Counts a drop, tells a listener, and returns its action.
#[inline(always)]
pub fn drop(skb: &Skb, reason: DropReason) -> i32 {
    events::dropped(skb, reason);
    count(reason)
}

/// Counts a drop and returns its action.
#[inline(always)]
fn count(reason: DropReason) -> i32 {
    if let Some(count) = DROPS.get_ptr_mut(reason as u32) {
        // SAFETY: a live value of this CPU's own slot; programs are not preempted by each other
        // on one CPU in this context.
        unsafe { *count += 1 };
    }
    SHOT
}

/// Counts a refusal, and answers the sender if `reason` has an answer. A listener is told by the caller:
/// one call more from here, and the stack would not do.
#[inline(never)]
pub fn refuse(skb: &Skb, scratch: &mut Scratch, code: u32, from_host: bool) -> i32 {
    let packet = &scratch.packet;
    let reason = DropReason::from_code(code).unwrap_or(DropReason::Malformed);
    let shot = count(reason);
    let plain = packet.transport == if packet.v4 { PLAIN_V4 } else { PLAIN_V6 };
    // Packets with options or extension headers, and later fragments, are refused in silence.
    if !plain || !packet.has_header {
        return shot;
    }
    let origin = if from_host { Origin::Host } else { Origin::Pod };
    let answered = match verdict::answer(reason) {
        Answer::Silence => return shot,
        Answer::Unreachable if packet.flow.protocol == TCP => reset(skb, packet, origin),
        answer => error(skb, scratch, answer, origin),
    };
    answered.map_or(shot, Verdict::into_tc_action)
}

/// Turns the packet into the RST that refuses it.
#[inline(always)]
fn reset(skb: &Skb, packet: &Packet, origin: Origin) -> Result<Verdict, DropReason> {
    let segment: [u32; 5] = skb.load(packet.transport).ok_or(DropReason::Malformed)?;
    let header_len = u32::from(segment[3].to_ne_bytes()[0] >> 4) * 4;
    let payload = packet
        .total_len
        .saturating_sub(packet.transport - ETHERNET_LEN)
        .saturating_sub(header_len);
    let (source, destination) = (packet.flow.destination, packet.flow.source);
    let reset = answer::tcp_reset(&segment, payload, source, destination)
        .ok_or(DropReason::UntrackedReset)?;
    let to = macs(skb, packet, origin)?;
    skb.truncate(packet.transport + TCP_LEN)?;
    if packet.v4 {
        let header = answer::ipv4_header(source, destination, TCP, TCP_LEN);
        skb.store(ETHERNET_LEN, &header)?;
    } else {
        let header = answer::ipv6_header(source, destination, TCP, TCP_LEN);
        skb.store(ETHERNET_LEN, &header)?;
    }
    skb.store(packet.transport, &reset)?;
    send_back(skb, packet, to, origin)
}

/// Puts an ICMP error before what it quotes of the packet.
#[inline(always)]
fn error(
    skb: &Skb,
    scratch: &mut Scratch,
    answer: Answer,
    origin: Origin,
) -> Result<Verdict, DropReason> {
    let packet = &scratch.packet;
    let protocol = packet.flow.protocol;
    if !answer::may_answer(protocol, packet.icmp_type) {
        return Err(DropReason::Malformed);
    }
    if !quote(skb, packet, &mut scratch.quote) {
        return Err(DropReason::Malformed);
    }
    let quote_len = answer::quote_len(packet.v4, protocol);
    let destination = packet.flow.source;
    let source = match answer {
        Answer::Unreachable => packet.flow.destination,
        // Clients outside know the node by its other address.
        _ if packet.external => packet.node(),
        _ => packet.gateway(),
    };
    let message = answer::icmp_error(
        answer,
        OVERLAY_MTU.load(),
        &scratch.quote,
        quote_len,
        source,
        destination,
    );
    let to = macs(skb, packet, origin)?;
    let icmp = answer::icmp_protocol(packet.v4);
    skb.truncate(ETHERNET_LEN + quote_len)?;
    if packet.v4 {
        skb.push(IPV4_LEN + UDP_LEN)?;
        let header = answer::ipv4_header(source, destination, icmp, UDP_LEN + quote_len);
        skb.store(ETHERNET_LEN, &header)?;
        skb.store(PLAIN_V4, &message)?;
    } else {
        skb.push(IPV6_LEN + UDP_LEN)?;
        let header = answer::ipv6_header(source, destination, icmp, UDP_LEN + quote_len);
        skb.store(ETHERNET_LEN, &header)?;
        skb.store(PLAIN_V6, &message)?;
    }
    send_back(skb, packet, to, origin)
}

/// The start of the packet, zero beyond `quote_len`.
#[inline(always)]
fn quote(skb: &Skb, packet: &Packet, quote: &mut [u32; MAX_QUOTE_WORDS]) -> bool {
    *quote = [0; MAX_QUOTE_WORDS];
    settle();
    match (packet.v4, packet.flow.protocol == TCP) {
        (true, false) => skb.load_into::<7>(ETHERNET_LEN, quote),
        (true, true) => skb.load_into::<10>(ETHERNET_LEN, quote),
        (false, false) => skb.load_into::<12>(ETHERNET_LEN, quote),
        (false, true) => skb.load_into::<MAX_QUOTE_WORDS>(ETHERNET_LEN, quote),
    }
}

/// Both ends of the link the packet came by.
struct Macs {
    sender: [u8; 6],
    own: [u8; 6],
}

#[inline(always)]
fn macs(skb: &Skb, packet: &Packet, origin: Origin) -> Result<Macs, DropReason> {
    if origin == Origin::Host {
        return Ok(Macs {
            sender: HOST_MAC,
            own: HOST_MAC,
        });
    }
    let sender = skb.load(6).ok_or(DropReason::Malformed)?;
    // The underlay's interfaces have MACs of their own.
    let own = if packet.external {
        skb.load(0).ok_or(DropReason::Malformed)?
    } else {
        HOST_MAC
    };
    Ok(Macs { sender, own })
}

#[inline(always)]
fn send_back(skb: &Skb, packet: &Packet, to: Macs, origin: Origin) -> Result<Verdict, DropReason> {
    let ether_type = if packet.v4 { ETH_P_IP } else { ETH_P_IPV6 } as u16;
    skb.store(0, &to.sender)?;
    skb.store(6, &to.own)?;
    skb.store(12, &ether_type)?;
    Ok(match origin {
        Origin::Host => skb::redirect_ingress(HOST_IFINDEX.load()),
        _ => skb::redirect(packet.ifindex),
    })
}
