//! From changed objects to written maps, without tasks or clocks: what a round does.

use std::cell::RefCell;
use std::collections::BTreeMap;

use ipnet::IpNet;
use tholepin_ebpf_abi::names;
use tholepin_model::plan::services::{Capacities, Planner, Problem, Release};
use tholepin_model::service::Owner;
use tholepin_model::service::fold::Folded;
use tholepin_model::service::table::{Changes, ServiceTable};

use super::{Generations, ServiceMaps};
use crate::dataplane::chain;
use crate::dataplane::maps::MapAccessError;
use crate::dataplane::readers::wait_for_readers;
use crate::ipam::IpamError;

/// Why a round failed. The next one reads the maps first.
#[derive(Debug, thiserror::Error)]
pub enum ProgramError {
    #[error("failed to read the service maps")]
    Read { source: MapAccessError },
    #[error("failed to write the service maps")]
    Write { source: MapAccessError },
    // Without the reservation a restart could reuse a generation; better late than wrong.
    #[error("failed to reserve backend generations")]
    Reserve { source: IpamError },
}

/// What a round did.
#[derive(Debug, Default)]
pub struct Applied {
    /// To be given to [`Programmer::release`] when no packet is under way that began before.
    pub release: Release,
    /// Owners whose problems may have changed.
    pub judged: Vec<Owner>,
    /// What else is known of owners that have changed.
    pub facts: Vec<(Owner, Facts)>,
    /// How many entries of the maps were written or removed.
    pub writes: usize,
}

/// What of an owner concerns others than the maps.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Port of its health check, and the number of ready endpoints on this node.
    pub health_check: Option<(u16, usize)>,
    /// `internalTrafficPolicy: Local` without an endpoint on this node.
    pub no_local_internal: bool,
    /// `externalTrafficPolicy: Local` without an endpoint on this node.
    pub no_local_external: bool,
}

impl Facts {
    fn of(folded: Option<&Folded>) -> Self {
        let entries = || folded.into_iter().flat_map(|folded| &folded.entries);
        Self {
            health_check: folded.and_then(|folded| folded.health_check),
            no_local_internal: entries().any(|entry| entry.no_local_internal),
            no_local_external: entries().any(|entry| entry.no_local_external),
        }
    }
}

/// The known objects, what the maps say, and the maps.
#[derive(Debug)]
pub struct Programmer<M> {
    maps: M,
    generations: Generations,
    service_ranges: Vec<IpNet>,
    table: ServiceTable,
    planner: Option<Planner>,
}

impl<M: ServiceMaps> Programmer<M> {
    /// `service_ranges` are what the node's own processes have routes for.
    pub fn new(maps: M, generations: Generations, service_ranges: Vec<IpNet>) -> Self {
        Self {
            maps,
            generations,
            service_ranges,
            table: ServiceTable::default(),
            planner: None,
        }
    }

    /// Takes changes in and writes what they change; `None` if there is nothing to do, which it is too
    /// until every source has been listed.
    pub fn apply(&mut self, changes: Changes) -> Result<Option<Applied>, ProgramError> {
        self.table.apply(changes);
        if !self.table.sync().is_complete() {
            return Ok(None);
        }
        let mut planner = match self.planner.take() {
            Some(planner) => planner,
            None => self.restore()?,
        };
        let dirty = self.table.take_dirty();
        let table = &self.table;
        let facts = RefCell::new(Vec::new());
        let plan = planner.plan(dirty, |owner| {
            let folded = table.folded(owner);
            let of_owner = (owner.clone(), Facts::of(folded.as_ref()));
            facts.borrow_mut().push(of_owner);
            folded
        });
        if plan.judged.is_empty() && plan.is_empty() {
            self.planner = Some(planner);
            return Ok(None);
        }
        let next = planner.next_generation();
        let reserved = self.generations.use_up_to(next);
        reserved.map_err(|source| ProgramError::Reserve { source })?;
        let written = self.maps.apply(&plan);
        written.map_err(|source| ProgramError::Write { source })?;
        self.planner = Some(planner);
        let slots_and_backends = plan.slots.len() + plan.backends.len() + plan.retired.len();
        Ok(Some(Applied {
            writes: slots_and_backends
                + plan.frontends.len()
                + plan.removed_frontends.len()
                + plan.source_ranges.len()
                + plan.removed_source_ranges.len(),
            release: plan.release,
            judged: plan.judged,
            facts: facts.into_inner(),
        }))
    }

    /// Takes over what the maps say. What a former planner was to release is free then, so packets
    /// that may use it are waited for first.
    fn restore(&mut self) -> Result<Planner, ProgramError> {
        wait_for_readers();
        let realized = self.maps.read(None);
        let realized = realized.map_err(|source| ProgramError::Read { source })?;
        let entries = |capacity: usize| u32::try_from(capacity).unwrap_or(u32::MAX);
        let capacities = Capacities {
            frontends: names::FRONTENDS_CAPACITY,
            slots: entries(names::BACKEND_SLOTS_CAPACITY),
            backends: entries(names::BACKENDS_CAPACITY),
            source_ranges: names::SOURCE_RANGES_CAPACITY,
        };
        self.table.mark_all();
        Ok(Planner::restore(
            realized,
            capacities,
            self.service_ranges.clone(),
            self.generations.next(),
        ))
    }

    /// Gives back what no packet can be using any more.
    pub fn release(&mut self, release: Release) {
        if let Some(planner) = &mut self.planner {
            let again = planner.release(release);
            self.table.mark(again);
        }
    }

    /// Reads the maps back. True if they are not as written: then the next round starts from what they
    /// say, and what was to be released is not to be.
    pub fn audit(&mut self) -> bool {
        let Some(planner) = &self.planner else {
            return true;
        };
        let (_, backends) = planner.extent();
        let difference = match self.maps.read(Some(backends)) {
            Ok(realized) => planner.difference(&realized),
            Err(error) => Some(chain(&error)),
        };
        let Some(difference) = difference else {
            return false;
        };
        tracing::warn!(
            difference,
            "the service maps have been changed by somebody else"
        );
        self.planner = None;
        true
    }

    /// Ports that are not programmed as desired.
    pub fn problems(&self) -> &BTreeMap<(Owner, String), Problem> {
        static NONE: BTreeMap<(Owner, String), Problem> = BTreeMap::new();
        self.planner.as_ref().map_or(&NONE, Planner::problems)
    }

    /// How many frontends there are.
    pub fn frontend_count(&self) -> usize {
        self.planner.as_ref().map_or(0, Planner::frontend_count)
    }

    /// The known objects.
    pub fn table(&self) -> &ServiceTable {
        &self.table
    }

    /// The maps.
    pub fn maps(&self) -> &M {
        &self.maps
    }

    #[cfg(test)]
    pub(super) fn maps_mut(&mut self) -> &mut M {
        &mut self.maps
    }
}
