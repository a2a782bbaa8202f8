//! Sets of ports, and ranges of ports as prefixes.

use std::collections::BTreeSet;

/// The protocols whose ports a policy can name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Tcp, Self::Udp, Self::Sctp];

    /// The number in the IP header.
    #[must_use]
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    /// The protocol with that number.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|one| one.number() == number)
    }
}

/// Ports of one protocol, both ends included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortRange {
    /// Protocol.
    pub protocol: Protocol,
    /// First port.
    pub first: u16,
    /// Last port, not below the first.
    pub last: u16,
}

impl PortRange {
    /// Every port of a protocol.
    #[must_use]
    pub const fn whole(protocol: Protocol) -> Self {
        Self {
            protocol,
            first: 0,
            last: u16::MAX,
        }
    }

    /// One port.
    #[must_use]
    pub const fn one(protocol: Protocol, port: u16) -> Self {
        Self {
            protocol,
            first: port,
            last: port,
        }
    }
}

/// Ports that a peer may use. Equal sets are equal values: ranges neither touch nor overlap.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortSet {
    all: bool,
    ranges: BTreeSet<PortRange>,
}

impl PortSet {
    /// Nothing.
    #[must_use]
    pub fn none() -> Self {
        Self::default()
    }

    /// Everything, also protocols that have no ports.
    #[must_use]
    pub fn all() -> Self {
        Self {
            all: true,
            ranges: BTreeSet::new(),
        }
    }

    /// Whether everything is in it, whatever the protocol.
    #[must_use]
    pub fn is_all(&self) -> bool {
        self.all
    }

    /// Whether nothing is in it.
    #[must_use]
    pub fn is_none(&self) -> bool {
        !self.all && self.ranges.is_empty()
    }

    /// The ranges, if it is not everything.
    pub fn ranges(&self) -> impl Iterator<Item = PortRange> + '_ {
        self.ranges.iter().copied()
    }

    /// Adds a range.
    pub fn insert(&mut self, new: PortRange) {
        if self.all {
            return;
        }
        let touches = |old: &PortRange| {
            old.protocol == new.protocol
                && u32::from(old.first) <= u32::from(new.last) + 1
                && u32::from(new.first) <= u32::from(old.last) + 1
        };
        let mut merged = new;
        self.ranges.retain(|old| {
            let apart = !touches(old);
            if !apart {
                merged.first = merged.first.min(old.first);
                merged.last = merged.last.max(old.last);
            }
            apart
        });
        self.ranges.insert(merged);
    }

    /// Adds everything of another set.
    pub fn extend(&mut self, other: &Self) {
        if other.all {
            *self = Self::all();
        } else {
            other.ranges().for_each(|range| self.insert(range));
        }
    }

    /// Whether a port is in it; `None` is a protocol without ports.
    #[must_use]
    pub fn contains(&self, target: Option<(Protocol, u16)>) -> bool {
        self.all
            || target.is_some_and(|(protocol, port)| {
                self.ranges.iter().any(|range| {
                    range.protocol == protocol && (range.first..=range.last).contains(&port)
                })
            })
    }

    /// The ranges as prefixes.
    pub fn prefixes(&self) -> impl Iterator<Item = PortPrefix> + '_ {
        self.ranges().flat_map(prefixes)
    }
}

impl FromIterator<PortRange> for PortSet {
    fn from_iter<I: IntoIterator<Item = PortRange>>(ranges: I) -> Self {
        let mut set = Self::none();
        ranges.into_iter().for_each(|range| set.insert(range));
        set
    }
}

/// Ports whose first `len` bits are those of `port`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortPrefix {
    /// Protocol.
    pub protocol: Protocol,
    /// The lowest of them.
    pub port: u16,
    /// Bits that count, 0 to 16.
    pub len: u8,
}

impl PortPrefix {
    /// The ports it stands for.
    #[must_use]
    pub fn range(self) -> PortRange {
        PortRange {
            protocol: self.protocol,
            first: self.port,
            last: self.port | 0xffff_u16.checked_shr(self.len.into()).unwrap_or(0),
        }
    }
}

/// The fewest prefixes that are a range together: 30 at most.
fn prefixes(range: PortRange) -> impl Iterator<Item = PortPrefix> {
    let mut next = u32::from(range.first);
    let end = u32::from(range.last) + 1;
    std::iter::from_fn(move || {
        if next >= end {
            return None;
        }
        // The largest block that begins here and does not reach beyond the end.
        let aligned = if next == 0 {
            16
        } else {
            next.trailing_zeros().min(16)
        };
        let fits = (end - next).ilog2();
        let bits = aligned.min(fits);
        let prefix = PortPrefix {
            protocol: range.protocol,
            port: u16::try_from(next).expect("below the end of the range"),
            len: u8::try_from(16 - bits).expect("at most 16"),
        };
        next += 1 << bits;
        Some(prefix)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tcp(first: u16, last: u16) -> PortRange {
        PortRange {
            protocol: Protocol::Tcp,
            first,
            last,
        }
    }

    #[test]
    fn ranges_that_touch_become_one() {
        let set = PortSet::from_iter([tcp(80, 80), tcp(82, 90), tcp(81, 81)]);
        assert_eq!(set, PortSet::from_iter([tcp(80, 90)]));
        assert_eq!(set.ranges().count(), 1);
    }

    #[test]
    fn protocols_do_not_mix() {
        let set = PortSet::from_iter([tcp(80, 80), PortRange::one(Protocol::Udp, 81)]);
        assert_eq!(set.ranges().count(), 2);
        assert!(!set.contains(Some((Protocol::Udp, 80))));
    }

    #[test]
    fn only_all_contains_what_has_no_ports() {
        let whole: PortSet = Protocol::ALL.map(PortRange::whole).into_iter().collect();
        assert!(!whole.contains(None) && PortSet::all().contains(None));
        assert_ne!(whole, PortSet::all());
    }

    #[test]
    fn a_whole_protocol_is_one_prefix_and_the_worst_range_thirty() {
        let whole: Vec<_> = prefixes(PortRange::whole(Protocol::Tcp)).collect();
        assert_eq!((whole.len(), whole[0].len), (1, 0));
        assert_eq!(prefixes(tcp(1, 65_534)).count(), 30);
        assert_eq!(prefixes(tcp(80, 81)).count(), 1);
    }

    proptest! {
        #[test]
        fn prefixes_are_exactly_the_range(a: u16, b: u16) {
            let range = tcp(a.min(b), a.max(b));
            let mut next = u32::from(range.first);
            for prefix in prefixes(range) {
                let part = prefix.range();
                prop_assert_eq!(u32::from(part.first), next);
                prop_assert_eq!(part.first & !(0xffff_u32 << (16 - prefix.len)) as u16, 0);
                next = u32::from(part.last) + 1;
            }
            prop_assert_eq!(next, u32::from(range.last) + 1);
        }

        #[test]
        fn a_set_contains_what_was_put_in(ranges: Vec<(u16, u16)>, port: u16) {
            let ranges: Vec<_> = ranges.iter().map(|(a, b)| tcp(*a.min(b), *a.max(b))).collect();
            let expected = ranges.iter().any(|r| (r.first..=r.last).contains(&port));
            let set = PortSet::from_iter(ranges);
            prop_assert_eq!(set.contains(Some((Protocol::Tcp, port))), expected);
            prop_assert_eq!(
                set.prefixes().any(|p| (p.range().first..=p.range().last).contains(&port)),
                expected
            );
        }
    }
}
