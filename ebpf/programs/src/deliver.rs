//! Where a packet goes, and sending it there.

use tholepin_ebpf_abi::names::{HOST_MAC, OVERLAY_SOURCE_MAC};
use tholepin_ebpf_abi::{Address, DropReason, RouteKey, RouteValue, WorkloadValue};
use tholepin_ebpf_core::{Origin, Translation, Verdict};

use crate::globals::{
    HOST_IFINDEX, OVERLAY_IFINDEX, OVERLAY_MTU, REDIRECT_PEER, VNI, enabled, gateway_v4, gateway_v6,
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
    // What comes from the overlay never goes back into it: two nodes that disagree about a range
    // would play ping-pong.
    if origin == Origin::Overlay || OVERLAY_IFINDEX.load() == 0 {
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

/// Translates the packet and sends it. Nothing of it is changed before it is sure to be sent, so
/// a refusal can quote it as its sender sent it.
///
/// The whole pod network is one router to a pod: the hop limit falls where a packet leaves a pod,
/// and nowhere else.
#[inline(always)]
pub fn send(
    skb: &Skb,
    packet: &Packet,
    translation: &Translation,
    route: Route,
    origin: Origin,
) -> Result<Verdict, DropReason> {
    let mut hop_limit = packet.hop_limit;
    if origin == Origin::Pod && matches!(route, Route::Workload(_) | Route::Remote(_)) {
        if hop_limit <= 1 {
            return Err(DropReason::TtlExceeded);
        }
        hop_limit -= 1;
    }
    match route {
        Route::Workload(workload) => set_macs(skb, workload.mac, HOST_MAC)?,
        Route::Remote(_) => {
            let mtu = OVERLAY_MTU.load();
            if mtu != 0 && packet.total_len > mtu && !skb.is_gso() {
                return Err(DropReason::PacketTooBig);
            }
            set_macs(skb, HOST_MAC, OVERLAY_SOURCE_MAC)?;
        }
        Route::Gateway if origin != Origin::Host => set_macs(skb, HOST_MAC, HOST_MAC)?,
        Route::Gateway | Route::Elsewhere => match origin {
            Origin::Pod => {}
            Origin::Host => return Err(DropReason::NoRoute),
            Origin::Overlay => return Err(DropReason::UnknownWorkload),
        },
    }
    nat::apply(skb, packet, translation, hop_limit)?;
    match route {
        // A packet of the node's own is on its way out and can only be sent on.
        Route::Workload(workload) if origin == Origin::Host || !enabled(&REDIRECT_PEER) => {
            Ok(skb::redirect(workload.ifindex))
        }
        Route::Workload(workload) => Ok(skb::redirect_peer(workload.ifindex)),
        Route::Remote(remote) => into_tunnel(skb, remote.tunnel_endpoint.words()),
        Route::Gateway => Ok(skb::redirect_ingress(HOST_IFINDEX.load())),
        Route::Elsewhere => Ok(Verdict::Pass),
    }
}

#[inline(always)]
fn into_tunnel(skb: &Skb, endpoint: [u32; 4]) -> Result<Verdict, DropReason> {
    let address = Address::from_words(endpoint);
    let v6 = !address.is_v4();
    // The helper wants an IPv4 address in host order, and an IPv6 one as it is.
    let remote = if v6 {
        endpoint
    } else {
        [u32::from_be(endpoint[3]), 0, 0, 0]
    };
    let key = TunnelKey {
        tunnel_id: VNI.load(),
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
