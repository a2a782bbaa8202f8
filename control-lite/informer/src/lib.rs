//! What every controller and the scheduler stand on: one in-process cache per kind, work queues, events.
//!
//! Tasks: one reflector per kind (`cache/reflector.rs`: list, then watch from that revision) feeds its
//! [`Store`]; the recorder task (`recorder.rs`) writes Events. Handlers run on the reflector's task and
//! only put keys into [`WorkQueue`]s. Nothing here decides anything.

mod caches;
mod client;
mod kind;
mod pod;
mod queue;
mod recorder;
mod reflector;
mod selector;
mod store;
#[cfg(feature = "testing")]
pub mod testing;
mod time;

pub use caches::{Caches, Dependents, MetaHandler};
pub use client::{
    Client, ClientError, DeleteOptions, Propagation, Subresource, WatchEvent, WatchStream,
};
pub use kind::{Kind, kinds};
pub use pod::{
    is_pod_active, is_pod_available, is_pod_ready, is_pod_terminal, is_pod_terminating,
    pod_condition,
};
pub use queue::WorkQueue;
pub use recorder::{EventType, ObjectRef, Recorder};
pub use selector::{InvalidSelector, Selector};
pub use store::{Cached, Change, ObjectKey, Partial, Store};
pub use time::{micro_now, now, truncate_to_secs};
