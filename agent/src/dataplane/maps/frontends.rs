//! `FRONTENDS`: where clients of Services connect to.

use aya::maps::HashMap;
use tholepin_ebpf_abi::service::{FRONTEND_LOCAL_ONLY, SCOPE_CLUSTER};
use tholepin_ebpf_abi::{Be16, FrontendKey, FrontendValue, names};
use tholepin_model::plan::services::FrontendState;
use tholepin_model::service::{Frontend, Protocol};

use super::{MapAccessError, Pinned, access, entries, open, opened, removed};
use crate::dataplane::pin::PinDirectory;

/// The pinned map.
#[derive(Debug)]
pub struct Frontends(HashMap<Pinned, FrontendKey, FrontendValue>);

impl Frontends {
    /// Opens the pinned map.
    pub fn open(pins: &PinDirectory) -> Result<Self, MapAccessError> {
        let map = open(pins, names::FRONTENDS)?;
        Ok(Self(opened(
            pins,
            names::FRONTENDS,
            HashMap::try_from(map),
        )?))
    }

    /// Inserts or replaces.
    pub fn upsert(
        &mut self,
        frontend: &Frontend,
        state: &FrontendState,
    ) -> Result<(), MapAccessError> {
        let flags = if state.local_only {
            FRONTEND_LOCAL_ONLY
        } else {
            0
        };
        let value = FrontendValue {
            service_id: state.service_id,
            backend_count: state.backend_count,
            local_count: state.local_count,
            flags,
            maglev_size: 0,
            affinity_timeout_s: 0,
        };
        access(
            "write",
            names::FRONTENDS,
            self.0.insert(key(frontend), value, 0),
        )
    }

    /// Removes; succeeds when it is not there.
    pub fn remove(&mut self, frontend: &Frontend) -> Result<(), MapAccessError> {
        removed(names::FRONTENDS, self.0.remove(&key(frontend)))
    }

    /// Everything of the scope and the protocols this agent programs.
    pub fn read(&self) -> Result<Vec<(Frontend, FrontendState)>, MapAccessError> {
        let raw = entries(names::FRONTENDS, self.0.iter())?;
        Ok(raw
            .into_iter()
            .filter(|(key, _)| key.scope == SCOPE_CLUSTER)
            .filter_map(|(key, value)| {
                let frontend = Frontend {
                    address: key.address.to_ip(),
                    port: key.port.get(),
                    protocol: Protocol::from_number(key.protocol)?,
                };
                let state = FrontendState {
                    service_id: value.service_id,
                    backend_count: value.backend_count,
                    local_count: value.local_count,
                    local_only: value.flags & FRONTEND_LOCAL_ONLY != 0,
                };
                Some((frontend, state))
            })
            .collect())
    }
}

fn key(frontend: &Frontend) -> FrontendKey {
    FrontendKey {
        address: frontend.address.into(),
        port: Be16::new(frontend.port),
        protocol: frontend.protocol.number(),
        scope: SCOPE_CLUSTER,
    }
}
