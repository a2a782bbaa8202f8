//! Runs a reconciler over its queue: back-off after failures, a later look where it asked for one.

use std::fmt::Display;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use tholepin_informer::WorkQueue;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::context::{Context, ReconcileError};

/// One controller: makes the object of a key right.
pub(crate) trait Reconciler: Send + Sync + 'static {
    /// What its queue holds.
    type Key: Clone + Eq + Hash + Ord + Display + Send + Sync + 'static;
    /// For logs.
    const NAME: &'static str;

    /// One round. `Some` asks for another one after that time.
    fn reconcile(
        &self,
        key: &Self::Key,
    ) -> impl Future<Output = Result<Option<Duration>, ReconcileError>> + Send;
}

/// Starts `workers` tasks over `queue`. They begin once every cache has been read: a round that judges
/// by half a cluster creates what exists and removes what is wanted.
pub(crate) fn spawn<R: Reconciler>(
    context: &Context,
    tasks: &mut JoinSet<()>,
    cancel: &CancellationToken,
    queue: Arc<WorkQueue<R::Key>>,
    reconciler: Arc<R>,
    workers: usize,
) {
    for _ in 0..workers {
        let caches = context.caches.clone();
        let work = work(queue.clone(), reconciler.clone(), cancel.clone());
        let cancel = cancel.clone();
        tasks.spawn(async move {
            let ready = cancel.run_until_cancelled(caches.wait_synced()).await;
            if ready.is_some() {
                work.await;
            }
        });
    }
}

async fn work<R: Reconciler>(
    queue: Arc<WorkQueue<R::Key>>,
    reconciler: Arc<R>,
    cancel: CancellationToken,
) {
    loop {
        let key = tokio::select! {
            () = cancel.cancelled() => return,
            key = queue.get() => key,
        };
        match reconciler.reconcile(&key).await {
            Ok(again) => {
                queue.forget(&key);
                if let Some(delay) = again {
                    queue.add_after(key.clone(), delay);
                }
            }
            Err(error) => {
                let (controller, cause) = (R::NAME, &error.source);
                if error.is_expected() {
                    tracing::debug!(controller, %key, %error, %cause, "round to be repeated");
                } else {
                    tracing::warn!(controller, %key, %error, %cause, "round failed, trying again");
                }
                queue.add_rate_limited(key.clone());
            }
        }
        queue.done(&key);
    }
}
