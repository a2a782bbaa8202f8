//! The short way of most packets: whole, of TCP or UDP, without options, between addresses that are
//! known, and of a flow that needs no decision.
//!
//! It does what the stages of [`crate::pipeline`] would do with the same packet, and nothing else;
//! whatever it is not sure of is left to them untouched. What makes it short: one length check for all
//! of the headers, no working memory, and as few helper calls as possible, because each costs as much
//! as dozens of instructions.

use tholepin_ebpf_abi::conntrack::{
    FLOW_ESTABLISHED, FLOW_FIN, FLOW_REPLY, FLOW_RST, FLOW_SEEN, FLOW_SOURCE_TRANSLATED, FLOW_SYN,
};
use tholepin_ebpf_abi::names::{HOST_MAC, OVERLAY_SOURCE_MAC};
use tholepin_ebpf_abi::workload::WORKLOAD_BACKEND;
use tholepin_ebpf_abi::{Address, ConntrackEntry, DropReason, RouteKey, RouteValue, WorkloadValue};
use tholepin_ebpf_core::csum::Sum;
use tholepin_ebpf_core::packet::{ETHERNET_LEN, TCP, UDP};
use tholepin_ebpf_core::rewrite::ports_word;
use tholepin_ebpf_core::{Origin, Verdict, flow, rewrite};

use crate::globals::{ENFORCE_SOURCE, OVERLAY_IFINDEX, OVERLAY_MTU, enabled};
use crate::head::Head;
use crate::lookup::{self, Half, TupleWords};
use crate::skb::{self, ETH_P_IP, ETH_P_IPV6, Skb};
use crate::{deliver, nat, refuse};

/// Bits of flows whose packets only the address and ports of the entry decide about.
const PLAIN_FLOW: u32 = FLOW_REPLY
    | FLOW_SOURCE_TRANSLATED
    | FLOW_SYN
    | FLOW_ESTABLISHED
    | FLOW_FIN
    | FLOW_RST
    | FLOW_SEEN;

const IP: usize = ETHERNET_LEN as usize;

/// Offsets by family.
const V4_TRANSPORT: usize = IP + 20;
const V6_TRANSPORT: usize = IP + 40;
/// Up to the end of a UDP header, which is the shorter one.
const V4_HEAD: usize = V4_TRANSPORT + 8;
const V6_HEAD: usize = V6_TRANSPORT + 8;
/// Up to the flags of a TCP header.
const V4_FLAGS: usize = V4_TRANSPORT + 13;
const V6_FLAGS: usize = V6_TRANSPORT + 13;

/// What the headers say.
struct Seen {
    source: [u32; 4],
    destination: [u32; 4],
    ports: u32,
    protocol: u8,
    total_len: u32,
    hop_limit: u8,
    tcp_flags: u8,
}

/// Where the packet goes, and as what.
enum Exit {
    Pod(&'static WorkloadValue),
    Tunnel(&'static RouteValue),
}

/// The verdict about a packet that could go the short way; `None` for all others, which have not been
/// touched.
#[inline(always)]
pub fn run(skb: &Skb, origin: Origin) -> Option<i32> {
    let sent = match skb.protocol() {
        ETH_P_IP => {
            let head = Head::<V4_HEAD>::of(skb)?;
            let seen = v4(skb, &head)?;
            let (exit, half) = decide(skb, &seen, origin)?;
            let entry = half.as_ref().map(Half::entry);
            send_v4(skb, &head, &seen, origin, &exit, entry)
        }
        ETH_P_IPV6 => {
            let head = Head::<V6_HEAD>::of(skb)?;
            let seen = v6(skb, &head)?;
            let (exit, half) = decide(skb, &seen, origin)?;
            let entry = half.as_ref().map(Half::entry);
            send_v6(skb, &head, &seen, origin, &exit, entry)
        }
        _ => return None,
    };
    Some(match sent {
        Ok(verdict) => verdict.into_tc_action(),
        Err(reason) => refuse::drop(skb, reason),
    })
}

#[inline(always)]
fn v4(skb: &Skb, head: &Head<V4_HEAD>) -> Option<Seen> {
    let [version_ihl, _, len_high, len_low] = head.word::<IP>().to_ne_bytes();
    let [_, _, fragment_high, fragment_low] = head.word::<{ IP + 4 }>().to_ne_bytes();
    let [hop_limit, protocol, _, _] = head.word::<{ IP + 8 }>().to_ne_bytes();
    let total_len = u32::from(u16::from_be_bytes([len_high, len_low]));
    let whole = (fragment_high & 0x3f) | fragment_low == 0;
    if version_ihl != 0x45 || !whole || total_len < 20 {
        return None;
    }
    let tcp_flags = match protocol {
        TCP => Head::<{ V4_FLAGS + 1 }>::of(skb)?.byte::<V4_FLAGS>(),
        UDP => 0,
        _ => return None,
    };
    Some(Seen {
        source: Address::from_v4_word(head.word::<{ IP + 12 }>()).words(),
        destination: Address::from_v4_word(head.word::<{ IP + 16 }>()).words(),
        ports: head.word::<V4_TRANSPORT>(),
        protocol,
        total_len,
        hop_limit,
        tcp_flags,
    })
}

#[inline(always)]
fn v6(skb: &Skb, head: &Head<V6_HEAD>) -> Option<Seen> {
    let [len_high, len_low, protocol, hop_limit] = head.word::<{ IP + 4 }>().to_ne_bytes();
    if head.byte::<IP>() >> 4 != 6 {
        return None;
    }
    let tcp_flags = match protocol {
        TCP => Head::<{ V6_FLAGS + 1 }>::of(skb)?.byte::<V6_FLAGS>(),
        UDP => 0,
        _ => return None,
    };
    Some(Seen {
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
        total_len: 40 + u32::from(u16::from_be_bytes([len_high, len_low])),
        hop_limit,
        tcp_flags,
    })
}

/// Where the packet goes, and the entry of its flow if it is translated.
#[inline(always)]
fn decide(skb: &Skb, seen: &Seen, origin: Origin) -> Option<(Exit, Option<Half>)> {
    let mut may_be_tracked = true;
    let to = lookup::workload(&Address::from_words(seen.destination));
    if origin == Origin::Pod {
        if seen.hop_limit <= 1 {
            return None;
        }
        let from = lookup::workload(&Address::from_words(seen.source))?;
        if enabled(&ENFORCE_SOURCE) && from.ifindex != skb.ifindex() || has_policy(from) {
            return None;
        }
        // Between pods of this node only a backend's packets can be those of a translated flow.
        may_be_tracked = to.is_none_or(|to| (from.flags | to.flags) & WORKLOAD_BACKEND != 0);
    }
    let half = if may_be_tracked {
        if flow::opens(seen.protocol, seen.tcp_flags) {
            return None;
        }
        let (source, destination) = (seen.source, seen.destination);
        let key = TupleWords::new(source, destination, seen.ports, seen.protocol);
        Half::find_words(&key)
    } else {
        None
    };
    let Some(half) = half else {
        return Some((
            exit(seen, origin, to, &Address::from_words(seen.destination))?,
            None,
        ));
    };
    let entry = half.entry();
    let observed = flow::observed(seen.protocol, seen.tcp_flags);
    let known = entry.flags & !PLAIN_FLOW == 0 && entry.flags & observed == observed;
    if !known || entry.last_seen != skb::now() || entry.policy_generation != 0 {
        return None;
    }
    if origin == Origin::Pod && entry.ifindex != skb.ifindex() {
        return None;
    }
    // A datagram goes to a backend only while that serves.
    if seen.protocol == UDP
        && entry.flags & FLOW_REPLY == 0
        && entry.backend_id != 0
        && !flow::is_current(entry, lookup::backend(entry.backend_id))
    {
        return None;
    }
    let to = lookup::workload(&entry.destination);
    Some((exit(seen, origin, to, &entry.destination)?, Some(half)))
}

#[inline(always)]
fn has_policy(workload: &WorkloadValue) -> bool {
    workload.ingress_policy | workload.egress_policy != 0
}

#[inline(always)]
fn exit(
    seen: &Seen,
    origin: Origin,
    to: Option<&'static WorkloadValue>,
    destination: &Address,
) -> Option<Exit> {
    if let Some(to) = to {
        return (!has_policy(to)).then_some(Exit::Pod(to));
    }
    // Most of what goes elsewhere is for Services and the outside, and new.
    if matches!(origin, Origin::Overlay) || OVERLAY_IFINDEX.load() == 0 {
        return None;
    }
    let key = RouteKey {
        prefix_len: 128,
        address: *destination,
    };
    let route = lookup::pod_route(&key)?;
    // Whether segments are cut on the way is a question for the long way.
    let mtu = OVERLAY_MTU.load();
    (mtu == 0 || seen.total_len <= mtu).then_some(Exit::Tunnel(route))
}

#[inline(always)]
fn send_v4(
    skb: &Skb,
    head: &Head<V4_HEAD>,
    seen: &Seen,
    origin: Origin,
    exit: &Exit,
    entry: Option<&ConntrackEntry>,
) -> Result<Verdict, DropReason> {
    const HOP_LIMIT: usize = IP + 8;
    set_macs(head, exit);
    let hop_limit = seen.hop_limit - u8::from(origin == Origin::Pod);
    let [_, protocol, high, low] = head.word::<HOP_LIMIT>().to_ne_bytes();
    let stored = u16::from_ne_bytes([high, low]);
    let addresses = match entry {
        Some(entry) => Sum::ZERO
            .remove(seen.source[3])
            .remove(seen.destination[3])
            .add(entry.source.words()[3])
            .add(entry.destination.words()[3]),
        None => Sum::ZERO,
    };
    let updated = rewrite::ipv4_checksum(stored, addresses, seen.hop_limit, hop_limit);
    let [high, low] = updated.to_ne_bytes();
    head.set_word::<HOP_LIMIT>(u32::from_ne_bytes([hop_limit, protocol, high, low]));
    if let Some(entry) = entry {
        let new_ports = ports_word(entry.source_port, entry.destination_port);
        head.set_word::<{ IP + 12 }>(entry.source.words()[3]);
        head.set_word::<{ IP + 16 }>(entry.destination.words()[3]);
        head.set_word::<V4_TRANSPORT>(new_ports);
        let ports = change(seen.ports, new_ports);
        if seen.protocol == TCP {
            nat::checksum::<{ nat::V4_TCP_CHECKSUM }>(skb, true, addresses, ports)?;
        } else {
            nat::checksum::<{ nat::V4_UDP_CHECKSUM }>(skb, false, addresses, ports)?;
        }
    }
    leave(skb, exit, origin)
}

#[inline(always)]
fn send_v6(
    skb: &Skb,
    head: &Head<V6_HEAD>,
    seen: &Seen,
    origin: Origin,
    exit: &Exit,
    entry: Option<&ConntrackEntry>,
) -> Result<Verdict, DropReason> {
    set_macs(head, exit);
    if origin == Origin::Pod {
        head.set_byte::<{ IP + 7 }>(seen.hop_limit - 1);
    }
    if let Some(entry) = entry {
        let (source, destination) = (entry.source.words(), entry.destination.words());
        head.set_word::<{ IP + 8 }>(source[0]);
        head.set_word::<{ IP + 12 }>(source[1]);
        head.set_word::<{ IP + 16 }>(source[2]);
        head.set_word::<{ IP + 20 }>(source[3]);
        head.set_word::<{ IP + 24 }>(destination[0]);
        head.set_word::<{ IP + 28 }>(destination[1]);
        head.set_word::<{ IP + 32 }>(destination[2]);
        head.set_word::<{ IP + 36 }>(destination[3]);
        let new_ports = ports_word(entry.source_port, entry.destination_port);
        head.set_word::<V6_TRANSPORT>(new_ports);
        let addresses = Sum::ZERO
            .remove_address(seen.source)
            .remove_address(seen.destination)
            .add_address(source)
            .add_address(destination);
        let ports = change(seen.ports, new_ports);
        if seen.protocol == TCP {
            nat::checksum::<{ nat::V6_TCP_CHECKSUM }>(skb, true, addresses, ports)?;
        } else {
            nat::checksum::<{ nat::V6_UDP_CHECKSUM }>(skb, false, addresses, ports)?;
        }
    }
    leave(skb, exit, origin)
}

/// The change of a sum over one word; nothing at all where that stays as it is.
#[inline(always)]
fn change(old: u32, new: u32) -> Sum {
    if old == new {
        Sum::ZERO
    } else {
        Sum::ZERO.remove(old).add(new)
    }
}

#[inline(always)]
fn set_macs<const LEN: usize>(head: &Head<LEN>, exit: &Exit) {
    let (to, from) = match exit {
        Exit::Pod(workload) => (workload.mac, HOST_MAC),
        Exit::Tunnel(_) => (HOST_MAC, OVERLAY_SOURCE_MAC),
    };
    head.set_word::<0>(u32::from_ne_bytes([to[0], to[1], to[2], to[3]]));
    head.set_word::<4>(u32::from_ne_bytes([to[4], to[5], from[0], from[1]]));
    head.set_word::<8>(u32::from_ne_bytes([from[2], from[3], from[4], from[5]]));
}

#[inline(always)]
fn leave(skb: &Skb, exit: &Exit, origin: Origin) -> Result<Verdict, DropReason> {
    match exit {
        Exit::Pod(workload) => Ok(deliver::to_pod(workload, origin)),
        Exit::Tunnel(remote) => deliver::into_tunnel(skb, remote.tunnel_endpoint.words()),
    }
}
