//! NetworkPolicy: whether the pods at a packet's ends allow it.
//!
//! Looked at last, when it is clear what the packet becomes and where it goes, so that one place
//! judges whatever is delivered to a pod or comes from one. A pod that no policy selects costs a look
//! at the two words of its `WORKLOADS` value. Where one end is isolated, every flow has both halves in
//! `CONNTRACK`, which let its answers through, and are stamped with the generations of its ends: what
//! has another stamp is judged again, so a change of policy reaches running flows with their next
//! packet.
//!
//! Order against the agent: it writes what a policy allows, then the pod's policy ids, then the
//! generation. Here the generation is read first, so an old verdict never gets a new stamp.

use aya_ebpf::bindings::{BPF_ANY, BPF_NOEXIST};
use tholepin_ebpf_abi::conntrack::{FLOW_DIRECT, FLOW_FROM_NODE, FLOW_REPLY};
use tholepin_ebpf_abi::policy::{POLICY_PEER_BITS, POLICY_PORT_BITS, PORTS_ALL, PORTS_NONE};
use tholepin_ebpf_abi::workload::POLICY_DENY_ALL;
use tholepin_ebpf_abi::{Address, DropReason, PolicyPeerKey, PolicyPortKey, WorkloadValue};
use tholepin_ebpf_core::policy::{self, Ends, Taken};
use tholepin_ebpf_core::rewrite::{self, NewFlow};
use tholepin_ebpf_core::{Origin, Translation, flow};

use crate::deliver::Route;
use crate::globals::{gateway_v4, gateway_v6, node_v4, node_v6};
use crate::lookup::{self, Half};
use crate::maps::{CONNTRACK, POLICY_PEERS, POLICY_PORTS};
use crate::scratch::{Scratch, scratch, settle};
use crate::skb::{self, Skb};

const ALLOWED: u32 = 0;
const REFUSED: u32 = 1; // Plus the reason's code.

/// Arguments of [`policy_judge`].
const FROM_POD: u32 = 1;
const FROM_NODE: u32 = 2;

/// Set in every stamp: an entry that no policy has judged has 0. The generation of a pod is a clock
/// that will not get so far.
const STAMPED: u32 = 1 << 31;

/// What is looked up while a flow is judged.
#[repr(C)]
pub struct Questions {
    pub ends: Ends,
    pub peer: PolicyPeerKey,
    pub port: PolicyPortKey,
}

/// Whether the packet may go. Whoever sends a packet to a pod or takes one from a pod asks this first.
#[inline(always)]
pub fn enforce(
    skb: &Skb,
    scratch: &Scratch,
    route: Route,
    origin: Origin,
) -> Result<(), DropReason> {
    let from = match origin {
        Origin::Pod => lookup::workload(&scratch.packet.flow.source),
        _ => None,
    };
    let to = match route {
        Route::Workload(workload) => Some(workload),
        _ => None,
    };
    if !is_isolated(from) && !is_isolated(to) {
        return Ok(());
    }
    settle();
    let mode = match origin {
        Origin::Pod => FROM_POD,
        Origin::Host if skb.is_of_this_node() => FROM_NODE,
        _ => 0,
    };
    match policy_judge(mode) {
        ALLOWED => Ok(()),
        refused => {
            Err(DropReason::from_code(refused - REFUSED).unwrap_or(DropReason::PolicyIngress))
        }
    }
}

#[inline(always)]
fn is_isolated(workload: Option<&WorkloadValue>) -> bool {
    workload.is_some_and(|workload| workload.ingress_policy | workload.egress_policy != 0)
}

/// Judges the packet in this CPU's scratch memory, of a flow that has an isolated end.
///
/// A global function, which the verifier looks at by itself and once. As a part of each hook it was
/// followed through every way that leads to it: 376,000 instructions in place of 45,000 (6.18).
#[expect(
    unsafe_code,
    reason = "the linker keeps only functions with a name global"
)]
// SAFETY: no other symbol has the name.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn policy_judge(mode: u32) -> u32 {
    match scratch() {
        Ok(scratch) => judge(scratch, mode),
        Err(reason) => REFUSED + reason as u32,
    }
}

#[inline(always)]
fn judge(scratch: &mut Scratch, mode: u32) -> u32 {
    let generation = generation(scratch, mode);
    let related = scratch.packet.related;
    if related != 0 && related == generation {
        return ALLOWED;
    }
    let now = skb::now();
    scratch.reply_key = scratch.translation.reply_key(scratch.packet.flow.protocol);
    settle();
    let Some(half) = Half::find(&scratch.packet.flow) else {
        return judge_first(scratch, generation, now, mode);
    };
    let direct = half.entry().flags & FLOW_DIRECT != 0;
    if direct && begins_anew(scratch, half, now) {
        return judge_first(scratch, generation, now, mode);
    }
    if half.entry().policy_generation != generation {
        let code = judge_again(scratch, half, generation, mode);
        if code != ALLOWED {
            return code;
        }
    }
    if direct {
        note(scratch, half, now);
    }
    ALLOWED
}

/// The generations of both ends that are pods of this node, added.
#[inline(always)]
fn generation(scratch: &Scratch, mode: u32) -> u32 {
    let of = |address: &Address| {
        lookup::workload(address).map_or(0, |workload| workload.policy_generation)
    };
    let from = if mode & FROM_POD != 0 {
        of(&scratch.packet.flow.source)
    } else {
        0
    };
    from.wrapping_add(of(&scratch.translation.destination)) | STAMPED
}

/// Judges the next packet of a flow after what its ends allow has changed, or its first after another
/// stage has made its entry.
#[inline(always)]
fn judge_again(scratch: &mut Scratch, half: Half, generation: u32, mode: u32) -> u32 {
    let entry = half.entry();
    let flags = entry.flags;
    let unjudged = entry.policy_generation == 0;
    if flags & FLOW_FROM_NODE == 0 && mode & FROM_NODE == 0 {
        let answer = flags & FLOW_REPLY != 0;
        let code = ask(scratch, answer);
        if code != ALLOWED {
            // A flow that never was allowed keeps neither ports nor room.
            if unjudged && !answer {
                // They may be gone already, which is as good.
                CONNTRACK.remove(&scratch.reply_key).ok();
                CONNTRACK.remove(&scratch.packet.flow).ok();
            }
            return code;
        }
    }
    half.set_policy_generation(generation);
    if mode & FROM_NODE != 0 {
        half.set_flags(FLOW_FROM_NODE);
        if let Some(other) = Half::find(&scratch.reply_key) {
            other.set_flags(FLOW_FROM_NODE);
        }
    }
    ALLOWED
}

/// Judges a packet that has no entry, and makes one.
#[inline(always)]
fn judge_first(scratch: &mut Scratch, generation: u32, now: u32, mode: u32) -> u32 {
    let mut answer = false;
    if mode & FROM_NODE == 0 {
        let flow = &scratch.packet.flow;
        let recent = is_recent(&flow.source, now) || is_recent(&flow.destination, now);
        let taken = policy::taken_for(flow, scratch.packet.tcp_flags, recent);
        answer = matches!(taken, Taken::Answer);
        let mut code = ask(scratch, answer);
        if code == ALLOWED && matches!(taken, Taken::Either) {
            code = ask(scratch, true);
        }
        if code != ALLOWED {
            return code;
        }
    }
    track(scratch, generation, now, answer, mode)
}

/// Whether what the pod at `address` allows has changed of late.
#[inline(always)]
fn is_recent(address: &Address, now: u32) -> bool {
    lookup::workload(address).is_some_and(|workload| {
        is_isolated(Some(workload)) && policy::is_recent(now, workload.policy_generation)
    })
}

/// Writes both halves of a flow that is not translated.
#[inline(always)]
fn track(scratch: &mut Scratch, generation: u32, now: u32, answer: bool, mode: u32) -> u32 {
    let flow = &scratch.packet.flow;
    let new = NewFlow {
        now,
        service_id: 0,
        backend_id: 0,
        backend_generation: 0,
        ifindex: scratch.packet.ifindex,
        observed: flow::observed(flow.protocol, scratch.packet.tcp_flags),
    };
    scratch.forward = new.forward_half(flow, &scratch.translation);
    scratch.forward.policy_generation = generation;
    scratch.forward.flags |= FLOW_DIRECT;
    if mode & FROM_NODE != 0 {
        scratch.forward.flags |= FLOW_FROM_NODE;
    }
    if answer {
        scratch.forward.flags |= FLOW_REPLY;
    }
    scratch.reply = rewrite::other_half(flow, &scratch.forward);
    settle();
    let written = insert_other(scratch)
        && CONNTRACK
            .insert(&scratch.packet.flow, &scratch.forward, u64::from(BPF_ANY))
            .is_ok();
    if written {
        ALLOWED
    } else {
        // Without an entry its answers would be refused; better to refuse what asks.
        REFUSED + DropReason::ConntrackFull as u32
    }
}

/// Writes the half of the other direction. One that belongs to a translated flow stays: the packets
/// of that direction are its.
#[inline(always)]
fn insert_other(scratch: &Scratch) -> bool {
    let key = &scratch.reply_key;
    if CONNTRACK
        .insert(key, &scratch.reply, u64::from(BPF_NOEXIST))
        .is_ok()
    {
        return true;
    }
    match Half::find(key) {
        Some(half) if half.entry().flags & FLOW_DIRECT == 0 => true,
        _ => CONNTRACK
            .insert(key, &scratch.reply, u64::from(BPF_ANY))
            .is_ok(),
    }
}

#[inline(always)]
fn begins_anew(scratch: &Scratch, half: Half, now: u32) -> bool {
    let protocol = scratch.packet.flow.protocol;
    let tcp_flags = scratch.packet.tcp_flags;
    let entry = half.entry();
    let mut of_both = entry.flags;
    // Only a SYN asks how the connection stands.
    if flow::opens(protocol, tcp_flags) {
        if let Some(other) = Half::find(&scratch.reply_key) {
            of_both |= other.entry().flags;
        }
    }
    let idle = now.saturating_sub(entry.last_seen);
    policy::begins_anew(protocol, tcp_flags, entry.flags, of_both, idle)
}

/// What every packet of a flow leaves behind.
#[inline(always)]
fn note(scratch: &mut Scratch, half: Half, now: u32) {
    let flow = &scratch.packet.flow;
    half.set_flags(flow::observed(flow.protocol, scratch.packet.tcp_flags));
    if now == half.entry().last_seen {
        return;
    }
    // As in `conntrack::refresh`: at most once a tick, so that one-way traffic keeps both halves.
    half.set_last_seen(now);
    if let Some(other) = Half::find(&scratch.reply_key) {
        return other.set_last_seen(now);
    }
    scratch.reply = rewrite::other_half(flow, half.entry());
    settle();
    // Without room the flow goes on in this direction, and the next tick tries again.
    CONNTRACK.insert(&scratch.reply_key, &scratch.reply, 0).ok();
}

/// Asks whether the pods of this node among the ends of the packet's flow allow it.
#[inline(always)]
fn ask(scratch: &mut Scratch, answer: bool) -> u32 {
    scratch.questions.ends = if answer {
        Ends::of_answer(&scratch.packet.flow, &scratch.translation)
    } else {
        Ends::of_request(&scratch.packet.flow, &scratch.translation)
    };
    settle();
    allowed(&mut scratch.questions)
}

#[inline(never)]
fn allowed(questions: &mut Questions) -> u32 {
    // A pod cannot be kept from itself, nor from the node it is on.
    if questions.ends.client.words() == questions.ends.server.words() {
        return ALLOWED;
    }
    let egress = lookup::workload(&questions.ends.client).map_or(0, |pod| pod.egress_policy);
    if egress != 0 && !is_node(&questions.ends.server) {
        questions.peer.address = questions.ends.server;
        if !admits(questions, egress) {
            return REFUSED + DropReason::PolicyEgress as u32;
        }
    }
    let ingress = lookup::workload(&questions.ends.server).map_or(0, |pod| pod.ingress_policy);
    if ingress != 0 && !is_node(&questions.ends.client) {
        questions.peer.address = questions.ends.client;
        if !admits(questions, ingress) {
            return REFUSED + DropReason::PolicyIngress as u32;
        }
    }
    ALLOWED
}

/// Whether an address is one of this node's own.
#[inline(always)]
fn is_node(address: &Address) -> bool {
    let words = address.words();
    if address.is_v4() {
        words == gateway_v4().words() || words == node_v4().words()
    } else {
        words == gateway_v6().words() || words == node_v6().words()
    }
}

/// Whether a policy lets a peer use the flow's port. Whatever is not found is not allowed.
#[inline(always)]
fn admits(questions: &mut Questions, policy_id: u32) -> bool {
    if policy_id == POLICY_DENY_ALL {
        return false;
    }
    questions.peer.prefix_len = POLICY_PEER_BITS;
    questions.peer.policy_id = policy_id;
    settle();
    let Some(peer) = POLICY_PEERS.get(&questions.peer) else {
        return false;
    };
    match peer.port_set {
        PORTS_NONE => false,
        PORTS_ALL => true,
        port_set => {
            questions.port.prefix_len = POLICY_PORT_BITS;
            questions.port.port_set = port_set;
            questions.port.protocol = questions.ends.protocol;
            questions.port.port = questions.ends.port;
            settle();
            POLICY_PORTS.get(&questions.port).is_some()
        }
    }
}
