//! New flows: frontend, backend, and the two halves that remember the choice.

use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use tholepin_ebpf_abi::conntrack::{FLOW_RST, FLOW_SOURCE_TRANSLATED};
use tholepin_ebpf_abi::service::SCOPE_CLUSTER;
use tholepin_ebpf_abi::{
    BackendValue, Be16, ConntrackEntry, DropReason, FlowKey, FrontendKey, FrontendValue,
};
use tholepin_ebpf_core::rewrite::{self, NewFlow};
use tholepin_ebpf_core::{Origin, Translation, flow, select};

use crate::conntrack::flags_of_both;
use crate::lookup::{self, Half};
use crate::maps::CONNTRACK;
use crate::scratch::{Scratch, settle};
use crate::skb;

/// Slots tried while the agent is changing a Service, and source ports while they collide.
const ATTEMPTS: u32 = 4;

const EEXIST: i32 = -17;

/// Outcome codes of [`balance`]: a BPF function returns one integer.
const TRANSLATED: u32 = 0;
const NOT_A_SERVICE: u32 = 1;
const REFUSED: u32 = 2; // Plus the reason's code.

/// Who asks, and for what: arguments of [`balance`].
const AGAIN: u32 = 1;
const FROM_HOST: u32 = 2;

/// Translates a flow that has no entry; false if it is not to a Service.
#[inline(always)]
pub fn first(scratch: &mut Scratch, origin: Origin) -> Result<bool, DropReason> {
    match balance(scratch, mode(origin)) {
        TRANSLATED => Ok(true),
        NOT_A_SERVICE => Ok(false),
        refused => Err(reason(refused)),
    }
}

/// Translates a flow whose backend no longer serves, or whose connection is over.
#[inline(always)]
pub fn again(scratch: &mut Scratch, origin: Origin) -> Result<(), DropReason> {
    match balance(scratch, mode(origin) | AGAIN) {
        // A Service that is gone leaves the packet as it is: it is routed like any other.
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

/// Chooses a backend and records the flow.
#[inline(never)]
fn balance(scratch: &mut Scratch, mode: u32) -> u32 {
    let flow = &scratch.packet.flow;
    if mode & AGAIN != 0 {
        forget(flow);
        scratch.translation = Translation::identity(flow);
    }
    let key = FrontendKey {
        address: flow.destination,
        port: flow.destination_port,
        protocol: flow.protocol,
        scope: SCOPE_CLUSTER,
    };
    let Some(frontend) = lookup::frontend(&key) else {
        return NOT_A_SERVICE;
    };
    match chosen(scratch, mode, frontend) {
        Ok(()) => TRANSLATED,
        Err(reason) => REFUSED + reason as u32,
    }
}

#[inline(always)]
fn chosen(scratch: &mut Scratch, mode: u32, frontend: &FrontendValue) -> Result<(), DropReason> {
    let packet = &scratch.packet;
    let flow = &packet.flow;
    let observed = flow::observed(flow.protocol, packet.tcp_flags);
    if observed & FLOW_RST != 0 {
        return Err(DropReason::UntrackedReset);
    }
    let (backend_id, backend) = pick(frontend)?;
    // A socket of the node that is bound to another of its addresses: the reply must come back
    // through the pod network to be translated, so it is asked for from the gateway's address.
    let source = if mode & FROM_HOST != 0 {
        packet.gateway()
    } else {
        flow.source
    };
    scratch.translation = Translation::to_backend(flow, backend, source);
    let new = NewFlow {
        now_ns: skb::now_ns(),
        service_id: frontend.service_id,
        backend_id,
        backend_generation: backend.generation,
        // The node's own flows approve no pod's interface.
        ifindex: if mode & FROM_HOST != 0 {
            0
        } else {
            packet.ifindex
        },
        observed,
    };
    scratch.forward = new.forward_half(flow, &scratch.translation);
    record(scratch)?;
    scratch.packet.translated = true;
    Ok(())
}

/// A backend at random. While a Service shrinks, its counts fall before its slots go; a reader in
/// between finds a slot missing, and reads the counts again.
#[inline(always)]
fn pick(frontend: &FrontendValue) -> Result<(u32, &'static BackendValue), DropReason> {
    let mut attempt = 0;
    while attempt < ATTEMPTS {
        attempt += 1;
        let ordinal = select::ordinal(skb::random(), frontend)?;
        let Some(slot) = lookup::slot(frontend.service_id, ordinal) else {
            continue;
        };
        if let Some(backend) = lookup::backend(slot.backend_id) {
            return Ok((slot.backend_id, backend));
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
            return insert(flow, &scratch.forward, BPF_ANY);
        }
        // Two flows of one client that differ only in the Service's address would become the same
        // behind it, so one of them gets another source port.
        let port = Be16::new(32_768 | skb::random() as u16);
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
    let idle_ns = reply.last_seen_ns.saturating_sub(entry.last_seen_ns);
    if !flow::is_over(key.protocol, flags_of_both(key, owner), idle_ns) {
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
