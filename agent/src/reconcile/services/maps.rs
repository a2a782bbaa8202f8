//! The service maps as one thing: read whole, and changed by a plan in its order.

use tholepin_ebpf_abi::names;
use tholepin_model::plan::services::{Plan, RealizedServices};

use crate::dataplane::maps::MapAccessError;
use crate::dataplane::maps::backend_slots::BackendSlots;
use crate::dataplane::maps::backends::Backends;
use crate::dataplane::maps::frontends::Frontends;
use crate::dataplane::maps::source_ranges::SourceRanges;
use crate::dataplane::maps::workloads::Workloads;
use crate::dataplane::pin::PinDirectory;

/// What the reconciler needs of the kernel; a trait because failures are tested over a fake.
pub trait ServiceMaps: Send {
    /// What the maps say; of the backends the first `backends`, or all.
    fn read(&self, backends: Option<u32>) -> Result<RealizedServices, MapAccessError>;

    /// Makes a plan's changes in its order. After a failure nothing is written that could lead to what
    /// is missing.
    fn apply(&mut self, plan: &Plan) -> Result<(), MapAccessError>;
}

/// The pinned maps.
#[derive(Debug)]
pub struct PinnedServiceMaps {
    frontends: Frontends,
    slots: BackendSlots,
    backends: Backends,
    source_ranges: SourceRanges,
    workloads: Workloads,
}

impl PinnedServiceMaps {
    /// Opens the four maps. `workloads` learns which pods are backends.
    pub fn open(pins: &PinDirectory, workloads: Workloads) -> Result<Self, MapAccessError> {
        Ok(Self {
            frontends: Frontends::open(pins)?,
            slots: BackendSlots::open(pins)?,
            backends: Backends::open(pins)?,
            source_ranges: SourceRanges::open(pins)?,
            workloads,
        })
    }
}

impl ServiceMaps for PinnedServiceMaps {
    fn read(&self, backends: Option<u32>) -> Result<RealizedServices, MapAccessError> {
        let frontends = self.frontends.read()?;
        let ends = frontends.values().map(|state| {
            let range = state.range();
            range.start.saturating_add(range.len)
        });
        let slots = self.slots.read(ends.max().unwrap_or(0))?;
        let all = u32::try_from(names::BACKENDS_CAPACITY).unwrap_or(u32::MAX);
        let backends = self.backends.read(backends.unwrap_or(all))?;
        let known = backends.iter().flatten();
        self.workloads
            .set_backends(known.map(|backend| backend.address.address))?;
        Ok(RealizedServices {
            frontends,
            slots,
            backends,
            source_ranges: self.source_ranges.read()?,
        })
    }

    fn apply(&mut self, plan: &Plan) -> Result<(), MapAccessError> {
        // A pod that is not known to be a backend is not looked for among the flows.
        let new = plan.backends.iter();
        self.workloads
            .add_backends(new.map(|(_, backend)| backend.address.address))?;
        self.backends.write(&plan.backends)?;
        self.slots.write(&plan.slots)?;
        self.source_ranges.write(&plan.source_ranges)?;
        let written = self.frontends.write(&plan.frontends);
        // Addresses that nobody has any more go even if others could not be written.
        self.frontends.remove(&plan.removed_frontends)?;
        written?;
        self.source_ranges.remove(&plan.removed_source_ranges)?;
        self.backends.write(&plan.retired)
    }
}
