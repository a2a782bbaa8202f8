//! The node's side of the pod network: devices, programs, leases, and what a former agent left.
//!
//! Owned by one task; every method assumes that nobody else changes the same things.

use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;
use tholepin_ebpf_abi::conntrack::MASQUERADE_FIRST_PORT;
use tholepin_ebpf_abi::names::{HOST_EGRESS, HOST_MAC, LOCAL_OUT, OVERLAY_IN, POD_EGRESS};

use crate::dataplane::NetworkConfig;
use crate::dataplane::attach::{self, AttachError};
use crate::dataplane::cleaner::{self, CleanError, FlowTable};
use crate::dataplane::features::Features;
use crate::dataplane::loader::{LoadError, NodeConstants, Programs};
use crate::dataplane::maps::MapAccessError;
use crate::dataplane::maps::socket_netns::SocketNetns;
use crate::dataplane::maps::workloads::{Wiring, Workloads};
use crate::dataplane::pin::{PinDirectory, PinError};
use crate::ipam::{Ipam, IpamError, Lease};
use crate::netlink::link::Link;
use crate::netlink::{Netlink, NetlinkError, netns, sysctl};
use crate::reconcile::policies::{Input, PolicyGate};

use super::names::{HOST_DEVICE, HOST_PEER, LOOPBACK, OVERLAY_DEVICE, is_host_interface, pod_mac};
use super::pod::wired;
use super::underlay;

/// Why the node's side, or one pod's, could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    #[error("--node-ip gives no address of this node")]
    NoNodeAddress,
    #[error("the underlay interface {interface} has an MTU of {mtu}, too small for the overlay")]
    MtuTooSmall { interface: String, mtu: u32 },
    #[error("failed to read the boot id")]
    BootId { source: std::io::Error },
    #[error(transparent)]
    Netlink(#[from] NetlinkError),
    #[error(transparent)]
    Pin(#[from] PinError),
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error(transparent)]
    Attach(#[from] AttachError),
    #[error(transparent)]
    Map(#[from] MapAccessError),
    #[error(transparent)]
    Ipam(#[from] IpamError),
}

/// Everything the owner task owns.
#[derive(Debug)]
pub struct NodeNetwork {
    pub(super) netlink: Netlink,
    pub(super) pins: PinDirectory,
    pub(super) features: Features,
    pub(super) programs: Programs,
    pub(super) workloads: Workloads,
    pub(super) policies: PolicyGate,
    pub(super) socket_netns: SocketNetns,
    pub(super) ipam: Ipam,
    pub(super) mtu: u32,
}

impl NodeNetwork {
    /// Brings everything up and adopts what a former agent made. Safe to repeat at any time: traffic
    /// of existing pods goes on throughout.
    pub async fn bring_up(
        config: &NetworkConfig,
        ranges: &[IpNet],
        workloads: Workloads,
        policies: PolicyGate,
    ) -> Result<Self, SetupError> {
        let pins = PinDirectory::prepare(&config.bpffs_root)?;
        let mut features = Features::probe(config.attach_mode);
        features.redirect_peer &= config.redirect_peer;
        let netlink = Netlink::open()?;
        let mtu = overlay_mtu(&netlink, &config.node_addresses).await?;
        let boot_id = boot_id()?;
        let ours = |name: &str| name.starts_with("thp");
        sysctl::journal::Journal::at(&config.state_dir).remember(&boot_id, ours)?;
        let has = |v4: bool| ranges.iter().any(|range| range.addr().is_ipv4() == v4);
        sysctl::enable_forwarding(has(true), has(false))?;
        sysctl::reserve_ports(MASQUERADE_FIRST_PORT..=u16::MAX)?;

        let host = netlink
            .ensure_veth_pair(HOST_DEVICE, HOST_PEER, HOST_MAC, mtu)
            .await?;
        let overlay = netlink
            .ensure_overlay(OVERLAY_DEVICE, config.vxlan_port, HOST_MAC, mtu)
            .await?;
        configure_devices(&netlink).await?;

        let gateways = Ipam::gateways(ranges);
        let first = |list: &[IpAddr], v4: bool| list.iter().copied().find(|a| a.is_ipv4() == v4);
        let node = NodeConstants {
            gateway_v4: first(&gateways, true),
            gateway_v6: first(&gateways, false),
            node_v4: first(&config.node_addresses, true),
            node_v6: first(&config.node_addresses, false),
            host_ifindex: host.index,
            overlay_ifindex: overlay.index,
            overlay_mtu: mtu,
            overlay_port: config.vxlan_port,
            conntrack_entries: config.conntrack_entries,
        };
        let mut programs = Programs::load(&pins, features, &node)?;
        for (program, device) in [
            (HOST_EGRESS, HOST_DEVICE),
            (OVERLAY_IN, OVERLAY_DEVICE),
            (LOCAL_OUT, LOOPBACK),
        ] {
            attach::ensure_attached(&mut programs, &pins, features, program, device)?;
        }
        underlay::ensure_attached(&netlink, &mut programs, &pins, features, config).await?;
        // Up only now: an interface without its programs passes nothing.
        for device in [HOST_DEVICE, HOST_PEER, OVERLAY_DEVICE] {
            netlink.set_up(device).await?;
        }
        for address in &gateways {
            netlink.ensure_host_address(&host, *address).await?;
        }
        netlink.prune_addresses(&host, &gateways).await?;
        route_pod_network(&netlink, &host, config, ranges, &gateways).await?;

        let (ipam, void) = Ipam::open(&config.state_dir.join("leases"), &boot_id, ranges)?;
        if !void.is_empty() {
            tracing::info!(pods = ?void, "dropped address leases from before the last boot");
        }
        workloads.open(&pins)?;
        let socket_netns = SocketNetns::open(&pins)?;
        let mut network = Self {
            netlink,
            pins,
            features,
            programs,
            workloads,
            policies,
            socket_netns,
            ipam,
            mtu,
        };
        network.adopt().await?;
        network.enter_sockets();
        network.attach_to_sockets(config);
        Ok(network)
    }

    /// Removes flows that are over; what is left.
    pub(super) fn clean_flows(&mut self) -> Result<FlowTable, CleanError> {
        cleaner::clean(&mut self.programs, &self.pins)
    }

    /// Puts this agent's programs on the pods that are there, and removes what belongs to no lease.
    async fn adopt(&mut self) -> Result<(), SetupError> {
        let leases: Vec<Lease> = self.ipam.leases().cloned().collect();
        let links = self.netlink.links().await?;
        for lease in &leases {
            let link = links.iter().find(|link| link.name == lease.host_interface);
            let Some(link) = link else {
                tracing::warn!(pod = lease.pod, "the interface of this pod is gone");
                continue;
            };
            if let Err(error) = self.adopt_pod(lease, link).await {
                // One broken pod degrades itself only; CHECK and the pod's worker will find it.
                tracing::error!(
                    pod = lease.pod,
                    error = crate::dataplane::chain(&error),
                    "adoption failed"
                );
            }
        }
        self.prune(&leases, &links).await
    }

    async fn adopt_pod(&mut self, lease: &Lease, link: &Link) -> Result<(), SetupError> {
        let name = &link.name;
        attach::ensure_attached(
            &mut self.programs,
            &self.pins,
            self.features,
            POD_EGRESS,
            name,
        )?;
        let Some(first) = lease.addresses.first() else {
            return Ok(());
        };
        let wiring = Wiring {
            ifindex: link.index,
            mac: pod_mac(*first),
            netns_cookie: self.known_cookie(lease, link).await,
        };
        for address in &lease.addresses {
            self.workloads.wire(*address, wiring)?;
        }
        self.policies.send(Input::Wired(wired(lease)));
        if !link.up {
            self.netlink.set_up(name).await?;
        }
        Ok(())
    }

    /// The cookie of a pod's namespace: as it was entered, or asked for again.
    async fn known_cookie(&self, lease: &Lease, link: &Link) -> u64 {
        let known = lease.addresses.iter().find_map(|address| {
            let value = self.workloads.get(*address)?;
            (value.ifindex == link.index && value.netns_cookie != 0).then_some(value.netns_cookie)
        });
        match known {
            Some(cookie) => cookie,
            None => match netns::cookie_of(&lease.netns).await {
                Ok(cookie) => cookie,
                Err(error) => {
                    let error = crate::dataplane::chain(&error);
                    tracing::warn!(pod = lease.pod, error, "the pod's namespace has no cookie");
                    0
                }
            },
        }
    }

    async fn prune(&mut self, leases: &[Lease], links: &[Link]) -> Result<(), SetupError> {
        let leased = |address: &IpAddr| leases.iter().any(|l| l.addresses.contains(address));
        for address in self.workloads.addresses() {
            if !leased(&address) {
                self.workloads.unwire(address)?;
            }
        }
        let owned = |name: &str| leases.iter().any(|lease| lease.host_interface == name);
        for link in links {
            if is_host_interface(&link.name) && !owned(&link.name) {
                tracing::warn!(
                    interface = link.name,
                    "removing a pod interface without a lease"
                );
                self.netlink.delete_link(&link.name).await?;
            }
        }
        for (interface, program) in self.pins.links()? {
            if is_host_interface(&interface) && !owned(&interface) {
                attach::forget(&self.pins, &program, &interface)?;
            }
        }
        Ok(())
    }
}

async fn configure_devices(netlink: &Netlink) -> Result<(), SetupError> {
    let ours = [HOST_DEVICE, HOST_PEER, OVERLAY_DEVICE];
    sysctl::relax_reverse_path_filter(&ours)?;
    // What is masqueraded comes back here with the node's own address, to be routed on.
    sysctl::accept_local(HOST_DEVICE)?;
    for device in ours {
        sysctl::enable_ipv6(device)?;
        sysctl::ignore_router_advertisements(device)?;
        sysctl::disable_duplicate_detection(device)?;
        netlink.disable_resolution(device).await?;
    }
    Ok(())
}

/// The node's own processes reach pods and Services through `thp_host`, from the gateway address.
async fn route_pod_network(
    netlink: &Netlink,
    host: &Link,
    config: &NetworkConfig,
    ranges: &[IpNet],
    gateways: &[IpAddr],
) -> Result<(), SetupError> {
    for range in config
        .cluster_ranges
        .iter()
        .chain(&config.service_ranges)
        .chain(ranges)
    {
        let v4 = range.addr().is_ipv4();
        let Some(gateway) = gateways.iter().find(|gateway| gateway.is_ipv4() == v4) else {
            continue;
        };
        netlink
            .ensure_device_route(range.trunc(), host, Some(*gateway), None)
            .await?;
    }
    Ok(())
}

/// Largest packet that fits into the overlay: the underlay's MTU less the outer headers.
async fn overlay_mtu(netlink: &Netlink, addresses: &[IpAddr]) -> Result<u32, SetupError> {
    /// Ethernet, VXLAN and UDP headers.
    const INNER: u32 = 14 + 8 + 8;
    /// What IPv6 demands of every link.
    const MINIMUM: u32 = 1280;
    let v4 = addresses.iter().find(|address| address.is_ipv4());
    let address = v4.or(addresses.first()).ok_or(SetupError::NoNodeAddress)?;
    let underlay = netlink.link_of_address(*address).await?;
    let overhead = INNER + if address.is_ipv4() { 20 } else { 40 };
    // Loopback's 65,536 does not fit an IP length field.
    let mtu = underlay.mtu.min(65_535).saturating_sub(overhead);
    if mtu < MINIMUM {
        return Err(SetupError::MtuTooSmall {
            interface: underlay.name,
            mtu: underlay.mtu,
        });
    }
    Ok(mtu)
}

/// Changes with every boot; leases of another one are void.
pub fn boot_id() -> Result<String, SetupError> {
    std::fs::read_to_string(Path::new("/proc/sys/kernel/random/boot_id"))
        .map(|text| text.trim().to_owned())
        .map_err(|source| SetupError::BootId { source })
}
