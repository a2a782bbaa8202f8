//! One pod's wiring: lease, pair, program, map entry, inside of the namespace; and back.

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;

use tholepin_ebpf_abi::names::{HOST_MAC, POD_EGRESS};
use tholepin_model::policy::ObjectName;

use crate::dataplane::attach;
use crate::dataplane::maps::workloads::{PodPolicy, Wiring};
use crate::ipam::{IpamError, Lease, LeaseRequest, Owner};
use crate::netlink::link::PodVeth;
use crate::netlink::{Netlink, NetlinkError, netns, sysctl};
use crate::reconcile::policies::{Input, Wired};

use super::names::{gateway_of, host_interface, pod_mac};
use super::node::{NodeNetwork, SetupError};
use super::{AttachRequest, Attachment, AttachmentKey, NetworkError};

impl NodeNetwork {
    pub(super) async fn attach(
        &mut self,
        request: &AttachRequest,
        owner: Owner,
    ) -> Result<Attachment, NetworkError> {
        let subject = format!("{}/{}", request.pod_namespace, request.pod_name);
        let failed = |operation: &'static str| {
            let subject = subject.clone();
            move |error: SetupError| operation_error(operation, subject, error)
        };
        let file = netns::open(&request.netns)
            .and_then(|file| {
                file.ok_or_else(|| NetlinkError::Namespace {
                    operation: "open",
                    path: request.netns.clone(),
                    source: std::io::ErrorKind::NotFound.into(),
                })
            })
            .map_err(|error| failed("attach the network")(error.into()))?;
        if let Some(lease) = self.ipam.get(&request.key).cloned() {
            if lease.netns == request.netns && self.verify(&lease).await.is_ok() {
                return Ok(self.attachment(&lease));
            }
            // A crash or a failure cut an earlier attach short; begin again.
            self.unwire(&lease)
                .await
                .map_err(failed("undo a half-made attachment"))?;
        }
        let lease = self
            .ipam
            .lease(LeaseRequest {
                key: request.key.clone(),
                netns: request.netns.clone(),
                pod: subject.clone(),
                owner,
                host_interface: host_interface(&request.key),
                socket_lb: request.socket_lb,
            })
            .map_err(|error| match error {
                IpamError::Exhausted { family, range } => NetworkError::Exhausted {
                    family,
                    range: range.to_string(),
                },
                other => failed("lease an address")(other.into()),
            })?;
        if let Err(error) = self.wire(&lease, file).await {
            if let Err(undo) = self.unwire(&lease).await {
                // The lease stays, so the address is not given to somebody else meanwhile.
                let undo = crate::dataplane::chain(&undo);
                tracing::error!(pod = subject, error = undo, "failed to undo an attachment");
            } else if let Err(release) = self.ipam.release(&lease.key()) {
                let release = crate::dataplane::chain(&release);
                tracing::error!(
                    pod = subject,
                    error = release,
                    "failed to release an address"
                );
            }
            return Err(failed("attach the network")(error));
        }
        Ok(self.attachment(&lease))
    }

    async fn wire(&mut self, lease: &Lease, netns: File) -> Result<(), SetupError> {
        let name = lease.host_interface.as_str();
        let first = *lease
            .addresses
            .first()
            .expect("a lease has an address per pod range");
        let veth = PodVeth {
            host_name: name,
            host_mac: HOST_MAC,
            pod_name: &lease.interface,
            pod_mac: pod_mac(first),
            mtu: self.mtu,
            netns: netns.as_fd(),
        };
        let link = self.netlink.create_pod_veth(&veth).await?;
        sysctl::relax_reverse_path_filter(&[name])?;
        sysctl::ignore_router_advertisements(name)?;
        self.netlink.disable_resolution(name).await?;
        attach::ensure_attached(
            &mut self.programs,
            &self.pins,
            self.features,
            POD_EGRESS,
            name,
        )?;
        let wiring = Wiring {
            ifindex: link.index,
            mac: pod_mac(first),
            netns_cookie: configure_inside(lease, netns).await?,
        };
        if !self.policies.admit(wired(lease)).await {
            for address in &lease.addresses {
                self.workloads.set_policy(*address, PodPolicy::DENY_ALL)?;
            }
        }
        for address in &lease.addresses {
            self.workloads.wire(*address, wiring)?;
        }
        self.enter_sockets();
        // Up only now: before its program is attached the interface passes nothing.
        self.netlink.set_up(name).await?;
        Ok(())
    }

    pub(super) async fn detach(&mut self, key: &AttachmentKey) -> Result<(), NetworkError> {
        let Some(lease) = self.ipam.get(key).cloned() else {
            return Ok(());
        };
        let failed = |error| operation_error("detach the network", lease.pod.clone(), error);
        self.unwire(&lease).await.map_err(failed)?;
        // Exclusive things are released last: nothing answers on the address any more.
        self.ipam.release(key).map_err(|error| failed(error.into()))
    }

    async fn unwire(&mut self, lease: &Lease) -> Result<(), SetupError> {
        for address in &lease.addresses {
            self.workloads.unwire(*address)?;
        }
        let pod = wired(lease);
        self.policies.send(Input::Unwired(pod.pod, pod.key));
        self.enter_sockets();
        self.netlink.delete_link(&lease.host_interface).await?;
        attach::forget(&self.pins, POD_EGRESS, &lease.host_interface)?;
        Ok(())
    }

    pub(super) async fn check(&mut self, key: &AttachmentKey) -> Result<Attachment, NetworkError> {
        let subject = format!("{} {}", key.container_id, key.interface);
        let Some(lease) = self.ipam.get(key).cloned() else {
            return Err(NetworkError::Unknown { subject });
        };
        self.verify(&lease)
            .await
            .map_err(|error| operation_error("check the network", lease.pod.clone(), error))?;
        Ok(self.attachment(&lease))
    }

    /// Whether everything [`Self::wire`] makes is still there.
    async fn verify(&self, lease: &Lease) -> Result<(), SetupError> {
        let link = self.netlink.require_link(&lease.host_interface).await?;
        let wired = lease
            .addresses
            .iter()
            .all(|a| self.workloads.contains(*a, link.index));
        let pin = self.pins.link(&lease.host_interface, POD_EGRESS);
        if !link.up || !wired || (self.features.tcx && !pin.exists()) {
            return Err(NetlinkError::MissingLink {
                name: lease.host_interface.clone(),
            }
            .into());
        }
        let missing = || NetlinkError::MissingLink {
            name: lease.interface.clone(),
        };
        let file = netns::open(&lease.netns)?.ok_or_else(missing)?;
        let expected = lease.addresses.clone();
        let interface = lease.interface.clone();
        netns::run_inside(file, &lease.netns, move || async move {
            let netlink = Netlink::open()?;
            let link = netlink.require_link(&interface).await?;
            let found = netlink.addresses(&link).await?;
            match expected.iter().find(|address| !found.contains(address)) {
                None => Ok(()),
                Some(address) => Err(NetlinkError::NoUnderlay { address: *address }),
            }
        })
        .await?;
        Ok(())
    }

    pub(super) fn attachments(&self, owner: Owner) -> Vec<Attachment> {
        let mine = self.ipam.leases().filter(|lease| lease.owner == owner);
        mine.map(|lease| self.attachment(lease)).collect()
    }

    /// Whether any address is leased, to whomever.
    pub(super) fn has_leases(&self) -> bool {
        self.ipam.leases().next().is_some()
    }

    fn attachment(&self, lease: &Lease) -> Attachment {
        let first = *lease
            .addresses
            .first()
            .expect("a lease has an address per pod range");
        Attachment {
            key: lease.key(),
            addresses: lease.addresses.clone(),
            host_interface: lease.host_interface.clone(),
            mac: pod_mac(first),
            mtu: self.mtu,
        }
    }
}

/// Addresses, neighbours and routes of the pod; returns its namespace's cookie.
async fn configure_inside(lease: &Lease, netns: File) -> Result<u64, NetlinkError> {
    let interface = lease.interface.clone();
    let addresses = lease.addresses.clone();
    let path: &Path = &lease.netns;
    netns::run_inside(netns, path, move || async move {
        let netlink = Netlink::open()?;
        netlink.set_up("lo").await?;
        if addresses.iter().any(std::net::IpAddr::is_ipv6) {
            sysctl::enable_ipv6(&interface)?;
        }
        sysctl::ignore_router_advertisements(&interface)?;
        sysctl::disable_duplicate_detection(&interface)?;
        netlink.set_up(&interface).await?;
        let link = netlink.require_link(&interface).await?;
        for address in addresses {
            let gateway = gateway_of(address);
            netlink.ensure_host_address(&link, address).await?;
            netlink.ensure_neighbour(&link, gateway, HOST_MAC).await?;
            netlink.ensure_default_route(gateway, &link).await?;
        }
        Ok(netns::cookie())
    })
    .await
}

/// The pod as its policies know it.
pub(super) fn wired(lease: &Lease) -> Wired {
    let (namespace, name) = lease.pod.split_once('/').unwrap_or(("", &lease.pod));
    Wired {
        pod: ObjectName::new(namespace, name),
        // What a container runtime calls a sandbox is not the pod's UID.
        uid: match lease.owner {
            Owner::Agent => lease.container_id.clone(),
            Owner::Cni => String::new(),
        },
        key: lease.key(),
        addresses: lease.addresses.clone(),
        done: None,
    }
}

fn operation_error(operation: &'static str, subject: String, error: SetupError) -> NetworkError {
    NetworkError::Operation {
        operation,
        subject,
        source: Box::new(error),
    }
}
