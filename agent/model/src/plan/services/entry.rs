//! One port of one owner: what the maps say of it, and its way to what is wanted.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;

use super::pools::SlotRange;
use super::{
    Backend, BackendId, FrontendState, Plan, Planner, Problem, RealizedServices, ServiceId, Slot,
};
use crate::service::fold::{BackendList, EntryFrontend, ServiceEntry};
use crate::service::{BackendAddress, Frontend, Owner, Protocol, maglev};

/// A list in the maps.
#[derive(Clone, Debug, Default)]
pub(super) struct List {
    pub(super) id: ServiceId,
    pub(super) range: SlotRange,
    pub(super) spare: u16,
    pub(super) count: u16,
    pub(super) local: u16,
    pub(super) maglev: u16,
    /// What its slots say, in order.
    pub(super) slots: Vec<BackendId>,
}

impl List {
    /// The value of a frontend that leads to it.
    fn state(&self, wanted: &EntryFrontend, affinity_timeout_secs: u32) -> FrontendState {
        FrontendState {
            service_id: self.id,
            first_slot: self.range.start + u32::from(self.spare),
            backend_count: self.count,
            local_count: self.local,
            spare_count: self.spare,
            maglev_size: self.maglev,
            flags: wanted.flags,
            affinity_timeout_secs,
        }
    }
}

/// A port in the maps.
#[derive(Clone, Debug)]
pub(super) struct Port {
    name: String,
    protocol: Option<Protocol>,
    v4: bool,
    pub(super) lists: Vec<List>,
    /// Every backend of the port.
    pub(super) backends: BTreeMap<BackendAddress, (BackendId, Backend)>,
    pub(super) frontends: Vec<Frontend>,
    pub(super) source_ranges: BTreeSet<(ServiceId, IpNet)>,
}

impl Port {
    pub(super) fn new(entry: &ServiceEntry) -> Self {
        let first = entry.frontends.first().map(|f| f.frontend);
        Self {
            name: entry.port_name.clone(),
            protocol: first.map(|frontend| frontend.protocol),
            v4: first.is_some_and(|frontend| frontend.address.is_ipv4()),
            lists: Vec::new(),
            backends: BTreeMap::new(),
            frontends: Vec::new(),
            source_ranges: BTreeSet::new(),
        }
    }

    /// Whether this is what the entry was before.
    pub(super) fn is_of(&self, entry: &ServiceEntry) -> bool {
        let Some(first) = entry.frontends.first() else {
            return false;
        };
        self.name == entry.port_name
            && self.protocol == Some(first.frontend.protocol)
            && self.v4 == first.frontend.address.is_ipv4()
    }

    /// Whether there is anything of it in the maps.
    fn is_programmed(&self) -> bool {
        !self.lists.is_empty()
    }

    /// What of it the maps say differently.
    pub(super) fn difference(&self, realized: &RealizedServices) -> Option<String> {
        for list in &self.lists {
            for (index, id) in (list.range.start..).zip(&list.slots) {
                let slot = usize::try_from(index)
                    .ok()
                    .and_then(|i| realized.slots.get(i));
                let wanted = Slot {
                    backend_id: *id,
                    service_id: list.id,
                };
                if slot != Some(&wanted) {
                    return Some(format!("slot {index}"));
                }
            }
        }
        for (id, backend) in self.backends.values() {
            let found = usize::try_from(*id)
                .ok()
                .and_then(|i| realized.backends.get(i));
            if found != Some(&Some(*backend)) {
                return Some(format!("backend {id}"));
            }
        }
        (self.source_ranges.iter())
            .any(|range| !realized.source_ranges.contains(range))
            .then(|| "a source range".to_owned())
    }
}

impl Planner {
    /// Plans one entry; the port as it is afterwards, or why it is refused as a whole.
    pub(super) fn plan_entry(
        &mut self,
        owner: &Owner,
        entry: &ServiceEntry,
        known: Option<Port>,
        touched: &mut BTreeMap<Frontend, Option<FrontendState>>,
        plan: &mut Plan,
    ) -> Result<Port, Problem> {
        let mut port = match known {
            Some(port) => port,
            None => self
                .restored
                .adopt(entry)
                .unwrap_or_else(|| Port::new(entry)),
        };
        let programmed = port.is_programmed();
        let mut won = Vec::with_capacity(entry.frontends.len());
        for wanted in &entry.frontends {
            match self.claims.winner(&wanted.frontend) {
                Some(winner) if winner != owner => {
                    let problem = Problem::Taken {
                        frontend: wanted.frontend,
                        owner: winner.clone(),
                    };
                    self.problem(owner, &entry.port_name, problem);
                }
                _ => won.push(*wanted),
            }
        }
        if won.is_empty() {
            // Nothing is left to lead anywhere; the reason is reported already.
            self.retire_port(port, plan);
            return Ok(Port::new(entry));
        }
        let refusal = (!programmed).then(|| self.refusal(entry, won.len()));
        if let Some(problem) = refusal.flatten() {
            self.retire_port(port, plan);
            return Err(problem);
        }
        // A list whose frontends are all somebody else's is not written.
        let nothing = BackendList::default();
        let is_won = |index: usize| won.iter().any(|wanted| wanted.list == index);
        let lists: Vec<&BackendList> = (0..)
            .zip(&entry.lists)
            .map(|(index, list)| if is_won(index) { list } else { &nothing })
            .collect();
        self.fit_backends(owner, entry, &lists, &mut port, plan);
        self.fit_lists(owner, entry, &lists, &mut port, plan);
        self.fit_source_ranges(owner, entry, &won, &mut port, plan);
        port.frontends.clear();
        for wanted in won {
            let is_new = !self.frontends.contains_key(&wanted.frontend);
            if is_new && self.frontend_pressure >= self.capacities.frontends {
                let problem = full("frontend", self.capacities.frontends);
                self.problem(owner, &entry.port_name, problem);
                continue;
            }
            let address = wanted.frontend.address;
            if wanted.cluster_ip && !self.service_ranges.iter().any(|r| r.contains(&address)) {
                self.problem(owner, &entry.port_name, Problem::OutsideRanges { address });
            }
            let state = port.lists[wanted.list].state(&wanted, entry.affinity_timeout_secs);
            port.frontends.push(wanted.frontend);
            let slot = touched.entry(wanted.frontend).or_insert(None);
            if slot.is_none() {
                self.frontend_pressure += usize::from(is_new);
                *slot = Some(state);
            }
        }
        Ok(port)
    }

    /// Why a port that is not in the maps yet does not get in. One that is in is cut instead.
    fn refusal(&self, entry: &ServiceEntry, frontends: usize) -> Option<Problem> {
        if self.frontend_pressure + frontends > self.capacities.frontends {
            return Some(full("frontend", self.capacities.frontends));
        }
        let lists = entry.lists.iter();
        let eligible = lists.clone().map(|list| list.backends.len()).max();
        if eligible.unwrap_or(0) > self.backend_ids.free() {
            return Some(full("backend", size(self.capacities.backends)));
        }
        let slots: usize = lists.map(|list| list.backends.len()).sum();
        if slots > size(self.slots.longest()) {
            return Some(full("slot", size(self.capacities.slots)));
        }
        None
    }

    /// Gives every eligible backend an id, keeps those of draining ones, and retires the others.
    fn fit_backends(
        &mut self,
        owner: &Owner,
        entry: &ServiceEntry,
        lists: &[&BackendList],
        port: &mut Port,
        plan: &mut Plan,
    ) {
        while port.lists.len() < lists.len() {
            port.lists.push(List::default());
        }
        for list in &mut port.lists {
            if list.id == 0 {
                list.id = self
                    .ids
                    .take()
                    .expect("the maps hold fewer lists than a u32 counts");
            }
        }
        let service_id = port.lists.first().map_or(0, |list| list.id);
        let mut former = std::mem::take(&mut port.backends);
        let (mut wanted, mut missing) = (0, 0);
        let eligible = lists.iter().flat_map(|list| &list.backends);
        for address in eligible.chain(lists.iter().flat_map(|list| &list.spare)) {
            if port.backends.contains_key(address) {
                continue;
            }
            wanted += 1;
            if let Some(known) = former.remove(address) {
                port.backends.insert(*address, known);
            } else if let Some(id) = self.backend_ids.take() {
                let backend = Backend {
                    serving: true,
                    address: *address,
                    generation: self.next_generation,
                    service_id,
                };
                self.next_generation = self.next_generation.wrapping_add(1).max(1);
                plan.backends.push((id, backend));
                port.backends.insert(*address, (id, backend));
            } else {
                missing += 1;
            }
        }
        for address in &entry.serving {
            if let Some(known) = former.remove(address) {
                port.backends.insert(*address, known);
            }
        }
        for (id, backend) in former.into_values() {
            retire(id, backend, plan);
        }
        if missing > 0 {
            let problem = Problem::Truncated {
                map: "backend",
                programmed: wanted - missing,
                wanted,
            };
            self.problem(owner, &entry.port_name, problem);
        }
    }

    fn fit_lists(
        &mut self,
        owner: &Owner,
        entry: &ServiceEntry,
        lists: &[&BackendList],
        port: &mut Port,
        plan: &mut Plan,
    ) {
        for (list, wanted) in port.lists.iter_mut().zip(lists) {
            let mut next = Shape::new(wanted, &port.backends);
            let shape = (list.spare, list.count, list.local, list.maglev);
            if shape == next.counts() {
                for ((index, old), new) in (list.range.start..).zip(&mut list.slots).zip(next.slots)
                {
                    if *old != new {
                        *old = new;
                        plan.slots.push((index, slot(new, list.id)));
                    }
                }
                continue;
            }
            let mut range = self.slots.take(next.len());
            if range.is_none() {
                // What is there already may be more than what is free.
                let longest = self.slots.longest().max(list.range.len);
                let programmed = next.cut(longest);
                let problem = Problem::Truncated {
                    map: "slot",
                    programmed,
                    wanted: wanted.backends.len(),
                };
                let key = (owner.clone(), entry.port_name.clone());
                self.problems.entry(key).or_insert(problem);
                range = self.slots.take(next.len());
            }
            if let Some(range) = range {
                plan.release
                    .ranges
                    .push(std::mem::replace(&mut list.range, range));
            }
            (list.spare, list.count, list.local, list.maglev) = next.counts();
            for (index, new) in (list.range.start..).zip(&next.slots) {
                plan.slots.push((index, slot(*new, list.id)));
            }
            list.slots = next.slots;
        }
        for list in port.lists.drain(lists.len()..) {
            plan.release.ranges.push(list.range);
            plan.release.services.push(list.id);
        }
    }

    fn fit_source_ranges(
        &mut self,
        owner: &Owner,
        entry: &ServiceEntry,
        won: &[EntryFrontend],
        port: &mut Port,
        plan: &mut Plan,
    ) {
        let bound = won.iter().filter(|wanted| wanted.flags.source_ranges);
        let ids: BTreeSet<ServiceId> = bound.map(|wanted| port.lists[wanted.list].id).collect();
        let wanted: BTreeSet<(ServiceId, IpNet)> = ids
            .into_iter()
            .flat_map(|id| entry.source_ranges.iter().map(move |range| (id, *range)))
            .collect();
        let former = std::mem::take(&mut port.source_ranges);
        for range in former.difference(&wanted) {
            self.source_range_count -= 1;
            plan.removed_source_ranges.push(*range);
        }
        for range in &wanted {
            if !former.contains(range) {
                if self.source_range_count >= self.capacities.source_ranges {
                    continue;
                }
                self.source_range_count += 1;
                plan.source_ranges.push(*range);
            }
            port.source_ranges.insert(*range);
        }
        if port.source_ranges.len() < wanted.len() {
            let problem = Problem::SourceRanges {
                programmed: port.source_ranges.len(),
                wanted: wanted.len(),
            };
            self.problem(owner, &entry.port_name, problem);
        }
    }

    /// Takes a port out. Its frontends are the caller's.
    pub(super) fn retire_port(&mut self, port: Port, plan: &mut Plan) {
        for (id, backend) in port.backends.into_values() {
            retire(id, backend, plan);
        }
        for list in port.lists {
            plan.release.ranges.push(list.range);
            plan.release.services.push(list.id);
        }
        self.source_range_count -= port.source_ranges.len();
        plan.removed_source_ranges.extend(port.source_ranges);
    }
}

/// Marks a backend as not serving, which moves its UDP flows with their next datagram.
pub(super) fn retire(id: BackendId, backend: Backend, plan: &mut Plan) {
    let serving = false;
    plan.retired.push((id, Backend { serving, ..backend }));
    plan.release.backends.push(id);
}

fn slot(backend_id: BackendId, service_id: ServiceId) -> Slot {
    Slot {
        backend_id,
        service_id,
    }
}

fn size(entries: u32) -> usize {
    usize::try_from(entries).unwrap_or(usize::MAX)
}

fn full(map: &'static str, capacity: usize) -> Problem {
    Problem::Full { map, capacity }
}

/// What a list's slots are to say.
struct Shape {
    spare: usize,
    count: usize,
    local: usize,
    slots: Vec<BackendId>,
}

impl Shape {
    /// Of the backends that have an id.
    fn new(wanted: &BackendList, ids: &BTreeMap<BackendAddress, (BackendId, Backend)>) -> Self {
        const MOST: usize = u16::MAX as usize;
        let known = |addresses: &[BackendAddress]| -> Vec<(BackendAddress, BackendId)> {
            let known = addresses
                .iter()
                .filter_map(|address| Some((*address, ids.get(address)?.0)));
            known.take(MOST).collect()
        };
        let spare = known(&wanted.spare);
        let mut backends = known(&wanted.backends[..wanted.local_count]);
        let local = backends.len();
        backends.extend(known(&wanted.backends[wanted.local_count..]));
        backends.truncate(MOST);
        let mut slots: Vec<BackendId> = spare.iter().chain(&backends).map(|(_, id)| *id).collect();
        if wanted.maglev {
            let addresses: Vec<_> = backends.iter().map(|(address, _)| *address).collect();
            let table = maglev::table(&addresses);
            slots.extend(table.iter().map(|index| backends[usize::from(*index)].1));
        }
        Self {
            spare: spare.len(),
            count: backends.len(),
            local,
            slots,
        }
    }

    fn len(&self) -> u32 {
        u32::try_from(self.slots.len()).expect("three counts of 16 bits")
    }

    fn counts(&self) -> (u16, u16, u16, u16) {
        let narrow = |count: usize| u16::try_from(count).expect("cut to 16 bits");
        let maglev = self.slots.len() - self.spare - self.count;
        (
            narrow(self.spare),
            narrow(self.count),
            narrow(self.local),
            narrow(maglev),
        )
    }

    /// Does with `room` slots: without spares and table, and with as many backends as fit.
    fn cut(&mut self, room: u32) -> usize {
        self.slots.drain(..self.spare);
        self.spare = 0;
        self.count = self.count.min(size(room));
        self.local = self.local.min(self.count);
        self.slots.truncate(self.count);
        self.count
    }
}
