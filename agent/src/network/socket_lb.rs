//! Socket load balancing of this node: the programs, and whose sockets they may touch.

use std::collections::BTreeMap;

use tholepin_ebpf_abi::socket::SOCKET_NETNS_NODE;

use crate::dataplane::socket_lb::{self, SocketLb};
use crate::dataplane::{NetworkConfig, chain};
use crate::netlink::netns;

use super::node::NodeNetwork;

impl NodeNetwork {
    /// Attaches the programs as configured. They are an accelerator: without them every packet is
    /// translated, which is slower and no other.
    pub(super) fn attach_to_sockets(&mut self, config: &NetworkConfig) {
        let attached = match &config.socket_lb_cgroup {
            Some(cgroup) => {
                socket_lb::ensure_attached(&mut self.programs, &self.pins, config.socket_lb, cgroup)
            }
            None => {
                if config.socket_lb != SocketLb::Off {
                    tracing::warn!("no cgroup v2 tree: Services are balanced by packets only");
                }
                socket_lb::detach(&self.pins)
            }
        };
        if let Err(error) = attached {
            let error = chain(&error);
            tracing::error!(error, "Services are balanced by packets only");
            if let Err(error) = socket_lb::detach(&self.pins) {
                tracing::error!(error = chain(&error), "a socket program is left attached");
            }
        }
    }

    /// Enters the node and its pods, but for pods that do not want it. They are entered also while
    /// nothing is attached, so that it can be switched on under running pods.
    pub(super) fn enter_sockets(&mut self) {
        let mut wanted = BTreeMap::from([(netns::cookie(), SOCKET_NETNS_NODE)]);
        for lease in self.ipam.leases().filter(|lease| lease.socket_lb) {
            let values = lease.addresses.iter();
            for value in values.filter_map(|address| self.workloads.get(*address)) {
                wanted.entry(value.netns_cookie).or_insert(0);
            }
        }
        // What a kernel says that knows no cookies.
        wanted.remove(&0);
        // A namespace that is not entered goes by packets; one that is gone never comes back, because
        // cookies are not used twice.
        if let Err(error) = self.socket_netns.replace(&wanted) {
            tracing::warn!(error = chain(&error), "not all sockets can be balanced");
        }
    }
}
