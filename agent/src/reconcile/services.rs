//! Keeps the service maps as the cluster says: snapshot, plan, apply, report, wait.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use tholepin_ebpf_abi::names;
use tholepin_model::desired::{Desired, ServiceTable};
use tholepin_model::plan::services::{Capacities, Context, Op, RealizedServices, plan};
use tholepin_model::service::ServiceName;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::dataplane::chain;
use crate::dataplane::maps::MapAccessError;
use crate::dataplane::maps::backend_slots::BackendSlots;
use crate::dataplane::maps::backends::Backends;
use crate::dataplane::maps::frontends::Frontends;
use crate::dataplane::maps::workloads::Workloads;
use crate::dataplane::pin::PinDirectory;
use crate::dataplane::readers::wait_for_readers;
use crate::ipam::write_durably;

/// How often the maps are read back.
const RESYNC: Duration = Duration::from_secs(60);
/// How long a round that failed waits before the next.
const RETRY: Duration = Duration::from_secs(2);

/// What the reconciler needs of the kernel; a trait because failures are tested over a fake.
pub trait ServiceMaps: Send {
    fn read(&self) -> Result<RealizedServices, MapAccessError>;
    fn apply(&mut self, op: &Op) -> Result<(), MapAccessError>;
}

/// The pinned maps.
#[derive(Debug)]
pub struct PinnedServiceMaps {
    frontends: Frontends,
    slots: BackendSlots,
    backends: Backends,
    workloads: Workloads,
}

impl PinnedServiceMaps {
    /// Opens the three maps. `workloads` learns which pods are backends.
    pub fn open(pins: &PinDirectory, workloads: Workloads) -> Result<Self, MapAccessError> {
        Ok(Self {
            frontends: Frontends::open(pins)?,
            slots: BackendSlots::open(pins)?,
            backends: Backends::open(pins)?,
            workloads,
        })
    }
}

impl ServiceMaps for PinnedServiceMaps {
    fn read(&self) -> Result<RealizedServices, MapAccessError> {
        let backends = self.backends.read()?;
        self.workloads
            .set_backends(backends.iter().map(|(_, backend)| backend.address.address))?;
        Ok(RealizedServices {
            frontends: self.frontends.read()?.into_iter().collect(),
            slots: self.slots.read()?.into_iter().collect(),
            backends: backends.into_iter().collect(),
        })
    }

    fn apply(&mut self, op: &Op) -> Result<(), MapAccessError> {
        match op {
            Op::UpsertBackend(id, backend) | Op::RetireBackend(id, backend) => {
                // A pod that is not known to be a backend is not looked for among the flows.
                self.workloads.add_backends([backend.address.address])?;
                self.backends.upsert(*id, backend)
            }
            Op::UpsertSlot(service, ordinal, backend) => {
                self.slots.upsert(*service, *ordinal, *backend)
            }
            Op::UpsertFrontend(frontend, state) => self.frontends.upsert(frontend, state),
            Op::RemoveFrontend(frontend) => self.frontends.remove(frontend),
            Op::WaitForReaders => {
                wait_for_readers();
                Ok(())
            }
            Op::RemoveSlot(service, ordinal) => self.slots.remove(*service, *ordinal),
            Op::RemoveBackend(id) => self.backends.remove(*id),
        }
    }
}

/// Outcome of the last round, per Service port that is not as it should be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServicesStatus {
    /// Both sources have been listed and a round has ended since.
    pub synced: bool,
    pub frontend_count: usize,
    /// (Service, port name) to the reason.
    pub problems: BTreeMap<(ServiceName, String), String>,
}

/// The reconciler; owns the maps.
pub struct ServicesTask<M> {
    pub node_name: String,
    /// What the node's own processes have routes for.
    pub service_ranges: Vec<IpNet>,
    pub maps: M,
    pub generations: Generations,
    pub desired: watch::Receiver<Desired>,
    pub status: watch::Sender<ServicesStatus>,
}

impl<M> std::fmt::Debug for ServicesTask<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServicesTask")
            .field("node_name", &self.node_name)
            .finish_non_exhaustive()
    }
}

impl<M: ServiceMaps> ServicesTask<M> {
    /// Runs until cancelled. Blocks its thread while it changes maps: give it one of its own.
    pub async fn run(mut self, cancel: CancellationToken) {
        let mut realized = None;
        loop {
            let desired = self.desired.borrow_and_update().clone();
            let known = match realized.take() {
                Some(known) => Ok(known),
                None => self.maps.read(),
            };
            let mut next = RETRY;
            match known {
                Ok(mut known) => {
                    let failed = self.round(&desired, &mut known);
                    if !failed {
                        next = RESYNC;
                        realized = Some(known);
                    }
                }
                Err(error) => {
                    tracing::error!(error = chain(&error), "failed to read the service maps")
                }
            }
            tokio::select! {
                () = cancel.cancelled() => return,
                changed = self.desired.changed() => if changed.is_err() {
                    return cancel.cancelled().await;
                },
                // What was tracked is forgotten, so the next round reads the maps back.
                () = tokio::time::sleep(next) => realized = None,
            }
        }
    }

    /// One round; whether an operation failed.
    fn round(&mut self, desired: &Desired, realized: &mut RealizedServices) -> bool {
        let table = desired.service_table(&self.node_name);
        let context = Context {
            synced: desired.sync.service_sources(),
            capacities: Capacities {
                frontends: names::FRONTENDS_CAPACITY,
                slots: names::BACKEND_SLOTS_CAPACITY,
                backends: names::BACKENDS_CAPACITY,
            },
            next_generation: self.generations.next,
        };
        let planned = plan(&table, realized, context);
        if let Err(error) = self.generations.use_up_to(planned.next_generation) {
            // Without the reservation a restart could reuse a generation; better late than wrong.
            tracing::error!(
                error = chain(&error),
                "failed to reserve backend generations"
            );
            return true;
        }
        let failure = apply(&mut self.maps, &planned.ops, realized);
        let mut status = ServicesStatus {
            synced: context.synced,
            frontend_count: realized.frontends.len(),
            problems: planned
                .problems
                .into_iter()
                .map(|(service, port, problem)| ((service, port), problem.to_string()))
                .collect(),
        };
        for entry in &table.entries {
            let outside = entry.frontends.iter().find(|frontend| {
                !self
                    .service_ranges
                    .iter()
                    .any(|range| range.contains(&frontend.address))
            });
            if let Some(frontend) = outside {
                let key = (entry.service.clone(), entry.port_name.clone());
                let reason = format!(
                    "{} is in none of this node's Service ranges: pods reach it, the node does not",
                    frontend.address
                );
                status.problems.entry(key).or_insert(reason);
            }
        }
        if let Some(error) = &failure {
            let reason = chain(error);
            for key in unfinished(&table, realized) {
                status.problems.entry(key).or_insert_with(|| reason.clone());
            }
            tracing::error!(error = reason, "failed to change the service maps");
        }
        self.report(status);
        failure.is_some()
    }

    /// Publishes, and logs each problem once when it appears.
    fn report(&self, status: ServicesStatus) {
        let before = self.status.borrow().problems.clone();
        for ((service, port), reason) in &status.problems {
            if before.get(&(service.clone(), port.clone())) != Some(reason) {
                tracing::warn!(%service, port, reason, "Service is not programmed as desired");
            }
        }
        self.status.send_if_modified(|old| {
            let changed = *old != status;
            *old = status;
            changed
        });
    }
}

/// Applies in order. After a failure, what would point at something missing is left for the next round.
fn apply<M: ServiceMaps>(
    maps: &mut M,
    ops: &[Op],
    realized: &mut RealizedServices,
) -> Option<MapAccessError> {
    let mut first_failure = None;
    for op in ops {
        if first_failure.is_some() && !realized.is_safe(op) {
            continue;
        }
        match maps.apply(op) {
            Ok(()) => realized.record(op),
            Err(error) => drop(first_failure.get_or_insert(error)),
        }
    }
    first_failure
}

/// Entries whose frontends do not count all their backends.
fn unfinished<'a>(
    table: &'a ServiceTable,
    realized: &'a RealizedServices,
) -> impl Iterator<Item = (ServiceName, String)> + 'a {
    let finished = |entry: &&tholepin_model::desired::ServiceEntry| {
        entry.frontends.iter().all(|frontend| {
            let state = realized.frontends.get(frontend);
            state.is_some_and(|state| usize::from(state.backend_count) == entry.backends.len())
        })
    };
    let entries = table.entries.iter().filter(move |entry| !finished(entry));
    entries.map(|entry| (entry.service.clone(), entry.port_name.clone()))
}

/// Hands out backend generations that no former agent has used: blocks are reserved on disk ahead.
#[derive(Debug)]
pub struct Generations {
    path: PathBuf,
    next: u32,
    reserved: u32,
}

impl Generations {
    const BLOCK: u32 = 1 << 20;

    /// Skips whatever a former agent had reserved.
    pub fn open(state_dir: &Path) -> Result<Self, crate::ipam::IpamError> {
        let path = state_dir.join("backend-generation");
        // Without the file nothing was ever handed out on this node, or its state was wiped as a whole.
        let next = std::fs::read_to_string(&path)
            .ok()
            .and_then(|text| text.trim().parse::<u32>().ok())
            .unwrap_or(1);
        let mut generations = Self {
            path,
            next,
            reserved: next,
        };
        generations.reserve()?;
        Ok(generations)
    }

    fn reserve(&mut self) -> Result<(), crate::ipam::IpamError> {
        let reserved = self.next.wrapping_add(Self::BLOCK);
        write_durably(&self.path, reserved.to_string().as_bytes())?;
        self.reserved = reserved;
        Ok(())
    }

    fn use_up_to(&mut self, next: u32) -> Result<(), crate::ipam::IpamError> {
        self.next = next;
        // Less than half a block left: there is room for any single plan.
        if self.reserved.wrapping_sub(next) < Self::BLOCK / 2 {
            self.reserve()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
