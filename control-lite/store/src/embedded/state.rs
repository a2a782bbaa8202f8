//! The live objects, the history and the watchers, behind one short-held lock.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::ops::Bound;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use super::EmbeddedOptions;
use super::history::{History, Past};
use crate::error::StoreError;
use crate::event::{Event, KeyValue, Stored};
use crate::store::{Class, Fetched, ListRequest, Listed, Revision};
use crate::watch::{Watch, WatchSender};

/// A live object.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) value: Bytes,
    pub(super) revision: Revision,
    pub(super) class: Class,
}

impl Entry {
    pub(super) fn stored(&self) -> Stored {
        Stored {
            value: self.value.clone(),
            revision: self.revision,
        }
    }
}

/// What the disk had when the store was opened.
#[derive(Debug, Default)]
pub(super) struct Loaded {
    pub(super) objects: BTreeMap<Arc<str>, Entry>,
    pub(super) revision: Revision,
}

/// A change that is as durable as it has to be and now becomes visible.
#[derive(Debug)]
pub(super) struct Change {
    pub(super) key: Arc<str>,
    pub(super) revision: Revision,
    pub(super) entry: Option<Entry>,
    pub(super) previous: Option<Stored>,
}

#[derive(Debug)]
struct Inner {
    objects: BTreeMap<Arc<str>, Entry>,
    history: History,
    /// By the prefix they watch; an event's candidates are the prefixes of its key.
    watchers: HashMap<Box<str>, Vec<WatchSender>>,
    closed: bool,
}

#[derive(Debug)]
pub(super) struct SharedState {
    inner: Mutex<Inner>,
    /// Written under the lock after the watchers were served; read without it.
    revision: AtomicU64,
}

impl SharedState {
    pub(super) fn new(loaded: Loaded, options: &EmbeddedOptions) -> Self {
        Self {
            inner: Mutex::new(Inner {
                objects: loaded.objects,
                history: History::new(
                    loaded.revision,
                    options.history_events,
                    options.history_bytes,
                ),
                watchers: HashMap::new(),
                closed: false,
            }),
            revision: AtomicU64::new(loaded.revision),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // No code panics between two related writes under this lock, so the data is whole.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn current_revision(&self) -> Revision {
        self.revision.load(Ordering::Acquire)
    }

    pub(super) fn compacted_revision(&self) -> Revision {
        self.lock().history.compacted()
    }

    pub(super) fn get(&self, key: &str) -> Fetched {
        let inner = self.lock();
        Fetched {
            revision: self.current_revision(),
            stored: inner.objects.get(key).map(Entry::stored),
        }
    }

    /// The live entry, for the writer's conditions.
    pub(super) fn entry(&self, key: &str) -> Option<Entry> {
        self.lock().objects.get(key).cloned()
    }

    pub(super) fn count(&self, prefix: &str) -> usize {
        under(&self.lock().objects, prefix, prefix).count()
    }

    pub(super) fn list(&self, request: &ListRequest) -> Result<Listed, StoreError> {
        let inner = self.lock();
        let current = self.current_revision();
        let prefix = request.prefix.as_str();
        let start = request
            .start
            .as_deref()
            .filter(|start| *start > prefix)
            .unwrap_or(prefix);
        match request.revision {
            None => Ok(page(
                current,
                live(&inner.objects, prefix, start),
                request.limit,
            )),
            Some(revision) if revision == current => Ok(page(
                current,
                live(&inner.objects, prefix, start),
                request.limit,
            )),
            Some(requested) if requested > current => {
                Err(StoreError::FutureRevision { requested, current })
            }
            Some(requested) if requested < inner.history.compacted() => {
                Err(StoreError::Compacted {
                    requested,
                    oldest: inner.history.compacted(),
                })
            }
            Some(revision) => {
                let past = as_of(&inner, prefix, start, revision);
                Ok(page(revision, past.into_iter(), request.limit))
            }
        }
    }

    pub(super) fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError> {
        let mut inner = self.lock();
        let current = self.current_revision();
        if inner.closed {
            return Err(StoreError::Closed);
        }
        if after > current {
            return Err(StoreError::FutureRevision {
                requested: after,
                current,
            });
        }
        if after < inner.history.compacted() {
            return Err(StoreError::Compacted {
                requested: after,
                oldest: inner.history.compacted(),
            });
        }
        let replay: VecDeque<_> = inner
            .history
            .after(after)
            .filter(|past| watches(prefix, &past.key))
            .map(|past| Arc::new(past.event()))
            .collect();
        let (sender, watch) = Watch::new(after, replay);
        let senders = inner.watchers.entry(prefix.into()).or_default();
        // Readers leave without saying so; an unwatched prefix would otherwise keep them all.
        senders.retain(|sender| !sender.is_closed());
        senders.push(sender);
        Ok(watch)
    }

    pub(super) fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        let mut inner = self.lock();
        let current = self.current_revision();
        if revision > current {
            return Err(StoreError::FutureRevision {
                requested: revision,
                current,
            });
        }
        inner.history.compact(revision);
        Ok(())
    }

    /// Shows changes to readers and watchers, in order.
    pub(super) fn publish(&self, changes: Vec<Change>) {
        let mut inner = self.lock();
        for change in changes {
            let revision = change.revision;
            inner.publish(change);
            self.revision.store(revision, Ordering::Release);
        }
    }

    /// Ends every watch and refuses new ones.
    pub(super) fn close(&self) {
        let mut inner = self.lock();
        inner.closed = true;
        inner.watchers.clear();
    }
}

impl Inner {
    fn publish(&mut self, change: Change) {
        let past = Past {
            key: Arc::clone(&change.key),
            revision: change.revision,
            value: change.entry.as_ref().map(|entry| entry.value.clone()),
            previous: change.previous,
        };
        match change.entry {
            Some(entry) => drop(self.objects.insert(change.key, entry)),
            None => drop(self.objects.remove(&change.key)),
        }
        let event = Arc::new(past.event());
        self.history.push(past);
        self.notify(&event);
    }

    fn notify(&mut self, event: &Arc<Event>) {
        let key: &str = &event.key;
        let folders = key.match_indices('/').map(|(at, _)| &key[..=at]);
        for prefix in folders.chain(std::iter::once(key)) {
            if let Some(senders) = self.watchers.get_mut(prefix) {
                senders.retain(|sender| sender.send(event));
                if senders.is_empty() {
                    self.watchers.remove(prefix);
                }
            }
        }
    }
}

/// Whether a watch on `prefix` (a folder with its slash, or one key) sees `key`.
fn watches(prefix: &str, key: &str) -> bool {
    if prefix.ends_with('/') {
        key.starts_with(prefix)
    } else {
        key == prefix
    }
}

fn under<'a>(
    objects: &'a BTreeMap<Arc<str>, Entry>,
    prefix: &'a str,
    start: &'a str,
) -> impl Iterator<Item = (&'a Arc<str>, &'a Entry)> {
    objects
        .range::<str, _>((Bound::Included(start), Bound::Unbounded))
        .take_while(move |(key, _)| key.starts_with(prefix))
}

fn live<'a>(
    objects: &'a BTreeMap<Arc<str>, Entry>,
    prefix: &'a str,
    start: &'a str,
) -> impl Iterator<Item = KeyValue> + 'a {
    under(objects, prefix, start).map(|(key, entry)| KeyValue {
        key: Arc::clone(key),
        value: entry.value.clone(),
        revision: entry.revision,
    })
}

/// The keys under a prefix as they were, by undoing what happened since, newest first.
fn as_of(inner: &Inner, prefix: &str, start: &str, revision: Revision) -> Vec<KeyValue> {
    let mut objects: BTreeMap<Arc<str>, KeyValue> = live(&inner.objects, prefix, start)
        .map(|item| (Arc::clone(&item.key), item))
        .collect();
    let relevant = inner
        .history
        .after(revision)
        .rev()
        .filter(|past| past.key.starts_with(prefix) && &*past.key >= start);
    for past in relevant {
        match &past.previous {
            Some(previous) => drop(objects.insert(
                Arc::clone(&past.key),
                KeyValue {
                    key: Arc::clone(&past.key),
                    value: previous.value.clone(),
                    revision: previous.revision,
                },
            )),
            None => drop(objects.remove(&past.key)),
        }
    }
    objects.into_values().collect()
}

fn page(revision: Revision, mut items: impl Iterator<Item = KeyValue>, limit: usize) -> Listed {
    let limit = if limit == 0 { usize::MAX } else { limit };
    let taken: Vec<_> = items.by_ref().take(limit).collect();
    Listed {
        revision,
        items: taken,
        remaining: items.count(),
    }
}
