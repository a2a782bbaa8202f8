//! `BACKEND_SLOTS`: the lists of backends, one behind the other.

use tholepin_ebpf_abi::{SlotValue, names};
use tholepin_model::plan::services::Slot;

use super::MapAccessError;
use super::batch::BatchMap;
use crate::dataplane::pin::PinDirectory;

/// The pinned map.
#[derive(Debug)]
pub struct BackendSlots(BatchMap<u32, SlotValue>);

impl BackendSlots {
    /// Opens the pinned map.
    pub fn open(pins: &PinDirectory) -> Result<Self, MapAccessError> {
        BatchMap::open(pins, names::BACKEND_SLOTS).map(Self)
    }

    /// Writes slots.
    pub fn write(&self, slots: &[(u32, Slot)]) -> Result<(), MapAccessError> {
        let value = |(_, slot): &(u32, Slot)| SlotValue {
            backend_id: slot.backend_id,
            service_id: slot.service_id,
        };
        let indexes: Vec<u32> = slots.iter().map(|(index, _)| *index).collect();
        let values: Vec<SlotValue> = slots.iter().map(value).collect();
        self.0.update(&indexes, &values).map_err(|(_, error)| error)
    }

    /// The first `count` slots.
    pub fn read(&self, count: u32) -> Result<Vec<Slot>, MapAccessError> {
        let raw = self
            .0
            .read(usize::try_from(count).expect("usize holds a u32"))?;
        let slot = |(_, value): (u32, SlotValue)| Slot {
            backend_id: value.backend_id,
            service_id: value.service_id,
        };
        Ok(raw.into_iter().map(slot).collect())
    }
}
