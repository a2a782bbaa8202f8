//! The front door: what clients outside send for a backend on another node, sent on before there is a
//! socket buffer.
//!
//! It does what `underlay_in` would do with the same packet and nothing else, and it only reads the
//! flow's entry: opening and closing flows, and the first packet of every flow in every tick (which
//! keeps entry and neighbour fresh), go the long way. So either can take a flow over from the other
//! between any two packets, and what is not sure is passed on untouched. Delivery to local pods is
//! TC's business: `veth` takes frames from XDP only under conditions that pods do not meet.

#![expect(unsafe_code, reason = "a mutable reference into a per-CPU map")]

use aya_ebpf::bindings::xdp_action::{XDP_ABORTED, XDP_PASS, XDP_TX};
use aya_ebpf::bindings::xdp_md;
use tholepin_ebpf_abi::conntrack::{
    FLOW_ESTABLISHED, FLOW_EXTERNAL, FLOW_FIN, FLOW_HANDED, FLOW_RST, FLOW_SEEN,
    FLOW_SOURCE_TRANSLATED, FLOW_SYN,
};
use tholepin_ebpf_abi::globals::dsr_vni;
use tholepin_ebpf_abi::names::{HOST_MAC, OVERLAY_SOURCE_MAC};
use tholepin_ebpf_abi::{Address, Be16, ConntrackEntry, RouteKey};
use tholepin_ebpf_core::csum::{self, Sum};
use tholepin_ebpf_core::flow;
use tholepin_ebpf_core::packet::{ETHERNET_LEN, TCP, UDP};
use tholepin_ebpf_core::rewrite::{ports_of_word, ports_word};
use tholepin_ebpf_core::vxlan::{OUTER_LEN, Outer, Template, Tunnel};

use crate::frame::Frame;
use crate::globals::{OVERLAY_MTU, OVERLAY_PORT, VNI, node_v4};
use crate::head::Head;
use crate::lookup::{self, Half, TupleWords};
use crate::maps::XDP_HOPS;
use crate::skb::{self, ETH_P_IP, ETH_P_IPV6, FibQuestion};

const IP: usize = ETHERNET_LEN as usize;
const OUTER: usize = OUTER_LEN as usize;

/// Offsets by family: of the transport header, and what is read of UDP and of TCP.
const V4_TRANSPORT: usize = IP + 20;
const V6_TRANSPORT: usize = IP + 40;
const V4_UDP: usize = V4_TRANSPORT + 8;
const V6_UDP: usize = V6_TRANSPORT + 8;
const V4_TCP: usize = V4_TRANSPORT + 20;
const V6_TCP: usize = V6_TRANSPORT + 20;

/// Bits of flows that need nothing but what is done here.
const PLAIN_FLOW: u32 = FLOW_SOURCE_TRANSLATED
    | FLOW_SYN
    | FLOW_ESTABLISHED
    | FLOW_FIN
    | FLOW_RST
    | FLOW_SEEN
    | FLOW_EXTERNAL
    | FLOW_HANDED;

const AF_INET: u8 = 2;

/// Places for backends; two that share one ask the routing table in turns.
pub const HOPS: usize = 256;

/// How a backend's node is reached.
#[repr(C)]
pub struct Hop {
    backend_id: u32,
    /// Never used for two endpoints, while ids are.
    backend_generation: u32,
    /// When this was found out.
    tick: u32,
    /// Largest packet that may go this way; 0 when none may.
    mtu: u32,
    template: Template,
}

/// What the headers say.
struct Seen {
    v4: bool,
    source: [u32; 4],
    destination: [u32; 4],
    ports: u32,
    protocol: u8,
    total_len: u32,
    tcp_flags: u8,
}

/// An underlay interface, before the kernel's stack.
#[expect(
    unsafe_code,
    reason = "the loader finds programs by section and symbol"
)]
// SAFETY: no other symbol has the name, and the section is for programs of this type.
#[unsafe(no_mangle)]
#[unsafe(link_section = "xdp")]
pub extern "C" fn xdp_front(context: *mut xdp_md) -> u32 {
    forward(&Frame::new(context)).unwrap_or(XDP_PASS)
}

/// What becomes of the packet; `None` for what is passed on untouched.
#[inline(always)]
fn forward(frame: &Frame) -> Option<u32> {
    let head = frame.head::<V4_UDP>()?;
    let ether_type = head.word::<{ IP - 4 }>() >> 16;
    let seen = match ether_type {
        ETH_P_IP => v4(frame, &head)?,
        ETH_P_IPV6 => v6(frame)?,
        _ => return None,
    };
    if flow::opens(seen.protocol, seen.tcp_flags) {
        return None;
    }
    // The overlay's own packets.
    let (_, port) = ports_of_word(seen.ports);
    if seen.protocol == UDP && port == overlay_port() {
        return None;
    }
    let key = TupleWords::new(seen.source, seen.destination, seen.ports, seen.protocol);
    let half = Half::find_words(&key)?;
    let entry = half.entry();
    let now = skb::now();
    if !is_plain(entry, &seen, now) {
        return None;
    }
    let hop = hop(frame, entry, now)?;
    if seen.total_len > hop.mtu || frame.len() < ETHERNET_LEN + seen.total_len {
        return None;
    }
    let handed = entry.flags & FLOW_HANDED != 0;
    let vni = VNI.load();
    let vni = if handed { dsr_vni(vni) } else { vni };
    let [a, b, c, d] = seen.source;
    let flow = a ^ b ^ c ^ d ^ seen.ports;
    let outer = hop.template.outer(seen.total_len, flow, vni);
    // Nothing has been changed so far.
    if !frame.push(OUTER_LEN) {
        return None;
    }
    let sent = if seen.v4 {
        send_v4(frame, &seen, entry, handed)
    } else {
        send_v6(frame, &seen, entry, handed)
    };
    // There was as much a moment ago; the verifier does not know.
    if sent.is_none() || wrap(frame, outer, seen.v4).is_none() {
        return Some(XDP_ABORTED);
    }
    Some(XDP_TX)
}

#[inline(always)]
fn v4(frame: &Frame, head: &Head<V4_UDP>) -> Option<Seen> {
    let [version_ihl, _, len_high, len_low] = head.word::<IP>().to_ne_bytes();
    let [_, _, fragment_high, fragment_low] = head.word::<{ IP + 4 }>().to_ne_bytes();
    let [hop_limit, protocol, _, _] = head.word::<{ IP + 8 }>().to_ne_bytes();
    let total_len = u32::from(u16::from_be_bytes([len_high, len_low]));
    let whole = (fragment_high & 0x3f) | fragment_low == 0;
    if version_ihl != 0x45 || !whole || hop_limit <= 1 {
        return None;
    }
    let tcp_flags = match protocol {
        TCP if total_len >= 40 => frame.head::<V4_TCP>()?.byte::<{ V4_TRANSPORT + 13 }>(),
        UDP if total_len >= 28 => 0,
        _ => return None,
    };
    Some(Seen {
        v4: true,
        source: Address::from_v4_word(head.word::<{ IP + 12 }>()).words(),
        destination: Address::from_v4_word(head.word::<{ IP + 16 }>()).words(),
        ports: head.word::<V4_TRANSPORT>(),
        protocol,
        total_len,
        tcp_flags,
    })
}

#[inline(always)]
fn v6(frame: &Frame) -> Option<Seen> {
    let head = frame.head::<V6_UDP>()?;
    let [len_high, len_low, protocol, hop_limit] = head.word::<{ IP + 4 }>().to_ne_bytes();
    let len = u32::from(u16::from_be_bytes([len_high, len_low]));
    if head.byte::<IP>() >> 4 != 6 || hop_limit <= 1 {
        return None;
    }
    let tcp_flags = match protocol {
        TCP if len >= 20 => frame.head::<V6_TCP>()?.byte::<{ V6_TRANSPORT + 13 }>(),
        UDP if len >= 8 => 0,
        _ => return None,
    };
    Some(Seen {
        v4: false,
        source: [
            head.word::<{ IP + 8 }>(),
            head.word::<{ IP + 12 }>(),
            head.word::<{ IP + 16 }>(),
            head.word::<{ IP + 20 }>(),
        ],
        destination: [
            head.word::<{ IP + 24 }>(),
            head.word::<{ IP + 28 }>(),
            head.word::<{ IP + 32 }>(),
            head.word::<{ IP + 36 }>(),
        ],
        ports: head.word::<V6_TRANSPORT>(),
        protocol,
        total_len: 40 + len,
        tcp_flags,
    })
}

/// Whether the packet changes nothing of its flow, and the flow needs nothing but its translation.
#[inline(always)]
fn is_plain(entry: &ConntrackEntry, seen: &Seen, now: u32) -> bool {
    let observed = flow::observed(seen.protocol, seen.tcp_flags);
    let known = entry.flags & !PLAIN_FLOW == 0 && entry.flags & observed == observed;
    if !known || entry.last_seen != now || entry.policy_generation != 0 || entry.backend_id == 0 {
        return false;
    }
    // A datagram goes to a backend only while that serves.
    seen.protocol == TCP || flow::is_current(entry, lookup::backend(entry.backend_id))
}

/// The way to the backend's node, asked for once in a tick on each processor.
#[inline(always)]
fn hop(frame: &Frame, entry: &ConntrackEntry, now: u32) -> Option<&'static Hop> {
    let place = XDP_HOPS.get_ptr_mut(entry.backend_id % HOPS as u32)?;
    // SAFETY: a live value of this processor's own place. XDP programs of one processor do not
    // interrupt each other, and no other program knows the map.
    let hop = unsafe { &mut *place };
    let known = hop.tick == now
        && hop.backend_id == entry.backend_id
        && hop.backend_generation == entry.backend_generation;
    if !known {
        hop.backend_id = entry.backend_id;
        hop.backend_generation = entry.backend_generation;
        hop.tick = now;
        hop.mtu = 0;
        if let Some(tunnel) = resolve(frame, &entry.destination) {
            hop.template = tunnel.template();
            hop.mtu = OVERLAY_MTU.load();
        }
    }
    Some(hop)
}

/// The way to the node that has `backend`, if it is reached over IPv4 by the interface the packet
/// came from: only there a frame can always be sent.
#[inline(always)]
fn resolve(frame: &Frame, backend: &Address) -> Option<Tunnel> {
    let key = RouteKey {
        prefix_len: 128,
        address: *backend,
    };
    let route = lookup::pod_route(&key)?;
    // A route that is not simply a tunnel is TC's.
    if route.flags != 0 {
        return None;
    }
    let endpoint = route.tunnel_endpoint;
    let (node, port) = (node_v4(), overlay_port());
    if !endpoint.is_v4() || node == Address::UNSPECIFIED || port.be == 0 {
        return None;
    }
    let (source, destination) = (node.words()[3], endpoint.words()[3]);
    let mut question = FibQuestion {
        family: AF_INET,
        l4_protocol: UDP,
        ports: [0; 2],
        total_len: 0,
        ifindex: frame.ifindex(),
        class: 0,
        source: [source, 0, 0, 0],
        destination: [destination, 0, 0, 0],
        answer: [0; 4],
    };
    if !frame.route(&mut question) || question.ifindex != frame.ifindex() {
        return None;
    }
    // After a VLAN's two fields come the source MAC and the destination's.
    let [_, from, both, to] = question.answer;
    Some(Tunnel {
        macs: [
            both >> 16 | to << 16,
            to >> 16 | from << 16,
            from >> 16 | both << 16,
        ],
        source,
        destination,
        port,
    })
}

/// The overlay's UDP port.
#[inline(always)]
fn overlay_port() -> Be16 {
    Be16::new(OVERLAY_PORT.load() as u16)
}

/// Writes the translation into a packet that now has room before it, unless it is handed on as it is.
#[inline(always)]
fn send_v4(frame: &Frame, seen: &Seen, entry: &ConntrackEntry, handed: bool) -> Option<()> {
    const CHECKSUM: usize = OUTER + IP + 8;
    if handed {
        return Some(());
    }
    let head = frame.head::<{ OUTER + V4_UDP }>()?;
    let (source, destination) = (entry.source.words()[3], entry.destination.words()[3]);
    let addresses = Sum::ZERO
        .remove(seen.source[3])
        .remove(seen.destination[3])
        .add(source)
        .add(destination);
    let [hop_limit, protocol, high, low] = head.word::<CHECKSUM>().to_ne_bytes();
    let [high, low] = csum::updated(u16::from_ne_bytes([high, low]), addresses).to_ne_bytes();
    head.set_word::<CHECKSUM>(u32::from_ne_bytes([hop_limit, protocol, high, low]));
    head.set_word::<{ OUTER + IP + 12 }>(source);
    head.set_word::<{ OUTER + IP + 16 }>(destination);
    let ports = ports_word(entry.source_port, entry.destination_port);
    head.set_word::<{ OUTER + V4_TRANSPORT }>(ports);
    let change = addresses.remove(seen.ports).add(ports);
    if seen.protocol == TCP {
        let head = frame.head::<{ OUTER + V4_TCP }>()?;
        tcp_checksum::<{ OUTER + V4_TRANSPORT + 16 }, _>(&head, change);
    } else {
        udp_checksum::<{ OUTER + V4_TRANSPORT + 4 }, _>(&head, change);
    }
    Some(())
}

#[inline(always)]
fn send_v6(frame: &Frame, seen: &Seen, entry: &ConntrackEntry, handed: bool) -> Option<()> {
    if handed {
        return Some(());
    }
    let head = frame.head::<{ OUTER + V6_UDP }>()?;
    let (source, destination) = (entry.source.words(), entry.destination.words());
    head.set_word::<{ OUTER + IP + 8 }>(source[0]);
    head.set_word::<{ OUTER + IP + 12 }>(source[1]);
    head.set_word::<{ OUTER + IP + 16 }>(source[2]);
    head.set_word::<{ OUTER + IP + 20 }>(source[3]);
    head.set_word::<{ OUTER + IP + 24 }>(destination[0]);
    head.set_word::<{ OUTER + IP + 28 }>(destination[1]);
    head.set_word::<{ OUTER + IP + 32 }>(destination[2]);
    head.set_word::<{ OUTER + IP + 36 }>(destination[3]);
    let ports = ports_word(entry.source_port, entry.destination_port);
    head.set_word::<{ OUTER + V6_TRANSPORT }>(ports);
    let change = Sum::ZERO
        .remove_address(seen.source)
        .remove_address(seen.destination)
        .add_address(source)
        .add_address(destination)
        .remove(seen.ports)
        .add(ports);
    if seen.protocol == TCP {
        let head = frame.head::<{ OUTER + V6_TCP }>()?;
        tcp_checksum::<{ OUTER + V6_TRANSPORT + 16 }, _>(&head, change);
    } else {
        udp_checksum::<{ OUTER + V6_TRANSPORT + 4 }, _>(&head, change);
    }
    Some(())
}

/// TCP's checksum is the first half of the word before the urgent pointer's.
#[inline(always)]
fn tcp_checksum<const WORD: usize, const LEN: usize>(head: &Head<LEN>, change: Sum) {
    let [a, b, c, d] = head.word::<WORD>().to_ne_bytes();
    let [a, b] = csum::updated(u16::from_ne_bytes([a, b]), change).to_ne_bytes();
    head.set_word::<WORD>(u32::from_ne_bytes([a, b, c, d]));
}

/// UDP's is the second half of the word that begins with the length. Zero means that there is none,
/// so a sum of zero is written as its other form.
#[inline(always)]
fn udp_checksum<const WORD: usize, const LEN: usize>(head: &Head<LEN>, change: Sum) {
    let [a, b, c, d] = head.word::<WORD>().to_ne_bytes();
    let stored = u16::from_ne_bytes([c, d]);
    if stored == 0 {
        return;
    }
    let updated = match csum::updated(stored, change) {
        0 => 0xffff,
        other => other,
    };
    let [c, d] = updated.to_ne_bytes();
    head.set_word::<WORD>(u32::from_ne_bytes([a, b, c, d]));
}

/// Puts the outer headers before the packet, and the overlay's MACs into its own.
#[inline(always)]
fn wrap(frame: &Frame, outer: Outer, v4: bool) -> Option<()> {
    let head = frame.head::<{ OUTER + IP }>()?;
    let [a, b, c, d, e, f] = HOST_MAC;
    let [g, h, i, j, k, l] = OVERLAY_SOURCE_MAC;
    let [vni, zero, _, _] = outer[12].to_ne_bytes();
    let [first, second] = if v4 { [0x08, 0x00] } else { [0x86, 0xdd] };
    head.set_word::<0>(outer[0]);
    head.set_word::<4>(outer[1]);
    head.set_word::<8>(outer[2]);
    head.set_word::<12>(outer[3]);
    head.set_word::<16>(outer[4]);
    head.set_word::<20>(outer[5]);
    head.set_word::<24>(outer[6]);
    head.set_word::<28>(outer[7]);
    head.set_word::<32>(outer[8]);
    head.set_word::<36>(outer[9]);
    head.set_word::<40>(outer[10]);
    head.set_word::<44>(outer[11]);
    head.set_word::<48>(u32::from_ne_bytes([vni, zero, a, b]));
    head.set_word::<52>(u32::from_ne_bytes([c, d, e, f]));
    head.set_word::<56>(u32::from_ne_bytes([g, h, i, j]));
    head.set_word::<60>(u32::from_ne_bytes([k, l, first, second]));
    Some(())
}
