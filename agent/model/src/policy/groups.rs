//! Who may be a peer: the pods of the cluster, and groups of them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::ops::Bound;
use std::sync::Arc;

use ipnet::IpNet;

use super::table::ContentId;
use super::{ObjectName, Pod, PodPeers, PortName, PortRange};

pub(super) type GroupId = u32;

/// Who may be a peer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum GroupKey {
    Peers(PodPeers),
    /// Pods that have a port of this name.
    Named(PortName),
}

/// Pods of the cluster that have something in common.
#[derive(Debug)]
pub(super) struct Group {
    pub(super) key: GroupKey,
    /// With the number of pods that have it: an address may have moved before its old pod is gone.
    addresses: BTreeMap<IpAddr, u32>,
    pub(super) contents: BTreeSet<ContentId>,
}

impl Group {
    /// One nobody is in yet.
    pub(super) fn new(key: GroupKey) -> Self {
        Self {
            key,
            addresses: BTreeMap::new(),
            contents: BTreeSet::new(),
        }
    }

    pub(super) fn has(&self, address: IpAddr) -> bool {
        self.addresses.contains_key(&address)
    }

    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> + '_ {
        self.addresses.keys().copied()
    }

    pub(super) fn add(&mut self, pod: &Pod) {
        for address in &pod.addresses {
            *self.addresses.entry(*address).or_default() += 1;
        }
    }

    pub(super) fn remove(&mut self, pod: &Pod) {
        for address in &pod.addresses {
            if let Some(count) = self.addresses.get_mut(address) {
                *count -= 1;
                if *count == 0 {
                    self.addresses.remove(address);
                }
            }
        }
    }
}

/// The pods of the cluster.
#[derive(Debug, Default)]
pub(super) struct Pods {
    pub(super) by_name: BTreeMap<ObjectName, Arc<Pod>>,
    by_address: BTreeMap<IpAddr, BTreeSet<ObjectName>>,
}

impl Pods {
    /// What names mean in the pod that has the address, if `prefix` is one address.
    pub(super) fn ports_named<'a>(
        &'a self,
        names: &'a [PortName],
        prefix: &IpNet,
    ) -> impl Iterator<Item = PortRange> + 'a {
        let single = !names.is_empty() && prefix.prefix_len() == prefix.max_prefix_len();
        let pods = single
            .then(|| self.by_address.get(&prefix.addr()))
            .flatten()
            .into_iter()
            .flatten()
            .filter_map(|name| self.by_name.get(name));
        pods.flat_map(|pod| pod.named_ports.iter())
            .filter(|port| names.contains(&port.name))
            .map(|port| PortRange::one(port.name.protocol, port.port))
    }

    pub(super) fn replace(
        &mut self,
        name: &ObjectName,
        pod: Option<&Arc<Pod>>,
    ) -> Option<Arc<Pod>> {
        let old = match pod {
            Some(pod) => self.by_name.insert(name.clone(), pod.clone()),
            None => self.by_name.remove(name),
        };
        for address in old.iter().flat_map(|old| &old.addresses) {
            if let Some(names) = self.by_address.get_mut(address) {
                names.remove(name);
                if names.is_empty() {
                    self.by_address.remove(address);
                }
            }
        }
        for address in pod.iter().flat_map(|pod| &pod.addresses) {
            let names = self.by_address.entry(*address).or_default();
            names.insert(name.clone());
        }
        old
    }

    pub(super) fn of_namespace<'a>(
        &'a self,
        namespace: &'a str,
    ) -> impl Iterator<Item = (&'a ObjectName, &'a Arc<Pod>)> {
        in_namespace(&self.by_name, namespace)
    }
}

/// The part of a table that is of one namespace.
pub(super) fn in_namespace<'a, T>(
    table: &'a BTreeMap<ObjectName, T>,
    namespace: &'a str,
) -> impl Iterator<Item = (&'a ObjectName, &'a T)> {
    let first = ObjectName::new(namespace, "");
    let range = table.range((Bound::Included(first), Bound::Unbounded));
    range.take_while(move |(name, _)| *name.namespace == *namespace)
}

/// Whether a pod is in a group, if its namespace is one of the group's.
pub(super) fn is_member(key: &GroupKey, pod: &Pod) -> bool {
    match key {
        GroupKey::Peers(peers) => peers.pods.matches(&pod.labels),
        GroupKey::Named(name) => pod.named_ports.iter().any(|port| port.name == *name),
    }
}
