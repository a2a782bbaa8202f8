//! What every back-end has to do, as tests over the trait.
//!
//! A back-end's own test calls [`check`] with a factory of empty stores. Each behaviour is a
//! function named as a sentence, and panics when it does not hold.

use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;

use crate::error::StoreError;
use crate::event::Event;
use crate::store::{Class, DeleteRequest, Expected, ListRequest, PutRequest, Revision, Store};
use crate::watch::Watch;

/// Runs the whole contract; `make` returns an empty store each time.
pub async fn check<F, R>(make: F)
where
    F: Fn() -> R,
    R: Future<Output = Arc<dyn Store>>,
{
    a_value_is_read_back_with_the_revision_of_its_write(&*make().await).await;
    a_creation_of_a_taken_key_conflicts_and_shows_what_is_there(&*make().await).await;
    an_update_needs_the_present_revision(&*make().await).await;
    a_deletion_needs_the_present_revision(&*make().await).await;
    deleting_nothing_changes_nothing(&*make().await).await;
    every_change_gets_a_larger_revision(&*make().await).await;
    a_list_is_sorted_and_bounded_by_its_prefix(&*make().await).await;
    pages_at_one_revision_show_one_moment(&*make().await).await;
    a_list_in_the_future_is_refused(&*make().await).await;
    a_compacted_revision_is_refused(&*make().await).await;
    a_watch_delivers_creations_updates_and_deletions_with_what_was_before(&*make().await).await;
    a_watch_resumes_after_a_revision_without_gaps(&*make().await).await;
    a_watch_sees_only_its_prefix(&*make().await).await;
    a_watch_of_one_key_sees_only_that_key(&*make().await).await;
    an_unread_watch_ends_with_an_overflow(&*make().await).await;
    volatile_objects_are_objects_like_others(&*make().await).await;
    concurrent_writers_of_one_key_lose_no_update(make().await).await;
    a_closed_store_refuses_writes_and_ends_watches(&*make().await).await;
}

async fn put(store: &dyn Store, key: &str, value: &str, expected: Expected) -> Revision {
    try_put(store, key, value, expected, Class::Durable)
        .await
        .expect("the put succeeds")
}

async fn try_put(
    store: &dyn Store,
    key: &str,
    value: &str,
    expected: Expected,
    class: Class,
) -> Result<Revision, StoreError> {
    let value = Bytes::copy_from_slice(value.as_bytes());
    store
        .put(PutRequest {
            key: key.to_owned(),
            value,
            expected,
            class,
        })
        .await
}

async fn delete(
    store: &dyn Store,
    key: &str,
    expected: Expected,
) -> Result<crate::Deleted, StoreError> {
    store
        .delete(DeleteRequest {
            key: key.to_owned(),
            expected,
        })
        .await
}

async fn keys(store: &dyn Store, request: ListRequest) -> Vec<String> {
    let listed = store.list(request).await.expect("the list succeeds");
    listed
        .items
        .iter()
        .map(|item| item.key.to_string())
        .collect()
}

async fn next(watch: &mut Watch) -> Arc<Event> {
    tokio::time::timeout(std::time::Duration::from_secs(10), watch.next())
        .await
        .expect("an event arrives in time")
        .expect("the watch is open")
}

async fn a_value_is_read_back_with_the_revision_of_its_write(store: &dyn Store) {
    let written = put(store, "/a/1", "one", Expected::Absent).await;
    let fetched = store.get("/a/1").await.expect("the get succeeds");
    let stored = fetched.stored.expect("the key is there");
    assert_eq!(
        (stored.value.as_ref(), stored.revision),
        (&b"one"[..], written)
    );
    assert!(fetched.revision >= written);
    assert!(
        store
            .get("/a/2")
            .await
            .expect("the get succeeds")
            .stored
            .is_none()
    );
}

async fn a_creation_of_a_taken_key_conflicts_and_shows_what_is_there(store: &dyn Store) {
    let written = put(store, "/a/1", "one", Expected::Absent).await;
    let error = try_put(store, "/a/1", "two", Expected::Absent, Class::Durable).await;
    let Err(StoreError::Conflict {
        current: Some(current),
        ..
    }) = error
    else {
        panic!("expected a conflict, got {error:?}");
    };
    assert_eq!(
        (current.value.as_ref(), current.revision),
        (&b"one"[..], written)
    );
}

async fn an_update_needs_the_present_revision(store: &dyn Store) {
    let first = put(store, "/a/1", "one", Expected::Absent).await;
    let second = put(store, "/a/1", "two", Expected::Revision(first)).await;
    assert!(second > first);
    let stale = try_put(
        store,
        "/a/1",
        "three",
        Expected::Revision(first),
        Class::Durable,
    )
    .await;
    assert!(
        matches!(stale, Err(StoreError::Conflict { .. })),
        "{stale:?}"
    );
    let gone = try_put(
        store,
        "/a/9",
        "x",
        Expected::Revision(first),
        Class::Durable,
    )
    .await;
    assert!(
        matches!(gone, Err(StoreError::Conflict { current: None, .. })),
        "{gone:?}"
    );
}

async fn a_deletion_needs_the_present_revision(store: &dyn Store) {
    let first = put(store, "/a/1", "one", Expected::Absent).await;
    let second = put(store, "/a/1", "two", Expected::Any).await;
    let stale = delete(store, "/a/1", Expected::Revision(first)).await;
    assert!(
        matches!(
            stale,
            Err(StoreError::Conflict {
                current: Some(_),
                ..
            })
        ),
        "{stale:?}"
    );
    let deleted = delete(store, "/a/1", Expected::Revision(second))
        .await
        .expect("it is deleted");
    assert!(deleted.revision > second);
    assert_eq!(
        deleted.previous.expect("there was a value").value.as_ref(),
        b"two"
    );
    let again = delete(store, "/a/1", Expected::Revision(second)).await;
    assert!(
        matches!(again, Err(StoreError::Conflict { current: None, .. })),
        "{again:?}"
    );
}

async fn deleting_nothing_changes_nothing(store: &dyn Store) {
    let before = store.current_revision();
    let deleted = delete(store, "/a/1", Expected::Any)
        .await
        .expect("it succeeds");
    assert!(deleted.previous.is_none());
    assert_eq!(store.current_revision(), before);
}

async fn every_change_gets_a_larger_revision(store: &dyn Store) {
    let mut last = store.current_revision();
    for round in 0..20 {
        let key = format!("/a/{}", round % 3);
        let revision = put(store, &key, "v", Expected::Any).await;
        assert!(revision > last, "{revision} after {last}");
        assert_eq!(store.current_revision(), revision);
        last = revision;
    }
}

async fn a_list_is_sorted_and_bounded_by_its_prefix(store: &dyn Store) {
    for key in ["/a/x/2", "/a/x/1", "/a/y/1", "/ab/1", "/b/1"] {
        put(store, key, "v", Expected::Absent).await;
    }
    let all = ListRequest {
        prefix: "/a/".to_owned(),
        ..ListRequest::default()
    };
    assert_eq!(keys(store, all).await, ["/a/x/1", "/a/x/2", "/a/y/1"]);
    assert_eq!(store.count("/a/").await.expect("the count succeeds"), 3);
    let first = ListRequest {
        prefix: "/a/".to_owned(),
        limit: 2,
        ..ListRequest::default()
    };
    let listed = store.list(first).await.expect("the list succeeds");
    assert_eq!((listed.items.len(), listed.remaining), (2, 1));
}

async fn pages_at_one_revision_show_one_moment(store: &dyn Store) {
    for number in 0..6 {
        put(store, &format!("/a/{number}"), "old", Expected::Absent).await;
    }
    let first = ListRequest {
        prefix: "/a/".to_owned(),
        limit: 3,
        ..ListRequest::default()
    };
    let listed = store.list(first).await.expect("the list succeeds");
    let revision = listed.revision;
    put(store, "/a/4", "new", Expected::Any).await;
    put(store, "/a/41", "added", Expected::Absent).await;
    delete(store, "/a/5", Expected::Any)
        .await
        .expect("the delete succeeds");
    put(store, "/a/5", "again", Expected::Absent).await;
    let rest = ListRequest {
        prefix: "/a/".to_owned(),
        revision: Some(revision),
        start: Some("/a/2\0".to_owned()),
        limit: 0,
    };
    let listed = store.list(rest).await.expect("the list succeeds");
    assert_eq!(listed.revision, revision);
    let shown: Vec<_> = listed
        .items
        .iter()
        .map(|item| (item.key.to_string(), item.value.clone()))
        .collect();
    let old = Bytes::from_static(b"old");
    let expected = ["/a/3", "/a/4", "/a/5"].map(|key| (key.to_owned(), old.clone()));
    assert_eq!(shown, expected);
}

async fn a_list_in_the_future_is_refused(store: &dyn Store) {
    let revision = Some(store.current_revision() + 1000);
    let error = store.list(ListRequest {
        prefix: "/a/".into(),
        revision,
        ..Default::default()
    });
    assert!(matches!(
        error.await,
        Err(StoreError::FutureRevision { .. })
    ));
}

async fn a_compacted_revision_is_refused(store: &dyn Store) {
    let first = put(store, "/a/1", "one", Expected::Absent).await;
    let second = put(store, "/a/2", "two", Expected::Absent).await;
    put(store, "/a/3", "three", Expected::Absent).await;
    store
        .compact(second)
        .await
        .expect("the compaction succeeds");
    let list = ListRequest {
        prefix: "/a/".into(),
        revision: Some(first),
        ..Default::default()
    };
    assert!(matches!(
        store.list(list).await,
        Err(StoreError::Compacted { .. })
    ));
    assert!(matches!(
        store.watch("/a/", first).await,
        Err(StoreError::Compacted { .. })
    ));
    let list = ListRequest {
        prefix: "/a/".into(),
        revision: Some(second),
        ..Default::default()
    };
    assert_eq!(keys(store, list).await, ["/a/1", "/a/2"]);
    let mut watch = store.watch("/a/", second).await.expect("the watch starts");
    assert_eq!(&*next(&mut watch).await.key, "/a/3");
}

async fn a_watch_delivers_creations_updates_and_deletions_with_what_was_before(store: &dyn Store) {
    let mut watch = store
        .watch("/a/", store.current_revision())
        .await
        .expect("the watch starts");
    let created = put(store, "/a/1", "one", Expected::Absent).await;
    let updated = put(store, "/a/1", "two", Expected::Any).await;
    let deleted = delete(store, "/a/1", Expected::Any)
        .await
        .expect("it is deleted")
        .revision;

    let event = next(&mut watch).await;
    assert_eq!((event.revision, event.previous.is_none()), (created, true));
    assert_eq!(event.value.as_deref(), Some(&b"one"[..]));
    let event = next(&mut watch).await;
    assert_eq!(event.revision, updated);
    assert_eq!(
        event.previous.as_ref().map(|previous| previous.revision),
        Some(created)
    );
    let event = next(&mut watch).await;
    assert_eq!((event.revision, event.value.is_none()), (deleted, true));
    assert_eq!(
        event.previous.as_ref().map(|previous| previous.revision),
        Some(updated)
    );
}

async fn a_watch_resumes_after_a_revision_without_gaps(store: &dyn Store) {
    let mut revisions = Vec::new();
    for number in 0..10 {
        revisions.push(put(store, &format!("/a/{number}"), "v", Expected::Absent).await);
    }
    let mut watch = store
        .watch("/a/", revisions[3])
        .await
        .expect("the watch starts");
    revisions.push(put(store, "/a/new", "v", Expected::Absent).await);
    for expected in &revisions[4..] {
        assert_eq!(next(&mut watch).await.revision, *expected);
    }
    assert!(watch.try_next().is_none());
}

async fn a_watch_sees_only_its_prefix(store: &dyn Store) {
    let mut watch = store
        .watch("/a/", store.current_revision())
        .await
        .expect("the watch starts");
    put(store, "/ab/1", "v", Expected::Absent).await;
    put(store, "/b/1", "v", Expected::Absent).await;
    put(store, "/a/deep/er/1", "v", Expected::Absent).await;
    assert_eq!(&*next(&mut watch).await.key, "/a/deep/er/1");
}

async fn a_watch_of_one_key_sees_only_that_key(store: &dyn Store) {
    let after = store.current_revision();
    let mut live = store.watch("/a/1", after).await.expect("the watch starts");
    put(store, "/a/12", "v", Expected::Absent).await;
    put(store, "/a/1", "v", Expected::Absent).await;
    assert_eq!(&*next(&mut live).await.key, "/a/1");
    let mut replayed = store.watch("/a/1", after).await.expect("the watch starts");
    assert_eq!(&*next(&mut replayed).await.key, "/a/1");
}

async fn an_unread_watch_ends_with_an_overflow(store: &dyn Store) {
    let mut watch = store
        .watch("/a/", store.current_revision())
        .await
        .expect("the watch starts");
    let big = "x".repeat(1 << 20);
    for number in 0..20 {
        put(store, &format!("/a/{number}"), &big, Expected::Absent).await;
    }
    let mut delivered = 0;
    let end = loop {
        match watch.next().await {
            Ok(_) => delivered += 1,
            Err(end) => break end,
        }
    };
    assert_eq!(end, crate::WatchEnd::Overflow);
    assert!(delivered < 20, "{delivered} events of 1 MiB were queued");
}

async fn volatile_objects_are_objects_like_others(store: &dyn Store) {
    let mut watch = store
        .watch("/v/", store.current_revision())
        .await
        .expect("the watch starts");
    let first = try_put(store, "/v/1", "one", Expected::Absent, Class::Volatile)
        .await
        .expect("the put succeeds");
    try_put(
        store,
        "/v/1",
        "two",
        Expected::Revision(first),
        Class::Volatile,
    )
    .await
    .expect("the put succeeds");
    let stale = try_put(
        store,
        "/v/1",
        "x",
        Expected::Revision(first),
        Class::Volatile,
    )
    .await;
    assert!(
        matches!(stale, Err(StoreError::Conflict { .. })),
        "{stale:?}"
    );
    assert_eq!(next(&mut watch).await.revision, first);
    assert_eq!(store.count("/v/").await.expect("the count succeeds"), 1);
    delete(store, "/v/1", Expected::Any)
        .await
        .expect("the delete succeeds");
    assert_eq!(store.count("/v/").await.expect("the count succeeds"), 0);
}

async fn concurrent_writers_of_one_key_lose_no_update(store: Arc<dyn Store>) {
    put(&*store, "/a/n", "0", Expected::Absent).await;
    let writers = (0..8).map(|_| {
        let store = Arc::clone(&store);
        tokio::spawn(async move {
            for _ in 0..10 {
                increment(&*store).await;
            }
        })
    });
    for writer in writers.collect::<Vec<_>>() {
        writer.await.expect("the writer ends");
    }
    let stored = store
        .get("/a/n")
        .await
        .expect("the get succeeds")
        .stored
        .expect("it is there");
    assert_eq!(stored.value.as_ref(), b"80");
}

async fn increment(store: &dyn Store) {
    loop {
        let fetched = store.get("/a/n").await.expect("the get succeeds");
        let stored = fetched.stored.expect("the key is there");
        let number: u64 = std::str::from_utf8(&stored.value)
            .expect("digits")
            .parse()
            .expect("a number");
        let next = (number + 1).to_string();
        let expected = Expected::Revision(stored.revision);
        match try_put(store, "/a/n", &next, expected, Class::Durable).await {
            Ok(_) => return,
            Err(StoreError::Conflict { .. }) => (),
            Err(error) => panic!("{error}"),
        }
    }
}

async fn a_closed_store_refuses_writes_and_ends_watches(store: &dyn Store) {
    let mut watch = store
        .watch("/a/", store.current_revision())
        .await
        .expect("the watch starts");
    store.close().await.expect("the close succeeds");
    let refused = try_put(store, "/a/1", "v", Expected::Any, Class::Durable).await;
    assert!(matches!(refused, Err(StoreError::Closed)), "{refused:?}");
    assert_eq!(watch.next().await.err(), Some(crate::WatchEnd::Closed));
    store.close().await.expect("closing again is harmless");
}
