//! Writing a translation into a packet.

use tholepin_ebpf_abi::DropReason;
use tholepin_ebpf_core::csum::{self, Coverage, Sum};
use tholepin_ebpf_core::packet::{ETHERNET_LEN, SCTP, TCP};
use tholepin_ebpf_core::{Translation, crc32c, rewrite};

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
    if packet.flow.protocol == SCTP {
        return if ports_change {
            sctp(skb, packet, to)
        } else {
            Ok(())
        };
    }
    let tcp = packet.flow.protocol == TCP;
    let ports = if ports_change {
        to.port_change(&packet.flow)
    } else {
        Sum::ZERO
    };
    match (packet.transport, tcp) {
        (PLAIN_V4, true) => checksum::<V4_TCP_CHECKSUM>(skb, true, addresses, ports),
        (PLAIN_V4, false) => checksum::<V4_UDP_CHECKSUM>(skb, false, addresses, ports),
        (PLAIN_V6, true) => checksum::<V6_TCP_CHECKSUM>(skb, true, addresses, ports),
        (PLAIN_V6, false) => checksum::<V6_UDP_CHECKSUM>(skb, false, addresses, ports),
        (transport, _) => {
            let offset = transport + if tcp { 16 } else { 6 };
            let kind = Checksum {
                v6: !packet.v4,
                zero_is_none: !tcp,
            };
            skb.change_checksum(offset, addresses.difference(), true, kind)?;
            if ports_change {
                skb.change_checksum(offset, ports.difference(), false, kind)?;
            }
            Ok(())
        }
    }
}

pub const V4_TCP_CHECKSUM: usize = PLAIN_V4 as usize + 16;
pub const V4_UDP_CHECKSUM: usize = PLAIN_V4 as usize + 6;
pub const V6_TCP_CHECKSUM: usize = PLAIN_V6 as usize + 16;
pub const V6_UDP_CHECKSUM: usize = PLAIN_V6 as usize + 6;

/// Brings a transport's checksum up to date, of a packet without options or extension headers.
///
/// Only the kernel knows whether the field covers the whole segment or, while the checksum is still to
/// be computed, the pseudo-header alone. Asking it to change the addresses tells, and saves asking it
/// for the ports.
#[inline(always)]
pub fn checksum<const AT: usize>(
    skb: &Skb,
    tcp: bool,
    addresses: Sum,
    ports: Sum,
) -> Result<(), DropReason> {
    let kind = Checksum {
        v6: AT == V6_TCP_CHECKSUM || AT == V6_UDP_CHECKSUM,
        zero_is_none: !tcp,
    };
    let [before] = skb.read_u16::<AT, 1>().ok_or(DropReason::RewriteFailed)?;
    if before == 0 && !tcp {
        return Ok(());
    }
    skb.change_checksum(AT as u32, addresses.difference(), true, kind)?;
    if ports == Sum::ZERO {
        return Ok(());
    }
    let [after] = skb.read_u16::<AT, 1>().ok_or(DropReason::RewriteFailed)?;
    match csum::coverage(before, after, addresses) {
        Coverage::PseudoHeader => Ok(()),
        Coverage::Unknown => skb.change_checksum(AT as u32, ports.difference(), false, kind),
        Coverage::Whole => {
            let updated = csum::updated(after, ports);
            let zero = updated == 0 && !tcp;
            skb.write_u16::<AT, 1>([if zero { 0xffff } else { updated }])
        }
    }
}

/// Offset of an SCTP packet's checksum within its header.
const SCTP_CHECKSUM: u32 = 8;

/// SCTP's checksum after its ports changed. It covers no addresses.
#[inline(always)]
fn sctp(skb: &Skb, packet: &Packet, to: &Translation) -> Result<(), DropReason> {
    let offset = packet.transport + SCTP_CHECKSUM;
    let stored: u32 = skb.load(offset).ok_or(DropReason::RewriteFailed)?;
    // What a device will compute is not there yet.
    if stored == 0 {
        return Ok(());
    }
    let before = rewrite::ports_word(packet.flow.source_port, packet.flow.destination_port);
    let len = (packet.total_len + ETHERNET_LEN).saturating_sub(packet.transport);
    let updated = crc32c_updated(stored, before ^ to.ports(), len);
    skb.store(offset, &updated)
}

/// A global function, which the verifier looks at once and not in every packet's way.
#[expect(
    unsafe_code,
    reason = "the linker keeps only functions with a name global"
)]
// SAFETY: no other symbol has the name.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn crc32c_updated(stored: u32, difference: u32, len: u32) -> u32 {
    crc32c::updated(stored, difference, len)
}
