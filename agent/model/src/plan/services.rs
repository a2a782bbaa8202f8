//! Plans the changes to the service maps. The order of a plan's parts is the safety argument.
//!
//! Backends are written before slots, slots before the frontend that names them, and the update of a
//! frontend is atomic. A list that changes its shape is written to slots nobody uses. What is not
//! needed any more is given to others only after every packet under way has left the programs. A
//! packet therefore never finds a slot or a backend of somebody else.
//!
//! The planner keeps what the maps say, so a change costs what it touches and not what there is.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::service::fold::{Folded, FrontendFlags};
use crate::service::{BackendAddress, Frontend, Owner};

mod claims;
mod entry;
mod pools;
mod restore;

use claims::Claims;
use entry::Port;
pub use pools::SlotRange;
use pools::{IdPool, RangePool};
use restore::Restored;

/// Id of a list of backends; 0 is never handed out.
pub type ServiceId = u32;
/// Id of a backend; 0 is never handed out.
pub type BackendId = u32;

/// Value of a frontend in the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FrontendState {
    /// Its list.
    pub service_id: ServiceId,
    /// Slot of the first eligible backend.
    pub first_slot: u32,
    /// How many backends take new flows.
    pub backend_count: u16,
    /// How many of them, from the front, are local.
    pub local_count: u16,
    /// How many local backends are right before `first_slot`.
    pub spare_count: u16,
    /// Entries of the Maglev table behind the backends.
    pub maglev_size: u16,
    /// Behaviour.
    pub flags: FrontendFlags,
    /// Seconds a client keeps its backend; 0 without affinity.
    pub affinity_timeout_secs: u32,
}

impl FrontendState {
    /// The slots it leads to.
    #[must_use]
    pub fn range(&self) -> SlotRange {
        let len = u32::from(self.spare_count) + u32::from(self.backend_count);
        SlotRange {
            start: self.first_slot.saturating_sub(u32::from(self.spare_count)),
            len: len + u32::from(self.maglev_size),
        }
    }
}

/// Value of a slot in the kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Slot {
    /// The backend.
    pub backend_id: BackendId,
    /// The list it is in.
    pub service_id: ServiceId,
}

/// Value of a backend in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Established UDP flows stay. Cleared when it is no backend any more.
    pub serving: bool,
    /// Where packets go.
    pub address: BackendAddress,
    /// Never 0, and never used before on this node.
    pub generation: u32,
    /// The first list of the port it belongs to.
    pub service_id: ServiceId,
}

/// What the maps say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RealizedServices {
    /// Frontends.
    pub frontends: HashMap<Frontend, FrontendState>,
    /// Slots by index, as far as any was ever used.
    pub slots: Vec<Slot>,
    /// Backends by id, as far as any was ever used.
    pub backends: Vec<Option<Backend>>,
    /// Source ranges.
    pub source_ranges: BTreeSet<(ServiceId, IpNet)>,
}

/// Sizes of the maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacities {
    /// Entries of the frontend map.
    pub frontends: usize,
    /// Entries of the slot map.
    pub slots: u32,
    /// Entries of the backend map, of which the first is never used.
    pub backends: u32,
    /// Entries of the source range map.
    pub source_ranges: usize,
}

/// Why a port is not programmed as desired.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// Somebody older has the address.
    #[error("frontend {frontend} already belongs to {owner}")]
    Taken {
        /// The contested frontend.
        frontend: Frontend,
        /// Who keeps it.
        owner: Owner,
    },
    /// A map has no room; the newest is the one that is refused.
    #[error("the {map} map is full ({capacity} entries)")]
    Full {
        /// Which map.
        map: &'static str,
        /// Its capacity.
        capacity: usize,
    },
    /// A programmed port grew beyond what fits; it keeps serving with fewer backends.
    #[error("only {programmed} of {wanted} backends fit into the {map} map")]
    Truncated {
        /// Which map.
        map: &'static str,
        /// How many are programmed.
        programmed: usize,
        /// How many there should be.
        wanted: usize,
    },
    /// Clients in the ranges that do not fit are kept out.
    #[error("only {programmed} of {wanted} source ranges fit into the source range map")]
    SourceRanges {
        /// How many are programmed.
        programmed: usize,
        /// How many there should be.
        wanted: usize,
    },
    /// Nobody sends packets for this address through the pod network.
    #[error("{address} is in none of this node's Service ranges: pods reach it, the node does not")]
    OutsideRanges {
        /// The cluster IP.
        address: IpAddr,
    },
    /// Part of the object could not be used.
    #[error("{complaint}")]
    Object {
        /// What, in words.
        complaint: String,
    },
}

/// Changes, to be applied part by part in this order.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Backends to write.
    pub backends: Vec<(BackendId, Backend)>,
    /// Slots to write.
    pub slots: Vec<(u32, Slot)>,
    /// Source ranges to add.
    pub source_ranges: Vec<(ServiceId, IpNet)>,
    /// Frontends to write.
    pub frontends: Vec<(Frontend, FrontendState)>,
    /// Frontends to remove.
    pub removed_frontends: Vec<Frontend>,
    /// Source ranges to remove.
    pub removed_source_ranges: Vec<(ServiceId, IpNet)>,
    /// Backends that nothing leads to any more, to be marked as not serving.
    pub retired: Vec<(BackendId, Backend)>,
    /// What to give to [`Planner::release`] once no packet is under way that began before.
    pub release: Release,
    /// Owners whose problems may have changed.
    pub judged: Vec<Owner>,
}

impl Plan {
    /// Whether there is nothing to write.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.backends.is_empty()
            && self.slots.is_empty()
            && self.source_ranges.is_empty()
            && self.frontends.is_empty()
            && self.removed_frontends.is_empty()
            && self.removed_source_ranges.is_empty()
            && self.retired.is_empty()
    }
}

/// What packets under way may still use.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Release {
    /// Slots.
    pub ranges: Vec<SlotRange>,
    /// Backends.
    pub backends: Vec<BackendId>,
    /// Lists.
    pub services: Vec<ServiceId>,
}

impl Release {
    /// Whether there is nothing to release.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty() && self.backends.is_empty() && self.services.is_empty()
    }

    /// Adds another's.
    pub fn merge(&mut self, other: Self) {
        self.ranges.extend(other.ranges);
        self.backends.extend(other.backends);
        self.services.extend(other.services);
    }
}

/// What the maps say, by owner, and what in them is free.
#[derive(Debug)]
pub struct Planner {
    capacities: Capacities,
    service_ranges: Vec<IpNet>,
    ids: IdPool,
    backend_ids: IdPool,
    slots: RangePool,
    next_generation: u32,
    frontends: HashMap<Frontend, FrontendState>,
    /// Entries the frontend map has at its fullest while the plan is applied.
    frontend_pressure: usize,
    source_range_count: usize,
    owners: HashMap<Owner, Vec<Port>>,
    claims: Claims,
    /// Owners that did not get all they want, oldest first.
    waiting: BTreeSet<(i64, Owner)>,
    problems: BTreeMap<(Owner, String), Problem>,
    restored: Restored,
}

impl Planner {
    /// A planner that takes over what the maps say. `service_ranges` are what the node's own processes
    /// have routes for.
    #[must_use]
    pub fn restore(
        realized: RealizedServices,
        capacities: Capacities,
        service_ranges: Vec<IpNet>,
        next_generation: u32,
    ) -> Self {
        let restored = Restored::new(&realized);
        let mut slots = RangePool::new(capacities.slots);
        let ranges = restored.ranges();
        let intact = ranges.into_iter().all(|range| slots.claim(range));
        if !intact {
            // No former agent writes frontends that share slots of different lists. Nothing of it is
            // trusted then: every list gets a new range.
            slots = RangePool::new(capacities.slots);
        }
        let backends = realized.backends.iter().zip(0_u32..);
        let used = backends.filter_map(|(backend, id)| backend.filter(|b| b.serving).map(|_| id));
        Self {
            capacities,
            service_ranges,
            ids: IdPool::new(u32::MAX, &restored.service_ids()),
            backend_ids: IdPool::new(capacities.backends, &used.collect()),
            slots,
            next_generation: next_generation.max(1),
            source_range_count: realized.source_ranges.len(),
            frontend_pressure: realized.frontends.len(),
            frontends: realized.frontends,
            owners: HashMap::new(),
            claims: Claims::default(),
            waiting: BTreeSet::new(),
            problems: BTreeMap::new(),
            restored: if intact {
                restored
            } else {
                restored.without_lists()
            },
        }
    }

    /// Changes that bring the maps from what they say to what `folded` says of the `changed` owners.
    ///
    /// The planner then counts them as made: after a failure it must be restored from the maps. The
    /// first plan of a restored planner must be of all owners; what no owner wants goes with it.
    pub fn plan(
        &mut self,
        changed: impl IntoIterator<Item = Owner>,
        folded: impl Fn(&Owner) -> Option<Folded>,
    ) -> Plan {
        let mut plan = Plan::default();
        self.frontend_pressure = self.frontends.len();
        let work = self.contend(changed, folded);
        let mut touched: BTreeMap<Frontend, Option<FrontendState>> = BTreeMap::new();
        for ((_, owner), wanted) in &work {
            self.plan_owner(owner, wanted, &mut touched, &mut plan);
        }
        self.prune_restored(&mut touched, &mut plan);
        for (frontend, state) in touched {
            let known = self.frontends.get(&frontend);
            match state {
                Some(state) if known == Some(&state) => {}
                Some(state) => {
                    self.frontends.insert(frontend, state);
                    plan.frontends.push((frontend, state));
                }
                None if known.is_some() => {
                    self.frontends.remove(&frontend);
                    plan.removed_frontends.push(frontend);
                }
                None => {}
            }
        }
        plan.judged = work.into_keys().map(|(_, owner)| owner).collect();
        plan
    }

    /// Settles who has which frontend; what is to be planned is the changed owners and those whose
    /// frontends they take or leave, oldest first.
    fn contend(
        &mut self,
        changed: impl IntoIterator<Item = Owner>,
        folded: impl Fn(&Owner) -> Option<Folded>,
    ) -> BTreeMap<(i64, Owner), Folded> {
        let mut work = BTreeMap::new();
        let mut seen = std::collections::HashSet::new();
        let mut queue: Vec<Owner> = changed.into_iter().collect();
        while let Some(owner) = queue.pop() {
            if !seen.insert(owner.clone()) {
                continue;
            }
            let wanted = folded(&owner).unwrap_or_default();
            let mut frontends: Vec<Frontend> = Vec::new();
            for entry in &wanted.entries {
                frontends.extend(entry.frontends.iter().map(|f| f.frontend));
            }
            queue.extend(self.claims.set(&owner, wanted.created_at_secs, frontends));
            work.insert((wanted.created_at_secs, owner), wanted);
        }
        work
    }

    fn plan_owner(
        &mut self,
        owner: &Owner,
        wanted: &Folded,
        touched: &mut BTreeMap<Frontend, Option<FrontendState>>,
        plan: &mut Plan,
    ) {
        self.waiting
            .remove(&(wanted.created_at_secs, owner.clone()));
        let from = (owner.clone(), String::new());
        let known = self.problems.range(from..);
        let stale: Vec<_> = known
            .take_while(|((other, _), _)| other == owner)
            .map(|(key, _)| key.clone())
            .collect();
        stale.iter().for_each(|key| drop(self.problems.remove(key)));
        if !wanted.complaints.is_empty() {
            let complaint = wanted.complaints.join("; ");
            self.problem(owner, "", Problem::Object { complaint });
        }
        let mut old = self.owners.remove(owner).unwrap_or_default();
        for port in &old {
            for frontend in &port.frontends {
                touched.entry(*frontend).or_insert(None);
            }
        }
        let mut ports = Vec::with_capacity(wanted.entries.len());
        for entry in &wanted.entries {
            let same = old.iter().position(|port| port.is_of(entry));
            let known = same.map(|index| old.swap_remove(index));
            match self.plan_entry(owner, entry, known, touched, plan) {
                Ok(port) => ports.push(port),
                Err(problem) => self.problem(owner, &entry.port_name, problem),
            }
            let full = self.problems.get(&(owner.clone(), entry.port_name.clone()));
            if full.is_some_and(Problem::may_pass) {
                self.waiting.insert((wanted.created_at_secs, owner.clone()));
            }
        }
        for port in old {
            self.retire_port(port, plan);
        }
        if !ports.is_empty() {
            self.owners.insert(owner.clone(), ports);
        }
    }

    fn problem(&mut self, owner: &Owner, port_name: &str, problem: Problem) {
        let key = (owner.clone(), port_name.to_owned());
        self.problems.entry(key).or_insert(problem);
    }

    /// Gives back what no packet can be using any more. Returns the owners that now may get what they
    /// did not.
    pub fn release(&mut self, release: Release) -> Vec<Owner> {
        if release.is_empty() {
            return Vec::new();
        }
        release
            .ranges
            .into_iter()
            .for_each(|range| self.slots.give(range));
        release
            .backends
            .into_iter()
            .for_each(|id| self.backend_ids.give(id));
        release
            .services
            .into_iter()
            .for_each(|id| self.ids.give(id));
        self.waiting
            .iter()
            .map(|(_, owner)| owner.clone())
            .collect()
    }

    /// Ports that are not programmed as desired.
    #[must_use]
    pub fn problems(&self) -> &BTreeMap<(Owner, String), Problem> {
        &self.problems
    }

    /// First generation that was not used.
    #[must_use]
    pub fn next_generation(&self) -> u32 {
        self.next_generation
    }

    /// How many frontends there are.
    #[must_use]
    pub fn frontend_count(&self) -> usize {
        self.frontends.len()
    }

    /// How many slots and backends, from 0, may be in use: as much as must be read back.
    #[must_use]
    pub fn extent(&self) -> (u32, u32) {
        (self.slots.end(), self.backend_ids.end())
    }

    /// The first difference between the maps and what the planner has made of them.
    #[must_use]
    pub fn difference(&self, realized: &RealizedServices) -> Option<String> {
        if let Some((frontend, _)) = realized
            .frontends
            .iter()
            .find(|(frontend, _)| !self.frontends.contains_key(frontend))
        {
            return Some(format!("frontend {frontend} should not be there"));
        }
        for (frontend, state) in &self.frontends {
            if realized.frontends.get(frontend) != Some(state) {
                return Some(format!("frontend {frontend} is not as written"));
            }
        }
        let ports = self
            .owners
            .iter()
            .flat_map(|(owner, ports)| ports.iter().map(move |p| (owner, p)));
        for (owner, port) in ports {
            if let Some(difference) = port.difference(realized) {
                return Some(format!("{difference} of {owner} is not as written"));
            }
        }
        None
    }
}

impl Problem {
    /// Whether it may end when something else is removed.
    fn may_pass(&self) -> bool {
        matches!(
            self,
            Self::Full { .. } | Self::Truncated { .. } | Self::SourceRanges { .. }
        )
    }
}

impl RealizedServices {
    /// Records that a plan was applied, as far as maps go.
    pub fn record(&mut self, plan: &Plan) {
        for (id, backend) in plan.backends.iter().chain(&plan.retired) {
            self.set_backend(*id, *backend);
        }
        plan.slots
            .iter()
            .for_each(|(index, slot)| self.set_slot(*index, *slot));
        self.source_ranges
            .extend(plan.source_ranges.iter().copied());
        self.frontends.extend(plan.frontends.iter().copied());
        for frontend in &plan.removed_frontends {
            self.frontends.remove(frontend);
        }
        for range in &plan.removed_source_ranges {
            self.source_ranges.remove(range);
        }
    }

    /// Writes a backend.
    pub fn set_backend(&mut self, id: BackendId, backend: Backend) {
        let index = usize::try_from(id).expect("usize holds a u32");
        if self.backends.len() <= index {
            self.backends.resize(index + 1, None);
        }
        self.backends[index] = Some(backend);
    }

    /// Writes a slot.
    pub fn set_slot(&mut self, index: u32, slot: Slot) {
        let index = usize::try_from(index).expect("usize holds a u32");
        if self.slots.len() <= index {
            self.slots.resize(index + 1, Slot::default());
        }
        self.slots[index] = slot;
    }
}

#[cfg(test)]
mod tests;
