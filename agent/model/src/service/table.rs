//! Everything that is known about Services, and which of it has changed.
//!
//! Changes come in as they are watched and mark what they touch; only that is folded again.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::Hash;
use std::sync::Arc;
use std::time::SystemTime;

use super::fold::{self, Folded};
use super::{EndpointSlice, HostPorts, NodeView, Owner, Service, ServiceName, SliceName};

/// Changes of one kind since somebody last took them: the latest of each object.
#[derive(Debug)]
pub struct Delta<K, V> {
    /// What is not in `changed` is gone.
    pub whole: bool,
    /// New objects, and names of removed ones.
    pub changed: HashMap<K, Option<Arc<V>>>,
}

impl<K, V> Default for Delta<K, V> {
    fn default() -> Self {
        Self {
            whole: false,
            changed: HashMap::new(),
        }
    }
}

impl<K: Eq + Hash, V> Delta<K, V> {
    /// An object came or changed.
    pub fn insert(&mut self, key: K, value: Arc<V>) {
        self.changed.insert(key, Some(value));
    }

    /// An object went.
    pub fn remove(&mut self, key: K) {
        self.changed.insert(key, None);
    }

    /// All objects, after a list.
    pub fn replace(&mut self, all: impl IntoIterator<Item = (K, Arc<V>)>) {
        self.whole = true;
        self.changed = all
            .into_iter()
            .map(|(key, value)| (key, Some(value)))
            .collect();
    }

    fn is_empty(&self) -> bool {
        !self.whole && self.changed.is_empty()
    }
}

/// Which sources have been seen whole at least once. Nothing is touched before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServiceSync {
    /// Services were listed.
    pub services: bool,
    /// EndpointSlices were listed.
    pub slices: bool,
    /// This node was seen.
    pub node: bool,
    /// The pods of this node, with their host ports, were seen.
    pub host_ports: bool,
}

impl ServiceSync {
    /// All sources are complete.
    #[must_use]
    pub fn is_complete(self) -> bool {
        self.services && self.slices && self.node && self.host_ports
    }
}

/// Namespace and name of a pod.
pub type PodName = (String, String);

/// What has changed since the last take.
#[derive(Debug, Default)]
pub struct Changes {
    /// Services.
    pub services: Delta<ServiceName, Service>,
    /// EndpointSlices.
    pub slices: Delta<SliceName, EndpointSlice>,
    /// Pods of this node with host ports.
    pub host_ports: Delta<PodName, HostPorts>,
    /// What of this node decides.
    pub node: Option<NodeView>,
    /// Since when the slices among the changes are different, for measuring.
    pub triggers: Vec<SystemTime>,
    /// What has synced, ever.
    pub sync: ServiceSync,
}

impl Changes {
    /// What there is, leaving nothing.
    #[must_use]
    pub fn take(&mut self) -> Self {
        let sync = self.sync;
        let taken = std::mem::take(self);
        self.sync = sync;
        taken
    }

    /// Whether nothing has changed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        let objects = self.services.is_empty() && self.slices.is_empty();
        objects && self.host_ports.is_empty() && self.node.is_none()
    }
}

/// The known objects.
#[derive(Debug, Default)]
pub struct ServiceTable {
    services: HashMap<ServiceName, Arc<Service>>,
    slices: HashMap<ServiceName, BTreeMap<String, Arc<EndpointSlice>>>,
    slice_services: HashMap<SliceName, ServiceName>,
    host_ports: HashMap<PodName, Arc<HostPorts>>,
    node: NodeView,
    sync: ServiceSync,
    dirty: HashSet<Owner>,
}

impl ServiceTable {
    /// Takes changes in.
    pub fn apply(&mut self, changes: Changes) {
        self.sync = changes.sync;
        if let Some(node) = changes.node.filter(|node| *node != self.node) {
            self.node = node;
            self.mark_all();
        }
        if changes.services.whole {
            let listed = &changes.services.changed;
            let known = self.services.keys();
            let gone: Vec<_> = known
                .filter(|name| !listed.contains_key(*name))
                .cloned()
                .collect();
            gone.into_iter()
                .for_each(|name| self.set_service(name, None));
        }
        for (name, service) in changes.services.changed {
            self.set_service(name, service);
        }
        if changes.slices.whole {
            let listed = &changes.slices.changed;
            let known = self.slice_services.keys();
            let gone: Vec<_> = known
                .filter(|name| !listed.contains_key(*name))
                .cloned()
                .collect();
            gone.into_iter().for_each(|name| self.set_slice(name, None));
        }
        for (name, slice) in changes.slices.changed {
            self.set_slice(name, slice);
        }
        if changes.host_ports.whole {
            let listed = &changes.host_ports.changed;
            let known = self.host_ports.keys();
            let gone: Vec<_> = known
                .filter(|name| !listed.contains_key(*name))
                .cloned()
                .collect();
            gone.into_iter()
                .for_each(|name| self.set_host_ports(name, None));
        }
        for (name, ports) in changes.host_ports.changed {
            self.set_host_ports(name, ports);
        }
    }

    fn set_service(&mut self, name: ServiceName, service: Option<Arc<Service>>) {
        if self.services.get(&name) == service.as_ref() {
            return;
        }
        self.dirty.insert(Owner::Service(name.clone()));
        match service {
            Some(service) => drop(self.services.insert(name, service)),
            None => drop(self.services.remove(&name)),
        }
    }

    fn set_slice(&mut self, name: SliceName, slice: Option<Arc<EndpointSlice>>) {
        if let Some(service) = self.slice_services.get(&name) {
            let known = self.slices.get_mut(service).and_then(|of| {
                let same = of.get(&name.name) == slice.as_ref();
                (!same).then_some(of)
            });
            let Some(known) = known else { return };
            known.remove(&name.name);
            self.dirty.insert(Owner::Service(service.clone()));
            if known.is_empty() {
                self.slices.remove(service);
            }
            self.slice_services.remove(&name);
        }
        if let Some(slice) = slice {
            let service = slice.service.clone();
            self.dirty.insert(Owner::Service(service.clone()));
            let of = self.slices.entry(service.clone()).or_default();
            of.insert(name.name.clone(), slice);
            self.slice_services.insert(name, service);
        }
    }

    fn set_host_ports(&mut self, name: PodName, ports: Option<Arc<HostPorts>>) {
        if self.host_ports.get(&name) == ports.as_ref() {
            return;
        }
        self.dirty.insert(pod_owner(&name));
        match ports {
            Some(ports) => drop(self.host_ports.insert(name, ports)),
            None => drop(self.host_ports.remove(&name)),
        }
    }

    /// Marks everything, as after the maps were found to differ.
    pub fn mark_all(&mut self) {
        let services = self.services.keys().cloned().map(Owner::Service);
        self.dirty.extend(services);
        self.dirty.extend(self.host_ports.keys().map(pod_owner));
    }

    /// Marks some to be looked at again.
    pub fn mark(&mut self, owners: impl IntoIterator<Item = Owner>) {
        self.dirty.extend(owners);
    }

    /// What has changed since the last take.
    pub fn take_dirty(&mut self) -> HashSet<Owner> {
        std::mem::take(&mut self.dirty)
    }

    /// What has synced.
    #[must_use]
    pub fn sync(&self) -> ServiceSync {
        self.sync
    }

    /// `metadata.uid` of an owner's object.
    #[must_use]
    pub fn uid(&self, owner: &Owner) -> Option<&str> {
        match owner {
            Owner::Service(name) => Some(&self.services.get(name)?.uid),
            Owner::Pod { namespace, name } => {
                let key = (namespace.clone(), name.clone());
                Some(&self.host_ports.get(&key)?.uid)
            }
        }
    }

    /// This node.
    #[must_use]
    pub fn node(&self) -> &NodeView {
        &self.node
    }

    /// What an owner wants of the maps; `None` if there is no such owner (any more).
    #[must_use]
    pub fn folded(&self, owner: &Owner) -> Option<Folded> {
        match owner {
            Owner::Service(name) => {
                let service = self.services.get(name)?;
                let slices: Vec<&EndpointSlice> = match self.slices.get(name) {
                    Some(slices) => slices.values().map(Arc::as_ref).collect(),
                    None => Vec::new(),
                };
                Some(fold::service(service, &slices, &self.node))
            }
            Owner::Pod { namespace, name } => {
                let ports = self.host_ports.get(&(namespace.clone(), name.clone()))?;
                Some(fold::host_ports(ports, &self.node))
            }
        }
    }
}

fn pod_owner((namespace, name): &PodName) -> Owner {
    Owner::Pod {
        namespace: namespace.clone(),
        name: name.clone(),
    }
}

#[cfg(test)]
mod tests;
