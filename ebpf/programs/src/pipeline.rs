//! What the hooks have in common: the order in which a packet is looked at.

use tholepin_ebpf_abi::DropReason;
use tholepin_ebpf_abi::conntrack::FLOW_HANDED;
use tholepin_ebpf_abi::globals::dsr_vni;
use tholepin_ebpf_core::{Origin, Translation, Verdict, flow, icmp, packet};

use crate::deliver::Route;
use crate::globals::{ENFORCE_SOURCE, VNI, enabled};
use crate::lookup::{self, Half};
use crate::parse::{Packet, parse};
use crate::scratch::{Scratch, scratch};
use crate::skb::Skb;
use crate::{balance, conntrack, deliver, events, fast, policy, refuse, related};

/// One packet through one hook. `origin` is a constant in each, so only its branches remain.
#[inline(always)]
pub fn run(skb: &Skb, origin: Origin) -> i32 {
    if let Some(action) = fast::run(skb, origin) {
        return action;
    }
    let scratch = match scratch() {
        Ok(scratch) => scratch,
        Err(reason) => return refuse::drop(skb, reason),
    };
    match parse(skb, &mut scratch.packet) {
        Ok(true) => {}
        // A pod's own kernel needs none (its neighbours are permanent); one that asks all the same
        // may be answered by the node's.
        Ok(false) if origin != Origin::Overlay => return Verdict::Pass.into_tc_action(),
        Ok(false) => return refuse::drop(skb, DropReason::UnsupportedEtherType),
        Err(reason) => return refuse::drop(skb, reason),
    }
    match forward(skb, scratch, origin) {
        Ok(verdict) => verdict.into_tc_action(),
        Err(reason) if origin == Origin::Overlay => refuse::drop(skb, reason),
        Err(reason) => {
            events::dropped(skb, reason);
            refuse::refuse(skb, scratch, reason as u32, origin == Origin::Host)
        }
    }
}

#[inline(always)]
fn forward(skb: &Skb, scratch: &mut Scratch, origin: Origin) -> Result<Verdict, DropReason> {
    let Some(route) = resolve(skb, scratch, origin)? else {
        return Ok(Verdict::Pass);
    };
    policy::enforce(skb, scratch, route, origin)?;
    deliver::send(skb, &scratch.packet, &scratch.translation, route, origin)
}

/// Finds out what the packet becomes and where it goes; `None` for what is the kernel's business.
#[inline(always)]
fn resolve(skb: &Skb, scratch: &mut Scratch, origin: Origin) -> Result<Option<Route>, DropReason> {
    if scratch.packet.may_be_tracked() {
        let half = Half::find_translated(&scratch.packet.flow);
        if let Some(half) = half.filter(|half| is_of_hook(*half, origin)) {
            if origin == Origin::Pod && half.entry().ifindex != scratch.packet.ifindex {
                approve_source(&scratch.packet)?;
                half.set_ifindex(scratch.packet.ifindex);
            }
            let own_client = origin == Origin::Pod && conntrack::answers_directly(half);
            conntrack::advance(skb, scratch, half, origin)?;
            if own_client {
                conntrack::answer_own_client(scratch);
            }
            return Ok(Some(route(scratch, origin)));
        }
    }
    if !scratch.packet.has_ports() && link_scope(&scratch.packet, origin)? {
        return Ok(None);
    }
    if origin == Origin::Pod {
        approve_source(&scratch.packet)?;
    }
    scratch.translation = Translation::identity(&scratch.packet.flow);
    if icmp::is_error(scratch.packet.flow.protocol, scratch.packet.icmp_type)
        && scratch.packet.has_header
    {
        related::translate(skb, &mut scratch.packet, &mut scratch.translation)?;
    }
    // A pod's address is no Service's, so most of what is not for a Service ends here.
    let untranslated = route(scratch, origin);
    if origin == Origin::Overlay && is_handed(skb, &scratch.packet, untranslated) {
        return match balance::first(skb, scratch, origin, false)? {
            true => Ok(Some(route(scratch, origin))),
            false => Err(DropReason::UnknownFrontend),
        };
    }
    // The node's own ports may be a Service's as well.
    let of_node = origin == Origin::Pod && matches!(untranslated, Route::Node);
    let decided = !scratch.packet.may_be_tracked()
        || !of_node && !matches!(untranslated, Route::Elsewhere)
        || origin == Origin::Overlay;
    let mut translated = false;
    if !decided {
        if packet::is_link_scope(&scratch.packet.flow.destination) {
            return Err(DropReason::UnsupportedMulticast);
        }
        translated = balance::first(skb, scratch, origin, of_node)?;
    }
    if !translated && (decided || of_node) {
        if flow::opens(scratch.packet.flow.protocol, scratch.packet.tcp_flags)
            && (origin == Origin::Pod
                || origin == Origin::Host
                    && matches!(untranslated, Route::Workload(_) | Route::Remote(_)))
            && Half::find_translated(&scratch.packet.flow.reversed()).is_some()
        {
            balance::aside(skb, scratch, origin)?;
        }
        return Ok(Some(untranslated));
    }
    if !translated {
        return Ok(Some(Route::Elsewhere));
    }
    Ok(Some(route(scratch, origin)))
}

/// Whether a flow's packets may come by a hook. What was handed to another node's does not come back.
#[inline(always)]
fn is_of_hook(half: Half, origin: Origin) -> bool {
    origin != Origin::Overlay || half.entry().flags & FLOW_HANDED == 0
}

/// Whether another node has handed this one a packet as its client sent it.
#[inline(always)]
fn is_handed(skb: &Skb, packet: &Packet, route: Route) -> bool {
    packet.may_be_tracked()
        && matches!(route, Route::Elsewhere | Route::Node)
        && skb.tunnel_id() == Some(dsr_vni(VNI.load()))
}

/// The route to where the packet goes after translation.
#[inline(always)]
pub fn route(scratch: &Scratch, origin: Origin) -> Route {
    deliver::route(&scratch.translation.destination, scratch.packet.v4, origin)
}

/// A pod may send from its own addresses only.
#[inline(always)]
fn approve_source(packet: &Packet) -> Result<(), DropReason> {
    if !enabled(&ENFORCE_SOURCE) {
        return Ok(());
    }
    match lookup::workload(&packet.flow.source) {
        Some(workload) if workload.ifindex == packet.ifindex => Ok(()),
        _ => Err(DropReason::SpoofedSource),
    }
}

/// Whether this is neighbour discovery or the like, which is the kernels' own business. Other
/// traffic of link scope is refused: the pod network is routed.
#[inline(always)]
fn link_scope(packet: &Packet, origin: Origin) -> Result<bool, DropReason> {
    let of_link = packet::is_link_scope(&packet.flow.destination)
        || packet::is_link_scope(&packet.flow.source);
    if !of_link {
        return Ok(false);
    }
    let control = icmp::is_link_control(packet.flow.protocol, packet.icmp_type);
    if control && origin != Origin::Overlay {
        return Ok(true);
    }
    Err(DropReason::UnsupportedMulticast)
}
