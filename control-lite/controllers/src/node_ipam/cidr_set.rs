//! A range cut into equal ranges: which are taken, and the lowest free one.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// The node ranges of one cluster range.
#[derive(Clone, Debug)]
pub(super) struct CidrSet {
    range: IpNet,
    mask: u8,
    taken: BTreeSet<u128>,
    /// Nothing below is free.
    hint: u128,
}

impl CidrSet {
    /// `mask` is the prefix length of a node's range; one shorter than the range's own gives the whole range.
    pub(super) fn new(range: IpNet, mask: u8) -> Self {
        let mask = mask.clamp(range.prefix_len(), range.max_prefix_len());
        Self {
            range: range.trunc(),
            mask,
            taken: BTreeSet::new(),
            hint: 0,
        }
    }

    fn count(&self) -> u128 {
        1u128
            .checked_shl(u32::from(self.mask - self.range.prefix_len()))
            .unwrap_or(u128::MAX)
    }

    fn shift(&self) -> u32 {
        u32::from(self.range.max_prefix_len() - self.mask)
    }

    /// Takes the lowest free range.
    pub(super) fn allocate(&mut self) -> Option<IpNet> {
        let mut index = self.hint;
        while self.taken.contains(&index) {
            index += 1;
        }
        if index >= self.count() {
            return None;
        }
        self.taken.insert(index);
        self.hint = index + 1;
        Some(self.nth(index))
    }

    fn nth(&self, index: u128) -> IpNet {
        let offset = index.checked_shl(self.shift()).unwrap_or(0);
        let address = match self.range.network() {
            IpAddr::V4(base) => {
                // A v4 range has at most 2^32 addresses, so the sum fits.
                let bits = u128::from(base.to_bits()) + offset;
                IpAddr::V4(Ipv4Addr::from_bits(u32::try_from(bits).unwrap_or(u32::MAX)))
            }
            IpAddr::V6(base) => IpAddr::V6(Ipv6Addr::from_bits(base.to_bits() + offset)),
        };
        IpNet::new(address, self.mask).expect("`mask` was clamped to the family's length")
    }

    /// The numbers of our ranges that `other` overlaps.
    fn overlapped(&self, other: &IpNet) -> Option<(u128, u128)> {
        let bits = |address: IpAddr| match address {
            IpAddr::V4(address) => u128::from(address.to_bits()),
            IpAddr::V6(address) => address.to_bits(),
        };
        let overlaps = self.range.contains(other) || other.contains(&self.range);
        if self.range.addr().is_ipv4() != other.addr().is_ipv4() || !overlaps {
            return None;
        }
        let start = bits(self.range.network());
        let index = |address: u128| {
            (address.saturating_sub(start))
                .checked_shr(self.shift())
                .unwrap_or(0)
        };
        let last = index(bits(other.broadcast())).min(self.count() - 1);
        Some((index(bits(other.network())), last))
    }

    /// Marks what `other` covers as taken.
    pub(super) fn occupy(&mut self, other: &IpNet) {
        if let Some((first, last)) = self.overlapped(other) {
            // A node's range that covers everything must not cost everything in memory.
            self.taken.extend((first..=last).take(1 << 16));
        }
    }

    /// Marks what `other` covers as free.
    pub(super) fn release(&mut self, other: &IpNet) {
        if let Some((first, last)) = self.overlapped(other) {
            self.taken.retain(|index| !(first..=last).contains(index));
            self.hint = self.hint.min(first);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().expect("a range")
    }

    #[test]
    fn ranges_are_given_out_in_order_and_reused_after_release() {
        let mut set = CidrSet::new(net("10.244.0.0/16"), 24);
        assert_eq!(set.allocate(), Some(net("10.244.0.0/24")));
        assert_eq!(set.allocate(), Some(net("10.244.1.0/24")));
        set.release(&net("10.244.0.0/24"));
        assert_eq!(set.allocate(), Some(net("10.244.0.0/24")));
        assert_eq!(set.allocate(), Some(net("10.244.2.0/24")));
    }

    #[test]
    fn v6_ranges_follow_each_other_by_their_prefix() {
        let mut set = CidrSet::new(net("fd00:10:244::/56"), 64);
        assert_eq!(set.allocate(), Some(net("fd00:10:244::/64")));
        assert_eq!(set.allocate(), Some(net("fd00:10:244:1::/64")));
        let rest = std::iter::from_fn(|| set.allocate()).count();
        assert_eq!(rest, 254, "a /56 has 256 /64");
    }

    #[test]
    fn an_occupied_range_is_not_given_out() {
        let mut set = CidrSet::new(net("10.0.0.0/22"), 24);
        set.occupy(&net("10.0.0.0/24"));
        set.occupy(&net("10.0.2.0/24"));
        set.occupy(&net("192.168.0.0/24"));
        assert_eq!(set.allocate(), Some(net("10.0.1.0/24")));
        assert_eq!(set.allocate(), Some(net("10.0.3.0/24")));
        assert_eq!(set.allocate(), None);
    }

    #[test]
    fn an_occupied_range_of_another_size_blocks_all_it_overlaps() {
        let mut set = CidrSet::new(net("10.0.0.0/22"), 24);
        set.occupy(&net("10.0.0.0/23"));
        assert_eq!(set.allocate(), Some(net("10.0.2.0/24")));
        set.occupy(&net("10.0.3.128/25"));
        assert_eq!(set.allocate(), None);
    }
}
