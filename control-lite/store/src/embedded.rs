//! The embedded back-end: live objects in memory, durability by redb with group commit.
//!
//! Reads and watches never touch the disk. All writes pass through one writer thread, which takes
//! whatever has queued up, makes it durable with one commit, and only then shows and acknowledges
//! it; so many concurrent writers share one fsync and nobody sees a write that a crash could undo.

mod disk;
mod history;
mod state;
mod writer;

use std::path::PathBuf;
use std::sync::Arc;

use async_trait::async_trait;
use tokio::sync::oneshot;

use crate::error::{OpenError, StoreError};
use crate::store::{
    DeleteRequest, Deleted, Fetched, ListRequest, Listed, PutRequest, Revision, Store,
};
use crate::watch::Watch;
use disk::Disk;
use state::SharedState;
use writer::{Command, WriterHandle};

/// How an embedded store is opened.
#[derive(Clone, Debug)]
pub struct EmbeddedOptions {
    /// The database file; made if it is not there.
    pub path: PathBuf,
    /// Events kept for watches and historical lists.
    pub history_events: usize,
    /// Bytes of values kept for watches and historical lists.
    pub history_bytes: usize,
    /// Volatile writes are taken along by a durable commit at most this often.
    pub checkpoint_interval: std::time::Duration,
}

impl EmbeddedOptions {
    /// The defaults for a file.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            history_events: 10_000,
            history_bytes: 8 << 20,
            checkpoint_interval: std::time::Duration::from_secs(300),
        }
    }
}

/// The embedded store.
#[derive(Debug)]
pub struct EmbeddedStore {
    state: Arc<SharedState>,
    writer: WriterHandle,
}

impl EmbeddedStore {
    /// Opens (or makes) the store and starts its writer thread.
    pub fn open(options: &EmbeddedOptions) -> Result<Self, OpenError> {
        let (disk, loaded) = Disk::open(&options.path)?;
        let state = Arc::new(SharedState::new(loaded, options));
        let writer = WriterHandle::start(Arc::clone(&state), disk, options.checkpoint_interval)
            .map_err(|source| OpenError::Thread { source })?;
        Ok(Self { state, writer })
    }

    async fn submit<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<T, StoreError>>) -> Command,
    ) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.writer.send(command(reply)).await?;
        answer.await.map_err(|_| StoreError::Closed)?
    }
}

#[async_trait]
impl Store for EmbeddedStore {
    async fn get(&self, key: &str) -> Result<Fetched, StoreError> {
        Ok(self.state.get(key))
    }

    async fn list(&self, request: ListRequest) -> Result<Listed, StoreError> {
        self.state.list(&request)
    }

    async fn count(&self, prefix: &str) -> Result<usize, StoreError> {
        Ok(self.state.count(prefix))
    }

    async fn put(&self, request: PutRequest) -> Result<Revision, StoreError> {
        self.submit(|reply| Command::Put { request, reply }).await
    }

    async fn delete(&self, request: DeleteRequest) -> Result<Deleted, StoreError> {
        self.submit(|reply| Command::Delete { request, reply })
            .await
    }

    async fn watch(&self, prefix: &str, after: Revision) -> Result<Watch, StoreError> {
        self.state.watch(prefix, after)
    }

    async fn compact(&self, revision: Revision) -> Result<(), StoreError> {
        self.state.compact(revision)
    }

    fn current_revision(&self) -> Revision {
        self.state.current_revision()
    }

    fn compacted_revision(&self) -> Revision {
        self.state.compacted_revision()
    }

    async fn close(&self) -> Result<(), StoreError> {
        match self.submit(|reply| Command::Close { reply }).await {
            // Closing twice is closing once.
            Err(StoreError::Closed) => Ok(()),
            outcome => outcome,
        }
    }
}

#[cfg(test)]
mod tests;
