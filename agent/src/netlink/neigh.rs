//! Permanent neighbour entries: nobody answers ARP or neighbour discovery in the pod network.

use std::net::IpAddr;

use netlink_packet_route::neighbour::NeighbourState;

use super::link::Link;
use super::{Context, Netlink, NetlinkError};

impl Netlink {
    /// Maps `address` to `mac` on `link` for good.
    pub async fn ensure_neighbour(
        &self,
        link: &Link,
        address: IpAddr,
        mac: [u8; 6],
    ) -> Result<(), NetlinkError> {
        let request = self
            .handle
            .neighbours()
            .add(link.index, address)
            .link_layer_address(&mac)
            .state(NeighbourState::Permanent)
            .replace();
        let subject = format_args!("{address} on {}", link.name);
        request.execute().await.context("set neighbour", subject)
    }
}
