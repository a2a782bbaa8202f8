//! What a former agent left in the maps, until its owners are known again.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use ipnet::IpNet;

use super::entry::{List, Port, retire};
use super::{
    Backend, BackendId, FrontendState, Plan, Planner, RealizedServices, ServiceId, SlotRange,
};
use crate::service::Frontend;
use crate::service::fold::ServiceEntry;

/// Lists, backends and source ranges by the list they belong to.
#[derive(Debug, Default)]
pub(super) struct Restored {
    /// Nothing has been planned yet.
    pending: bool,
    frontends: HashMap<Frontend, ServiceId>,
    /// How many frontends lead to a list.
    leading: HashMap<ServiceId, usize>,
    lists: HashMap<ServiceId, List>,
    backends: BTreeMap<ServiceId, Vec<(BackendId, Backend)>>,
    owners: HashMap<BackendId, ServiceId>,
    source_ranges: BTreeMap<ServiceId, BTreeSet<(ServiceId, IpNet)>>,
    /// Ranges of lists that an agent was about to leave when it died.
    stale: BTreeSet<SlotRange>,
    /// Second backends of an address.
    strays: Vec<(BackendId, Backend)>,
    ids: BTreeSet<ServiceId>,
}

impl Restored {
    pub(super) fn new(realized: &RealizedServices) -> Self {
        let mut restored = Self {
            pending: true,
            ..Self::default()
        };
        for (frontend, state) in &realized.frontends {
            restored.frontends.insert(*frontend, state.service_id);
            restored.ids.insert(state.service_id);
            *restored.leading.entry(state.service_id).or_default() += 1;
            let list = list(state, realized);
            match restored.lists.get(&state.service_id) {
                None => drop(restored.lists.insert(state.service_id, list)),
                Some(known) if known.range == list.range => {}
                // The agent died between the updates of two frontends.
                Some(_) => drop(restored.stale.insert(list.range)),
            }
        }
        for (id, backend) in (0..).zip(&realized.backends) {
            if let Some(backend) = backend.filter(|backend| backend.serving) {
                restored.ids.insert(backend.service_id);
                restored.owners.insert(id, backend.service_id);
                let of = restored.backends.entry(backend.service_id).or_default();
                of.push((id, backend));
            }
        }
        for range in &realized.source_ranges {
            restored.ids.insert(range.0);
            restored
                .source_ranges
                .entry(range.0)
                .or_default()
                .insert(*range);
        }
        restored
    }

    /// Every range that some frontend leads to.
    pub(super) fn ranges(&self) -> BTreeSet<SlotRange> {
        let lists = self.lists.values().map(|list| list.range);
        let all = lists.chain(self.stale.iter().copied());
        all.filter(|range| range.len > 0).collect()
    }

    pub(super) fn service_ids(&self) -> BTreeSet<ServiceId> {
        self.ids.iter().copied().filter(|id| *id != 0).collect()
    }

    /// The same without lists that somebody could take over.
    pub(super) fn without_lists(self) -> Self {
        Self {
            frontends: HashMap::new(),
            lists: HashMap::new(),
            stale: BTreeSet::new(),
            ..self
        }
    }

    /// What is there of the entry's port.
    pub(super) fn adopt(&mut self, entry: &ServiceEntry) -> Option<Port> {
        if !self.pending {
            return None;
        }
        let mut port = Port::new(entry);
        let mut owners = BTreeSet::new();
        let mut slotted = BTreeSet::new();
        for index in 0..entry.lists.len() {
            let of_list = entry.frontends.iter().filter(|wanted| wanted.list == index);
            let known = of_list.filter_map(|wanted| self.frontends.get(&wanted.frontend));
            let known: Vec<ServiceId> = known.copied().collect();
            // A list that other frontends lead to as well may be another Service's, which lost one of
            // its addresses to this one: its readers must not find this one's backends in it.
            let own = known.iter().find(|id| {
                let ours = known.iter().filter(|other| other == id).count();
                self.lists.contains_key(id) && self.leading.get(id) == Some(&ours)
            });
            let list = own.and_then(|id| self.lists.remove(id)).unwrap_or_default();
            self.ids.remove(&list.id);
            owners.insert(list.id);
            owners.extend(list.slots.iter().filter_map(|id| self.owners.get(id)));
            slotted.extend(list.slots.iter().copied());
            if let Some(ranges) = self.source_ranges.remove(&list.id) {
                port.source_ranges.extend(ranges);
            }
            port.lists.push(list);
        }
        for owner in owners.into_iter().filter(|id| *id != 0) {
            self.ids.remove(&owner);
            let mut backends = self.backends.remove(&owner).unwrap_or_default();
            // Of two with one address the one that slots lead to stays.
            backends.sort_by_key(|(id, _)| !slotted.contains(id));
            for (id, backend) in backends {
                match port.backends.entry(backend.address) {
                    Entry::Vacant(vacant) => drop(vacant.insert((id, backend))),
                    Entry::Occupied(_) => self.strays.push((id, backend)),
                }
            }
        }
        let found = port.lists.iter().any(|list| list.id != 0);
        found.then_some(port)
    }
}

fn list(state: &FrontendState, realized: &RealizedServices) -> List {
    let range = state.range();
    let slots = (range.start..range.start.saturating_add(range.len)).map(|index| {
        let slot = usize::try_from(index)
            .ok()
            .and_then(|i| realized.slots.get(i));
        slot.filter(|slot| slot.service_id == state.service_id)
            .map_or(0, |slot| slot.backend_id)
    });
    List {
        id: state.service_id,
        range,
        spare: state.spare_count,
        count: state.backend_count,
        local: state.local_count,
        maglev: state.maglev_size,
        slots: slots.collect(),
    }
}

impl Planner {
    /// Removes what no owner has taken over, in the first plan.
    pub(super) fn prune_restored(
        &mut self,
        touched: &mut BTreeMap<Frontend, Option<FrontendState>>,
        plan: &mut Plan,
    ) {
        if !self.restored.pending {
            return;
        }
        let left = std::mem::take(&mut self.restored);
        for frontend in self.frontends.keys() {
            touched.entry(*frontend).or_insert(None);
        }
        for (id, backend) in left.backends.into_values().flatten().chain(left.strays) {
            retire(id, backend, plan);
        }
        let ranges = left.lists.into_values().map(|list| list.range);
        plan.release.ranges.extend(ranges.chain(left.stale));
        for range in left.source_ranges.into_values().flatten() {
            self.source_range_count -= 1;
            plan.removed_source_ranges.push(range);
        }
        plan.release
            .services
            .extend(left.ids.into_iter().filter(|id| *id != 0));
    }
}
