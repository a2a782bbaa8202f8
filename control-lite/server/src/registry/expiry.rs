//! Events go an hour after their last change. Sleeps until the next one is due; no scanning.

use std::collections::VecDeque;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tholepin_store::{DeleteRequest, Expected, ListRequest, StoreError};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::{ApiResult, Registry, Resource, Shared, folder, resources, store_error};

/// One write of an Event. Only the last write of a key still matters when it is due: earlier ones
/// find another revision.
#[derive(Debug)]
pub(super) struct Due {
    key: String,
    revision: u64,
    at: Instant,
}

/// The registry's end: every write of an Event is noted.
#[derive(Debug)]
pub(super) struct Expiry {
    writes: mpsc::UnboundedSender<Due>,
    ttl: Duration,
}

impl Expiry {
    pub(super) fn new(ttl: Duration) -> (Self, mpsc::UnboundedReceiver<Due>) {
        // Unbounded, because its reader only moves entries into a queue that is as long anyway:
        // there is one entry per write within the time to live.
        let (writes, due) = mpsc::unbounded_channel();
        (Self { writes, ttl }, due)
    }

    pub(super) fn wrote(&self, key: String, revision: u64) {
        // No receiver: the registry is going down, and the next start counts anew.
        self.writes
            .send(Due {
                key,
                revision,
                at: Instant::now() + self.ttl,
            })
            .ok();
    }
}

impl Registry {
    /// Notes the Events that are already there (their time begins anew) and starts the task.
    pub(super) async fn start_expiry(&self, due: mpsc::UnboundedReceiver<Due>) -> ApiResult<()> {
        let prefix = folder(resources::EVENTS.kind()?, "");
        let request = ListRequest {
            prefix,
            ..ListRequest::default()
        };
        let listed = self.shared.store.list(request).await.map_err(store_error)?;
        for item in listed.items {
            self.shared
                .expiry
                .wrote(item.key.to_string(), item.revision);
        }
        tokio::spawn(expire(Arc::downgrade(&self.shared), due));
        Ok(())
    }
}

/// Holds the registry only while it deletes, so that dropping the last registry ends the task.
async fn expire(shared: Weak<Shared>, mut writes: mpsc::UnboundedReceiver<Due>) {
    // All have the same time to live, so they fall due in the order they came.
    let mut queue: VecDeque<Due> = VecDeque::new();
    loop {
        let first = queue.front().map(|due| due.at);
        tokio::select! {
            write = writes.recv() => match write {
                Some(write) => queue.push_back(write),
                None => return,
            },
            () = until(first) => {
                let Some(shared) = shared.upgrade() else { return };
                if let Some(due) = queue.pop_front() {
                    delete(&shared, due).await;
                }
            }
        }
    }
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

async fn delete(shared: &Shared, due: Due) {
    let expected = Expected::Revision(due.revision);
    match shared
        .store
        .delete(DeleteRequest {
            key: due.key,
            expected,
        })
        .await
    {
        // A conflict: it changed since, and that change has its own entry.
        Ok(_) | Err(StoreError::Conflict { .. } | StoreError::Closed) => (),
        Err(error) => {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "an Event did not expire"
            );
        }
    }
}
