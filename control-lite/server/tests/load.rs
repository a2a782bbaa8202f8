//! Many clients at once over HTTPS: watchers that must see everything once and in order, lists during
//! writes, watchers that do not read, clients that vanish.

#![expect(clippy::unwrap_used, reason = "a test panics")]

mod support;

use std::collections::BTreeSet;
use std::time::Duration;

use serde_json::{Value, json};
use support::TestServer;
use support::client::{self, Client, Lines};

const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn config_map(name: &str, data: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": name}, "data": {"text": data},
    })
}

fn name(object: &Value) -> String {
    object["metadata"]["name"].as_str().unwrap().to_owned()
}

fn version(object: &Value) -> u64 {
    let text = object["metadata"]["resourceVersion"].as_str().unwrap();
    text.parse().unwrap()
}

/// Creates `count` ConfigMaps `<prefix>-<number>` one after the other.
async fn create(mut client: Client, prefix: String, count: usize) {
    for number in 0..count {
        let object = config_map(&format!("{prefix}-{number}"), "x");
        assert_eq!(client.post(CONFIG_MAPS, &object).await.0, 201);
    }
}

async fn watch(server: &TestServer, query: &str) -> Lines {
    let mut client = server.client(Some("admin")).await;
    let path = format!("{CONFIG_MAPS}?watch=1{query}");
    let response = client.send("GET", &path, &[], "").await;
    assert_eq!(response.status(), 200);
    Lines::of(response)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_watcher_sees_a_thousand_parallel_creates_once_each_and_in_order() {
    const WRITERS: usize = 20;
    const EACH: usize = 50;
    let server = TestServer::start().await;
    let mut watchers = tokio::task::JoinSet::new();
    for _ in 0..10 {
        let mut lines = watch(&server, "").await;
        watchers.spawn(async move {
            let mut names = BTreeSet::new();
            let mut last = 0;
            while names.len() < WRITERS * EACH {
                let event = lines.next().await.expect("the watch goes on");
                assert_eq!(event["type"], "ADDED", "{event}");
                let seen = version(&event["object"]);
                assert!(seen > last, "{seen} after {last}");
                last = seen;
                assert!(names.insert(name(&event["object"])), "seen twice: {event}");
            }
        });
    }
    let mut writers = tokio::task::JoinSet::new();
    for number in 0..WRITERS {
        let client = server.client(Some("admin")).await;
        writers.spawn(create(client, format!("w{number}"), EACH));
    }
    while let Some(outcome) = writers.join_next().await {
        outcome.unwrap();
    }
    while let Some(outcome) = watchers.join_next().await {
        outcome.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_pages_of_a_list_show_one_revision_while_others_write() {
    let server = TestServer::start().await;
    create(server.client(Some("admin")).await, "old".to_owned(), 200).await;
    let expected: BTreeSet<String> = (0..200).map(|number| format!("old-{number}")).collect();
    let writer = tokio::spawn(create(
        server.client(Some("admin")).await,
        "new".to_owned(),
        200,
    ));
    let mut deleter = server.client(Some("admin")).await;
    let mut client = server.client(Some("admin")).await;
    let (_, first) = client.get(&format!("{CONFIG_MAPS}?limit=7")).await;
    let revision = version(&first);
    let mut seen = Vec::new();
    let mut page = first;
    loop {
        assert_eq!(version(&page), revision);
        seen.extend(page["items"].as_array().unwrap().iter().map(name));
        // What a later page has to show is taken away meanwhile.
        let gone = format!("{CONFIG_MAPS}/old-{}", seen.len() % 200);
        drop(client::bytes(deleter.send("DELETE", &gone, &[], "").await).await);
        let Some(token) = page["metadata"]["continue"].as_str() else {
            break;
        };
        let next = format!("{CONFIG_MAPS}?limit=7&continue={token}");
        let (status, body) = client.get(&next).await;
        assert_eq!(status, 200, "{body}");
        page = body;
    }
    writer.await.unwrap();
    let names: BTreeSet<String> = seen.iter().cloned().collect();
    assert_eq!(names.len(), seen.len(), "nothing is shown twice");
    assert!(names.is_superset(&expected), "nothing is left out");
    let at = format!("{CONFIG_MAPS}?resourceVersion={revision}&resourceVersionMatch=Exact");
    let (_, exact) = client.get(&at).await;
    let exact: BTreeSet<String> = exact["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(name)
        .collect();
    assert_eq!(names, exact);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_continue_token_older_than_the_history_is_410_and_offers_an_inconsistent_one() {
    let server = TestServer::start().await;
    create(server.client(Some("admin")).await, "c".to_owned(), 5).await;
    let mut client = server.client(Some("admin")).await;
    let (_, page) = client.get(&format!("{CONFIG_MAPS}?limit=2")).await;
    let token = page["metadata"]["continue"].as_str().unwrap().to_owned();
    create(server.client(Some("admin")).await, "d".to_owned(), 1).await;
    let revision = server.registry.current_revision();
    server.registry.store().compact(revision).await.unwrap();
    let next = format!("{CONFIG_MAPS}?limit=2&continue={token}");
    let (status, gone) = client.get(&next).await;
    assert_eq!((status, &gone["reason"]), (410, &"Expired".into()));
    let token = gone["metadata"]["continue"].as_str().unwrap();
    let (status, rest) = client
        .get(&format!("{CONFIG_MAPS}?limit=9&continue={token}"))
        .await;
    assert_eq!(status, 200, "{rest}");
    let names: Vec<_> = rest["items"].as_array().unwrap().iter().map(name).collect();
    assert_eq!(names, ["c-2", "c-3", "c-4", "d-0"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_that_does_not_read_is_cut_off_with_410_and_stops_nobody() {
    let server = TestServer::start().await;
    let mut slow = watch(&server, "").await;
    let mut quick = watch(&server, "").await;
    let reader = tokio::spawn(async move {
        for _ in 0..300 {
            assert_eq!(quick.next().await.unwrap()["type"], "ADDED");
        }
    });
    let mut client = server.client(Some("admin")).await;
    let data = "x".repeat(100 << 10);
    for number in 0..300 {
        let object = config_map(&format!("c{number}"), &data);
        assert_eq!(client.post(CONFIG_MAPS, &object).await.0, 201);
    }
    reader.await.unwrap();
    let mut count = 0;
    let error = loop {
        let event = slow.next().await.expect("an ERROR comes before the end");
        if event["type"] == "ERROR" {
            break event;
        }
        count += 1;
    };
    assert!(count < 300, "a queue without bounds");
    assert_eq!(error["object"]["code"], 410, "{error}");
    assert!(slow.next().await.is_none(), "the watch is over");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_of_clients_that_vanish_are_not_counted_any_more() {
    let server = TestServer::start().await;
    let mut client = server.client(Some("admin")).await;
    let mut watches = Vec::new();
    for _ in 0..20 {
        watches.push(watch(&server, "").await);
    }
    assert_eq!(running_watches(&mut client).await, 20);
    drop(watches);
    let gone = async {
        while running_watches(&mut client).await > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), gone)
        .await
        .expect("the server notices");
}

async fn running_watches(client: &mut Client) -> u64 {
    let metrics = client.send("GET", "/metrics", &[], "").await;
    let text = String::from_utf8(client::bytes(metrics).await.to_vec()).unwrap();
    let line = text.lines().find(|line| {
        line.starts_with("apiserver_longrunning_requests{")
            && line.contains("resource=\"configmaps\"")
            && line.contains("verb=\"WATCH\"")
    });
    let value = line.and_then(|line| line.rsplit(' ').next());
    value.map_or(0, |value| value.parse().unwrap())
}
