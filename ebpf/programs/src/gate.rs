//! Which packets of the node's own networks are worth a closer look.
//!
//! The hooks there see everything the node sends or receives, and next to nothing of it is ours. So a
//! packet's addresses and ports decide, read in place, and one look-up.

use tholepin_ebpf_abi::conntrack::MASQUERADE_FIRST_PORT;
use tholepin_ebpf_abi::service::{SCOPE_CLUSTER, SCOPE_EXTERNAL};
use tholepin_ebpf_abi::{Address, Be16, FrontendKey};
use tholepin_ebpf_core::packet::{self, ETHERNET_LEN, Fragment, ICMP, ICMPV6, Network, UDP};
use tholepin_ebpf_core::rewrite::ports_of_word;

use crate::globals::{OVERLAY_PORT, node_v4, node_v6};
use crate::lookup;
use crate::parse::{PLAIN_V4, PLAIN_V6};
use crate::skb::{ETH_P_IP, ETH_P_IPV6, Skb};

const IP: usize = ETHERNET_LEN as usize;

/// NodePorts, unless the API server was told other ones: flows through them outlive their Service, so
/// what goes there is looked up among the flows even if it is to no frontend.
const NODE_PORTS: core::ops::RangeInclusive<u16> = 30_000..=32_767;

/// Whether a packet that arrives from the underlay may be for a Service or an answer to what left the
/// pod network.
#[inline(always)]
pub fn admits_underlay(skb: &Skb) -> bool {
    let Some((network, port)) = head(skb) else {
        return false;
    };
    let Some(port) = port else {
        return true;
    };
    let node = if skb.protocol() == ETH_P_IP {
        node_v4()
    } else {
        node_v6()
    };
    let of_node = network.destination.words() == node.words();
    let number = port.get();
    if of_node {
        if number >= MASQUERADE_FIRST_PORT || NODE_PORTS.contains(&number) {
            return true;
        }
        // The overlay's own packets are more than all others.
        if network.protocol == UDP && u32::from(number) == OVERLAY_PORT.load() {
            return false;
        }
        return is_frontend(&network, port, SCOPE_EXTERNAL);
    }
    // Addresses of Services, unless they are routed through here to pods.
    lookup::workload(&network.destination).is_none()
}

/// Whether a packet that the node sends to itself may be for a Service.
#[inline(always)]
pub fn admits_local(skb: &Skb) -> bool {
    let Some((network, port)) = head(skb) else {
        return false;
    };
    let Some(port) = port else {
        return false;
    };
    !is_loopback(&network.destination) && is_frontend(&network, port, SCOPE_CLUSTER)
}

#[inline(always)]
fn is_frontend(network: &Network, port: Be16, scope: u8) -> bool {
    let key = FrontendKey {
        address: network.destination,
        port,
        protocol: network.protocol,
        scope,
    };
    lookup::frontend(&key).is_some()
}

#[inline(always)]
fn is_loopback(address: &Address) -> bool {
    let words = address.words();
    if address.is_v4() {
        words[3].to_ne_bytes()[0] == 127
    } else {
        words == [0, 0, 0, 1_u32.to_be()]
    }
}

/// The IP header of a packet that may concern Services, and its destination port where that is in the
/// usual place. `None` for the rest.
#[inline(always)]
fn head(skb: &Skb) -> Option<(Network, Option<Be16>)> {
    match skb.protocol() {
        ETH_P_IP => {
            let network = packet::ipv4(&skb.read::<IP, 5>()?).ok()?;
            if !may_concern(network.protocol) {
                return None;
            }
            let plain = network.header_len + ETHERNET_LEN == PLAIN_V4
                && network.fragment == Fragment::Whole
                && packet::has_ports(network.protocol);
            let port = match plain {
                true => skb.read::<{ PLAIN_V4 as usize }, 1>(),
                false => None,
            };
            Some((network, port.map(|[ports]| ports_of_word(ports).1)))
        }
        ETH_P_IPV6 => {
            let network = packet::ipv6(&skb.read::<IP, 10>()?).ok()?;
            if !may_concern(network.protocol) && !packet::is_extension(network.protocol) {
                return None;
            }
            let port = match packet::has_ports(network.protocol) {
                true => skb.read::<{ PLAIN_V6 as usize }, 1>(),
                false => None,
            };
            Some((network, port.map(|[ports]| ports_of_word(ports).1)))
        }
        _ => None,
    }
}

#[inline(always)]
fn may_concern(protocol: u8) -> bool {
    packet::has_ports(protocol) || protocol == ICMP || protocol == ICMPV6
}
