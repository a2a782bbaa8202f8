//! `FRONTENDS`: where clients of Services connect to.

use std::collections::HashMap;

use tholepin_ebpf_abi::service::{
    FRONTEND_AFFINITY, FRONTEND_LOCAL_ONLY, FRONTEND_MAGLEV, FRONTEND_MASQUERADE,
    FRONTEND_NODE_PORT, FRONTEND_SOURCE_RANGES, SCOPE_CLUSTER, SCOPE_EXTERNAL,
};
use tholepin_ebpf_abi::{Be16, FrontendKey, FrontendValue, names};
use tholepin_model::plan::services::FrontendState;
use tholepin_model::service::fold::FrontendFlags;
use tholepin_model::service::{Frontend, Protocol, Scope};

use super::MapAccessError;
use super::batch::BatchMap;
use crate::dataplane::pin::PinDirectory;

/// The pinned map.
#[derive(Debug)]
pub struct Frontends(BatchMap<FrontendKey, FrontendValue>);

impl Frontends {
    /// Opens the pinned map.
    pub fn open(pins: &PinDirectory) -> Result<Self, MapAccessError> {
        BatchMap::open(pins, names::FRONTENDS).map(Self)
    }

    /// Inserts or replaces each; those that cannot be do not keep the others from being written.
    pub fn write(&self, frontends: &[(Frontend, FrontendState)]) -> Result<(), MapAccessError> {
        let keys: Vec<FrontendKey> = frontends
            .iter()
            .map(|(frontend, _)| key(frontend))
            .collect();
        let values: Vec<FrontendValue> = frontends.iter().map(|(_, state)| value(state)).collect();
        let (mut done, mut failure) = (0, None);
        while done < keys.len() {
            match self.0.update(&keys[done..], &values[done..]) {
                Ok(()) => break,
                Err((written, error)) => {
                    done += written + 1;
                    failure.get_or_insert(error);
                }
            }
        }
        failure.map_or(Ok(()), Err)
    }

    /// Removes; what is not there is done.
    pub fn remove(&self, frontends: &[Frontend]) -> Result<(), MapAccessError> {
        let keys: Vec<FrontendKey> = frontends.iter().map(key).collect();
        self.0.remove(&keys)
    }

    /// Everything.
    pub fn read(&self) -> Result<HashMap<Frontend, FrontendState>, MapAccessError> {
        let raw = self.0.read(usize::MAX)?;
        let entries = raw.into_iter().filter_map(|(key, value)| {
            let frontend = Frontend {
                address: key.address.to_ip(),
                port: key.port.get(),
                protocol: Protocol::from_number(key.protocol)?,
                scope: match key.scope {
                    SCOPE_CLUSTER => Scope::Cluster,
                    SCOPE_EXTERNAL => Scope::External,
                    _ => return None,
                },
            };
            Some((frontend, state(&value)))
        });
        Ok(entries.collect())
    }
}

fn key(frontend: &Frontend) -> FrontendKey {
    FrontendKey {
        address: frontend.address.into(),
        port: Be16::new(frontend.port),
        protocol: frontend.protocol.number(),
        scope: match frontend.scope {
            Scope::Cluster => SCOPE_CLUSTER,
            Scope::External => SCOPE_EXTERNAL,
        },
    }
}

fn value(state: &FrontendState) -> FrontendValue {
    let FrontendFlags {
        local_only,
        source_ranges,
        masquerade,
        node_port,
    } = state.flags;
    let flags = [
        (local_only, FRONTEND_LOCAL_ONLY),
        (source_ranges, FRONTEND_SOURCE_RANGES),
        (masquerade, FRONTEND_MASQUERADE),
        (node_port, FRONTEND_NODE_PORT),
        (state.maglev_size > 0, FRONTEND_MAGLEV),
        (state.affinity_timeout_secs > 0, FRONTEND_AFFINITY),
    ];
    let set = flags.into_iter().filter(|(is_set, _)| *is_set);
    FrontendValue {
        service_id: state.service_id,
        first_slot: state.first_slot,
        backend_count: state.backend_count,
        local_count: state.local_count,
        flags: set.fold(0, |all, (_, flag)| all | flag),
        maglev_size: state.maglev_size,
        affinity_timeout_s: state.affinity_timeout_secs,
        spare_count: state.spare_count,
        _pad: 0,
    }
}

fn state(value: &FrontendValue) -> FrontendState {
    let is_set = |flag: u16| value.flags & flag != 0;
    FrontendState {
        service_id: value.service_id,
        first_slot: value.first_slot,
        backend_count: value.backend_count,
        local_count: value.local_count,
        spare_count: value.spare_count,
        maglev_size: value.maglev_size,
        flags: FrontendFlags {
            local_only: is_set(FRONTEND_LOCAL_ONLY),
            source_ranges: is_set(FRONTEND_SOURCE_RANGES),
            masquerade: is_set(FRONTEND_MASQUERADE),
            node_port: is_set(FRONTEND_NODE_PORT),
        },
        affinity_timeout_secs: value.affinity_timeout_s,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frontend_survives_the_way_into_the_map_and_back() {
        let written = FrontendState {
            service_id: 7,
            first_slot: 40,
            backend_count: 3,
            local_count: 1,
            spare_count: 2,
            maglev_size: 1_021,
            flags: FrontendFlags {
                local_only: true,
                source_ranges: true,
                masquerade: false,
                node_port: true,
            },
            affinity_timeout_secs: 10_800,
        };
        assert_eq!(state(&value(&written)), written);
        assert_eq!(state(&FrontendValue::default()), FrontendState::default());
    }
}
