//! Maps of a test's making.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use anyhow::Result;
use ipnet::IpNet;
use tholepin_ebpf_abi::backend::BACKEND_SERVING;
use tholepin_ebpf_abi::service::SCOPE_CLUSTER;
use tholepin_ebpf_abi::*;

use super::Maps;

#[derive(Debug, Default)]
pub(crate) struct Fake {
    pub(crate) frontends: BTreeMap<FrontendKey, FrontendValue>,
    pub(crate) slots: Vec<u32>,
    pub(crate) backends: Vec<BackendValue>,
    pub(crate) flows: BTreeMap<FlowKey, ConntrackEntry>,
    pub(crate) workloads: BTreeMap<IpAddr, WorkloadValue>,
    pub(crate) routes: BTreeMap<IpNet, IpAddr>,
    pub(crate) source_ranges: Vec<(u32, IpNet)>,
    pub(crate) affinity: BTreeMap<(u32, IpAddr), AffinityValue>,
    pub(crate) peers: Vec<(u32, IpNet, u32)>,
    pub(crate) ports: Vec<(u32, u8, u16)>,
}

impl Fake {
    /// Adds a frontend of scope cluster; ids of Services and backends count from 1.
    pub(crate) fn service(
        &mut self,
        address: &str,
        port: u16,
        protocol: u8,
        backends: &[&str],
        local_count: u16,
    ) -> (FrontendKey, FrontendValue) {
        let first_slot = u32::try_from(self.slots.len()).expect("few");
        for backend in backends {
            let at: SocketAddr = backend.parse().expect("a socket address");
            self.backends.push(BackendValue {
                address: at.ip().into(),
                port: Be16::new(at.port()),
                protocol,
                flags: BACKEND_SERVING,
                generation: 1,
                ..BackendValue::default()
            });
            self.slots
                .push(u32::try_from(self.backends.len()).expect("few"));
        }
        let key = FrontendKey {
            address: address.parse::<IpAddr>().expect("an address").into(),
            port: Be16::new(port),
            protocol,
            scope: SCOPE_CLUSTER,
        };
        let value = FrontendValue {
            service_id: u32::try_from(self.frontends.len() + 1).expect("few"),
            first_slot,
            backend_count: u16::try_from(backends.len()).expect("few"),
            local_count,
            ..FrontendValue::default()
        };
        self.frontends.insert(key, value);
        (key, value)
    }

    /// Adds a pod of this node.
    pub(crate) fn pod(&mut self, address: &str, ifindex: u32) -> &mut WorkloadValue {
        let ip: IpAddr = address.parse().expect("an address");
        self.workloads.entry(ip).or_insert(WorkloadValue {
            address: ip.into(),
            ifindex,
            ..WorkloadValue::default()
        })
    }
}

impl Maps for Fake {
    fn frontend(&self, key: &FrontendKey) -> Result<Option<FrontendValue>> {
        Ok(self.frontends.get(key).copied())
    }

    fn slots(&self, frontend: &FrontendValue) -> Result<Vec<u32>> {
        let first = frontend.first_slot as usize;
        Ok(self.slots[first..first + usize::from(frontend.backend_count)].to_vec())
    }

    fn backend(&self, id: u32) -> Result<Option<BackendValue>> {
        Ok((id as usize)
            .checked_sub(1)
            .and_then(|at| self.backends.get(at))
            .copied())
    }

    fn flow(&self, key: &FlowKey) -> Result<Option<ConntrackEntry>> {
        Ok(self.flows.get(key).copied())
    }

    fn workload(&self, address: IpAddr) -> Result<Option<WorkloadValue>> {
        Ok(self.workloads.get(&address).copied())
    }

    fn route(&self, address: IpAddr) -> Result<Option<RouteValue>> {
        let covering = self
            .routes
            .iter()
            .filter(|(range, _)| range.contains(&address));
        let longest = covering.max_by_key(|(range, _)| range.prefix_len());
        Ok(longest.map(|(_, node)| RouteValue {
            tunnel_endpoint: (*node).into(),
            flags: 0,
        }))
    }

    fn in_source_ranges(&self, service_id: u32, client: IpAddr) -> Result<bool> {
        let mut ranges = self.source_ranges.iter();
        Ok(ranges.any(|(id, range)| *id == service_id && range.contains(&client)))
    }

    fn affinity(&self, service_id: u32, client: IpAddr) -> Result<Option<AffinityValue>> {
        Ok(self.affinity.get(&(service_id, client)).copied())
    }

    fn policy_peer(&self, policy_id: u32, peer: IpAddr) -> Result<Option<u32>> {
        let covering = self
            .peers
            .iter()
            .filter(|(id, range, _)| *id == policy_id && range.contains(&peer));
        Ok(covering
            .max_by_key(|(_, range, _)| range.prefix_len())
            .map(|(_, _, set)| *set))
    }

    fn policy_port(&self, port_set: u32, protocol: u8, port: u16) -> Result<bool> {
        Ok(self.ports.contains(&(port_set, protocol, port)))
    }
}
