//! `BACKENDS`: addresses behind Services. An entry exists as long as the endpoint serves, and a moment
//! longer without the serving bit.

use aya::maps::HashMap;
use tholepin_ebpf_abi::backend::BACKEND_SERVING;
use tholepin_ebpf_abi::{BackendKey, BackendValue, Be16, names};
use tholepin_model::plan::services::{Backend, BackendId};
use tholepin_model::service::{BackendAddress, Protocol};

use super::{MapAccessError, Pinned, access, entries, open, opened, removed};
use crate::dataplane::pin::PinDirectory;

/// The pinned map.
#[derive(Debug)]
pub struct Backends(HashMap<Pinned, BackendKey, BackendValue>);

impl Backends {
    /// Opens the pinned map.
    pub fn open(pins: &PinDirectory) -> Result<Self, MapAccessError> {
        let map = open(pins, names::BACKENDS)?;
        Ok(Self(opened(pins, names::BACKENDS, HashMap::try_from(map))?))
    }

    /// Inserts or replaces.
    pub fn upsert(&mut self, id: BackendId, backend: &Backend) -> Result<(), MapAccessError> {
        let value = BackendValue {
            address: backend.address.address.into(),
            port: Be16::new(backend.address.port),
            protocol: backend.address.protocol.number(),
            flags: if backend.serving { BACKEND_SERVING } else { 0 },
            generation: backend.generation,
        };
        let key = BackendKey { backend_id: id };
        access("write", names::BACKENDS, self.0.insert(key, value, 0))
    }

    /// Removes; succeeds when it is not there.
    pub fn remove(&mut self, id: BackendId) -> Result<(), MapAccessError> {
        removed(
            names::BACKENDS,
            self.0.remove(&BackendKey { backend_id: id }),
        )
    }

    /// Everything, also what a killed agent was about to remove.
    pub fn read(&self) -> Result<Vec<(BackendId, Backend)>, MapAccessError> {
        let raw = entries(names::BACKENDS, self.0.iter())?;
        Ok(raw
            .into_iter()
            .filter_map(|(key, value)| {
                let address = BackendAddress {
                    address: value.address.to_ip(),
                    port: value.port.get(),
                    protocol: Protocol::from_number(value.protocol)?,
                };
                let serving = value.flags & BACKEND_SERVING != 0;
                Some((
                    key.backend_id,
                    Backend {
                        serving,
                        address,
                        generation: value.generation,
                    },
                ))
            })
            .collect())
    }
}
