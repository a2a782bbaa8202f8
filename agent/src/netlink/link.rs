//! Devices: the node's own pair, the overlay device, and the pair of each pod.

use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use futures::TryStreamExt;
use netlink_packet_route::AddressFamily;
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, InfoData, InfoKind, InfoVeth, InfoVxlan,
    LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use rtnetlink::{LinkMessageBuilder, LinkUnspec, LinkVeth, LinkVxlan};

use super::{Context, Netlink, NetlinkError, errno};

/// What the driver needs to know of a device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    pub mtu: u32,
    pub mac: Option<[u8; 6]>,
    pub up: bool,
    pub kind: Option<String>,
}

impl From<LinkMessage> for Link {
    fn from(message: LinkMessage) -> Self {
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            mtu: 0,
            mac: None,
            up: message.header.flags.contains(LinkFlags::Up),
            kind: None,
        };
        for attribute in message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name = name,
                LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                LinkAttribute::Address(address) => link.mac = address.try_into().ok(),
                LinkAttribute::LinkInfo(infos) => {
                    link.kind = infos.into_iter().find_map(|info| match info {
                        LinkInfo::Kind(kind) => Some(kind.to_string()),
                        _ => None,
                    });
                }
                _ => (),
            }
        }
        link
    }
}

/// A pod's pair of devices.
#[derive(Debug)]
pub struct PodVeth<'a> {
    pub host_name: &'a str,
    pub host_mac: [u8; 6],
    pub pod_name: &'a str,
    pub pod_mac: [u8; 6],
    pub mtu: u32,
    pub netns: BorrowedFd<'a>,
}

impl Netlink {
    /// The device of that name, if there is one.
    pub async fn link(&self, name: &str) -> Result<Option<Link>, NetlinkError> {
        let mut links = self.handle.link().get().match_name(name).execute();
        match links.try_next().await {
            Ok(link) => Ok(link.map(Link::from)),
            Err(error) if errno(&error) == Some(libc::ENODEV) => Ok(None),
            Err(source) => Err(source).context("look up interface", name),
        }
    }

    /// The device of that name; an error when there is none.
    pub async fn require_link(&self, name: &str) -> Result<Link, NetlinkError> {
        let link = self.link(name).await?;
        link.ok_or_else(|| NetlinkError::MissingLink {
            name: name.to_owned(),
        })
    }

    /// Every device of the namespace.
    pub async fn links(&self) -> Result<Vec<Link>, NetlinkError> {
        let links: Result<Vec<_>, _> = self.handle.link().get().execute().try_collect().await;
        Ok(links
            .context("list", "interfaces")?
            .into_iter()
            .map(Link::from)
            .collect())
    }

    /// The device that has `address`.
    pub async fn link_of_address(&self, address: IpAddr) -> Result<Link, NetlinkError> {
        let found: Result<Vec<_>, _> = self
            .handle
            .address()
            .get()
            .set_address_filter(address)
            .execute()
            .try_collect()
            .await;
        let found = found.context("look up address", address)?;
        let index = found
            .first()
            .map(|a| a.header.index)
            .ok_or(NetlinkError::NoUnderlay { address })?;
        let mut links = self.handle.link().get().match_index(index).execute();
        let link = links.try_next().await.context("look up interface", index)?;
        link.map(Link::from)
            .ok_or(NetlinkError::NoUnderlay { address })
    }

    /// The node's own pair into the pod network. Both ends stay down until [`Netlink::set_up`].
    pub async fn ensure_veth_pair(
        &self,
        name: &str,
        peer: &str,
        mac: [u8; 6],
        mtu: u32,
    ) -> Result<Link, NetlinkError> {
        if let Some(link) = self.link(name).await? {
            expect_kind(&link, "veth")?;
            // A pair with one end gone cannot exist; a foreign pair can.
            self.require_link(peer).await?;
        } else {
            let message = LinkVeth::new(name, peer).build();
            self.handle
                .link()
                .add(message)
                .execute()
                .await
                .context("create veth pair", name)?;
        }
        for end in [name, peer] {
            self.set_mac_and_mtu(end, mac, mtu).await?;
            self.disable_link_local(end).await?;
        }
        self.require_link(name).await
    }

    /// The overlay device: one for all nodes and families, the destination comes with each packet.
    pub async fn ensure_overlay(
        &self,
        name: &str,
        port: u16,
        mac: [u8; 6],
        mtu: u32,
    ) -> Result<Link, NetlinkError> {
        if let Some(link) = self.link(name).await? {
            expect_kind(&link, "vxlan")?;
            if self.overlay_port(name).await? != Some(port) {
                // The port of a VXLAN device cannot be changed.
                self.delete_link(name).await?;
            }
        }
        if self.link(name).await?.is_none() {
            let message = LinkVxlan::new(name, 0)
                .append_info_data(InfoVxlan::CollectMetadata(true))
                .port(port)
                .append_info_data(InfoVxlan::Learning(false))
                // The outer UDP checksum would cost a pass over every packet; the inner ones protect it.
                .append_info_data(InfoVxlan::UDPZeroCsumRX(true))
                .build();
            // With external metadata the kernel refuses a device-wide VNI.
            let message = without_vni(message);
            self.handle
                .link()
                .add(message)
                .execute()
                .await
                .context("create overlay", name)?;
        }
        self.set_mac_and_mtu(name, mac, mtu).await?;
        self.disable_link_local(name).await?;
        self.require_link(name).await
    }

    async fn overlay_port(&self, name: &str) -> Result<Option<u16>, NetlinkError> {
        let mut links = self.handle.link().get().match_name(name).execute();
        let message = links.try_next().await.context("look up interface", name)?;
        let attributes = message
            .map(|message| message.attributes)
            .unwrap_or_default();
        let infos = attributes
            .into_iter()
            .find_map(|attribute| match attribute {
                LinkAttribute::LinkInfo(infos) => Some(infos),
                _ => None,
            });
        Ok(infos
            .unwrap_or_default()
            .into_iter()
            .find_map(|info| match info {
                LinkInfo::Data(InfoData::Vxlan(data)) => {
                    data.into_iter().find_map(|item| match item {
                        InfoVxlan::Port(port) => Some(port),
                        _ => None,
                    })
                }
                _ => None,
            }))
    }

    /// Creates a pod's pair, the peer directly inside the pod's namespace. Both ends are down.
    pub async fn create_pod_veth(&self, veth: &PodVeth<'_>) -> Result<Link, NetlinkError> {
        let peer = LinkMessageBuilder::<LinkUnspec>::new()
            .name(veth.pod_name)
            .address(veth.pod_mac.to_vec())
            .mtu(veth.mtu)
            .setns_by_fd(veth.netns.as_raw_fd())
            .build();
        let message = LinkMessageBuilder::<LinkUnspec>::new_with_info_kind(InfoKind::Veth)
            .name(veth.host_name)
            .address(veth.host_mac.to_vec())
            .mtu(veth.mtu)
            .set_info_data(InfoData::Veth(InfoVeth::Peer(peer)))
            .build();
        self.handle
            .link()
            .add(message)
            .execute()
            .await
            .context("create veth pair", veth.host_name)?;
        self.disable_link_local(veth.host_name).await?;
        self.require_link(veth.host_name).await
    }

    /// Sets MAC and MTU.
    pub async fn set_mac_and_mtu(
        &self,
        name: &str,
        mac: [u8; 6],
        mtu: u32,
    ) -> Result<(), NetlinkError> {
        let link = self.require_link(name).await?;
        if link.mac == Some(mac) && link.mtu == mtu {
            return Ok(());
        }
        let message = LinkUnspec::new_with_index(link.index)
            .address(mac.to_vec())
            .mtu(mtu)
            .build();
        self.handle
            .link()
            .change(message)
            .execute()
            .await
            .context("set MAC and MTU of", name)
    }

    /// No automatic IPv6 address: devices that share one MAC would all claim the same.
    async fn disable_link_local(&self, name: &str) -> Result<(), NetlinkError> {
        let link = self.require_link(name).await?;
        let spec = vec![AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(
            In6AddrGenMode::None,
        )])];
        let message = LinkUnspec::new_with_index(link.index)
            .append_extra_attribute(LinkAttribute::AfSpecUnspec(spec))
            .build();
        match self.handle.link().change(message).execute().await {
            // IPv6 is off on this device or in this kernel: nothing to disable.
            Err(error) if matches!(errno(&error), Some(libc::EAFNOSUPPORT | libc::EOPNOTSUPP)) => {
                Ok(())
            }
            other => other.context("disable automatic addresses of", name),
        }
    }

    /// Nobody answers ARP or neighbour discovery on our devices: packets go to the device's own MAC,
    /// which is that of every device on the other end.
    pub async fn disable_resolution(&self, name: &str) -> Result<(), NetlinkError> {
        let message = LinkUnspec::new_with_name(name).arp(false).build();
        self.handle
            .link()
            .change(message)
            .execute()
            .await
            .context("disable ARP on", name)
    }

    /// Brings the device up.
    pub async fn set_up(&self, name: &str) -> Result<(), NetlinkError> {
        let message = LinkUnspec::new_with_name(name).up().build();
        self.handle
            .link()
            .change(message)
            .execute()
            .await
            .context("bring up", name)
    }

    /// Removes the device, and its peer if it has one. Succeeds when it is gone already.
    pub async fn delete_link(&self, name: &str) -> Result<(), NetlinkError> {
        let Some(link) = self.link(name).await? else {
            return Ok(());
        };
        match self.handle.link().del(link.index).execute().await {
            Err(error) if errno(&error) == Some(libc::ENODEV) => Ok(()),
            other => other.context("delete", name),
        }
    }

    /// Gives the device a host address (/32 or /128).
    pub async fn ensure_host_address(
        &self,
        link: &Link,
        address: IpAddr,
    ) -> Result<(), NetlinkError> {
        let prefix_len = if address.is_ipv4() { 32 } else { 128 };
        let mut request = self
            .handle
            .address()
            .add(link.index, address, prefix_len)
            .replace();
        if address.is_ipv6() {
            // Nobody else can have it: the agent leases it. Duplicate detection would only add a second.
            request.message_mut().header.flags |=
                netlink_packet_route::address::AddressHeaderFlags::Nodad;
        }
        request
            .execute()
            .await
            .context("add address", format_args!("{address} to {}", link.name))
    }

    /// Addresses of the device.
    pub async fn addresses(&self, link: &Link) -> Result<Vec<IpAddr>, NetlinkError> {
        let found: Result<Vec<_>, _> = self
            .handle
            .address()
            .get()
            .set_link_index_filter(link.index)
            .execute()
            .try_collect()
            .await;
        let found = found.context("list addresses of", &link.name)?;
        Ok(found
            .into_iter()
            .filter(|message| message.header.index == link.index)
            .flat_map(|message| message.attributes)
            .filter_map(|attribute| match attribute {
                netlink_packet_route::address::AddressAttribute::Address(address) => Some(address),
                _ => None,
            })
            .collect())
    }

    /// Removes host addresses other than `keep`.
    pub async fn prune_addresses(&self, link: &Link, keep: &[IpAddr]) -> Result<(), NetlinkError> {
        let found: Result<Vec<_>, _> = self
            .handle
            .address()
            .get()
            .set_link_index_filter(link.index)
            .execute()
            .try_collect()
            .await;
        for message in found.context("list addresses of", &link.name)? {
            let address = message
                .attributes
                .iter()
                .find_map(|attribute| match attribute {
                    netlink_packet_route::address::AddressAttribute::Address(address) => {
                        Some(*address)
                    }
                    _ => None,
                });
            let Some(address) = address else { continue };
            let known = message.header.family == AddressFamily::Inet
                || message.header.family == AddressFamily::Inet6;
            if message.header.index == link.index && known && !keep.contains(&address) {
                let removed = self.handle.address().del(message).execute().await;
                removed.context("remove address", format_args!("{address} of {}", link.name))?;
            }
        }
        Ok(())
    }
}

fn expect_kind(link: &Link, expected: &'static str) -> Result<(), NetlinkError> {
    if link.kind.as_deref() == Some(expected) {
        return Ok(());
    }
    Err(NetlinkError::WrongKind {
        name: link.name.clone(),
        expected,
    })
}

fn without_vni(mut message: LinkMessage) -> LinkMessage {
    for attribute in &mut message.attributes {
        let LinkAttribute::LinkInfo(infos) = attribute else {
            continue;
        };
        for info in infos {
            if let LinkInfo::Data(InfoData::Vxlan(data)) = info {
                data.retain(|item| !matches!(item, InfoVxlan::Id(_)));
            }
        }
    }
    message
}
