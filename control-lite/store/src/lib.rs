//! The revisioned store: trait, embedded back-end and contract tests.
//!
//! The trait sits where etcd's own Kubernetes contract sits: keys with compact byte values, one
//! global revision, optimistic puts and deletes, watches that resume by revision. Retry loops,
//! selectors, defaulting and everything that knows what an object *is* live above it, so that
//! every back-end is small and passes the same [`contract`].

#[cfg(any(test, feature = "contract"))]
pub mod contract;
mod embedded;
mod error;
mod event;
mod store;
mod watch;

pub use embedded::{EmbeddedOptions, EmbeddedStore};
pub use error::{OpenError, StoreError};
pub use event::{Event, KeyValue, Stored};
pub use store::{
    Class, DeleteRequest, Deleted, Expected, Fetched, ListRequest, Listed, PutRequest, Revision,
    Store,
};
pub use watch::{Watch, WatchEnd, WatchSender};
