//! `SOURCE_RANGES`: who may use a load balancer's address.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;
use tholepin_ebpf_abi::route::v4_prefix_len;
use tholepin_ebpf_abi::{Address, SourceRangeKey, SourceRangeValue, names};
use tholepin_model::plan::services::ServiceId;

use super::MapAccessError;
use super::batch::BatchMap;
use crate::dataplane::pin::PinDirectory;

/// Bits of a key before the address.
const SERVICE_BITS: u32 = 32;

/// The pinned map.
#[derive(Debug)]
pub struct SourceRanges(BatchMap<SourceRangeKey, SourceRangeValue>);

impl SourceRanges {
    /// Opens the pinned map.
    pub fn open(pins: &PinDirectory) -> Result<Self, MapAccessError> {
        BatchMap::open(pins, names::SOURCE_RANGES).map(Self)
    }

    /// Adds.
    pub fn write(&self, ranges: &[(ServiceId, IpNet)]) -> Result<(), MapAccessError> {
        let keys: Vec<SourceRangeKey> = ranges.iter().map(key).collect();
        let values = vec![SourceRangeValue::default(); keys.len()];
        self.0.update(&keys, &values).map_err(|(_, error)| error)
    }

    /// Removes; what is not there is done.
    pub fn remove(&self, ranges: &[(ServiceId, IpNet)]) -> Result<(), MapAccessError> {
        let keys: Vec<SourceRangeKey> = ranges.iter().map(key).collect();
        self.0.remove(&keys)
    }

    /// Everything.
    pub fn read(&self) -> Result<BTreeSet<(ServiceId, IpNet)>, MapAccessError> {
        let raw = self.0.read(usize::MAX)?;
        Ok(raw.iter().filter_map(|(key, _)| range(key)).collect())
    }
}

fn key((service_id, range): &(ServiceId, IpNet)) -> SourceRangeKey {
    let bits = u32::from(range.prefix_len());
    let bits = match range.addr() {
        IpAddr::V4(_) => v4_prefix_len(bits),
        IpAddr::V6(_) => bits,
    };
    SourceRangeKey {
        prefix_len: SERVICE_BITS + bits,
        service_id: *service_id,
        address: range.network().into(),
    }
}

fn range(key: &SourceRangeKey) -> Option<(ServiceId, IpNet)> {
    let bits = key.prefix_len.checked_sub(SERVICE_BITS)?;
    let address: Address = key.address;
    let bits = match address.is_v4() && bits >= 96 {
        true => bits - 96,
        false => bits,
    };
    let range = IpNet::new(address.to_ip(), u8::try_from(bits).ok()?).ok()?;
    Some((key.service_id, range))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_survives_the_way_into_the_map_and_back() {
        for text in [
            "192.0.2.0/24",
            "0.0.0.0/0",
            "2001:db8::/33",
            "::/0",
            "192.0.2.1/32",
        ] {
            let wanted = (3, text.parse::<IpNet>().unwrap());
            assert_eq!(range(&key(&wanted)), Some(wanted), "{text}");
        }
    }
}
