//! What is free in the maps: ids, and ranges of slots.

use std::collections::{BTreeMap, BTreeSet};

/// Hands out the lowest free id; 0 is never one.
#[derive(Debug)]
pub(super) struct IdPool {
    freed: BTreeSet<u32>,
    next: u32,
    limit: u32,
}

impl IdPool {
    /// Ids below `limit`, less those in `used`.
    #[must_use]
    pub(super) fn new(limit: u32, used: &BTreeSet<u32>) -> Self {
        let next = used.last().map_or(1, |last| last + 1);
        Self {
            freed: (1..next).filter(|id| !used.contains(id)).collect(),
            next,
            limit,
        }
    }

    /// A free id.
    pub(super) fn take(&mut self) -> Option<u32> {
        if let Some(id) = self.freed.pop_first() {
            return Some(id);
        }
        let id = self.next;
        (id < self.limit).then(|| {
            self.next += 1;
            id
        })
    }

    /// Gives an id back.
    pub(super) fn give(&mut self, id: u32) {
        self.freed.insert(id);
    }

    /// How many are free.
    #[must_use]
    pub(super) fn free(&self) -> usize {
        self.freed.len() + usize::try_from(self.limit.saturating_sub(self.next)).unwrap_or(0)
    }

    /// First id that was never handed out.
    #[must_use]
    pub(super) fn end(&self) -> u32 {
        self.next
    }
}

/// A range of slots.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct SlotRange {
    /// First slot.
    pub start: u32,
    /// How many; nothing is taken for 0.
    pub len: u32,
}

/// Hands out the smallest free range that fits, the lowest of equals.
#[derive(Debug)]
pub(super) struct RangePool {
    by_start: BTreeMap<u32, u32>,
    by_len: BTreeSet<(u32, u32)>,
    limit: u32,
}

impl RangePool {
    /// Slots `0..limit`.
    #[must_use]
    pub(super) fn new(limit: u32) -> Self {
        let mut pool = Self {
            by_start: BTreeMap::new(),
            by_len: BTreeSet::new(),
            limit,
        };
        pool.insert(SlotRange {
            start: 0,
            len: limit,
        });
        pool
    }

    fn insert(&mut self, range: SlotRange) {
        if range.len > 0 {
            self.by_start.insert(range.start, range.len);
            self.by_len.insert((range.len, range.start));
        }
    }

    fn remove(&mut self, range: SlotRange) {
        self.by_start.remove(&range.start);
        self.by_len.remove(&(range.len, range.start));
    }

    /// A range of that length.
    pub(super) fn take(&mut self, len: u32) -> Option<SlotRange> {
        if len == 0 {
            return Some(SlotRange::default());
        }
        let (found, start) = *self.by_len.range((len, 0)..).next()?;
        self.remove(SlotRange { start, len: found });
        self.insert(SlotRange {
            start: start + len,
            len: found - len,
        });
        Some(SlotRange { start, len })
    }

    /// Takes just this range; false if part of it is in use.
    pub(super) fn claim(&mut self, range: SlotRange) -> bool {
        if range.len == 0 {
            return true;
        }
        let Some((start, len)) = self.by_start.range(..=range.start).next_back() else {
            return false;
        };
        let whole = SlotRange {
            start: *start,
            len: *len,
        };
        let (end, whole_end) = (
            range.start.saturating_add(range.len),
            whole.start + whole.len,
        );
        if end > whole_end {
            return false;
        }
        self.remove(whole);
        self.insert(SlotRange {
            start: whole.start,
            len: range.start - whole.start,
        });
        self.insert(SlotRange {
            start: end,
            len: whole_end - end,
        });
        true
    }

    /// Gives a range back.
    pub(super) fn give(&mut self, range: SlotRange) {
        if range.len == 0 {
            return;
        }
        let mut whole = range;
        let before = self.by_start.range(..range.start).next_back();
        if let Some((start, len)) = before.filter(|(start, len)| *start + *len == range.start) {
            let before = SlotRange {
                start: *start,
                len: *len,
            };
            self.remove(before);
            whole.start = before.start;
            whole.len += before.len;
        }
        if let Some(len) = self.by_start.get(&(range.start + range.len)).copied() {
            self.remove(SlotRange {
                start: range.start + range.len,
                len,
            });
            whole.len += len;
        }
        self.insert(whole);
    }

    /// The longest free range.
    #[must_use]
    pub(super) fn longest(&self) -> u32 {
        self.by_len.last().map_or(0, |(len, _)| *len)
    }

    /// The end of what is in use.
    #[must_use]
    pub(super) fn end(&self) -> u32 {
        match self.by_start.last_key_value() {
            Some((start, len)) if start + len == self.limit => *start,
            _ => self.limit,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn free(pool: &RangePool) -> usize {
        pool.by_start.values().map(|len| *len as usize).sum()
    }

    #[test]
    fn ids_are_reused_lowest_first_and_never_zero() {
        let mut pool = IdPool::new(6, &BTreeSet::from([2, 4]));
        assert_eq!(
            [pool.take(), pool.take(), pool.take()],
            [Some(1), Some(3), Some(5)]
        );
        assert_eq!(pool.take(), None);
        pool.give(3);
        assert_eq!((pool.free(), pool.take(), pool.take()), (1, Some(3), None));
    }

    #[test]
    fn a_range_that_is_given_back_joins_its_neighbours() {
        let mut pool = RangePool::new(10);
        let ranges: Vec<_> = (0..5).map(|_| pool.take(2).unwrap()).collect();
        assert_eq!((pool.take(1), pool.end()), (None, 10));
        for index in [0, 2, 1] {
            pool.give(ranges[index]);
        }
        assert_eq!((free(&pool), pool.longest()), (6, 6));
        assert_eq!(pool.take(6).unwrap().start, 0);
    }

    proptest! {
        #[test]
        fn ranges_never_overlap(steps in prop::collection::vec((0_u32..9, any::<bool>()), 1..60)) {
            let mut pool = RangePool::new(32);
            let mut held: Vec<SlotRange> = Vec::new();
            for (len, give) in steps {
                if give && !held.is_empty() {
                    pool.give(held.swap_remove(len as usize % held.len()));
                } else if let Some(range) = pool.take(len) {
                    held.push(range);
                }
                let used: usize = held.iter().map(|range| range.len as usize).sum();
                prop_assert_eq!(free(&pool), 32 - used);
                let mut slots = BTreeSet::new();
                for range in &held {
                    for slot in range.start..range.start + range.len {
                        prop_assert!(slot < 32 && slots.insert(slot));
                    }
                }
                let mut restored = RangePool::new(32);
                prop_assert!(held.iter().all(|range| restored.claim(*range)));
                prop_assert_eq!(restored.by_len, pool.by_len.clone());
            }
        }
    }
}
