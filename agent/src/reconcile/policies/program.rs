//! Writes what is compiled into the maps, in an order in which no packet sees a half.
//!
//! - Port sets are written before a prefix points at them, and removed after none does.
//! - A content keeps its id while it changes. Prefixes are written from the longest to the shortest and
//!   then removed from the shortest to the longest: every address goes from its old verdict to its new
//!   one in one step, whatever lies between them.
//! - A pod is switched to an id that is complete. What nobody has any more is removed after every
//!   packet that may be under way with it.
//! - What cannot be written denies: the pods that have it get [`POLICY_DENY_ALL`].

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use tholepin_ebpf_abi::policy::{PORTS_ALL, PORTS_NONE};
use tholepin_ebpf_abi::workload::POLICY_DENY_ALL;
use tholepin_model::policy::ports::PortPrefix;
use tholepin_model::policy::table::{Changes, ContentId, PolicyTable, Subject};
use tholepin_model::policy::{ObjectName, PortSet};

use crate::dataplane::chain;
use crate::dataplane::maps::MapAccessError;
use crate::dataplane::maps::policies::Policies;
use crate::dataplane::maps::workloads::{PodPolicy, Workloads};
use crate::dataplane::readers::wait_for_readers;

/// What is needed of the kernel; a trait because failures are tested over a fake.
pub trait PolicyMaps: Send {
    fn read(&self) -> Result<Realized, MapAccessError>;
    fn upsert_peer(&mut self, id: u32, prefix: &IpNet, set: u32) -> Result<(), MapAccessError>;
    fn remove_peer(&mut self, id: u32, prefix: &IpNet) -> Result<(), MapAccessError>;
    fn add_port(&mut self, set: u32, ports: PortPrefix) -> Result<(), MapAccessError>;
    fn remove_port(&mut self, set: u32, ports: PortPrefix) -> Result<(), MapAccessError>;
    /// What is in force at an address, if a pod is wired there.
    fn pod(&self, address: IpAddr) -> Option<PodPolicy>;
    fn set_pod(&mut self, address: IpAddr, policy: PodPolicy) -> Result<(), MapAccessError>;
    /// The newest generation of any pod.
    fn newest_generation(&self) -> u32;
    fn wait_for_readers(&mut self);
    /// The clock of the programs.
    fn now(&self) -> u32;
}

/// What `POLICY_PEERS` and `POLICY_PORTS` hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Realized {
    pub peers: BTreeMap<u32, BTreeMap<IpNet, u32>>,
    pub sets: BTreeMap<u32, BTreeSet<PortPrefix>>,
}

impl Realized {
    /// The ports behind a set's id, if it is whole.
    fn ports(&self, set: u32) -> Option<PortSet> {
        match set {
            PORTS_NONE => Some(PortSet::none()),
            PORTS_ALL => Some(PortSet::all()),
            set => {
                let prefixes = self.sets.get(&set)?;
                Some(prefixes.iter().map(|prefix| prefix.range()).collect())
            }
        }
    }
}

/// The pinned maps.
#[derive(Debug)]
pub struct PinnedPolicyMaps {
    pub policies: Policies,
    pub workloads: Workloads,
}

impl PolicyMaps for PinnedPolicyMaps {
    fn read(&self) -> Result<Realized, MapAccessError> {
        let mut realized = Realized::default();
        for (id, prefix, set) in self.policies.read_peers()? {
            realized.peers.entry(id).or_default().insert(prefix, set);
        }
        for (set, ports) in self.policies.read_ports()? {
            realized.sets.entry(set).or_default().insert(ports);
        }
        Ok(realized)
    }

    fn upsert_peer(&mut self, id: u32, prefix: &IpNet, set: u32) -> Result<(), MapAccessError> {
        self.policies.upsert_peer(id, prefix, set)
    }

    fn remove_peer(&mut self, id: u32, prefix: &IpNet) -> Result<(), MapAccessError> {
        self.policies.remove_peer(id, prefix)
    }

    fn add_port(&mut self, set: u32, ports: PortPrefix) -> Result<(), MapAccessError> {
        self.policies.add_port(set, ports)
    }

    fn remove_port(&mut self, set: u32, ports: PortPrefix) -> Result<(), MapAccessError> {
        self.policies.remove_port(set, ports)
    }

    fn pod(&self, address: IpAddr) -> Option<PodPolicy> {
        self.workloads.get(address).map(|value| PodPolicy {
            ingress: value.ingress_policy,
            egress: value.egress_policy,
            generation: value.policy_generation,
        })
    }

    fn set_pod(&mut self, address: IpAddr, policy: PodPolicy) -> Result<(), MapAccessError> {
        self.workloads.set_policy(address, policy)
    }

    fn newest_generation(&self) -> u32 {
        let pods = self.workloads.addresses();
        let generations = pods.into_iter().filter_map(|address| self.pod(address));
        generations.map(|pod| pod.generation).max().unwrap_or(0)
    }

    fn wait_for_readers(&mut self) {
        wait_for_readers();
    }

    fn now(&self) -> u32 {
        super::ticks()
    }
}

/// Keeps the maps as a [`PolicyTable`] says.
#[derive(Debug)]
pub struct Programmer<M> {
    maps: M,
    realized: Realized,
    ids: BTreeMap<ContentId, u32>,
    sets: BTreeMap<PortSet, u32>,
    /// Prefixes that point at each set.
    uses: BTreeMap<u32, usize>,
    /// Contents that could not be written, with the reason. Their pods are denied.
    failed: BTreeMap<ContentId, String>,
    next_id: u32,
    generation: u32,
}

impl<M: PolicyMaps> Programmer<M> {
    /// Takes over what a former agent has left. It stays in force until something else is.
    pub fn open(maps: M) -> Result<Self, MapAccessError> {
        let realized = maps.read()?;
        let mut uses = BTreeMap::<u32, usize>::new();
        for set in realized.sets.keys() {
            uses.insert(*set, 0);
        }
        for set in realized.peers.values().flat_map(BTreeMap::values) {
            if let Some(uses) = uses.get_mut(set) {
                *uses += 1;
            }
        }
        let sets = realized.sets.keys();
        let sets = sets.filter_map(|set| Some((realized.ports(*set)?, *set)));
        let sets = sets.collect();
        Ok(Self {
            generation: maps.newest_generation(),
            maps,
            realized,
            ids: BTreeMap::new(),
            sets,
            uses,
            failed: BTreeMap::new(),
            next_id: 0,
        })
    }

    /// Contents that could not be written, with the reason.
    pub fn failed(&self) -> &BTreeMap<ContentId, String> {
        &self.failed
    }

    /// The id of a content in the maps.
    pub fn id(&self, content: ContentId) -> Option<u32> {
        self.ids.get(&content).copied()
    }

    /// Brings the maps up to `changes` of `table`. Contents that failed before are tried again.
    pub fn program(&mut self, table: &PolicyTable, changes: &Changes) {
        self.generation = self.maps.now().max(self.generation + 1);
        let mut dirty: BTreeMap<ContentId, Option<&BTreeSet<IpNet>>> = BTreeMap::new();
        for (content, prefixes) in &changes.contents {
            dirty.insert(*content, Some(prefixes));
        }
        for content in self.failed.keys() {
            dirty.insert(*content, None);
        }
        let mut changed_for = BTreeSet::new();
        let mut gone = Vec::new();
        for (content, prefixes) in dirty {
            if table.content(content).is_none() {
                self.failed.remove(&content);
                gone.extend(self.ids.remove(&content));
                continue;
            }
            let had_failed = self.failed.remove(&content).is_some();
            match self.write(table, content, prefixes.filter(|_| !had_failed)) {
                Ok(changed) if !changed && !had_failed => continue,
                Ok(_) => {}
                Err(error) => drop(self.failed.insert(content, chain(&error))),
            }
            changed_for.extend(table.users(content).cloned());
        }
        for name in changes.subjects.union(&changed_for) {
            if let Some(subject) = table.subjects().get(name) {
                self.switch(name, subject, changed_for.contains(name));
            }
        }
        self.clean(gone);
    }

    /// Isolates a pod of which nothing is known yet.
    pub fn deny(&mut self, name: &ObjectName, addresses: &[IpAddr]) {
        let subject = Subject {
            addresses: addresses.to_vec(),
            isolation: None,
        };
        self.generation = self.maps.now().max(self.generation + 1);
        self.switch(name, &subject, false);
    }

    /// Removes what no content of the table is: what a former agent has left.
    pub fn prune(&mut self) {
        let known: BTreeSet<u32> = self.ids.values().copied().collect();
        let left = self.realized.peers.keys();
        let left = left.copied().filter(|id| !known.contains(id)).collect();
        self.clean(left);
    }

    /// Writes a content, or some prefixes of it; whether the maps are different now.
    fn write(
        &mut self,
        table: &PolicyTable,
        content: ContentId,
        prefixes: Option<&BTreeSet<IpNet>>,
    ) -> Result<bool, MapAccessError> {
        let Some(entries) = table.content(content) else {
            return Ok(false);
        };
        let (id, prefixes) = match self.ids.get(&content) {
            Some(id) => (*id, prefixes),
            None => {
                if let Some(id) = self.left_behind(entries) {
                    self.ids.insert(content, id);
                    return Ok(false);
                }
                let id = self.fresh_id();
                self.ids.insert(content, id);
                (id, None)
            }
        };
        let present: Vec<IpNet> = match prefixes {
            Some(some) => some.iter().copied().collect(),
            None => {
                let realized = self.realized.peers.get(&id).into_iter().flatten();
                let realized = realized.map(|(prefix, _)| *prefix);
                let all: BTreeSet<IpNet> = entries.keys().copied().chain(realized).collect();
                all.into_iter().collect()
            }
        };
        let mut changed = false;
        for prefix in by_length(present.iter()).into_iter().rev() {
            if let Some(ports) = entries.get(&prefix) {
                changed |= self.upsert(id, prefix, ports)?;
            }
        }
        for prefix in by_length(present.iter()) {
            if !entries.contains_key(&prefix) {
                changed |= self.remove(id, prefix)?;
            }
        }
        Ok(changed)
    }

    /// The id under which a former agent has written exactly this.
    fn left_behind(&self, entries: &BTreeMap<IpNet, PortSet>) -> Option<u32> {
        let known: BTreeSet<u32> = self.ids.values().copied().collect();
        let same = |found: &BTreeMap<IpNet, u32>| {
            found.len() == entries.len()
                && found.iter().all(|(prefix, set)| {
                    let ports = entries.get(prefix);
                    ports.is_some() && self.realized.ports(*set).as_ref() == ports
                })
        };
        let found = self.realized.peers.iter();
        found
            .filter(|(id, _)| !known.contains(id))
            .find(|(_, found)| same(found))
            .map(|(id, _)| *id)
    }

    fn upsert(&mut self, id: u32, prefix: IpNet, ports: &PortSet) -> Result<bool, MapAccessError> {
        let set = self.ensure_set(ports)?;
        let found = self.realized.peers.get(&id).and_then(|p| p.get(&prefix));
        let old = found.copied();
        if old == Some(set) {
            return Ok(false);
        }
        self.maps.upsert_peer(id, &prefix, set)?;
        let peers = self.realized.peers.entry(id).or_default();
        peers.insert(prefix, set);
        if let Some(uses) = self.uses.get_mut(&set) {
            *uses += 1;
        }
        self.release(old);
        Ok(true)
    }

    fn remove(&mut self, id: u32, prefix: IpNet) -> Result<bool, MapAccessError> {
        let Some(peers) = self.realized.peers.get_mut(&id) else {
            return Ok(false);
        };
        if !peers.contains_key(&prefix) {
            return Ok(false);
        }
        self.maps.remove_peer(id, &prefix)?;
        let old = peers.remove(&prefix);
        if peers.is_empty() {
            self.realized.peers.remove(&id);
        }
        self.release(old);
        Ok(true)
    }

    fn release(&mut self, set: Option<u32>) {
        if let Some(uses) = set.and_then(|set| self.uses.get_mut(&set)) {
            *uses -= 1;
        }
    }

    fn ensure_set(&mut self, ports: &PortSet) -> Result<u32, MapAccessError> {
        if ports.is_none() {
            return Ok(PORTS_NONE);
        }
        if ports.is_all() {
            return Ok(PORTS_ALL);
        }
        if let Some(set) = self.sets.get(ports) {
            return Ok(*set);
        }
        let set = self.fresh_id();
        // From here on it is removed when nothing points at it, also if it stays incomplete.
        self.uses.insert(set, 0);
        for prefix in ports.prefixes() {
            self.realized.sets.entry(set).or_default().insert(prefix);
            self.maps.add_port(set, prefix)?;
        }
        self.sets.insert(ports.clone(), set);
        Ok(set)
    }

    /// Puts a pod under what is compiled for it. `judge_anew`: what it allows has changed although
    /// its ids have not.
    fn switch(&mut self, name: &ObjectName, subject: &Subject, judge_anew: bool) {
        let id_of = |content: Option<ContentId>| match content {
            None => 0,
            Some(content) if self.failed.contains_key(&content) => POLICY_DENY_ALL,
            Some(content) => self.ids.get(&content).copied().unwrap_or(POLICY_DENY_ALL),
        };
        let (ingress, egress) = match subject.isolation {
            Some(isolation) => (id_of(isolation.ingress), id_of(isolation.egress)),
            None => (POLICY_DENY_ALL, POLICY_DENY_ALL),
        };
        for address in &subject.addresses {
            let found = self.maps.pod(*address);
            let same = found.is_some_and(|pod| (pod.ingress, pod.egress) == (ingress, egress));
            if same && !judge_anew {
                continue;
            }
            let policy = PodPolicy {
                ingress,
                egress,
                generation: self.generation,
            };
            if let Err(error) = self.maps.set_pod(*address, policy) {
                tracing::error!(pod = %name, error = chain(&error), "failed to set a pod's policies");
            }
        }
    }

    /// Removes contents that no pod has, and the port sets that nothing points at.
    fn clean(&mut self, gone: Vec<u32>) {
        let unused = |uses: &BTreeMap<u32, usize>| uses.values().any(|uses| *uses == 0);
        if gone.is_empty() && !unused(&self.uses) {
            return;
        }
        self.maps.wait_for_readers();
        for id in gone {
            let prefixes: Vec<IpNet> = self
                .realized
                .peers
                .get(&id)
                .map_or_else(Vec::new, |peers| peers.keys().copied().collect());
            for prefix in by_length(prefixes.iter()) {
                if let Err(error) = self.remove(id, prefix) {
                    // Nobody looks there any more: the next start finds it.
                    tracing::warn!(error = chain(&error), "failed to remove a policy");
                }
            }
        }
        if !unused(&self.uses) {
            return;
        }
        self.maps.wait_for_readers();
        let sets: Vec<u32> = self
            .uses
            .iter()
            .filter(|(_, uses)| **uses == 0)
            .map(|(set, _)| *set)
            .collect();
        for set in sets {
            self.remove_set(set);
        }
    }

    fn remove_set(&mut self, set: u32) {
        self.uses.remove(&set);
        self.sets.retain(|_, known| *known != set);
        for ports in self.realized.sets.remove(&set).unwrap_or_default() {
            if let Err(error) = self.maps.remove_port(set, ports) {
                tracing::warn!(error = chain(&error), "failed to remove a set of ports");
            }
        }
    }

    /// An id that nothing in the maps has: neither policy nor port set.
    fn fresh_id(&mut self) -> u32 {
        loop {
            self.next_id = self.next_id % (u32::MAX - 1) + 1;
            let taken = self.realized.peers.contains_key(&self.next_id)
                || self.realized.sets.contains_key(&self.next_id)
                || self.ids.values().any(|id| *id == self.next_id);
            if !taken {
                return self.next_id;
            }
        }
    }
}

/// Short prefixes first, with IPv4's as long as they are in the map.
fn by_length<'a>(prefixes: impl Iterator<Item = &'a IpNet>) -> Vec<IpNet> {
    let mut sorted: Vec<IpNet> = prefixes.copied().collect();
    sorted.sort_by_key(|prefix| match prefix {
        IpNet::V4(range) => 96 + range.prefix_len(),
        IpNet::V6(range) => range.prefix_len(),
    });
    sorted
}
