//! Plans the changes to the service maps. The order of the operations is the safety argument.
//!
//! Backends are written before slots, slots before the frontend that counts them. On the way out the
//! frontend shrinks or goes first, then every packet that may have read it is waited for, then slots and
//! backends are removed. A packet therefore never finds a slot or a backend missing.

use std::collections::{BTreeMap, BTreeSet};

use crate::desired::{ServiceEntry, ServiceTable};
use crate::service::{BackendAddress, Frontend, ServiceName};

/// Id of a group of slots; 0 is never handed out.
pub type ServiceId = u32;
/// Id of a backend; 0 is never handed out.
pub type BackendId = u32;

/// Value of a frontend in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrontendState {
    /// Slots `(service_id, 0..backend_count)` exist.
    pub service_id: ServiceId,
    /// How many backends take new flows.
    pub backend_count: u16,
    /// How many of them, from the front, are local.
    pub local_count: u16,
    /// Only the local ones may be chosen; without them packets are dropped, not rejected.
    pub local_only: bool,
}

/// Value of a backend in the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backend {
    /// Established UDP flows stay. Cleared just before it is removed, so that they move on without
    /// waiting for the removal.
    pub serving: bool,
    /// Where packets go.
    pub address: BackendAddress,
    /// Differs from that of every earlier backend with the same id, so that old flows are recognised.
    pub generation: u32,
}

/// What the maps say, as read back or as tracked.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RealizedServices {
    /// Frontends.
    pub frontends: BTreeMap<Frontend, FrontendState>,
    /// Slots.
    pub slots: BTreeMap<(ServiceId, u16), BackendId>,
    /// Backends.
    pub backends: BTreeMap<BackendId, Backend>,
}

/// One change of one map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Insert or replace a backend.
    UpsertBackend(BackendId, Backend),
    /// Insert or replace a slot.
    UpsertSlot(ServiceId, u16, BackendId),
    /// Insert or replace a frontend.
    UpsertFrontend(Frontend, FrontendState),
    /// Remove a frontend.
    RemoveFrontend(Frontend),
    /// Mark a backend that no frontend leads to as not serving.
    RetireBackend(BackendId, Backend),
    /// Wait until no packet is under way that began before the operations so far.
    WaitForReaders,
    /// Remove a slot.
    RemoveSlot(ServiceId, u16),
    /// Remove a backend.
    RemoveBackend(BackendId),
}

/// Sizes of the maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capacities {
    /// Entries of the frontend map.
    pub frontends: usize,
    /// Entries of the slot map.
    pub slots: usize,
    /// Entries of the backend map.
    pub backends: usize,
}

/// Why an entry is not programmed as desired.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    /// An older Service has the address.
    #[error("frontend {frontend} already belongs to Service {owner}")]
    Taken {
        /// The contested frontend.
        frontend: Frontend,
        /// Who keeps it.
        owner: ServiceName,
    },
    /// A map has no room; the newest Service is the one that is refused.
    #[error("the {map} map is full ({capacity} entries)")]
    Full {
        /// Which map.
        map: &'static str,
        /// Its capacity.
        capacity: usize,
    },
    /// A programmed Service grew beyond what fits; it keeps serving with fewer backends.
    #[error("only {programmed} of {wanted} backends fit into the {map} map")]
    Truncated {
        /// Which map.
        map: &'static str,
        /// How many are programmed.
        programmed: usize,
        /// How many there should be.
        wanted: usize,
    },
}

/// What to plan with.
#[derive(Clone, Copy, Debug)]
pub struct Context {
    /// Services and EndpointSlices have both been listed.
    pub synced: bool,
    /// Map sizes.
    pub capacities: Capacities,
    /// First unused generation; the plan uses it and those after it.
    pub next_generation: u32,
}

/// The outcome.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// Changes in the order they must be applied.
    pub ops: Vec<Op>,
    /// Entries that are not programmed as desired.
    pub problems: Vec<(ServiceName, String, Problem)>,
    /// First generation the plan did not use.
    pub next_generation: u32,
}

/// An entry that will be programmed, with the backends that fit.
struct Accepted<'a> {
    entry: &'a ServiceEntry,
    id: ServiceId,
    backends: &'a [BackendAddress],
}

/// Changes from `realized` to `desired`.
///
/// Before the sources have synced, only frontends that do not exist yet and have a backend are added;
/// what is in the maps is left alone.
#[must_use]
pub fn plan(desired: &ServiceTable, realized: &RealizedServices, context: Context) -> Plan {
    let mut plan = Plan {
        next_generation: context.next_generation,
        ..Plan::default()
    };
    let (accepted, kept) = accept(desired, realized, context, &mut plan.problems);
    let ids = ensure_backends(&accepted, &kept, realized, &mut plan);
    let wanted_slots = ensure_slots(&accepted, &ids, realized, &mut plan.ops);
    ensure_frontends(&accepted, realized, &mut plan.ops);
    if context.synced {
        prune(&accepted, &ids, &wanted_slots, realized, &mut plan.ops);
    }
    plan
}

fn accept<'a>(
    desired: &'a ServiceTable,
    realized: &RealizedServices,
    context: Context,
    problems: &mut Vec<(ServiceName, String, Problem)>,
) -> (Vec<Accepted<'a>>, BTreeSet<BackendAddress>) {
    let is_realized = |entry: &ServiceEntry| {
        entry
            .frontends
            .iter()
            .any(|f| realized.frontends.contains_key(f))
    };
    let mut owners: BTreeMap<Frontend, &ServiceName> = BTreeMap::new();
    let mut ids = IdPool::new(realized.frontends.values().map(|state| state.service_id));
    ids.reserve(realized.slots.keys().map(|(id, _)| *id));
    let mut claimed: BTreeSet<ServiceId> = BTreeSet::new();
    let mut room = Room::new(context, realized);
    let mut accepted = Vec::new();
    // An older Service wins a contested frontend even when a newer one is programmed with it.
    let mut contenders: BTreeMap<Frontend, &ServiceEntry> = BTreeMap::new();
    for entry in &desired.entries {
        for frontend in &entry.frontends {
            contenders.entry(*frontend).or_insert(entry);
        }
    }
    // `entries` is sorted by age, so what does not fit is the newest.
    for entry in &desired.entries {
        let programmed = is_realized(entry);
        let taken = entry.frontends.iter().find(|f| {
            contenders
                .get(f)
                .is_some_and(|winner| !std::ptr::eq(*winner, entry))
                || owners.contains_key(f)
        });
        let refusal = if let Some(frontend) = taken {
            let owner = contenders
                .get(frontend)
                .map_or(&entry.service, |winner| &winner.service);
            Err(Problem::Taken {
                frontend: *frontend,
                owner: owner.clone(),
            })
        } else if !context.synced && (programmed || entry.backends.is_empty()) {
            continue;
        } else {
            room.admit(entry, programmed)
        };
        let backends = match refusal {
            Ok((backends, problem)) => {
                if let Some(problem) = problem {
                    problems.push((entry.service.clone(), entry.port_name.clone(), problem));
                }
                backends
            }
            Err(problem) => {
                problems.push((entry.service.clone(), entry.port_name.clone(), problem));
                continue;
            }
        };
        for frontend in &entry.frontends {
            owners.insert(*frontend, &entry.service);
        }
        let known = entry
            .frontends
            .iter()
            .filter_map(|frontend| realized.frontends.get(frontend))
            .map(|state| state.service_id)
            .find(|id| *id != 0 && !claimed.contains(id));
        let id = known.unwrap_or_else(|| ids.take());
        claimed.insert(id);
        accepted.push(Accepted {
            entry,
            id,
            backends,
        });
    }
    for accepted in &accepted {
        room.keep_draining(accepted.entry);
    }
    (accepted, room.backends)
}

/// Counts what the accepted entries use of each map.
struct Room {
    capacities: Capacities,
    frontends: usize,
    slots: usize,
    backends: BTreeSet<BackendAddress>,
}

impl Room {
    fn new(context: Context, realized: &RealizedServices) -> Self {
        let mut room = Self {
            capacities: context.capacities,
            frontends: 0,
            slots: 0,
            backends: BTreeSet::new(),
        };
        if !context.synced {
            // Nothing will be removed, so everything that is there stays counted.
            room.frontends = realized.frontends.len();
            room.slots = realized.slots.len();
            room.backends = realized
                .backends
                .values()
                .map(|backend| backend.address)
                .collect();
        }
        room
    }

    /// The backends of `entry` that fit, or why it is refused as a whole.
    fn admit<'a>(
        &mut self,
        entry: &'a ServiceEntry,
        programmed: bool,
    ) -> Result<(&'a [BackendAddress], Option<Problem>), Problem> {
        if self.frontends + entry.frontends.len() > self.capacities.frontends {
            return Err(Problem::Full {
                map: "frontend",
                capacity: self.capacities.frontends,
            });
        }
        // Counts are 16 bits wide in the map.
        let free_slots = self
            .capacities
            .slots
            .saturating_sub(self.slots)
            .min(usize::from(u16::MAX));
        let free_backends = self.capacities.backends.saturating_sub(self.backends.len());
        let mut fit = 0;
        let mut added = BTreeSet::new();
        for backend in &entry.backends {
            let known = self.backends.contains(backend) || added.contains(backend);
            if fit >= free_slots || (!known && added.len() >= free_backends) {
                break;
            }
            added.insert(*backend);
            fit += 1;
        }
        let map = if fit >= free_slots { "slot" } else { "backend" };
        let capacity = if fit >= free_slots {
            self.capacities.slots
        } else {
            self.capacities.backends
        };
        if fit < entry.backends.len() && !programmed {
            return Err(Problem::Full { map, capacity });
        }
        self.frontends += entry.frontends.len();
        self.slots += fit;
        self.backends.extend(added);
        let problem = (fit < entry.backends.len()).then_some(Problem::Truncated {
            map,
            programmed: fit,
            wanted: entry.backends.len(),
        });
        Ok((&entry.backends[..fit], problem))
    }

    /// Draining endpoints are kept while there is room: they carry established UDP flows.
    fn keep_draining(&mut self, entry: &ServiceEntry) {
        for backend in &entry.serving {
            if self.backends.len() < self.capacities.backends {
                self.backends.insert(*backend);
            }
        }
    }
}

/// Hands out the lowest id that nothing uses.
struct IdPool {
    used: BTreeSet<u32>,
    cursor: u32,
}

impl IdPool {
    fn new(used: impl Iterator<Item = u32>) -> Self {
        Self {
            used: used.collect(),
            cursor: 0,
        }
    }

    fn reserve(&mut self, used: impl Iterator<Item = u32>) {
        self.used.extend(used);
    }

    fn take(&mut self) -> u32 {
        loop {
            // Far fewer than 2^32 ids are ever in use: the maps cannot hold them.
            self.cursor = self.cursor.wrapping_add(1);
            if self.cursor != 0 && self.used.insert(self.cursor) {
                return self.cursor;
            }
        }
    }
}

/// Ids of every backend that must exist, in `plan.ops` those that do not yet.
fn ensure_backends(
    accepted: &[Accepted<'_>],
    kept: &BTreeSet<BackendAddress>,
    realized: &RealizedServices,
    plan: &mut Plan,
) -> BTreeMap<BackendAddress, BackendId> {
    let mut known: BTreeMap<BackendAddress, BackendId> = BTreeMap::new();
    // A retired one is on its way out; the same address gets a new id and generation.
    for (id, backend) in realized
        .backends
        .iter()
        .filter(|(_, backend)| backend.serving)
    {
        known.entry(backend.address).or_insert(*id);
    }
    let mut pool = IdPool::new(realized.backends.keys().copied());
    // A slot may name an id whose backend is missing after a crash; do not let it come alive.
    pool.reserve(realized.slots.values().copied());
    let mut ids = BTreeMap::new();
    for accepted in accepted {
        let draining = accepted
            .entry
            .serving
            .iter()
            .filter(|address| kept.contains(address));
        for address in accepted.backends.iter().chain(draining) {
            if ids.contains_key(address) {
                continue;
            }
            let id = known.get(address).copied().unwrap_or_else(|| {
                let id = pool.take();
                let backend = Backend {
                    serving: true,
                    address: *address,
                    generation: plan.next_generation,
                };
                plan.next_generation = plan.next_generation.wrapping_add(1);
                plan.ops.push(Op::UpsertBackend(id, backend));
                id
            });
            ids.insert(*address, id);
        }
    }
    ids
}

fn ensure_slots(
    accepted: &[Accepted<'_>],
    ids: &BTreeMap<BackendAddress, BackendId>,
    realized: &RealizedServices,
    ops: &mut Vec<Op>,
) -> BTreeSet<(ServiceId, u16)> {
    let mut wanted = BTreeSet::new();
    for accepted in accepted {
        for (ordinal, address) in (0_u16..).zip(accepted.backends) {
            let key = (accepted.id, ordinal);
            let backend = ids[address];
            if realized.slots.get(&key) != Some(&backend) {
                ops.push(Op::UpsertSlot(accepted.id, ordinal, backend));
            }
            wanted.insert(key);
        }
    }
    wanted
}

fn ensure_frontends(accepted: &[Accepted<'_>], realized: &RealizedServices, ops: &mut Vec<Op>) {
    for accepted in accepted {
        let count = u16::try_from(accepted.backends.len()).expect("Room admits at most u16::MAX");
        let local = accepted.entry.local_count.min(accepted.backends.len());
        let state = FrontendState {
            service_id: accepted.id,
            backend_count: count,
            local_count: u16::try_from(local).expect("not above backend_count"),
            local_only: accepted.entry.local_only,
        };
        for frontend in &accepted.entry.frontends {
            if realized.frontends.get(frontend) != Some(&state) {
                ops.push(Op::UpsertFrontend(*frontend, state));
            }
        }
    }
}

fn prune(
    accepted: &[Accepted<'_>],
    ids: &BTreeMap<BackendAddress, BackendId>,
    wanted_slots: &BTreeSet<(ServiceId, u16)>,
    realized: &RealizedServices,
    ops: &mut Vec<Op>,
) {
    let wanted: BTreeSet<Frontend> = accepted
        .iter()
        .flat_map(|a| a.entry.frontends.iter().copied())
        .collect();
    let gone = realized
        .frontends
        .keys()
        .filter(|frontend| !wanted.contains(frontend));
    ops.extend(gone.map(|frontend| Op::RemoveFrontend(*frontend)));
    let kept: BTreeSet<BackendId> = ids.values().copied().collect();
    let slots = realized
        .slots
        .keys()
        .filter(|key| !wanted_slots.contains(key));
    let backends = realized.backends.keys().filter(|id| !kept.contains(id));
    let removals: Vec<Op> = slots
        .map(|(id, ordinal)| Op::RemoveSlot(*id, *ordinal))
        .chain(backends.map(|id| Op::RemoveBackend(*id)))
        .collect();
    for (id, backend) in &realized.backends {
        if backend.serving && !kept.contains(id) {
            ops.push(Op::RetireBackend(
                *id,
                Backend {
                    serving: false,
                    ..*backend
                },
            ));
        }
    }
    if !removals.is_empty() {
        ops.push(Op::WaitForReaders);
        ops.extend(removals);
    }
}

impl RealizedServices {
    /// Records that `op` was applied.
    pub fn record(&mut self, op: &Op) {
        match *op {
            Op::UpsertBackend(id, backend) | Op::RetireBackend(id, backend) => {
                self.backends.insert(id, backend);
            }
            Op::UpsertSlot(service, ordinal, backend) => {
                self.slots.insert((service, ordinal), backend);
            }
            Op::UpsertFrontend(frontend, state) => drop(self.frontends.insert(frontend, state)),
            Op::RemoveFrontend(frontend) => drop(self.frontends.remove(&frontend)),
            Op::WaitForReaders => (),
            Op::RemoveSlot(service, ordinal) => drop(self.slots.remove(&(service, ordinal))),
            Op::RemoveBackend(id) => drop(self.backends.remove(&id)),
        }
    }

    /// Whether applying `op` would leave a frontend or a slot pointing at nothing. Only after another
    /// operation failed can a planned one be unsafe; the next round plans it again.
    #[must_use]
    pub fn is_safe(&self, op: &Op) -> bool {
        match *op {
            Op::UpsertSlot(_, _, backend) => self.backends.contains_key(&backend),
            Op::UpsertFrontend(_, state) => (0..state.backend_count).all(|ordinal| {
                self.slots
                    .get(&(state.service_id, ordinal))
                    .is_some_and(|backend| self.backends.contains_key(backend))
            }),
            Op::RemoveSlot(service, ordinal) => !self
                .frontends
                .values()
                .any(|state| state.service_id == service && ordinal < state.backend_count),
            Op::RemoveBackend(id) => !self.slots.values().any(|backend| *backend == id),
            Op::RetireBackend(id, _) => {
                let mut leading = self.slots.iter().filter(|(_, backend)| **backend == id);
                !leading.any(|((service, ordinal), _)| {
                    self.frontends
                        .values()
                        .any(|state| state.service_id == *service && *ordinal < state.backend_count)
                })
            }
            Op::UpsertBackend(..) | Op::RemoveFrontend(_) | Op::WaitForReaders => true,
        }
    }
}

#[cfg(test)]
mod tests;
