//! Errors of store operations. A conflict is an expected outcome that callers branch on; the rest
//! is reported.

use crate::event::Stored;
use crate::store::Revision;

/// A store operation that did not happen.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The key's revision (or its absence) is not what the caller expected.
    #[error("revision of `{key}` is not the expected one")]
    Conflict {
        /// The key.
        key: String,
        /// What is stored now, so that a retry needs no second read. `None`: nothing.
        current: Option<Stored>,
    },
    /// The revision asked for is older than the history that is kept.
    #[error("revision {requested} has been compacted (oldest kept: {oldest})")]
    Compacted {
        /// The revision asked for.
        requested: Revision,
        /// The oldest revision that can be read or watched from.
        oldest: Revision,
    },
    /// The revision asked for has not happened yet.
    #[error("revision {requested} is in the future (current: {current})")]
    FutureRevision {
        /// The revision asked for.
        requested: Revision,
        /// The current revision.
        current: Revision,
    },
    /// The store could not make the write durable; nothing was changed.
    #[error("failed to write `{key}` durably")]
    Write {
        /// The first key of the failed write.
        key: String,
        /// What the disk said. Shared by all writes of one commit.
        source: std::sync::Arc<redb::Error>,
    },
    /// The store is shutting down.
    #[error("the store is closed")]
    Closed,
}

/// The embedded store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The file could not be opened or is not a store.
    #[error("failed to open the store `{path}`")]
    Open {
        /// The file.
        path: std::path::PathBuf,
        /// What redb said.
        source: Box<redb::Error>,
    },
    /// A row does not have the layout this version writes.
    #[error("store `{path}`: the row of `{key}` is damaged or of an unknown format")]
    Row {
        /// The file.
        path: std::path::PathBuf,
        /// The key whose row it is.
        key: String,
    },
    /// The writer thread could not be started.
    #[error("failed to start the store's writer thread")]
    Thread {
        /// What the system said.
        source: std::io::Error,
    },
}
