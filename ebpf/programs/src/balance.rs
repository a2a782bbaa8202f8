//! New flows: frontend, backend, masquerade, and the two halves that remember the choice.

use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use tholepin_ebpf_abi::conntrack::{FLOW_RST, FLOW_SOURCE_TRANSLATED};
use tholepin_ebpf_abi::service::SCOPE_CLUSTER;
use tholepin_ebpf_abi::{
    Address, BackendValue, Be16, ConntrackEntry, DropReason, FlowKey, FrontendKey, FrontendValue,
};
use tholepin_ebpf_core::packet::{ICMP, ICMPV6, TCP};
use tholepin_ebpf_core::rewrite::{self, NewFlow};
use tholepin_ebpf_core::{Origin, Translation, flow, select};

use crate::conntrack::flags_of_both;
use crate::deliver::{self, Route};
use crate::globals::HOST_IFINDEX;
use crate::lookup::{self, Half};
use crate::maps::CONNTRACK;
use crate::scratch::{Scratch, settle};
use crate::skb::{self, FibQuestion, Skb};

/// Slots tried while the agent is changing a Service, and source ports while they collide.
const ATTEMPTS: u32 = 4;

const EEXIST: i32 = -17;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// Outcome codes of [`balance`]: a BPF function returns one integer.
const TRANSLATED: u32 = 0;
const NOT_A_SERVICE: u32 = 1;
const REFUSED: u32 = 2; // Plus the reason's code.

/// Who asks, and for what: arguments of [`balance`].
const AGAIN: u32 = 1;
const FROM_HOST: u32 = 2;
const ASIDE: u32 = 4;

/// Translates a flow that has no entry; false if it stays as it is.
#[inline(always)]
pub fn first(skb: &Skb, scratch: &mut Scratch, origin: Origin) -> Result<bool, DropReason> {
    match balance(skb, scratch, mode(origin)) {
        TRANSLATED => Ok(true),
        NOT_A_SERVICE => Ok(false),
        refused => Err(reason(refused)),
    }
}

/// Translates a flow whose backend no longer serves, or whose connection is over.
#[inline(always)]
pub fn again(skb: &Skb, scratch: &mut Scratch, origin: Origin) -> Result<(), DropReason> {
    match balance(skb, scratch, mode(origin) | AGAIN) {
        // A Service that is gone leaves the packet as it is: it is routed like any other.
        TRANSLATED | NOT_A_SERVICE => Ok(()),
        refused => Err(reason(refused)),
    }
}

/// Gives a new connection that is no Service's another source port, when a translated flow looks the
/// same to the other end: its answers could not be told apart.
#[inline(always)]
pub fn aside(skb: &Skb, scratch: &mut Scratch, origin: Origin) -> Result<(), DropReason> {
    match balance(skb, scratch, mode(origin) | ASIDE) {
        TRANSLATED | NOT_A_SERVICE => Ok(()),
        refused => Err(reason(refused)),
    }
}

#[inline(always)]
fn mode(origin: Origin) -> u32 {
    if origin == Origin::Host { FROM_HOST } else { 0 }
}

#[inline(always)]
fn reason(code: u32) -> DropReason {
    DropReason::from_code(code - REFUSED).unwrap_or(DropReason::BackendMissing)
}

/// Decides about a new flow, and records it if it is translated.
#[inline(never)]
fn balance(skb: &Skb, scratch: &mut Scratch, mode: u32) -> u32 {
    let flow = &scratch.packet.flow;
    if mode & AGAIN != 0 {
        forget(flow);
        scratch.translation = Translation::identity(flow);
    }
    scratch.masquerade = false;
    if mode & ASIDE != 0 {
        let ifindex = if mode & FROM_HOST != 0 {
            0
        } else {
            scratch.packet.ifindex
        };
        track(scratch, ifindex);
        return match record(scratch) {
            Ok(()) => TRANSLATED,
            Err(reason) => REFUSED + reason as u32,
        };
    }
    let key = FrontendKey {
        address: flow.destination,
        port: flow.destination_port,
        protocol: flow.protocol,
        scope: SCOPE_CLUSTER,
    };
    let outcome = match lookup::frontend(&key) {
        Some(frontend) => to_backend(skb, scratch, mode, frontend),
        // What the node itself sends has the right address already.
        None if mode & FROM_HOST != 0 => return NOT_A_SERVICE,
        None => match to_outside(skb, scratch) {
            Ok(false) => return NOT_A_SERVICE,
            Ok(true) => Ok(()),
            Err(reason) => Err(reason),
        },
    };
    match outcome.and_then(|()| record(scratch)) {
        Ok(()) => TRANSLATED,
        Err(reason) => REFUSED + reason as u32,
    }
}

/// Translates to a backend of the Service.
#[inline(always)]
fn to_backend(
    skb: &Skb,
    scratch: &mut Scratch,
    mode: u32,
    frontend: &FrontendValue,
) -> Result<(), DropReason> {
    let observed = flow::observed(scratch.packet.flow.protocol, scratch.packet.tcp_flags);
    if observed & FLOW_RST != 0 {
        return Err(DropReason::UntrackedReset);
    }
    let (backend_id, backend) = pick(frontend)?;
    let from_host = mode & FROM_HOST != 0;
    let place = place(skb, scratch, &backend.address, from_host);
    let flow = &scratch.packet.flow;
    let source = match place {
        Place::Outside => scratch.packet.node(),
        // The node itself is both ends. With one of its own addresses as source the answer would
        // stay in its stack; with the Service's it comes back to be translated.
        Place::Node if from_host => flow.destination,
        // A socket of the node that is bound to another of its addresses: the answer must come back
        // through the pod network, so it is asked for from the gateway's address.
        Place::Inside if from_host => scratch.packet.gateway(),
        Place::Inside | Place::Node => flow.source,
    };
    scratch.translation = Translation::to_backend(flow, backend, source);
    if let Place::Outside = place {
        scratch.masquerade = true;
        scratch.translation = scratch.translation.masqueraded(source, skb::random());
    }
    let new = NewFlow {
        now: skb::now(),
        service_id: frontend.service_id,
        backend_id,
        backend_generation: backend.generation,
        // The node's own flows approve no pod's interface.
        ifindex: if from_host { 0 } else { scratch.packet.ifindex },
        observed,
    };
    scratch.forward = new.forward_half(flow, &scratch.translation);
    Ok(())
}

/// Masquerades what a pod asks of the world outside; false for what stays as it is. An answer, or
/// the rest of a connection that somebody outside has opened, must keep the pod's address.
#[inline(always)]
fn to_outside(skb: &Skb, scratch: &mut Scratch) -> Result<bool, DropReason> {
    let packet = &scratch.packet;
    let flow = packet.flow;
    let asks = match flow.protocol {
        TCP => flow::opens(TCP, packet.tcp_flags),
        ICMP | ICMPV6 => flow.source_port.be != 0,
        _ => true,
    };
    if !asks || !is_outside(skb, scratch, &flow.destination) {
        return Ok(false);
    }
    let node = scratch.packet.node();
    scratch.masquerade = true;
    scratch.translation = Translation::identity(&flow).masqueraded(node, skb::random());
    let ifindex = scratch.packet.ifindex;
    track(scratch, ifindex);
    Ok(true)
}

/// The forward half of a flow that is no Service's.
#[inline(always)]
fn track(scratch: &mut Scratch, ifindex: u32) {
    let flow = &scratch.packet.flow;
    let new = NewFlow {
        now: skb::now(),
        service_id: 0,
        backend_id: 0,
        backend_generation: 0,
        ifindex,
        observed: flow::observed(flow.protocol, scratch.packet.tcp_flags),
    };
    scratch.forward = new.forward_half(flow, &scratch.translation);
}

/// Where a backend is, as far as the choice of a source goes.
#[derive(Clone, Copy)]
enum Place {
    /// In the pod network.
    Inside,
    /// This node, or nowhere.
    Node,
    /// Where answers come in by the underlay.
    Outside,
}

#[inline(always)]
fn place(skb: &Skb, scratch: &mut Scratch, address: &Address, from_host: bool) -> Place {
    let origin = if from_host { Origin::Host } else { Origin::Pod };
    match deliver::route(address, scratch.packet.v4, origin) {
        Route::Workload(_) | Route::Remote(_) => Place::Inside,
        Route::Gateway | Route::Node => Place::Node,
        Route::Elsewhere => match way_out(skb, scratch, address) {
            // Its route leads back into the pod network, where it will be refused.
            Some(ifindex) if ifindex == HOST_IFINDEX.load() => Place::Inside,
            Some(_) => Place::Outside,
            None => Place::Node,
        },
    }
}

/// Whether the kernel would forward a packet to `address` to other machines.
#[inline(always)]
fn is_outside(skb: &Skb, scratch: &mut Scratch, address: &Address) -> bool {
    matches!(way_out(skb, scratch, address), Some(ifindex) if ifindex != HOST_IFINDEX.load())
}

/// The interface by which the kernel would forward a packet of the node's to `address`; `None` for
/// addresses of the node itself and for those it has no route to.
#[inline(always)]
fn way_out(skb: &Skb, scratch: &mut Scratch, address: &Address) -> Option<u32> {
    let v4 = scratch.packet.v4;
    let (node, to) = (scratch.packet.node(), address.words());
    if node == Address::UNSPECIFIED {
        return None;
    }
    let node = node.words();
    scratch.fib = FibQuestion {
        family: if v4 { AF_INET } else { AF_INET6 },
        l4_protocol: 0,
        ports: [0; 2],
        total_len: 0,
        ifindex: scratch.packet.ifindex,
        class: 0,
        source: if v4 { [node[3], 0, 0, 0] } else { node },
        destination: if v4 { [to[3], 0, 0, 0] } else { to },
        answer: [0; 4],
    };
    settle();
    skb.route(&mut scratch.fib)
}

/// A backend at random. A reader whose frontend is replaced by another one's meanwhile finds a slot
/// of a list that is not the frontend's, and reads the frontend again.
#[inline(always)]
pub fn pick(frontend: &FrontendValue) -> Result<(u32, &'static BackendValue), DropReason> {
    let mut attempt = 0;
    while attempt < ATTEMPTS {
        attempt += 1;
        // The frontend is read anew each time, not kept in registers.
        settle();
        let ordinal = select::ordinal(skb::random(), frontend)?;
        let index = frontend.first_slot.wrapping_add(ordinal);
        let Some(slot) = lookup::slot(index) else {
            continue;
        };
        if slot.service_id != frontend.service_id {
            continue;
        }
        if let Some(backend) = lookup::backend(slot.backend_id) {
            if backend.generation != 0 {
                return Ok((slot.backend_id, backend));
            }
        }
    }
    Err(DropReason::BackendMissing)
}

/// Writes both halves, the reply's first: it is what tells whether the translated tuple is free.
#[inline(always)]
fn record(scratch: &mut Scratch) -> Result<(), DropReason> {
    let flow = &scratch.packet.flow;
    let mut attempt = 0;
    while attempt < ATTEMPTS {
        attempt += 1;
        scratch.reply_key = scratch.translation.reply_key(flow.protocol);
        scratch.reply = rewrite::reply_half(flow, &scratch.forward);
        settle();
        if claim(&scratch.reply_key, &scratch.reply)? {
            scratch.packet.translated = true;
            return insert(flow, &scratch.forward, BPF_ANY);
        }
        // Two flows of one client that differ only in the Service's address would become the same
        // behind it, so one of them gets another source port.
        let random = skb::random();
        let port = if scratch.masquerade {
            rewrite::masquerade_port(random)
        } else {
            Be16::new(32_768 | random as u16)
        };
        scratch.translation.source_port = port;
        scratch.forward.source_port = port;
        scratch.forward.flags |= FLOW_SOURCE_TRANSLATED;
    }
    Err(DropReason::SourcePortCollision)
}

/// Takes a reply tuple, unless a live flow has it.
#[inline(always)]
fn claim(key: &FlowKey, reply: &ConntrackEntry) -> Result<bool, DropReason> {
    match CONNTRACK.insert(key, reply, u64::from(BPF_NOEXIST)) {
        Ok(()) => return Ok(true),
        Err(EEXIST) => {}
        Err(_) => return Err(DropReason::ConntrackFull),
    }
    if !may_take_over(key, reply) {
        return Ok(false);
    }
    insert(key, reply, BPF_ANY).map(|()| true)
}

/// Whether the flow that has a reply tuple is over, or is the one that asks. A flow that is over
/// loses its forward half, which would lead to a reply half that is no longer its own.
#[inline(always)]
fn may_take_over(key: &FlowKey, reply: &ConntrackEntry) -> bool {
    let Some(owner) = Half::find(key) else {
        return true;
    };
    let entry = owner.entry();
    if Translation::of_entry(entry) == Translation::of_entry(reply) {
        return true;
    }
    let idle = reply.last_seen.saturating_sub(entry.last_seen);
    if !flow::is_over(key.protocol, flags_of_both(key, owner), idle) {
        return false;
    }
    // It may be gone already, which is as good.
    CONNTRACK
        .remove(Translation::of_entry(entry).reply_key(key.protocol))
        .ok();
    true
}

#[inline(always)]
fn insert(key: &FlowKey, entry: &ConntrackEntry, flags: u32) -> Result<(), DropReason> {
    CONNTRACK
        .insert(key, entry, u64::from(flags))
        .map_err(|_| DropReason::ConntrackFull)
}

/// Removes both halves.
#[inline(always)]
fn forget(flow: &FlowKey) {
    if let Some(half) = Half::find(flow) {
        let reply_key = Translation::of_entry(half.entry()).reply_key(flow.protocol);
        // They may be gone already, which is as good.
        CONNTRACK.remove(reply_key).ok();
        CONNTRACK.remove(flow).ok();
    }
}
