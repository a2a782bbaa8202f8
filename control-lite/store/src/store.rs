//! The contract of a back-end: what the API server needs from a store and nothing more.

use async_trait::async_trait;
use bytes::Bytes;

use crate::error::StoreError;
use crate::event::{KeyValue, Stored};
use crate::watch::Watch;

/// The store's clock: one number for the whole store, larger for every change.
pub type Revision = u64;

/// How much a write is worth.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Class {
    /// Acknowledged only when it survives a power cut.
    #[default]
    Durable,
    /// Kept in memory and written along at rare moments and at shutdown: Leases and Events, whose
    /// loss costs a heartbeat, and whose rate would wear out a disk.
    Volatile,
}

/// What must be stored under a key for a write to happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expected {
    /// Anything or nothing.
    Any,
    /// Nothing: a creation.
    Absent,
    /// Exactly the value this revision wrote.
    Revision(Revision),
}

/// A write of one key.
#[derive(Clone, Debug)]
pub struct PutRequest {
    /// The key.
    pub key: String,
    /// The value.
    pub value: Bytes,
    /// The condition.
    pub expected: Expected,
    /// How durable the write has to be.
    pub class: Class,
}

/// A removal of one key.
#[derive(Clone, Debug)]
pub struct DeleteRequest {
    /// The key.
    pub key: String,
    /// The condition. `Absent` never deletes anything.
    pub expected: Expected,
}

/// Which keys to list.
#[derive(Clone, Debug, Default)]
pub struct ListRequest {
    /// Keys start with this.
    pub prefix: String,
    /// List as of this revision; `None`: as of now.
    pub revision: Option<Revision>,
    /// Start at the first key that is not smaller than this one.
    pub start: Option<String>,
    /// At most this many; 0: all.
    pub limit: usize,
}

/// The answer of a read of one key.
#[derive(Clone, Debug)]
pub struct Fetched {
    /// The store's revision at the moment of the read.
    pub revision: Revision,
    /// What is stored, if anything.
    pub stored: Option<Stored>,
}

/// The answer of a list.
#[derive(Clone, Debug)]
pub struct Listed {
    /// The revision the list shows.
    pub revision: Revision,
    /// The keys in order.
    pub items: Vec<KeyValue>,
    /// How many further keys match behind the last one returned.
    pub remaining: usize,
}

/// The answer of a deletion.
#[derive(Clone, Debug)]
pub struct Deleted {
    /// The revision of the deletion; the current one if there was nothing to delete.
    pub revision: Revision,
    /// What was removed, if anything.
    pub previous: Option<Stored>,
}

/// A revisioned key-value store.
///
/// Reads see every write that was acknowledged before they began. A write is visible to readers
/// and watchers only once it is as durable as its class promises.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// What is stored under a key now.
    async fn get(&self, key: &str) -> Result<Fetched, StoreError>;

    /// Keys under a prefix, in order.
    async fn list(&self, request: ListRequest) -> Result<Listed, StoreError>;

    /// How many keys are under a prefix now.
    async fn count(&self, prefix: &str) -> Result<usize, StoreError>;

    /// Writes a key if the condition holds and returns the write's revision.
    async fn put(&self, request: PutRequest) -> Result<Revision, StoreError>;

    /// Removes a key if the condition holds.
    async fn delete(&self, request: DeleteRequest) -> Result<Deleted, StoreError>;

    /// Changes under a prefix (or of one key) after revision `after`, in order, without gaps.
    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError>;

    /// Forgets the history up to and including a revision.
    async fn compact(&self, revision: Revision) -> Result<(), StoreError>;

    /// The revision of the last change whose events were handed to every watcher.
    fn current_revision(&self) -> Revision;

    /// The oldest revision that can be listed at or watched from.
    fn compacted_revision(&self) -> Revision;

    /// Writes what is only in memory, and refuses every write from then on.
    async fn close(&self) -> Result<(), StoreError>;
}
