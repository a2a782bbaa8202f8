//! `BACKEND_SLOTS`: which backend an ordinal of a Service is.

use aya::maps::HashMap;
use tholepin_ebpf_abi::{SlotKey, SlotValue, names};
use tholepin_model::plan::services::{BackendId, ServiceId};

use super::{MapAccessError, Pinned, access, entries, open, opened, removed};
use crate::dataplane::pin::PinDirectory;

/// Service, ordinal, and the backend there.
pub type Slot = ((ServiceId, u16), BackendId);

/// The pinned map.
#[derive(Debug)]
pub struct BackendSlots(HashMap<Pinned, SlotKey, SlotValue>);

impl BackendSlots {
    /// Opens the pinned map.
    pub fn open(pins: &PinDirectory) -> Result<Self, MapAccessError> {
        let map = open(pins, names::BACKEND_SLOTS)?;
        Ok(Self(opened(
            pins,
            names::BACKEND_SLOTS,
            HashMap::try_from(map),
        )?))
    }

    /// Inserts or replaces.
    pub fn upsert(
        &mut self,
        service_id: ServiceId,
        ordinal: u16,
        backend_id: BackendId,
    ) -> Result<(), MapAccessError> {
        let key = SlotKey {
            service_id,
            ordinal: ordinal.into(),
        };
        access(
            "write",
            names::BACKEND_SLOTS,
            self.0.insert(key, SlotValue { backend_id }, 0),
        )
    }

    /// Removes; succeeds when it is not there.
    pub fn remove(&mut self, service_id: ServiceId, ordinal: u16) -> Result<(), MapAccessError> {
        let key = SlotKey {
            service_id,
            ordinal: ordinal.into(),
        };
        removed(names::BACKEND_SLOTS, self.0.remove(&key))
    }

    /// Everything.
    pub fn read(&self) -> Result<Vec<Slot>, MapAccessError> {
        let raw = entries(names::BACKEND_SLOTS, self.0.iter())?;
        Ok(raw
            .into_iter()
            .filter_map(|(key, value)| {
                let ordinal = u16::try_from(key.ordinal).ok()?;
                Some(((key.service_id, ordinal), value.backend_id))
            })
            .collect())
    }
}
