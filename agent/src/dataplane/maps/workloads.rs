//! `WORKLOADS`: the pod interfaces of this node, by address.

use std::net::IpAddr;

use aya::maps::HashMap;
use tholepin_ebpf_abi::{WorkloadKey, WorkloadValue, names};

use super::{MapAccessError, Pinned, access, entries, open, opened, removed};
use crate::dataplane::pin::PinDirectory;

/// The pinned map.
#[derive(Debug)]
pub struct Workloads(HashMap<Pinned, WorkloadKey, WorkloadValue>);

impl Workloads {
    /// Opens the pinned map.
    pub fn open(pins: &PinDirectory) -> Result<Self, MapAccessError> {
        let map = open(pins, names::WORKLOADS)?;
        Ok(Self(opened(
            pins,
            names::WORKLOADS,
            HashMap::try_from(map),
        )?))
    }

    /// Inserts or replaces.
    pub fn upsert(
        &mut self,
        address: IpAddr,
        ifindex: u32,
        mac: [u8; 6],
    ) -> Result<(), MapAccessError> {
        let key = WorkloadKey {
            address: address.into(),
        };
        let value = WorkloadValue {
            ifindex,
            mac,
            ..WorkloadValue::default()
        };
        access("write", names::WORKLOADS, self.0.insert(key, value, 0))
    }

    /// Removes; succeeds when it is not there.
    pub fn remove(&mut self, address: IpAddr) -> Result<(), MapAccessError> {
        removed(
            names::WORKLOADS,
            self.0.remove(&WorkloadKey {
                address: address.into(),
            }),
        )
    }

    /// Whether packets to `address` are delivered to that interface.
    pub fn contains(&self, address: IpAddr, ifindex: u32) -> bool {
        let key = WorkloadKey {
            address: address.into(),
        };
        self.0
            .get(&key, 0)
            .is_ok_and(|value| value.ifindex == ifindex)
    }

    /// Every address with its interface index.
    pub fn read(&self) -> Result<Vec<(IpAddr, u32)>, MapAccessError> {
        let raw = entries(names::WORKLOADS, self.0.iter())?;
        Ok(raw
            .into_iter()
            .map(|(key, value)| (key.address.to_ip(), value.ifindex))
            .collect())
    }
}
