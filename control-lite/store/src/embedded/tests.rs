//! The embedded back-end: the contract, what a restart keeps, and what the disk is spared.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;

use super::*;
use crate::store::{Class, Expected};

fn request(key: &str, value: &str, class: Class) -> PutRequest {
    PutRequest {
        key: key.to_owned(),
        value: Bytes::copy_from_slice(value.as_bytes()),
        expected: Expected::Any,
        class,
    }
}

fn open(folder: &Path) -> EmbeddedStore {
    EmbeddedStore::open(&EmbeddedOptions::new(folder.join("store.redb"))).unwrap()
}

async fn value(store: &EmbeddedStore, key: &str) -> Option<String> {
    let stored = store.get(key).await.unwrap().stored?;
    Some(String::from_utf8(stored.value.to_vec()).unwrap())
}

/// What a crash leaves: the file as it is now, without an orderly close.
fn copy_as_after_a_crash(from: &Path, to: &Path) {
    std::fs::copy(from.join("store.redb"), to.join("store.redb")).unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_embedded_store_keeps_the_contract() {
    let folder = tempfile::tempdir().unwrap();
    let number = AtomicUsize::new(0);
    crate::contract::check(|| {
        let file = folder
            .path()
            .join(format!("{}.redb", number.fetch_add(1, Ordering::Relaxed)));
        async move {
            Arc::new(EmbeddedStore::open(&EmbeddedOptions::new(file)).unwrap()) as Arc<dyn Store>
        }
    })
    .await;
}

#[tokio::test]
async fn an_orderly_restart_keeps_everything_and_goes_on_at_the_same_revision() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    store
        .put(request("/a/1", "durable", Class::Durable))
        .await
        .unwrap();
    let last = store
        .put(request("/v/1", "volatile", Class::Volatile))
        .await
        .unwrap();
    store.close().await.unwrap();
    let store = open(folder.path());
    assert_eq!(store.current_revision(), last);
    assert_eq!(value(&store, "/a/1").await.as_deref(), Some("durable"));
    assert_eq!(value(&store, "/v/1").await.as_deref(), Some("volatile"));
    assert!(store.watch("/a/", last).await.is_ok());
    assert!(matches!(
        store.watch("/a/", last - 1).await,
        Err(StoreError::Compacted { .. })
    ));
}

#[tokio::test]
async fn after_a_crash_durable_objects_are_there_and_no_revision_is_used_twice() {
    let (folder, crashed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = open(folder.path());
    store
        .put(request("/a/1", "durable", Class::Durable))
        .await
        .unwrap();
    let mut seen = 0;
    for _ in 0..100 {
        seen = store
            .put(request("/v/1", "volatile", Class::Volatile))
            .await
            .unwrap();
    }
    copy_as_after_a_crash(folder.path(), crashed.path());
    let store = open(crashed.path());
    assert_eq!(value(&store, "/a/1").await.as_deref(), Some("durable"));
    assert_eq!(value(&store, "/v/1").await, None);
    assert!(store.current_revision() >= seen);
    let next = store
        .put(request("/a/2", "x", Class::Durable))
        .await
        .unwrap();
    assert!(
        next > seen,
        "{next} was handed out before the crash (last: {seen})"
    );
}

#[tokio::test]
async fn a_deleted_volatile_object_does_not_come_back_after_a_crash() {
    let (folder, crashed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let store = open(folder.path());
    store
        .put(request("/v/1", "volatile", Class::Volatile))
        .await
        .unwrap();
    store.close().await.unwrap();
    let store = open(folder.path());
    let key = "/v/1".to_owned();
    store
        .delete(DeleteRequest {
            key,
            expected: Expected::Any,
        })
        .await
        .unwrap();
    copy_as_after_a_crash(folder.path(), crashed.path());
    assert_eq!(value(&open(crashed.path()), "/v/1").await, None);
}

#[tokio::test]
async fn volatile_writes_and_reads_do_not_touch_the_disk() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path());
    store
        .put(request("/a/1", "durable", Class::Durable))
        .await
        .unwrap();
    let file = folder.path().join("store.redb");
    let before = (
        std::fs::read(&file).unwrap(),
        file.metadata().unwrap().modified().unwrap(),
    );
    tokio::time::sleep(Duration::from_millis(20)).await;
    for _ in 0..500 {
        store
            .put(request("/v/1", "volatile", Class::Volatile))
            .await
            .unwrap();
        store.get("/a/1").await.unwrap();
    }
    let after = (
        std::fs::read(&file).unwrap(),
        file.metadata().unwrap().modified().unwrap(),
    );
    assert!(before == after, "the file changed");
}

#[tokio::test]
async fn volatile_objects_ride_along_with_a_durable_commit_when_it_is_time() {
    let (folder, crashed) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut options = EmbeddedOptions::new(folder.path().join("store.redb"));
    options.checkpoint_interval = Duration::ZERO;
    let store = EmbeddedStore::open(&options).unwrap();
    store
        .put(request("/v/1", "volatile", Class::Volatile))
        .await
        .unwrap();
    store
        .put(request("/a/1", "durable", Class::Durable))
        .await
        .unwrap();
    // The checkpoint follows the acknowledgement; the next commit comes after it.
    store
        .put(request("/a/2", "durable", Class::Durable))
        .await
        .unwrap();
    copy_as_after_a_crash(folder.path(), crashed.path());
    assert_eq!(
        value(&open(crashed.path()), "/v/1").await.as_deref(),
        Some("volatile")
    );
}

#[tokio::test]
async fn a_short_history_answers_410_for_what_it_forgot() {
    let folder = tempfile::tempdir().unwrap();
    let mut options = EmbeddedOptions::new(folder.path().join("store.redb"));
    options.history_events = 10;
    let store = EmbeddedStore::open(&options).unwrap();
    let first = store
        .put(request("/a/1", "v", Class::Durable))
        .await
        .unwrap();
    for _ in 0..20 {
        store
            .put(request("/a/2", "v", Class::Durable))
            .await
            .unwrap();
    }
    assert!(matches!(
        store.watch("/a/", first).await,
        Err(StoreError::Compacted { .. })
    ));
    assert!(store.watch("/a/", store.compacted_revision()).await.is_ok());
}

#[test]
fn a_file_that_is_no_store_is_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("store.redb");
    std::fs::write(&file, vec![7_u8; 8192]).unwrap();
    let error = EmbeddedStore::open(&EmbeddedOptions::new(&file)).unwrap_err();
    assert!(error.to_string().contains("store.redb"), "{error}");
}
