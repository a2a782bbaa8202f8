//! Routes of the node into the pod network, and of a pod to its gateway.

use std::net::IpAddr;

use ipnet::IpNet;
use netlink_packet_route::route::{RouteMessage, RouteProtocol, RouteScope};
use rtnetlink::RouteMessageBuilder;

use super::link::Link;
use super::{Context, Netlink, NetlinkError};

impl Netlink {
    /// Sends `destination` out of `link` without a gateway; the node's own packets use `source`.
    pub async fn ensure_device_route(
        &self,
        destination: IpNet,
        link: &Link,
        source: Option<IpAddr>,
        mtu: Option<u32>,
    ) -> Result<(), NetlinkError> {
        let builder = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(destination.network(), destination.prefix_len())
            .expect("the prefix length of an IpNet fits its family")
            .output_interface(link.index)
            .scope(RouteScope::Link)
            .protocol(RouteProtocol::Static);
        let builder = match source {
            Some(source) => builder
                .pref_source(source)
                .expect("source and destination agree"),
            None => builder,
        };
        self.replace_route(with_mtu(builder.build(), mtu), destination, link)
            .await
    }

    /// Default route through `gateway`, which is on the link whatever the addresses say.
    pub async fn ensure_default_route(
        &self,
        gateway: IpAddr,
        link: &Link,
    ) -> Result<(), NetlinkError> {
        let any = if gateway.is_ipv4() {
            "0.0.0.0/0"
        } else {
            "::/0"
        };
        let any: IpNet = any.parse().expect("a constant range parses");
        let route = RouteMessageBuilder::<IpAddr>::new()
            .destination_prefix(any.addr(), 0)
            .expect("a zero prefix fits every family")
            .gateway(gateway)
            .expect("gateway and destination agree")
            .output_interface(link.index)
            .onlink()
            .protocol(RouteProtocol::Static)
            .build();
        self.replace_route(route, any, link).await
    }

    async fn replace_route(
        &self,
        route: RouteMessage,
        destination: IpNet,
        link: &Link,
    ) -> Result<(), NetlinkError> {
        let request = self.handle.route().add(route).replace();
        let subject = format_args!("{destination} on {}", link.name);
        request.execute().await.context("set route", subject)
    }
}

fn with_mtu(mut route: RouteMessage, mtu: Option<u32>) -> RouteMessage {
    use netlink_packet_route::route::{RouteAttribute, RouteMetric};
    if let Some(mtu) = mtu {
        route
            .attributes
            .push(RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)]));
    }
    route
}
