//! ICMP errors about translated packets.

use tholepin_ebpf_abi::conntrack::{FLOW_DIRECT, FLOW_EXTERNAL, FLOW_HANDED};
use tholepin_ebpf_abi::{DropReason, FlowKey};
use tholepin_ebpf_core::csum::{self, Sum};
use tholepin_ebpf_core::icmp::{self, TranslatedError};
use tholepin_ebpf_core::packet::{self, ETHERNET_LEN, Fragment, Network, SCTP, TCP, UDP_LEN};
use tholepin_ebpf_core::rewrite::ports_of_word;
use tholepin_ebpf_core::{Translation, rewrite};

use crate::lookup::Half;
use crate::parse::Packet;
use crate::skb::{Checksum, Skb};

const OK: u32 = 0;
const REFUSED: u32 = 1; // Plus the reason's code.

/// Translates `packet`, an ICMP error, if it is about a translated flow: at once, and `outcome` then
/// holds its new addresses.
#[inline(always)]
pub fn translate(
    skb: &Skb,
    packet: &mut Packet,
    outcome: &mut Translation,
) -> Result<(), DropReason> {
    match translate_quoted(skb, packet, outcome) {
        OK => Ok(()),
        refused => {
            Err(DropReason::from_code(refused - REFUSED).unwrap_or(DropReason::RewriteFailed))
        }
    }
}

#[inline(never)]
fn translate_quoted(skb: &Skb, packet: &mut Packet, outcome: &mut Translation) -> u32 {
    let Some((key, offsets)) = quoted(skb, packet) else {
        return OK;
    };
    let Some(half) = Half::find(&key.reversed()) else {
        return OK;
    };
    packet.related = half.entry().policy_generation;
    if half.entry().flags & FLOW_DIRECT != 0 {
        return OK;
    }
    packet.external = half.entry().flags & FLOW_EXTERNAL != 0;
    let translation = Translation::of_entry(half.entry());
    if half.entry().flags & FLOW_HANDED != 0 {
        // The backend's node translates it.
        packet.handed = true;
        outcome.destination = translation.destination;
        return OK;
    }
    let error = icmp::translate(packet.flow.source, &key, &translation);
    let inner = match rewrite_quoted(skb, packet, &key, &offsets, &error) {
        Ok(inner) => inner,
        Err(reason) => return REFUSED + reason as u32,
    };
    match rewrite_outer(skb, packet, &error, inner, outcome) {
        Ok(()) => OK,
        Err(reason) => REFUSED + reason as u32,
    }
}

/// Where the quotation's headers are.
struct Offsets {
    network: u32,
    transport: u32,
}

/// The tuple of the quoted packet, if it is one that Services translate.
#[inline(always)]
fn quoted(skb: &Skb, packet: &Packet) -> Option<(FlowKey, Offsets)> {
    let start = packet.transport + UDP_LEN;
    let network: Network = if packet.v4 {
        packet::ipv4(&skb.load(start)?).ok()?
    } else {
        packet::ipv6(&skb.load(start)?).ok()?
    };
    // Behind extension headers nothing is translated: no Linux sender quotes such packets of TCP
    // or UDP unless they are fragments.
    if !packet::has_ports(network.protocol) || matches!(network.fragment, Fragment::Later(_)) {
        return None;
    }
    let transport = start + network.header_len;
    let (source_port, destination_port) = ports_of_word(skb.load(transport)?);
    let key = FlowKey {
        source: network.source,
        destination: network.destination,
        source_port,
        destination_port,
        protocol: network.protocol,
        _pad: [0; 3],
    };
    Some((
        key,
        Offsets {
            network: start,
            transport,
        },
    ))
}

/// Rewrites the quotation and returns the change of the sum over it.
#[inline(always)]
fn rewrite_quoted(
    skb: &Skb,
    packet: &Packet,
    key: &FlowKey,
    at: &Offsets,
    error: &TranslatedError,
) -> Result<Sum, DropReason> {
    let to = &error.quoted;
    let addresses = to.address_change(key);
    let ports = to.port_change(key);
    let mut change = addresses.add(ports.difference());
    if packet.v4 {
        let stored: u16 = skb.load(at.network + 10).ok_or(DropReason::RewriteFailed)?;
        let updated = rewrite::ipv4_checksum(stored, addresses, 0, 0);
        change = replaced(change, stored, updated);
        skb.store(at.network + 10, &updated)?;
        let words = [to.source.words()[3], to.destination.words()[3]];
        skb.store(at.network + 12, &words)?;
    } else {
        skb.store(at.network + 8, &[to.source.words(), to.destination.words()])?;
    }
    skb.store(at.transport, &to.ports())?;

    // Not every sender quotes as far as TCP's checksum, and UDP over IPv4 may have none.
    let tcp = key.protocol == TCP;
    let offset = at.transport + if tcp { 16 } else { 6 };
    // SCTP's is farther off than senders quote, and nobody checks it there.
    let stored: u16 = match key.protocol {
        SCTP => 0,
        _ => skb.load(offset).unwrap_or(0),
    };
    if stored != 0 {
        let updated = csum::updated(stored, addresses.add(ports.difference()));
        change = replaced(change, stored, updated);
        skb.store(offset, &updated)?;
    }
    Ok(change)
}

/// `change` after a covered 16-bit field was replaced as well.
#[inline(always)]
fn replaced(change: Sum, old: u16, new: u16) -> Sum {
    let ([a, b], [c, d]) = (old.to_ne_bytes(), new.to_ne_bytes());
    change
        .remove(u32::from_ne_bytes([a, b, 0, 0]))
        .add(u32::from_ne_bytes([c, d, 0, 0]))
}

/// Rewrites the outer addresses and the checksum of the message.
#[inline(always)]
fn rewrite_outer(
    skb: &Skb,
    packet: &Packet,
    error: &TranslatedError,
    inner: Sum,
    outcome: &mut Translation,
) -> Result<(), DropReason> {
    let to = Translation {
        source: error.source,
        destination: error.destination,
        source_port: packet.flow.source_port,
        destination_port: packet.flow.destination_port,
    };
    let addresses = to.address_change(&packet.flow);
    let kind = Checksum {
        v6: !packet.v4,
        zero_is_none: false,
    };
    skb.change_checksum(packet.transport + 2, inner.difference(), false, kind)?;
    if packet.v4 {
        let offset = ETHERNET_LEN + 10;
        let stored: u16 = skb.load(offset).ok_or(DropReason::RewriteFailed)?;
        skb.store(offset, &rewrite::ipv4_checksum(stored, addresses, 0, 0))?;
        let words = [to.source.words()[3], to.destination.words()[3]];
        skb.store(ETHERNET_LEN + 12, &words)?;
    } else {
        // Only ICMPv6 has a pseudo-header.
        skb.change_checksum(packet.transport + 2, addresses.difference(), true, kind)?;
        skb.store(
            ETHERNET_LEN + 8,
            &[to.source.words(), to.destination.words()],
        )?;
    }
    *outcome = to;
    Ok(())
}
