//! Where a packet goes, and sending it there.

use tholepin_ebpf_abi::globals::dsr_vni;
use tholepin_ebpf_abi::names::{HOST_MAC, OVERLAY_SOURCE_MAC};
use tholepin_ebpf_abi::workload::WORKLOAD_SHAPED;
use tholepin_ebpf_abi::{Address, DropReason, RouteKey, RouteValue, WorkloadValue};
use tholepin_ebpf_core::{Origin, Translation, Verdict};

use crate::globals::{
    HOST_IFINDEX, OVERLAY_IFINDEX, OVERLAY_MTU, REDIRECT_PEER, VNI, enabled, gateway_v4,
    gateway_v6, node_v4, node_v6,
};
use crate::parse::Packet;
use crate::skb::{self, Skb, TunnelKey};
use crate::{lookup, nat};

/// Hop limit of the outer header.
const TUNNEL_TTL: u8 = 64;

/// Where a packet goes.
#[derive(Clone, Copy)]
pub enum Route {
    /// A pod of this node.
    Workload(&'static WorkloadValue),
    /// Another node.
    Remote(&'static RouteValue),
    /// The node's own address in the pod network.
    Gateway,
    /// The node's own address in the underlay.
    Node,
    /// None of these: the kernel's routing decides.
    Elsewhere,
}

/// The route to an address.
#[inline(always)]
pub fn route(destination: &Address, v4: bool, origin: Origin) -> Route {
    if let Some(workload) = lookup::workload(destination) {
        return Route::Workload(workload);
    }
    let gateway = if v4 { gateway_v4() } else { gateway_v6() };
    if destination.words() == gateway.words() {
        return Route::Gateway;
    }
    let node = if v4 { node_v4() } else { node_v6() };
    if destination.words() == node.words() {
        return Route::Node;
    }
    // What comes from another node never goes to one: two nodes that disagree about a range would
    // play ping-pong.
    if matches!(origin, Origin::Overlay | Origin::Underlay) || OVERLAY_IFINDEX.load() == 0 {
        return Route::Elsewhere;
    }
    let key = RouteKey {
        prefix_len: 128,
        address: *destination,
    };
    match lookup::pod_route(&key) {
        Some(route) => Route::Remote(route),
        None => Route::Elsewhere,
    }
}

/// What is done with a packet, once it is clear that it may go.
enum Exit {
    Workload(&'static WorkloadValue),
    Tunnel(&'static RouteValue),
    /// It arrives on the node's own interface: for a process of the node, or to be routed on.
    Node,
    /// The kernel goes on with it where it is.
    Pass,
}

/// The way out for a packet on its way to `route`.
#[inline(always)]
fn exit(
    packet: &Packet,
    translation: &Translation,
    route: Route,
    origin: Origin,
) -> Result<Exit, DropReason> {
    let to_changed = translation.destination.words() != packet.flow.destination.words();
    let from_changed = translation.source.words() != packet.flow.source.words();
    match (route, origin) {
        (Route::Workload(workload), _) => Ok(Exit::Workload(workload)),
        (Route::Remote(remote), _) => Ok(Exit::Tunnel(remote)),
        (Route::Gateway, Origin::Pod | Origin::Overlay) => Ok(Exit::Node),
        // Only answers of known flows come this far.
        (Route::Gateway | Route::Node, Origin::Underlay) => Ok(Exit::Node),
        // An answer in the name of another node's frontend, to a process of this one.
        (Route::Node, Origin::Pod) if from_changed => Ok(Exit::Node),
        (Route::Node, Origin::Pod) => Ok(Exit::Pass),
        // Between a process of the node and one of its own addresses, by way of a Service; or an
        // answer to a process that is bound to the underlay address.
        (Route::Gateway | Route::Node, _) if to_changed || from_changed => Ok(Exit::Node),
        // It has the node's address now, which the kernel accepts from this interface only.
        (Route::Elsewhere, Origin::Pod) if from_changed => Ok(Exit::Node),
        (Route::Elsewhere, Origin::Pod) => Ok(Exit::Pass),
        // A backend outside, or at another address of the node. Where there is neither, the source
        // is the gateway's.
        (Route::Elsewhere, Origin::Host)
            if to_changed && translation.source.words() != packet.gateway().words() =>
        {
            Ok(Exit::Node)
        }
        // To a backend that is no pod, or an answer to a client outside.
        (Route::Elsewhere, Origin::Underlay | Origin::Overlay) if packet.external => Ok(Exit::Node),
        (_, Origin::Host) => Err(DropReason::NoRoute),
        (_, _) => Err(DropReason::UnknownWorkload),
    }
}

/// Translates the packet and sends it. Nothing of it is changed before it is sure to be sent, so
/// a refusal can quote it as its sender sent it.
///
/// The whole pod network is one router to a pod: the hop limit falls where a packet leaves a pod,
/// and nowhere else. Where the kernel routes it on, it is the kernel that takes one off.
#[inline(always)]
pub fn send(
    skb: &Skb,
    packet: &Packet,
    translation: &Translation,
    route: Route,
    origin: Origin,
) -> Result<Verdict, DropReason> {
    let exit = exit(packet, translation, route, origin)?;
    let mut hop_limit = packet.hop_limit;
    if origin == Origin::Pod {
        let leaves = matches!(exit, Exit::Workload(_) | Exit::Tunnel(_));
        let leaves_for_outside = matches!(exit, Exit::Node) && matches!(route, Route::Elsewhere);
        if hop_limit <= 1 && (leaves || leaves_for_outside) {
            return Err(DropReason::TtlExceeded);
        }
        if leaves {
            hop_limit -= 1;
        }
    }
    match exit {
        Exit::Workload(workload) => set_macs(skb, workload.mac, HOST_MAC)?,
        Exit::Tunnel(_) => {
            let mtu = OVERLAY_MTU.load();
            if mtu != 0 && packet.total_len > mtu && !skb.is_gso() {
                return Err(DropReason::PacketTooBig);
            }
            set_macs(skb, HOST_MAC, OVERLAY_SOURCE_MAC)?;
        }
        Exit::Node => set_macs(skb, HOST_MAC, HOST_MAC)?,
        Exit::Pass => {}
    }
    nat::apply(skb, packet, translation, hop_limit)?;
    match exit {
        Exit::Workload(workload) => Ok(to_pod(workload, origin)),
        Exit::Tunnel(remote) => {
            let vni = match packet.handed {
                true => dsr_vni(VNI.load()),
                false => VNI.load(),
            };
            into_tunnel_as(skb, remote.tunnel_endpoint.words(), vni)
        }
        Exit::Node => Ok(skb::redirect_ingress(HOST_IFINDEX.load())),
        Exit::Pass => Ok(Verdict::Pass),
    }
}

/// Into a pod of this node: past the host side of its interface where nothing there has a say.
#[inline(always)]
pub fn to_pod(workload: &WorkloadValue, origin: Origin) -> Verdict {
    // A packet of the node's own is on its way out and can only be sent on; one that is limited must
    // pass the queue of the host side.
    let by_queue = origin == Origin::Host || workload.flags & WORKLOAD_SHAPED != 0;
    if by_queue || !enabled(&REDIRECT_PEER) {
        skb::redirect(workload.ifindex)
    } else {
        skb::redirect_peer(workload.ifindex)
    }
}

#[inline(always)]
pub fn into_tunnel(skb: &Skb, endpoint: [u32; 4]) -> Result<Verdict, DropReason> {
    into_tunnel_as(skb, endpoint, VNI.load())
}

/// Into the overlay, under a network identifier.
#[inline(always)]
fn into_tunnel_as(skb: &Skb, endpoint: [u32; 4], vni: u32) -> Result<Verdict, DropReason> {
    let address = Address::from_words(endpoint);
    let v6 = !address.is_v4();
    // The helper wants an IPv4 address in host order, and an IPv6 one as it is.
    let remote = if v6 {
        endpoint
    } else {
        [u32::from_be(endpoint[3]), 0, 0, 0]
    };
    let key = TunnelKey {
        tunnel_id: vni,
        remote,
        tos: 0,
        ttl: TUNNEL_TTL,
        ext: 0,
        label: 0,
    };
    skb.set_tunnel_key(&key, v6)?;
    Ok(skb::redirect(OVERLAY_IFINDEX.load()))
}

#[inline(always)]
fn set_macs(skb: &Skb, to: [u8; 6], from: [u8; 6]) -> Result<(), DropReason> {
    let word = |mac: [u8; 6], at: usize| u16::from_ne_bytes([mac[at], mac[at + 1]]);
    skb.write_u16::<0, 6>([
        word(to, 0),
        word(to, 2),
        word(to, 4),
        word(from, 0),
        word(from, 2),
        word(from, 4),
    ])
}
