//! The cache under a lagging watch: own writes are seen at once and never undone by older events.

use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use serde_json::json;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::*;
use crate::kind::kinds;
use crate::reflector;
use crate::testing::MemoryApi;

async fn started(lag: Duration) -> (Arc<MemoryApi>, Arc<Store<Pod>>, JoinSet<()>) {
    let api = MemoryApi::new(lag);
    let store = Arc::new(Store::<Pod>::new(kinds::POD, api.clone(), None));
    let mut tasks = JoinSet::new();
    tasks.spawn(reflector::run(store.clone(), CancellationToken::new()));
    store.wait_synced().await;
    (api, store, tasks)
}

fn pod(name: &str) -> Value {
    json!({"metadata": {"name": name, "ownerReferences": [
        {"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "rs", "uid": "u", "controller": true}
    ]}, "spec": {"containers": [], "nodeName": "n"}})
}

#[tokio::test(start_paused = true)]
async fn a_created_object_is_cached_before_the_watch_says_so() {
    let (_api, store, _tasks) = started(Duration::from_secs(5)).await;
    store.create("ns", pod("a")).await.expect("created");
    assert_eq!(store.owned_by("u").len(), 1);
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(store.owned_by("u").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_deleted_object_never_looks_alive_again_through_older_events() {
    let (api, store, _tasks) = started(Duration::from_secs(5)).await;
    let created = store.create("ns", pod("a")).await.expect("created");
    let key = ObjectKey::new("ns", "a");
    // Somebody else's write that the watch has not delivered when we delete.
    api.patch(
        kinds::POD,
        "ns",
        "a",
        Subresource::Status,
        json!({"status": {"phase": "Running"}}),
    )
    .await
    .expect("patched");
    store
        .delete(&created, DeleteOptions::default())
        .await
        .expect("deleted");
    for _ in 0..40 {
        let held = store.get(&key).expect("still terminating");
        assert!(
            held.metadata.deletion_timestamp.is_some(),
            "it came back to life"
        );
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_write_that_the_watch_overtook_leaves_no_ghost() {
    let (api, store, _tasks) = started(Duration::ZERO).await;
    let value = api
        .create(kinds::POD, "ns", pod("a"))
        .await
        .expect("created");
    let force = DeleteOptions {
        grace_period_secs: Some(0),
        ..Default::default()
    };
    api.delete(kinds::POD, "ns", "a", force)
        .await
        .expect("deleted");
    tokio::time::sleep(Duration::from_secs(1)).await;
    // The creator learns its result only now.
    store.wrote(&value).expect("parsed");
    assert_eq!(store.count(), 0);
}

#[tokio::test(start_paused = true)]
async fn handlers_hear_of_a_write_once() {
    let (_api, store, _tasks) = started(Duration::from_millis(10)).await;
    let heard = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counter = heard.clone();
    store.on_change(move |_| {
        counter.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    });
    store.create("ns", pod("a")).await.expect("created");
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(heard.load(std::sync::atomic::Ordering::Relaxed), 1);
}
