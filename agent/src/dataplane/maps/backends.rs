//! `BACKENDS`: addresses behind Services, by id.

use tholepin_ebpf_abi::backend::BACKEND_SERVING;
use tholepin_ebpf_abi::{BackendValue, Be16, names};
use tholepin_model::plan::services::{Backend, BackendId};
use tholepin_model::service::{BackendAddress, Protocol};

use super::MapAccessError;
use super::batch::BatchMap;
use crate::dataplane::pin::PinDirectory;

/// The pinned map.
#[derive(Debug)]
pub struct Backends(BatchMap<u32, BackendValue>);

impl Backends {
    /// Opens the pinned map.
    pub fn open(pins: &PinDirectory) -> Result<Self, MapAccessError> {
        BatchMap::open(pins, names::BACKENDS).map(Self)
    }

    /// Writes backends.
    pub fn write(&self, backends: &[(BackendId, Backend)]) -> Result<(), MapAccessError> {
        let value = |(_, backend): &(BackendId, Backend)| BackendValue {
            address: backend.address.address.into(),
            port: Be16::new(backend.address.port),
            protocol: backend.address.protocol.number(),
            flags: if backend.serving { BACKEND_SERVING } else { 0 },
            generation: backend.generation,
            service_id: backend.service_id,
        };
        let ids: Vec<u32> = backends.iter().map(|(id, _)| *id).collect();
        let values: Vec<BackendValue> = backends.iter().map(value).collect();
        self.0.update(&ids, &values).map_err(|(_, error)| error)
    }

    /// The first `count` backends by id; what was never one is `None`.
    pub fn read(&self, count: u32) -> Result<Vec<Option<Backend>>, MapAccessError> {
        let raw = self
            .0
            .read(usize::try_from(count).expect("usize holds a u32"))?;
        let backend = |(_, value): (u32, BackendValue)| {
            Some(Backend {
                serving: value.flags & BACKEND_SERVING != 0,
                address: BackendAddress {
                    address: value.address.to_ip(),
                    port: value.port.get(),
                    protocol: Protocol::from_number(value.protocol)?,
                },
                generation: value.generation,
                service_id: value.service_id,
            })
        };
        Ok(raw.into_iter().map(backend).collect())
    }
}
