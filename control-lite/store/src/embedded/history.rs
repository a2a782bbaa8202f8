//! The bounded past: events in revision order, for watches that resume and lists at a revision.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;

use crate::event::{Event, Stored};
use crate::store::Revision;

/// One past change. Values are shared with the live objects and with each other.
#[derive(Clone, Debug)]
pub(super) struct Past {
    pub(super) key: Arc<str>,
    pub(super) revision: Revision,
    pub(super) value: Option<Bytes>,
    pub(super) previous: Option<Stored>,
}

impl Past {
    pub(super) fn event(&self) -> Event {
        Event::new(
            Arc::clone(&self.key),
            self.revision,
            self.value.clone(),
            self.previous.clone(),
        )
    }

    /// A value is counted once, as the new value of its own event: the event that replaces it
    /// shares it.
    fn weight(&self) -> usize {
        self.value.as_ref().map_or(0, Bytes::len) + size_of::<Self>()
    }
}

#[derive(Debug)]
pub(super) struct History {
    events: VecDeque<Past>,
    bytes: usize,
    max_events: usize,
    max_bytes: usize,
    /// Everything after this revision is in `events`.
    compacted: Revision,
}

impl History {
    pub(super) fn new(compacted: Revision, max_events: usize, max_bytes: usize) -> Self {
        Self {
            events: VecDeque::new(),
            bytes: 0,
            max_events,
            max_bytes,
            compacted,
        }
    }

    pub(super) fn compacted(&self) -> Revision {
        self.compacted
    }

    pub(super) fn push(&mut self, past: Past) {
        self.bytes += past.weight();
        self.events.push_back(past);
        while self.events.len() > self.max_events || self.bytes > self.max_bytes {
            self.drop_oldest();
        }
    }

    pub(super) fn compact(&mut self, revision: Revision) {
        while self
            .events
            .front()
            .is_some_and(|oldest| oldest.revision <= revision)
        {
            self.drop_oldest();
        }
        self.compacted = self.compacted.max(revision);
    }

    fn drop_oldest(&mut self) {
        if let Some(oldest) = self.events.pop_front() {
            self.bytes -= oldest.weight();
            self.compacted = self.compacted.max(oldest.revision);
        }
    }

    /// Events after a revision, oldest first.
    pub(super) fn after(&self, revision: Revision) -> impl DoubleEndedIterator<Item = &Past> {
        let first = self
            .events
            .partition_point(|past| past.revision <= revision);
        self.events.range(first..)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn past(revision: Revision, size: usize) -> Past {
        Past {
            key: Arc::from("/k"),
            revision,
            value: Some(Bytes::from(vec![b'x'; size])),
            previous: None,
        }
    }

    #[test]
    fn the_oldest_events_make_room_and_move_the_compaction_point() {
        let mut history = History::new(0, 3, usize::MAX);
        for revision in 1..=5 {
            history.push(past(revision, 1));
        }
        assert_eq!(history.compacted(), 2);
        assert_eq!(
            history
                .after(3)
                .map(|past| past.revision)
                .collect::<Vec<_>>(),
            [4, 5]
        );
    }

    #[test]
    fn bytes_bound_the_history_as_well_as_the_count() {
        let mut history = History::new(0, 1000, 4 * (1000 + size_of::<Past>()));
        for revision in 1..=10 {
            history.push(past(revision, 1000));
        }
        assert_eq!(history.compacted(), 6);
    }

    #[test]
    fn compacting_forgets_up_to_and_including_the_revision() {
        let mut history = History::new(0, 100, usize::MAX);
        for revision in 1..=5 {
            history.push(past(revision, 1));
        }
        history.compact(3);
        assert_eq!(history.compacted(), 3);
        assert_eq!(
            history
                .after(0)
                .map(|past| past.revision)
                .collect::<Vec<_>>(),
            [4, 5]
        );
    }
}
