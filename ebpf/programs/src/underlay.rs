//! What arrives from the network the nodes are in, and what the node sends to itself.
//!
//! Clients outside that ask for a Service, answers to what left the pod network, and processes of the
//! node that ask for a Service at one of the node's own addresses. Everything else goes on untouched,
//! and most of it after a look at its addresses and ports alone ([`gate`]).

use tholepin_ebpf_abi::DropReason;
use tholepin_ebpf_core::{Origin, Translation, Verdict, icmp};

use crate::deliver::Route;
use crate::lookup::Half;
use crate::parse::parse;
use crate::scratch::{Scratch, scratch};
use crate::skb::Skb;
use crate::{balance, conntrack, deliver, gate, policy, refuse, related};

/// `TC_ACT_UNSPEC`, which is also `TCX_NEXT`: other programs on the interface, which is not ours
/// alone, see the packet as well.
const NEXT: i32 = -1;

/// One packet from the underlay.
#[inline(always)]
pub fn run(skb: &Skb) -> i32 {
    if gate::admits_underlay(skb) {
        translated(skb, Origin::Underlay)
    } else {
        NEXT
    }
}

/// One packet of the node to itself.
#[inline(always)]
pub fn run_local(skb: &Skb) -> i32 {
    if gate::admits_local(skb) {
        translated(skb, Origin::Host)
    } else {
        NEXT
    }
}

/// Sends on what is translated, and leaves the rest alone.
#[inline(always)]
fn translated(skb: &Skb, origin: Origin) -> i32 {
    let Ok(scratch) = scratch() else {
        return NEXT;
    };
    match parse(skb, &mut scratch.packet) {
        Ok(true) => {}
        // What cannot be read is the kernel's to judge: it is not known to be ours.
        Ok(false) | Err(_) => return NEXT,
    }
    match forward(skb, scratch, origin) {
        Ok(Some(verdict)) => verdict.into_tc_action(),
        Ok(None) => NEXT,
        Err(reason) if origin == Origin::Host || scratch.packet.external => {
            refuse::refuse(skb, scratch, reason as u32, origin == Origin::Host)
        }
        Err(reason) => refuse::drop(skb, reason),
    }
}

/// Translates and delivers a packet; `None` for what is no Service's and no answer.
#[inline(always)]
fn forward(
    skb: &Skb,
    scratch: &mut Scratch,
    origin: Origin,
) -> Result<Option<Verdict>, DropReason> {
    if scratch.packet.may_be_tracked() {
        if !tracked(skb, scratch, origin)? {
            return Ok(None);
        }
    } else {
        let packet = &scratch.packet;
        if !icmp::is_error(packet.flow.protocol, packet.icmp_type) || !packet.has_header {
            return Ok(None);
        }
        scratch.translation = Translation::identity(&packet.flow);
        related::translate(skb, &mut scratch.packet, &mut scratch.translation)?;
        if scratch.translation.destination == scratch.packet.flow.destination {
            return Ok(None);
        }
    }
    let route = route(scratch, origin);
    if scratch.packet.handed {
        scratch.translation = Translation::identity(&scratch.packet.flow);
        scratch.packet.translated = false;
        if !matches!(route, Route::Remote(_)) {
            // The backend's node has left the cluster.
            return Err(DropReason::NoRoute);
        }
    }
    policy::enforce(skb, scratch, route, origin)?;
    let (packet, translation) = (&scratch.packet, &scratch.translation);
    deliver::send(skb, packet, translation, route, origin).map(Some)
}

/// Finds or makes the flow of a packet; false if it has none.
#[inline(always)]
fn tracked(skb: &Skb, scratch: &mut Scratch, origin: Origin) -> Result<bool, DropReason> {
    if let Some(half) = Half::find_translated(&scratch.packet.flow) {
        conntrack::advance(skb, scratch, half, origin)?;
        return Ok(scratch.packet.translated || scratch.packet.handed);
    }
    // An echo's identifier is no port.
    if scratch.packet.echo {
        return Ok(false);
    }
    balance::first(skb, scratch, origin, true)
}

/// Where a packet goes. An answer to what left the pod network never goes to another node: it has come
/// as far as it should.
#[inline(always)]
fn route(scratch: &Scratch, origin: Origin) -> Route {
    let origin = if scratch.packet.external {
        Origin::Pod
    } else {
        origin
    };
    deliver::route(&scratch.translation.destination, scratch.packet.v4, origin)
}
