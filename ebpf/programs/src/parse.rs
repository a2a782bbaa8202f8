//! From a socket buffer to a tuple.

use tholepin_ebpf_abi::{Address, Be16, DropReason, FlowKey, FragmentKey, FragmentValue};
use tholepin_ebpf_core::icmp::{self, Echo};
use tholepin_ebpf_core::packet::{
    self, ETHERNET_LEN, Fragment, ICMP, ICMPV6, IPV4_LEN, IPV6_LEN, Network, SCTP, SCTP_CHUNK, TCP,
    Transport,
};

use crate::maps::FRAGMENTS;
use crate::scratch::settle;
use crate::skb::{ETH_P_ARP, ETH_P_IP, ETH_P_IPV6, Skb};

/// Offset of an IPv4 transport header without options.
pub const PLAIN_V4: u32 = ETHERNET_LEN + IPV4_LEN;
/// Offset of an IPv6 transport header without extension headers.
pub const PLAIN_V6: u32 = ETHERNET_LEN + IPV6_LEN;

/// Offset of an echo's identifier within its header.
pub const ECHO_IDENTIFIER: u32 = 4;

/// What the hooks know of a packet.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Packet {
    /// Ports are zero for what has none.
    pub flow: FlowKey,
    /// Offset of the transport header from the start of the packet.
    pub transport: u32,
    /// Bytes of the IP packet, by its header.
    pub total_len: u32,
    /// Interface of the hook.
    pub ifindex: u32,
    pub v4: bool,
    pub hop_limit: u8,
    /// Those of a TCP segment, or what an SCTP packet has in their place.
    pub tcp_flags: u8,
    /// For ICMP in either version.
    pub icmp_type: u8,
    /// An ICMP echo, whose identifier is in the tuple.
    pub echo: bool,
    /// Whether the transport header is in this packet: not in later fragments.
    pub has_header: bool,
    /// An ICMP error: the policy stamp of the flow it is about; 0 if there is none.
    pub related: u32,
    /// Set once a translation was found.
    pub translated: bool,
    /// Set once its flow was found to be one of a client outside the cluster.
    pub external: bool,
    /// Set once it is to go to its backend's node as it is.
    pub handed: bool,
}

/// Reads the headers into `packet`; false for ARP, of which there is nothing to read.
#[inline(always)]
pub fn parse(skb: &Skb, packet: &mut Packet) -> Result<bool, DropReason> {
    match skb.protocol() {
        ETH_P_IP => ipv4(skb, packet)?,
        ETH_P_IPV6 => ipv6(skb, packet)?,
        ETH_P_ARP => return Ok(false),
        _ => return Err(DropReason::UnsupportedEtherType),
    }
    settle();
    Ok(true)
}

#[inline(always)]
fn ipv4(skb: &Skb, packet: &mut Packet) -> Result<(), DropReason> {
    const IP: usize = ETHERNET_LEN as usize;
    let words: [u32; 5] = match skb.read::<IP, _>() {
        Some(words) => words,
        None => pulled::<IP, _>(skb, PLAIN_V4)?,
    };
    let network = packet::ipv4(&words)?;
    let transport = Transport {
        protocol: network.protocol,
        offset: network.header_len,
        fragment: network.fragment,
    };
    finish(skb, packet, &network, transport, true)
}

#[inline(always)]
fn ipv6(skb: &Skb, packet: &mut Packet) -> Result<(), DropReason> {
    const IP: usize = ETHERNET_LEN as usize;
    let words: [u32; 10] = match skb.read::<IP, _>() {
        Some(words) => words,
        None => pulled::<IP, _>(skb, PLAIN_V6)?,
    };
    let network = packet::ipv6(&words)?;
    let mut transport = Transport {
        protocol: network.protocol,
        offset: IPV6_LEN,
        fragment: Fragment::Whole,
    };
    if packet::is_extension(network.protocol) {
        transport = extensions(skb, network.protocol)?;
    }
    finish(skb, packet, &network, transport, false)
}

/// Headers outside of the linear part: rare enough to be out of the way of the rest.
#[inline(always)]
fn pulled<const OFFSET: usize, const N: usize>(
    skb: &Skb,
    len: u32,
) -> Result<[u32; N], DropReason> {
    if !skb.pull(len) {
        return Err(DropReason::Malformed);
    }
    skb.read::<OFFSET, N>().ok_or(DropReason::Malformed)
}

#[inline(always)]
fn extensions(skb: &Skb, first: u8) -> Result<Transport, DropReason> {
    packet::walk_extensions(first, |offset| skb.load::<[u8; 8]>(ETHERNET_LEN + offset))
}

/// The first word of the transport header: directly where it usually is.
#[inline(always)]
fn first_word(skb: &Skb, offset: u32) -> Result<u32, DropReason> {
    if offset == PLAIN_V4 {
        if let Some([word]) = skb.read::<{ PLAIN_V4 as usize }, 1>() {
            return Ok(word);
        }
    } else if offset == PLAIN_V6 {
        if let Some([word]) = skb.read::<{ PLAIN_V6 as usize }, 1>() {
            return Ok(word);
        }
    }
    skb.load(offset).ok_or(DropReason::Malformed)
}

/// The flags of a TCP header, likewise.
#[inline(always)]
fn tcp_flags(skb: &Skb, offset: u32) -> Result<u8, DropReason> {
    if offset == PLAIN_V4 {
        if let Some(flags) = skb.read_u8::<{ PLAIN_V4 as usize + 13 }>() {
            return Ok(flags);
        }
    } else if offset == PLAIN_V6 {
        if let Some(flags) = skb.read_u8::<{ PLAIN_V6 as usize + 13 }>() {
            return Ok(flags);
        }
    }
    skb.load(offset + 13).ok_or(DropReason::Malformed)
}

/// Adds the transport's part.
#[inline(always)]
fn finish(
    skb: &Skb,
    packet: &mut Packet,
    network: &Network,
    transport: Transport,
    v4: bool,
) -> Result<(), DropReason> {
    let (source, destination) = (network.source.words(), network.destination.words());
    let flow = |ports| FlowKey::from_words(source, destination, ports, transport.protocol);
    packet.transport = ETHERNET_LEN + transport.offset;
    packet.total_len = network.total_len;
    packet.ifindex = skb.ifindex();
    packet.v4 = v4;
    packet.hop_limit = network.hop_limit;
    packet.tcp_flags = 0;
    packet.icmp_type = 0;
    packet.echo = false;
    packet.has_header = true;
    packet.translated = false;
    packet.external = false;
    packet.handed = false;
    packet.related = 0;
    if let Fragment::Later(identification) = transport.fragment {
        packet.flow = flow(0);
        return later_fragment(packet, identification);
    }
    let protocol = transport.protocol;
    if packet::has_ports(protocol) {
        packet.flow = flow(first_word(skb, packet.transport)?);
        if protocol == TCP {
            packet.tcp_flags = tcp_flags(skb, packet.transport)?;
        } else if protocol == SCTP {
            let chunk: u8 = skb
                .load(packet.transport + SCTP_CHUNK)
                .ok_or(DropReason::Malformed)?;
            packet.tcp_flags = packet::flags_of_chunk(chunk);
        }
        if let Fragment::First(identification) = transport.fragment {
            remember_ports(packet, identification);
        }
        return Ok(());
    }
    packet.flow = flow(0);
    if protocol == ICMP || protocol == ICMPV6 {
        packet.icmp_type = first_word(skb, packet.transport)?.to_ne_bytes()[0];
        identifier(skb, packet)?;
    }
    Ok(())
}

/// Puts the identifier of an echo into the tuple.
#[inline(always)]
fn identifier(skb: &Skb, packet: &mut Packet) -> Result<(), DropReason> {
    let Some(echo) = icmp::echo(packet.flow.protocol, packet.icmp_type) else {
        return Ok(());
    };
    let word: u16 = skb
        .load(packet.transport + ECHO_IDENTIFIER)
        .ok_or(DropReason::Malformed)?;
    match echo {
        Echo::Request => packet.flow.source_port = Be16::from_wire(word),
        Echo::Reply => packet.flow.destination_port = Be16::from_wire(word),
    }
    packet.echo = true;
    Ok(())
}

#[inline(always)]
fn fragment_key(packet: &Packet, identification: u32) -> FragmentKey {
    FragmentKey {
        source: packet.flow.source,
        destination: packet.flow.destination,
        identification,
        protocol: packet.flow.protocol,
        _pad: [0; 3],
    }
}

/// Later fragments need the ports of the first: Services translate all of a datagram or nothing.
#[inline(always)]
fn remember_ports(packet: &Packet, identification: u32) {
    let value = FragmentValue {
        source_port: packet.flow.source_port,
        destination_port: packet.flow.destination_port,
    };
    // A full map evicts its oldest; if even that fails, the later fragments are dropped by name.
    FRAGMENTS
        .insert(fragment_key(packet, identification), value, 0)
        .ok();
}

#[inline(always)]
fn later_fragment(packet: &mut Packet, identification: u32) -> Result<(), DropReason> {
    packet.has_header = false;
    if packet::has_ports(packet.flow.protocol) {
        let ports = crate::lookup::fragment(&fragment_key(packet, identification))
            .ok_or(DropReason::OrphanFragment)?;
        packet.flow.source_port = ports.source_port;
        packet.flow.destination_port = ports.destination_port;
    }
    Ok(())
}

impl Packet {
    /// Whether the packet has ports, and so may belong to a translated flow.
    #[inline(always)]
    pub fn has_ports(&self) -> bool {
        packet::has_ports(self.flow.protocol)
    }

    /// Whether the packet may belong to a flow in `CONNTRACK`.
    #[inline(always)]
    pub fn may_be_tracked(&self) -> bool {
        self.has_ports() || self.echo
    }

    /// The node's underlay address of the packet's family.
    #[inline(always)]
    pub fn node(&self) -> Address {
        if self.v4 {
            crate::globals::node_v4()
        } else {
            crate::globals::node_v6()
        }
    }

    /// The first address of the node's pod range of the packet's family, which nobody has: it is
    /// right before the gateway's, and what is sent to it enters the pod network.
    #[inline(always)]
    pub fn range(&self) -> Address {
        let [a, b, c, d] = self.gateway().words();
        Address::from_words([a, b, c, d ^ 1_u32.to_be()])
    }

    /// The gateway's address of the packet's family.
    #[inline(always)]
    pub fn gateway(&self) -> Address {
        if self.v4 {
            crate::globals::gateway_v4()
        } else {
            crate::globals::gateway_v6()
        }
    }
}
