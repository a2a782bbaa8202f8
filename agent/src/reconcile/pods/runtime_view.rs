//! One reader of the runtime for all pod workers: `Runtime::list`, published as snapshots.
//!
//! A worker that has just changed something asks for a snapshot whose listing began afterwards
//! ([`RuntimeView::fresh`]); requests of many workers share one listing.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::runtime::{RealizedSandbox, Runtime};

/// What the runtime had when it was last asked.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Requests up to this one are answered; 0 before the first successful listing.
    pub ticket: u64,
    pub sandboxes: BTreeMap<String, RealizedSandbox>,
    /// Why the last attempt failed; the rest is older then.
    pub error: Option<String>,
}

/// Shared access to snapshots. Cheap to clone.
#[derive(Clone, Debug)]
pub struct RuntimeView {
    wanted: watch::Sender<u64>,
    snapshots: watch::Receiver<Arc<Snapshot>>,
}

/// A full reading even if no event came: events may be lost.
const RESYNC: Duration = Duration::from_secs(60);
const MIN_RETRY: Duration = Duration::from_millis(250);
const MAX_RETRY: Duration = Duration::from_secs(5);

impl RuntimeView {
    /// Starts the reader.
    pub fn spawn(runtime: Arc<dyn Runtime>, cancel: CancellationToken) -> Self {
        let (wanted, requests) = watch::channel(1);
        let (publish, snapshots) = watch::channel(Arc::new(Snapshot::default()));
        tokio::spawn(async move {
            cancel
                .run_until_cancelled(read(runtime, requests, publish))
                .await;
        });
        Self { wanted, snapshots }
    }

    /// A request; the answer is any snapshot with at least this ticket.
    #[must_use]
    pub fn request(&self) -> u64 {
        let mut ticket = 0;
        self.wanted.send_modify(|wanted| {
            *wanted += 1;
            ticket = *wanted;
        });
        ticket
    }

    /// Waits for a snapshot that answers `ticket`. Waits for ever while the runtime is away.
    pub async fn fresh(&self, ticket: u64) -> Arc<Snapshot> {
        let mut snapshots = self.snapshots.clone();
        let found = snapshots
            .wait_for(|snapshot| snapshot.ticket >= ticket)
            .await;
        match found.map(|snapshot| Arc::clone(&snapshot)) {
            Ok(snapshot) => snapshot,
            // The reader is gone: the agent is stopping, and whoever waits is about to be dropped.
            Err(_) => std::future::pending().await,
        }
    }

    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.snapshots.clone()
    }
}

async fn read(
    runtime: Arc<dyn Runtime>,
    mut requests: watch::Receiver<u64>,
    publish: watch::Sender<Arc<Snapshot>>,
) {
    let mut changes = runtime.changes();
    let mut retry = MIN_RETRY;
    loop {
        let ticket = *requests.borrow_and_update();
        changes.borrow_and_update();
        match runtime.list().await {
            Ok(list) => {
                retry = MIN_RETRY;
                let sandboxes = list
                    .into_iter()
                    .map(|sandbox| (sandbox.pod.uid.clone(), sandbox))
                    .collect();
                publish.send_replace(Arc::new(Snapshot {
                    ticket,
                    sandboxes,
                    error: None,
                }));
            }
            Err(error) => {
                let error = crate::errors::chain(&error);
                tracing::warn!(%error, "listing containers failed, trying again");
                publish.send_modify(|snapshot| {
                    let old = Arc::make_mut(snapshot);
                    old.error = Some(error);
                });
                tokio::time::sleep(retry).await;
                retry = (retry * 2).min(MAX_RETRY);
                continue;
            }
        }
        tokio::select! {
            changed = changes.changed() => {
                if changed.is_err() {
                    // No more events; requests and the timer remain.
                    tokio::time::sleep(MAX_RETRY).await;
                }
            }
            _ = requests.changed() => {}
            () = tokio::time::sleep(RESYNC) => {}
        }
    }
}
