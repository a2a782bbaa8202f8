//! `DROPS`: packets dropped or rejected, by reason.

use aya::maps::PerCpuArray;
use tholepin_ebpf_abi::{DropReason, names};

use super::{MapAccessError, Pinned, access, open, opened};
use crate::dataplane::pin::PinDirectory;

/// The pinned map.
pub struct Drops(PerCpuArray<Pinned, u64>);

impl std::fmt::Debug for Drops {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Drops").finish_non_exhaustive()
    }
}

impl Drops {
    /// Opens the pinned map.
    pub fn open(pins: &PinDirectory) -> Result<Self, MapAccessError> {
        let map = open(pins, names::DROPS)?;
        Ok(Self(opened(
            pins,
            names::DROPS,
            PerCpuArray::try_from(map),
        )?))
    }

    /// Packets per reason, over all CPUs.
    pub fn read(&self) -> Result<Vec<(DropReason, u64)>, MapAccessError> {
        let count = |reason: &DropReason| {
            let values = access("read", names::DROPS, self.0.get(&(*reason as u32), 0))?;
            Ok((*reason, values.iter().sum()))
        };
        DropReason::ALL.iter().map(count).collect()
    }
}
