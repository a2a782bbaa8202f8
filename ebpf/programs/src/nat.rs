//! Writing a translation into a packet.

use tholepin_ebpf_abi::DropReason;
use tholepin_ebpf_core::csum::Sum;
use tholepin_ebpf_core::packet::{ETHERNET_LEN, TCP};
use tholepin_ebpf_core::{Translation, rewrite};

use crate::parse::{ECHO_IDENTIFIER, PLAIN_V4, PLAIN_V6, Packet};
use crate::skb::{Checksum, Skb};

const IP: usize = ETHERNET_LEN as usize;

/// Offsets within the packet.
const V4_TTL: usize = IP + 8;
const V4_CHECKSUM: usize = IP + 10;
const V4_ADDRESSES: usize = IP + 12;
const V6_HOP_LIMIT: usize = IP + 7;
const V6_ADDRESSES: usize = IP + 8;

/// Writes the hop limit, and the translation if there is one.
#[inline(always)]
pub fn apply(
    skb: &Skb,
    packet: &Packet,
    to: &Translation,
    hop_limit: u8,
) -> Result<(), DropReason> {
    let translated = packet.translated;
    if !translated && hop_limit == packet.hop_limit {
        return Ok(());
    }
    let addresses = if translated {
        to.address_change(&packet.flow)
    } else {
        Sum::ZERO
    };
    if packet.v4 {
        let [stored] = skb
            .read_u16::<V4_CHECKSUM, 1>()
            .ok_or(DropReason::RewriteFailed)?;
        let updated = rewrite::ipv4_checksum(stored, addresses, packet.hop_limit, hop_limit);
        skb.write_u8::<V4_TTL>(hop_limit)?;
        skb.write_u16::<V4_CHECKSUM, 1>([updated])?;
    } else {
        skb.write_u8::<V6_HOP_LIMIT>(hop_limit)?;
    }
    if !translated {
        return Ok(());
    }
    let (source, destination) = (to.source.words(), to.destination.words());
    if packet.v4 {
        skb.write::<V4_ADDRESSES, 2>([source[3], destination[3]])?;
    } else {
        skb.write::<V6_ADDRESSES, 4>(source)?;
        skb.write::<{ V6_ADDRESSES + 16 }, 4>(destination)?;
    }
    if packet.echo {
        return echo(skb, packet, to, addresses);
    }
    if packet.has_header {
        transport(skb, packet, to, addresses)?;
    }
    Ok(())
}

/// An echo's identifier and checksum.
#[inline(always)]
fn echo(skb: &Skb, packet: &Packet, to: &Translation, addresses: Sum) -> Result<(), DropReason> {
    // One side has the identifier, the other zero; whichever it is, it is the only one that changes.
    let old = packet.flow.source_port.be | packet.flow.destination_port.be;
    let new = to.source_port.be | to.destination_port.be;
    let offset = packet.transport + 2;
    let kind = Checksum {
        v6: !packet.v4,
        zero_is_none: false,
    };
    skb.store(packet.transport + ECHO_IDENTIFIER, &new)?;
    let change = Sum::ZERO.remove(old.into()).add(new.into());
    skb.change_checksum(offset, change.difference(), false, kind)?;
    if !packet.v4 {
        // Only ICMPv6 has a pseudo-header.
        skb.change_checksum(offset, addresses.difference(), true, kind)?;
    }
    Ok(())
}

/// Ports and the transport's checksum. Later fragments have neither.
#[inline(always)]
fn transport(
    skb: &Skb,
    packet: &Packet,
    to: &Translation,
    addresses: Sum,
) -> Result<(), DropReason> {
    let ports_change = to.source_port != packet.flow.source_port
        || to.destination_port != packet.flow.destination_port;
    if ports_change {
        match packet.transport {
            PLAIN_V4 => skb.write::<{ PLAIN_V4 as usize }, 1>([to.ports()])?,
            PLAIN_V6 => skb.write::<{ PLAIN_V6 as usize }, 1>([to.ports()])?,
            offset => skb.store(offset, &to.ports())?,
        }
    }
    let tcp = packet.flow.protocol == TCP;
    let offset = packet.transport + if tcp { 16 } else { 6 };
    let kind = Checksum {
        v6: !packet.v4,
        zero_is_none: !tcp,
    };
    skb.change_checksum(offset, addresses.difference(), true, kind)?;
    if ports_change {
        let ports = to.port_change(&packet.flow).difference();
        skb.change_checksum(offset, ports, false, kind)?;
    }
    Ok(())
}
