//! A bitmap over one Service range: which cluster addresses are taken.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;
use rand::Rng as _;

/// Larger IPv6 ranges use their first million addresses, as upstream does.
const MAX_ADDRESSES: u64 = 1 << 20;

/// Why an address could not be given out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum AllocateError {
    #[error("provided IP is already allocated")]
    Taken,
    #[error(
        "the provided IP ({address}) is not in the valid range. The range of valid IPs is {range}"
    )]
    OutOfRange { address: IpAddr, range: IpNet },
    #[error("range is full")]
    Full,
}

/// The addresses of one range.
#[derive(Debug)]
pub(crate) struct IpAllocator {
    range: IpNet,
    /// Offset 0 is the range's second address: the first one names the network.
    size: u64,
    taken: Vec<u64>,
}

impl IpAllocator {
    pub(crate) fn new(range: IpNet) -> Self {
        let host_bits = u32::from(range.max_prefix_len() - range.prefix_len());
        let addresses = if host_bits >= 20 {
            MAX_ADDRESSES
        } else {
            1 << host_bits
        };
        // The network's own address, and for IPv4 the broadcast address, are nobody's.
        let reserved = if range.addr().is_ipv4() { 2 } else { 1 };
        let size = addresses.saturating_sub(reserved);
        let words = usize::try_from(size.div_ceil(64)).expect("at most 2^14 words");
        Self {
            range: range.trunc(),
            size,
            taken: vec![0; words],
        }
    }

    pub(crate) fn range(&self) -> IpNet {
        self.range
    }

    /// Takes one address.
    pub(crate) fn take(&mut self, address: IpAddr) -> Result<(), AllocateError> {
        let offset = self.offset(address).ok_or(AllocateError::OutOfRange {
            address,
            range: self.range,
        })?;
        if self.is_taken(offset) {
            return Err(AllocateError::Taken);
        }
        self.set(offset, true);
        Ok(())
    }

    /// Takes any free address. The lower part of the range is touched last: people choose
    /// addresses by hand from there (KEP-3070).
    pub(crate) fn take_any(&mut self) -> Result<IpAddr, AllocateError> {
        let band = self.static_band();
        let offset = self
            .free_in(band, self.size)
            .or_else(|| self.free_in(0, band))
            .ok_or(AllocateError::Full)?;
        self.set(offset, true);
        Ok(self.address(offset))
    }

    /// Gives an address back; one that is not of this range is not ours to give.
    pub(crate) fn release(&mut self, address: IpAddr) {
        if let Some(offset) = self.offset(address) {
            self.set(offset, false);
        }
    }

    fn static_band(&self) -> u64 {
        if self.size < 32 {
            0
        } else {
            (self.size / 16).clamp(16, 256)
        }
    }

    fn free_in(&self, from: u64, to: u64) -> Option<u64> {
        if from >= to {
            return None;
        }
        let start = rand::rng().random_range(from..to);
        (start..to)
            .chain(from..start)
            .find(|offset| !self.is_taken(*offset))
    }

    fn is_taken(&self, offset: u64) -> bool {
        self.taken[word(offset)] & (1 << (offset % 64)) != 0
    }

    fn set(&mut self, offset: u64, taken: bool) {
        let bit = 1_u64 << (offset % 64);
        let word = &mut self.taken[word(offset)];
        if taken { *word |= bit } else { *word &= !bit }
    }

    fn offset(&self, address: IpAddr) -> Option<u64> {
        let distance = match (self.range.network(), address) {
            (IpAddr::V4(base), IpAddr::V4(address)) => {
                u128::from(u32::from(address).checked_sub(u32::from(base))?)
            }
            (IpAddr::V6(base), IpAddr::V6(address)) => {
                u128::from(address).checked_sub(u128::from(base))?
            }
            _ => return None,
        };
        let offset = u64::try_from(distance.checked_sub(1)?).ok()?;
        (offset < self.size).then_some(offset)
    }

    fn address(&self, offset: u64) -> IpAddr {
        match self.range.network() {
            IpAddr::V4(base) => {
                let distance = u32::try_from(offset + 1).expect("below 2^20");
                Ipv4Addr::from(u32::from(base) + distance).into()
            }
            IpAddr::V6(base) => Ipv6Addr::from(u128::from(base) + u128::from(offset + 1)).into(),
        }
    }
}

fn word(offset: u64) -> usize {
    usize::try_from(offset / 64).expect("at most 2^14 words")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allocator(range: &str) -> IpAllocator {
        IpAllocator::new(range.parse().unwrap())
    }

    #[test]
    fn every_usable_address_is_given_out_once_and_then_the_range_is_full() {
        let mut allocator = allocator("10.0.0.0/29");
        let mut taken: Vec<_> = (0..6).map(|_| allocator.take_any().unwrap()).collect();
        taken.sort();
        let expected: Vec<IpAddr> = (1..=6)
            .map(|last| Ipv4Addr::new(10, 0, 0, last).into())
            .collect();
        assert_eq!(taken, expected);
        assert_eq!(allocator.take_any(), Err(AllocateError::Full));
        allocator.release(taken[2]);
        assert_eq!(allocator.take_any(), Ok(taken[2]));
    }

    #[test]
    fn a_taken_address_is_refused_and_free_again_after_its_release() {
        let mut allocator = allocator("10.96.0.0/16");
        let address = "10.96.0.10".parse().unwrap();
        assert_eq!(allocator.take(address), Ok(()));
        assert_eq!(allocator.take(address), Err(AllocateError::Taken));
        allocator.release(address);
        assert_eq!(allocator.take(address), Ok(()));
    }

    #[test]
    fn network_broadcast_and_foreign_addresses_are_out_of_range() {
        let mut allocator = allocator("10.96.0.0/24");
        for address in ["10.96.0.0", "10.96.0.255", "10.97.0.1", "fd00::1"] {
            let outcome = allocator.take(address.parse().unwrap());
            assert!(
                matches!(outcome, Err(AllocateError::OutOfRange { .. })),
                "{address}"
            );
        }
    }

    #[test]
    fn any_address_comes_from_above_the_band_for_chosen_ones() {
        let mut allocator = allocator("10.96.0.0/16");
        for _ in 0..200 {
            let IpAddr::V4(address) = allocator.take_any().unwrap() else {
                panic!("not IPv4")
            };
            assert!(u32::from(address) - u32::from(Ipv4Addr::new(10, 96, 0, 0)) > 256);
        }
    }

    #[test]
    fn an_ipv6_range_hands_out_its_first_and_last_address() {
        let mut allocator = allocator("fd00:10:96::/112");
        assert_eq!(allocator.take("fd00:10:96::1".parse().unwrap()), Ok(()));
        assert_eq!(allocator.take("fd00:10:96::ffff".parse().unwrap()), Ok(()));
        assert!(allocator.take("fd00:10:96::".parse().unwrap()).is_err());
    }
}
