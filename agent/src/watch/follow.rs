//! What the network's watches share: follow one kind, keep only domain types, say when it is whole.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::StreamExt;
use kube::Api;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Event, watcher};
use tokio_util::sync::CancellationToken;

use crate::dataplane::chain;

/// What became of one API object.
pub(super) enum Parsed<K, T> {
    /// It concerns the dataplane.
    Wanted(K, T),
    /// It does not, or not any more.
    Unwanted(K),
}

/// A change of a table of domain objects.
#[derive(Debug)]
pub enum Change<K, T> {
    Apply(K, Arc<T>),
    Remove(K),
    /// The whole table, after a list.
    Replace(BTreeMap<K, Arc<T>>),
}

/// Follows `api` until cancelled. The objects themselves are dropped as soon as they are parsed.
pub(super) async fn follow<O, K, T>(
    api: Api<O>,
    parse: impl Fn(&O) -> Parsed<K, T>,
    mut apply: impl FnMut(Change<K, T>),
    cancel: CancellationToken,
) where
    O: kube::Resource + Clone + serde::de::DeserializeOwned + std::fmt::Debug + Send + 'static,
    K: Ord,
{
    let kind = std::any::type_name::<O>()
        .rsplit("::")
        .next()
        .unwrap_or("object");
    let mut listed = BTreeMap::new();
    let stream = watcher(api, watcher::Config::default()).default_backoff();
    let mut stream = std::pin::pin!(stream);
    loop {
        let event = tokio::select! {
            () = cancel.cancelled() => return,
            event = stream.next() => event,
        };
        match event {
            Some(Ok(Event::Init)) => listed = BTreeMap::new(),
            Some(Ok(Event::InitApply(object))) => {
                if let Parsed::Wanted(key, value) = parse(&object) {
                    listed.insert(key, Arc::new(value));
                }
            }
            Some(Ok(Event::InitDone)) => apply(Change::Replace(std::mem::take(&mut listed))),
            Some(Ok(Event::Apply(object))) => match parse(&object) {
                Parsed::Wanted(key, value) => apply(Change::Apply(key, Arc::new(value))),
                Parsed::Unwanted(key) => apply(Change::Remove(key)),
            },
            Some(Ok(Event::Delete(object))) => match parse(&object) {
                Parsed::Wanted(key, _) | Parsed::Unwanted(key) => apply(Change::Remove(key)),
            },
            // The stream retries by itself, with back-off; what is known stays in force meanwhile.
            Some(Err(error)) => tracing::warn!(kind, error = chain(&error), "watch interrupted"),
            None => return cancel.cancelled().await,
        }
    }
}

/// Applies a change; whether the table is different now.
pub(super) fn fold<K: Ord, T: PartialEq>(
    table: &mut BTreeMap<K, Arc<T>>,
    change: Change<K, T>,
) -> bool {
    match change {
        Change::Apply(key, value) => {
            let same = table.get(&key).is_some_and(|known| **known == *value);
            if !same {
                table.insert(key, value);
            }
            !same
        }
        Change::Remove(key) => table.remove(&key).is_some(),
        Change::Replace(whole) => {
            let same = *table == whole;
            *table = whole;
            !same
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_real_changes_are_announced() {
        let mut table = BTreeMap::new();
        assert!(fold(&mut table, Change::Apply("a", Arc::new(1))));
        assert!(
            !fold(&mut table, Change::Apply("a", Arc::new(1))),
            "a heartbeat changes nothing"
        );
        assert!(fold(&mut table, Change::Apply("a", Arc::new(2))));
        assert!(!fold(&mut table, Change::Remove("b")));
        assert!(
            fold(&mut table, Change::Replace(BTreeMap::new())),
            "what was not listed is gone"
        );
    }

    type Answer =
        http::Response<http_body_util::combinators::BoxBody<bytes::Bytes, std::io::Error>>;

    /// An API server with one Service, that announces another as soon as it is watched.
    fn answer(request: &http::Request<kube::client::Body>) -> Answer {
        use http_body_util::{BodyExt, StreamBody};
        let service = |name: &str, address: &str| {
            serde_json::json!({
                "apiVersion": "v1", "kind": "Service",
                "metadata": {"name": name, "namespace": "default", "resourceVersion": "2"},
                "spec": {"clusterIP": address, "ports": [{"port": 80}]},
            })
        };
        let watching = request.uri().query().unwrap_or_default().contains("watch=");
        let text = if watching {
            serde_json::json!({"type": "ADDED", "object": service("b", "10.96.0.2")})
        } else {
            serde_json::json!({
                "apiVersion": "v1", "kind": "ServiceList", "metadata": {"resourceVersion": "1"},
                "items": [service("a", "10.96.0.1")],
            })
        };
        let frame = Ok(http_body::Frame::data(bytes::Bytes::from(format!(
            "{text}\n"
        ))));
        let once = futures::stream::iter([frame]);
        let body = if watching {
            // A watch stays open.
            BodyExt::boxed(StreamBody::new(once.chain(futures::stream::pending())))
        } else {
            BodyExt::boxed(StreamBody::new(once))
        };
        http::Response::new(body)
    }

    #[tokio::test]
    async fn a_watch_lists_then_says_synced_then_follows() {
        let api = tower::service_fn(|request| async move {
            Ok::<_, std::convert::Infallible>(answer(&request))
        });
        let client = kube::Client::new(api, "default");
        let changes = super::super::changes::ServiceChanges::default();
        let cancel = CancellationToken::new();
        let watch = tokio::spawn(super::super::services::watch(
            client,
            changes.clone(),
            cancel.clone(),
        ));
        let mut seen = Vec::new();
        while seen.len() < 2 {
            changes.changed().await;
            let changes = changes.take();
            assert!(changes.sync.services && !changes.sync.slices);
            seen.extend(changes.services.changed.into_keys().map(|name| name.name));
        }
        seen.sort();
        assert_eq!(seen, ["a", "b"]);
        cancel.cancel();
        watch.await.unwrap();
    }
}
