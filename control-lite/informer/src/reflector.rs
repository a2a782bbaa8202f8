//! Keeps one [`Store`] equal to the API: list, watch from the list's revision, list again when told to.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use tokio_util::sync::CancellationToken;

use crate::client::{ClientError, WatchEvent};
use crate::store::{Cached, Store};

const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(30);

/// Runs until cancelled. A watch that ends is resumed at the last revision; 410 means a new list.
pub(crate) async fn run<T: Cached>(store: Arc<Store<T>>, cancel: CancellationToken) {
    let mut retry = FIRST_RETRY;
    loop {
        let outcome = tokio::select! {
            () = cancel.cancelled() => return,
            outcome = list_and_watch(&store, &mut retry) => outcome,
        };
        if let Err(error) = outcome {
            let resource = store.kind().resource;
            tracing::warn!(resource, %error, "list and watch failed, trying again in {retry:?}");
            tokio::select! {
                () = cancel.cancelled() => return,
                () = tokio::time::sleep(retry) => (),
            }
            retry = (retry * 2).min(LAST_RETRY);
        }
    }
}

async fn list_and_watch<T: Cached>(
    store: &Store<T>,
    retry: &mut Duration,
) -> Result<(), ClientError> {
    let (objects, mut revision) = store.client().list(store.kind(), None).await?;
    store.replaced(&objects, revision);
    drop(objects);
    loop {
        let mut stream = match store.client().watch(store.kind(), revision).await {
            Err(error) if error.is_expired() => return Ok(()),
            outcome => outcome?,
        };
        *retry = FIRST_RETRY;
        let before = revision;
        while let Some(event) = stream.next().await {
            match event {
                Ok(WatchEvent::Applied(object)) => {
                    revision = revision.max(revision_of(&object));
                    store.applied(&object);
                }
                Ok(WatchEvent::Deleted(object)) => {
                    revision = revision.max(revision_of(&object));
                    store.removed(&object);
                }
                Ok(WatchEvent::Bookmark(at)) => {
                    revision = revision.max(at);
                    store.progressed(at);
                }
                Err(error) if error.is_expired() => return Ok(()),
                Err(error) => return Err(error),
            }
        }
        if revision == before {
            // A server that ends empty watches at once must not make us spin.
            tokio::time::sleep(FIRST_RETRY).await;
        }
    }
}

fn revision_of(object: &serde_json::Value) -> u64 {
    object
        .pointer("/metadata/resourceVersion")
        .and_then(serde_json::Value::as_str)
        .and_then(|text| text.parse().ok())
        .unwrap_or(0)
}
