//! What is stored and what a watch delivers.

use std::any::Any;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use crate::store::Revision;

/// A value and the revision that wrote it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// The value.
    pub value: Bytes,
    /// The revision of the last write.
    pub revision: Revision,
}

/// One key with what is stored under it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyValue {
    /// The key.
    pub key: Arc<str>,
    /// The value.
    pub value: Bytes,
    /// The revision of the last write.
    pub revision: Revision,
}

/// One change, as watchers see it. All watchers of a live change share one `Event`.
#[derive(Debug)]
pub struct Event {
    /// The key.
    pub key: Arc<str>,
    /// The revision of the change.
    pub revision: Revision,
    /// The new value; `None` for a deletion.
    pub value: Option<Bytes>,
    /// What was stored before; `None` for a creation.
    pub previous: Option<Stored>,
    /// A slot for whatever the layer above derives from the change (decoded objects, encoded
    /// lines), so that it is derived once however many watchers there are. It is not kept in the
    /// history: the slot lives as long as some watcher still has the event.
    memo: OnceLock<Arc<dyn Any + Send + Sync>>,
}

impl Event {
    /// An event with an empty memo.
    #[must_use]
    pub fn new(
        key: Arc<str>,
        revision: Revision,
        value: Option<Bytes>,
        previous: Option<Stored>,
    ) -> Self {
        Self {
            key,
            revision,
            value,
            previous,
            memo: OnceLock::new(),
        }
    }

    /// The shared derivation of this event, made by the first caller.
    ///
    /// Every caller must use the same type: the memo belongs to one layer.
    pub fn memo<T: Any + Send + Sync>(&self, make: impl FnOnce(&Self) -> T) -> Arc<T> {
        let memo = self.memo.get_or_init(|| Arc::new(make(self)));
        Arc::clone(memo)
            .downcast()
            .expect("one layer owns the memo of an event")
    }

    /// Bytes this event holds on to, for bounding queues and history.
    #[must_use]
    pub fn weight(&self) -> usize {
        let value = self.value.as_ref().map_or(0, Bytes::len);
        let previous = self
            .previous
            .as_ref()
            .map_or(0, |previous| previous.value.len());
        self.key.len() + value + previous + size_of::<Self>()
    }
}
