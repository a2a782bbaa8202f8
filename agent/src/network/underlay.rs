//! The program on the interfaces by which answers to masqueraded traffic come in.

use std::net::IpAddr;

use tholepin_ebpf_abi::names::UNDERLAY_IN;

use crate::dataplane::NetworkConfig;
use crate::dataplane::features::Features;
use crate::dataplane::loader::Programs;
use crate::dataplane::pin::PinDirectory;
use crate::dataplane::{attach, chain, xdp};
use crate::netlink::link::Link;
use crate::netlink::{Netlink, NetlinkError};

use super::node::SetupError;

/// Attaches `underlay_in` to the interfaces of the node's addresses, and takes it off those that a
/// former agent used and this one does not.
pub(super) async fn ensure_attached(
    netlink: &Netlink,
    programs: &mut Programs,
    pins: &PinDirectory,
    features: Features,
    config: &NetworkConfig,
) -> Result<(), SetupError> {
    let links = interfaces(netlink, &config.node_addresses).await?;
    let interfaces: Vec<String> = links.iter().map(|link| link.name.clone()).collect();
    for interface in &interfaces {
        attach::ensure_attached(programs, pins, features, UNDERLAY_IN, interface)?;
    }
    // A clsact filter has no pin, so every interface is looked at.
    for link in netlink.links().await? {
        if !interfaces.contains(&link.name) && !link.name.starts_with("thp") {
            attach::detach(pins, UNDERLAY_IN, &link.name)?;
        }
    }
    for (interface, program) in pins.links()? {
        if program == UNDERLAY_IN && !interfaces.contains(&interface) {
            attach::forget(pins, UNDERLAY_IN, &interface)?;
        }
    }
    for link in &links {
        // TC does the same work, only slower.
        if let Err(error) = xdp::ensure_attached(programs, pins, config.xdp, link) {
            let error = chain(&error);
            tracing::warn!(
                interface = link.name,
                error,
                "no XDP: TC does all of the work"
            );
        }
    }
    xdp::detach_others(pins, &interfaces)?;
    Ok(())
}

/// The interfaces that have one of the node's addresses. An address that is on none degrades what
/// would be sent from it, no more.
async fn interfaces(netlink: &Netlink, addresses: &[IpAddr]) -> Result<Vec<Link>, SetupError> {
    let mut found: Vec<Link> = Vec::new();
    for address in addresses {
        let link = match netlink.link_of_address(*address).await {
            Ok(link) => link,
            Err(error @ NetlinkError::NoUnderlay { .. }) => {
                tracing::warn!(
                    error = chain(&error),
                    "pods cannot reach the outside from it"
                );
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        // Loopback has a MAC of zeros.
        if link.mac.is_none_or(|mac| mac == [0; 6]) {
            tracing::warn!(
                interface = link.name,
                %address,
                "not an Ethernet interface: pods cannot reach the outside through it"
            );
            continue;
        }
        if !found.iter().any(|other| other.index == link.index) {
            found.push(link);
        }
    }
    Ok(found)
}
