//! New flows: frontend, backend, masquerade, and the two halves that remember the choice.

use aya_ebpf::bindings::__sk_buff;
use tholepin_ebpf_abi::conntrack::{FLOW_DSR, FLOW_EXTERNAL, FLOW_HANDED, FLOW_RST};
use tholepin_ebpf_abi::service::*;
use tholepin_ebpf_abi::source_range::SOURCE_RANGE_BITS;
use tholepin_ebpf_abi::{Address, DropReason, FrontendKey, FrontendValue, SourceRangeKey};
use tholepin_ebpf_core::packet::{ICMP, ICMPV6, TCP};
use tholepin_ebpf_core::rewrite::NewFlow;
use tholepin_ebpf_core::{Origin, Translation, flow, select};

use crate::deliver::{self, Route};
use crate::globals::HOST_IFINDEX;
use crate::lookup;
use crate::parse::Packet;
use crate::record::{forget, record};
use crate::scratch::{Scratch, scratch, settle};
use crate::skb::{self, FibQuestion, Skb};
use crate::{choose, events};

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
const FROM_UNDERLAY: u32 = 8;
const FROM_OVERLAY: u32 = 16;
const INSIDE: u32 = 32;
/// What is not masqueraded if it is for no Service.
const NO_WAY_OUT: u32 = FROM_HOST | FROM_UNDERLAY | FROM_OVERLAY | INSIDE;
/// The client is outside of the cluster.
const EXTERNAL: u32 = FROM_UNDERLAY | FROM_OVERLAY;

/// Translates a flow that has no entry; false if it stays as it is. `inside` says that it is for an
/// address of the node or the pod network, if for no Service.
#[inline(always)]
pub fn first(
    skb: &Skb,
    scratch: &mut Scratch,
    origin: Origin,
    inside: bool,
) -> Result<bool, DropReason> {
    let inside = if inside { INSIDE } else { 0 };
    match balance(skb, scratch, mode(origin) | inside) {
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
    match origin {
        Origin::Pod => 0,
        Origin::Host => FROM_HOST,
        Origin::Underlay => FROM_UNDERLAY,
        Origin::Overlay => FROM_OVERLAY,
    }
}

#[inline(always)]
fn reason(code: u32) -> DropReason {
    DropReason::from_code(code - REFUSED).unwrap_or(DropReason::BackendMissing)
}

/// Decides about a new flow, and records it if it is translated.
#[inline(always)]
fn balance(skb: &Skb, _scratch: &mut Scratch, mode: u32) -> u32 {
    settle();
    let outcome = balance_flow(skb.context(), mode);
    settle();
    outcome
}

/// The same about the packet in this CPU's scratch memory. A global function, which the verifier looks
/// at by itself and once, and not in every way that leads to it.
#[expect(
    unsafe_code,
    reason = "the linker keeps only functions with a name global"
)]
// SAFETY: no other symbol has the name.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn balance_flow(context: *mut __sk_buff, mode: u32) -> u32 {
    decide(context, mode)
}

#[inline(always)]
fn decide(context: *mut __sk_buff, mode: u32) -> u32 {
    let prepared = if mode & ASIDE != 0 {
        balance_aside(mode)
    } else {
        match balance_choose(mode) {
            TRANSLATED => balance_place(context, mode),
            // Only what pods ask of the outside gets another address for its own sake.
            NOT_A_SERVICE if mode & NO_WAY_OUT == 0 => balance_outside(context),
            other => other,
        }
    };
    if prepared != TRANSLATED {
        return prepared;
    }
    let recorded = balance_record();
    if recorded == TRANSLATED && mode & (AGAIN | ASIDE) == 0 {
        if let Ok(scratch) = scratch() {
            let made = &scratch.forward;
            events::flow_made(&Skb::new(context), made.service_id, made.backend_id);
        }
    }
    recorded
}

/// A flow that is no Service's, as it is: its answers are to be told from another's.
#[expect(
    unsafe_code,
    reason = "the linker keeps only functions with a name global"
)]
// SAFETY: no other symbol has the name.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn balance_aside(mode: u32) -> u32 {
    let Ok(scratch) = scratch() else {
        return NOT_A_SERVICE;
    };
    scratch.masquerade = false;
    let ifindex = if mode & FROM_HOST != 0 {
        0
    } else {
        scratch.packet.ifindex
    };
    track(scratch, ifindex);
    TRANSLATED
}

/// Translates to the backend that was chosen.
#[expect(
    unsafe_code,
    reason = "the linker keeps only functions with a name global"
)]
// SAFETY: no other symbol has the name.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn balance_place(context: *mut __sk_buff, mode: u32) -> u32 {
    let Ok(scratch) = scratch() else {
        return NOT_A_SERVICE;
    };
    to_backend(&Skb::new(context), scratch, mode);
    TRANSLATED
}

/// Masquerades what is asked of the outside.
#[expect(
    unsafe_code,
    reason = "the linker keeps only functions with a name global"
)]
// SAFETY: no other symbol has the name.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn balance_outside(context: *mut __sk_buff) -> u32 {
    let Ok(scratch) = scratch() else {
        return NOT_A_SERVICE;
    };
    if to_outside(&Skb::new(context), scratch) {
        TRANSLATED
    } else {
        NOT_A_SERVICE
    }
}

/// Finds the frontend and the backend of a new flow. Each step is a global function of its own, so that
/// the ways through them add up and do not multiply.
#[expect(
    unsafe_code,
    reason = "the linker keeps only functions with a name global"
)]
// SAFETY: no other symbol has the name.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn balance_choose(mode: u32) -> u32 {
    let Ok(scratch) = scratch() else {
        return NOT_A_SERVICE;
    };
    let flow = &scratch.packet.flow;
    if mode & AGAIN != 0 {
        forget(flow);
        scratch.translation = Translation::identity(flow);
    }
    scratch.masquerade = false;
    scratch.packet.handed = false;
    let Some(frontend) = frontend(scratch, mode) else {
        return NOT_A_SERVICE;
    };
    match choose(scratch, mode, frontend) {
        Ok(()) => TRANSLATED,
        Err(reason) => REFUSED + reason as u32,
    }
}

#[inline(always)]
fn choose(scratch: &mut Scratch, mode: u32, frontend: &FrontendValue) -> Result<(), DropReason> {
    let observed = flow::observed(scratch.packet.flow.protocol, scratch.packet.tcp_flags);
    if observed & FLOW_RST != 0 {
        return Err(DropReason::UntrackedReset);
    }
    scratch.packet.external = mode & EXTERNAL != 0;
    admit(scratch, mode, frontend)?;
    settle();
    let number = if frontend.flags & FRONTEND_MAGLEV != 0 {
        select::tuple_hash(&scratch.packet.flow)
    } else {
        skb::random()
    };
    let handed = mode & FROM_OVERLAY != 0;
    let (id, backend) = choose::backend(frontend, &scratch.client, number, handed)?;
    scratch.chosen_id = id;
    scratch.chosen = *backend;
    scratch.frontend_flags = frontend.flags;
    scratch.service_id = frontend.service_id;
    Ok(())
}

/// Writes the flow.
#[expect(
    unsafe_code,
    reason = "the linker keeps only functions with a name global"
)]
// SAFETY: no other symbol has the name.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn balance_record() -> u32 {
    let Ok(scratch) = scratch() else {
        return NOT_A_SERVICE;
    };
    match record(scratch) {
        Ok(()) => TRANSLATED,
        Err(reason) => REFUSED + reason as u32,
    }
}

/// The frontend that a flow is for.
#[inline(always)]
fn frontend(scratch: &Scratch, mode: u32) -> Option<&'static FrontendValue> {
    let flow = &scratch.packet.flow;
    let mut key = FrontendKey {
        address: flow.destination,
        port: flow.destination_port,
        protocol: flow.protocol,
        scope: if mode & EXTERNAL != 0 {
            SCOPE_EXTERNAL
        } else {
            SCOPE_CLUSTER
        },
    };
    let found = lookup::frontend(&key);
    if mode & FROM_OVERLAY == 0 || found.is_some() {
        return found;
    }
    // A port of the node that has handed it to this one, where it is a port of this node as well.
    key.address = scratch.packet.node();
    lookup::frontend(&key).filter(|frontend| frontend.flags & FRONTEND_NODE_PORT != 0)
}

/// Translates to the backend that was chosen.
#[inline(always)]
fn to_backend(skb: &Skb, scratch: &mut Scratch, mode: u32) {
    let address = scratch.chosen.address;
    let place = place(skb, scratch, &address, mode);
    let source = source(scratch, mode, place);
    let flow = &scratch.packet.flow;
    scratch.translation = Translation::to_backend(flow, &scratch.chosen, source);
    if source.words() == scratch.packet.range().words() {
        // Not a hairpin, even if client and backend have the node's one address.
        scratch.translation.source = source;
    }
    if scratch.masquerade {
        scratch.translation = scratch.translation.masqueraded(source, skb::random());
    }
    let observed = flow::observed(flow.protocol, scratch.packet.tcp_flags);
    let new = NewFlow {
        now: skb::now(),
        service_id: scratch.service_id,
        backend_id: scratch.chosen_id,
        backend_generation: scratch.chosen.generation,
        // Only what pods send has been checked.
        ifindex: if mode & (FROM_HOST | EXTERNAL) != 0 {
            0
        } else {
            scratch.packet.ifindex
        },
        observed: observed | kind(scratch, mode),
    };
    scratch.forward = new.forward_half(flow, &scratch.translation);
}

/// What an entry says about a client outside.
#[inline(always)]
fn kind(scratch: &Scratch, mode: u32) -> u32 {
    let mut kind = 0;
    // What the node routes into the pod network for others, it routes back as well.
    let routed = mode & FROM_HOST != 0 && scratch.client.words() != Address::UNSPECIFIED.words();
    if mode & EXTERNAL != 0 || routed {
        kind |= FLOW_EXTERNAL;
    }
    if mode & FROM_OVERLAY != 0 {
        kind |= FLOW_DSR;
    }
    if scratch.packet.handed {
        kind |= FLOW_HANDED;
    }
    kind
}

/// Whether the client may use the Service, and as whom affinity knows it.
#[inline(always)]
fn admit(scratch: &mut Scratch, mode: u32, frontend: &FrontendValue) -> Result<(), DropReason> {
    let source = scratch.packet.flow.source;
    let from_node = mode & FROM_HOST != 0
        && (source.words() == scratch.packet.gateway().words()
            || source.words() == scratch.packet.node().words());
    scratch.client = source;
    if from_node {
        scratch.client = Address::UNSPECIFIED;
    } else if mode & (FROM_HOST | EXTERNAL) == 0 {
        if let Some(workload) = lookup::workload(&source) {
            let cookie = workload.netns_cookie;
            if cookie != 0 {
                let words = [cookie as u32, (cookie >> 32) as u32, 0, 0];
                scratch.client = Address::from_words(words);
            }
        }
    }
    if mode & FROM_UNDERLAY != 0 {
        // A pod's address does not come by the underlay, and must not be believed there.
        let inside = deliver::route(&source, scratch.packet.v4, Origin::Pod);
        if matches!(
            inside,
            Route::Workload(_) | Route::Remote(_) | Route::Gateway
        ) {
            return Err(DropReason::SpoofedSource);
        }
    }
    // What another node has handed to this one was admitted there.
    if frontend.flags & FRONTEND_SOURCE_RANGES == 0 || mode & FROM_OVERLAY != 0 {
        return Ok(());
    }
    scratch.range = SourceRangeKey {
        prefix_len: SOURCE_RANGE_BITS,
        service_id: frontend.service_id,
        address: if from_node {
            scratch.packet.node()
        } else {
            source
        },
    };
    settle();
    if lookup::in_source_ranges(&scratch.range) {
        Ok(())
    } else {
        Err(DropReason::SourceRange)
    }
}

/// The source of a new flow. Its answers must come by a hook that translates them back.
#[inline(always)]
fn source(scratch: &mut Scratch, mode: u32, place: Place) -> Address {
    let packet = &scratch.packet;
    let flow = &packet.flow;
    let from_host = mode & FROM_HOST != 0;
    let by_option = mode & FROM_UNDERLAY != 0 && scratch.frontend_flags & FRONTEND_MASQUERADE != 0;
    match place {
        Place::Outside => {
            scratch.masquerade = true;
            packet.node()
        }
        // The node is both ends, or its answer would leave by the underlay. With an address that is
        // not the node's own the answer goes into the pod network and comes by `host_egress`.
        Place::Node if mode & EXTERNAL != 0 => packet.range(),
        Place::Node if from_host && is_of_node(packet, scratch.frontend_flags) => packet.range(),
        Place::Node if from_host => flow.destination,
        // A socket of the node that is bound to another of its addresses: the answer must come back
        // through the pod network, so it is asked for from the gateway's address.
        Place::Pod | Place::Remote if from_host => packet.gateway(),
        Place::Pod | Place::Remote if by_option => {
            scratch.masquerade = true;
            packet.gateway()
        }
        Place::Remote if mode & FROM_UNDERLAY != 0 => {
            let source = flow.source;
            scratch.packet.handed = true;
            source
        }
        _ => flow.source,
    }
}

/// Whether a frontend's address is one of the node's own.
#[inline(always)]
fn is_of_node(packet: &Packet, flags: u16) -> bool {
    flags & FRONTEND_NODE_PORT != 0 || packet.flow.destination.words() == packet.node().words()
}

/// Masquerades what a pod asks of the world outside; false for what stays as it is. An answer, or
/// the rest of a connection that somebody outside has opened, must keep the pod's address.
#[inline(always)]
fn to_outside(skb: &Skb, scratch: &mut Scratch) -> bool {
    let packet = &scratch.packet;
    let flow = packet.flow;
    let asks = match flow.protocol {
        TCP => flow::opens(TCP, packet.tcp_flags),
        ICMP | ICMPV6 => flow.source_port.be != 0,
        _ => true,
    };
    if !asks || !is_outside(skb, scratch, &flow.destination) {
        return false;
    }
    let node = scratch.packet.node();
    scratch.masquerade = true;
    scratch.translation = Translation::identity(&flow).masqueraded(node, skb::random());
    let ifindex = scratch.packet.ifindex;
    track(scratch, ifindex);
    true
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
    /// A pod of this node, or nowhere.
    Pod,
    /// A pod of another node.
    Remote,
    /// This node, or nowhere.
    Node,
    /// Where answers come in by the underlay.
    Outside,
}

#[inline(always)]
fn place(skb: &Skb, scratch: &mut Scratch, address: &Address, mode: u32) -> Place {
    let origin = if mode & FROM_OVERLAY != 0 {
        Origin::Overlay
    } else {
        Origin::Pod
    };
    match deliver::route(address, scratch.packet.v4, origin) {
        Route::Workload(_) => Place::Pod,
        Route::Remote(_) => Place::Remote,
        Route::Gateway | Route::Node => Place::Node,
        Route::Elsewhere => match way_out(skb, scratch, address) {
            // Its route leads back into the pod network, where it will be refused.
            Some(ifindex) if ifindex == HOST_IFINDEX.load() => Place::Pod,
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
