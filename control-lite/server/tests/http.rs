//! The API on the wire: what clients other than kubectl see.

mod support;

use std::time::Duration;

use serde_json::{Value, json};
use support::TestServer;
use support::client::{self, Lines};

const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn config_map(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}})
}

#[tokio::test]
async fn nobody_is_let_in_without_a_certificate_but_to_health_and_version() {
    let server = TestServer::start().await;
    let mut client = server.client(None).await;
    let (status, body) = client.get("/api/v1/pods").await;
    assert_eq!(status, 401);
    assert_eq!(
        (&body["reason"], &body["message"]),
        (&"Unauthorized".into(), &"Unauthorized".into())
    );
    for path in ["/api", "/apis", "/metrics", "/openapi/v3"] {
        assert_eq!(client.get(path).await.0, 401, "{path}");
    }
    for path in ["/healthz", "/livez", "/readyz"] {
        let response = client.send("GET", path, &[], "").await;
        assert_eq!(client::bytes(response).await, "ok");
    }
    let (status, version) = client.get("/version").await;
    assert_eq!((status, &version["minor"]), (200, &"35".into()));
    let verbose = client.send("GET", "/readyz?verbose", &[], "").await;
    let verbose = client::bytes(verbose).await;
    assert!(verbose.ends_with(b"readyz check passed\n"), "{verbose:?}");
}

#[tokio::test]
async fn formats_that_are_not_read_or_written_are_refused_in_upstreams_words() {
    let server = TestServer::start().await;
    let mut client = server.client(Some("admin")).await;
    let only_protobuf = [("accept", "application/vnd.kubernetes.protobuf")];
    let (status, body) =
        client::json(client.send("GET", CONFIG_MAPS, &only_protobuf, "").await).await;
    assert_eq!((status, &body["reason"]), (406, &"NotAcceptable".into()));
    let plain = [("content-type", "text/plain")];
    let (status, body) = client::json(client.send("POST", CONFIG_MAPS, &plain, "x").await).await;
    assert_eq!(
        (status, &body["reason"]),
        (415, &"UnsupportedMediaType".into())
    );
    assert!(
        body["message"]
            .as_str()
            .unwrap()
            .starts_with("the body of the request was in an unknown format")
    );
    let apply = [("content-type", "application/apply-patch+yaml")];
    let path = format!("{CONFIG_MAPS}/x");
    let (status, _) = client::json(client.send("PATCH", &path, &apply, "{}").await).await;
    assert_eq!(status, 415);
    let yaml = [("content-type", "application/yaml")];
    let body = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: y\n";
    let (status, _) = client::json(client.send("POST", CONFIG_MAPS, &yaml, body).await).await;
    assert_eq!(status, 201);
    let (status, _) = client::json(client.send("PUT", CONFIG_MAPS, &yaml, body).await).await;
    assert_eq!(status, 405);
    assert_eq!(
        client.get("/api/v1/namespaces/default/widgets").await.0,
        404
    );
}

#[tokio::test]
async fn a_body_above_three_mebibytes_is_413() {
    let server = TestServer::start().await;
    let mut client = server.client(Some("admin")).await;
    let headers = [("content-type", "application/json")];
    let large = vec![b' '; (3 << 20) + 1];
    let (status, body) =
        client::json(client.send("POST", CONFIG_MAPS, &headers, large).await).await;
    assert_eq!(
        (status, &body["reason"]),
        (413, &"RequestEntityTooLarge".into())
    );
}

#[tokio::test]
async fn unknown_fields_warn_by_default() {
    let server = TestServer::start().await;
    let mut client = server.client(Some("admin")).await;
    let headers = [("content-type", "application/json")];
    let mut object = config_map("c");
    object["dataz"] = json!({});
    let response = client
        .send("POST", CONFIG_MAPS, &headers, object.to_string())
        .await;
    assert_eq!(response.status(), 201);
    assert_eq!(
        response.headers()["warning"],
        "299 - \"unknown field \\\"dataz\\\"\""
    );
    let stored = client::json(response).await.1;
    assert!(stored.get("dataz").is_none());
}

#[tokio::test]
async fn aggregated_discovery_echoes_its_type_and_is_not_sent_twice() {
    let server = TestServer::start().await;
    let mut client = server.client(Some("admin")).await;
    let accept = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList,\
                  application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList,\
                  application/json";
    let response = client.send("GET", "/apis", &[("accept", accept)], "").await;
    assert_eq!(
        response.headers()["content-type"],
        "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"
    );
    let etag = response.headers()["etag"].to_str().unwrap().to_owned();
    let (_, list) = client::json(response).await;
    assert_eq!(list["kind"], "APIGroupDiscoveryList");
    let headers = [("accept", accept), ("if-none-match", etag.as_str())];
    let known = client.send("GET", "/apis", &headers, "").await;
    assert_eq!(known.status(), 304);
    drop(client::bytes(known).await);
    let (_, plain) = client.get("/apis").await;
    assert_eq!(plain["kind"], "APIGroupList");
    let (_, resources) = client.get("/apis/apps/v1").await;
    let names: Vec<_> = resources["resources"]
        .as_array()
        .unwrap()
        .iter()
        .map(|r| &r["name"])
        .collect();
    assert!(names.contains(&&"deployments/scale".into()), "{names:?}");
}

#[tokio::test]
async fn a_watch_list_is_snapshot_bookmark_changes_and_ends_at_its_deadline() {
    let server = TestServer::start().await;
    let mut client = server.client(Some("admin")).await;
    client.post(CONFIG_MAPS, &config_map("a")).await;
    let mut watcher = server.client(Some("admin")).await;
    let path = format!(
        "{CONFIG_MAPS}?watch=1&sendInitialEvents=true&resourceVersionMatch=NotOlderThan\
         &allowWatchBookmarks=true&timeoutSeconds=2"
    );
    let mut lines = Lines::of(watcher.send("GET", &path, &[], "").await);
    let first = lines.next().await.unwrap();
    assert_eq!(
        (&first["type"], &first["object"]["metadata"]["name"]),
        (&"ADDED".into(), &"a".into())
    );
    let bookmark = lines.next().await.unwrap();
    assert_eq!(bookmark["type"], "BOOKMARK");
    let annotations = &bookmark["object"]["metadata"]["annotations"];
    assert_eq!(annotations["k8s.io/initial-events-end"], "true");
    client.post(CONFIG_MAPS, &config_map("b")).await;
    let second = lines.next().await.unwrap();
    assert_eq!(
        (&second["type"], &second["object"]["metadata"]["name"]),
        (&"ADDED".into(), &"b".into())
    );
    assert_eq!(lines.next().await.unwrap()["type"], "BOOKMARK");
    assert!(lines.next().await.is_none(), "the deadline ends the watch");
}

#[tokio::test]
async fn a_watch_from_a_forgotten_revision_gets_a_410_event_and_tables_have_one_header() {
    let server = TestServer::start().await;
    let mut client = server.client(Some("admin")).await;
    client.post(CONFIG_MAPS, &config_map("a")).await;
    let revision = server.registry.current_revision();
    server.registry.store().compact(revision).await.unwrap();
    let old = format!("{CONFIG_MAPS}?watch=1&resourceVersion=1");
    let (status, event) = client.get(&old).await;
    assert_eq!((status, &event["type"]), (200, &"ERROR".into()));
    assert_eq!(event["object"]["code"], 410);
    assert_eq!(event["object"]["reason"], "Expired");
    let table = [("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")];
    let path = format!("{CONFIG_MAPS}?watch=1&resourceVersion={revision}&timeoutSeconds=1");
    let mut watcher = server.client(Some("admin")).await;
    let mut lines = Lines::of(watcher.send("GET", &path, &table, "").await);
    for name in ["b", "c"] {
        client.post(CONFIG_MAPS, &config_map(name)).await;
    }
    let first = lines.next().await.unwrap();
    assert!(
        !first["object"]["columnDefinitions"]
            .as_array()
            .unwrap()
            .is_empty()
    );
    let second = lines.next().await.unwrap();
    assert!(
        second["object"]["columnDefinitions"]
            .as_array()
            .is_none_or(Vec::is_empty)
    );
    assert_eq!(second["object"]["rows"][0]["cells"][0], "c");
}

#[tokio::test]
async fn a_stopping_server_ends_watches_and_refuses_connections() {
    let server = TestServer::start().await;
    let mut watcher = server.client(Some("admin")).await;
    let path = format!("{CONFIG_MAPS}?watch=1");
    let mut lines = Lines::of(watcher.send("GET", &path, &[], "").await);
    server.stop().await;
    assert!(lines.next().await.is_none());
    let connected = tokio::net::TcpStream::connect(server.address).await;
    assert!(connected.is_err());
}

#[tokio::test]
async fn large_lists_are_compressed_and_metrics_count_requests() {
    let server = TestServer::start().await;
    let mut client = server.client(Some("admin")).await;
    let mut object = config_map("large");
    object["data"] = json!({"text": "x".repeat(300 << 10)});
    assert_eq!(client.post(CONFIG_MAPS, &object).await.0, 201);
    let gzip = [("accept-encoding", "gzip")];
    let response = client.send("GET", CONFIG_MAPS, &gzip, "").await;
    assert_eq!(response.headers()["content-encoding"], "gzip");
    let mut text = String::new();
    let bytes = client::bytes(response).await;
    std::io::Read::read_to_string(&mut flate2::read::GzDecoder::new(&*bytes), &mut text).unwrap();
    let list: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (&list["kind"], &list["items"][0]["kind"]),
        (&"ConfigMapList".into(), &"ConfigMap".into())
    );
    let metrics = client.send("GET", "/metrics", &[], "").await;
    let metrics = String::from_utf8(client::bytes(metrics).await.to_vec()).unwrap();
    let line = metrics.lines().find(|line| {
        line.starts_with("apiserver_request_total{code=\"201\"") && line.contains("configmaps")
    });
    assert!(line.is_some_and(|line| line.ends_with(" 1")), "{metrics}");
}

#[tokio::test]
async fn a_watcher_that_leaves_is_forgotten() {
    let server = TestServer::start().await;
    let path = format!("{CONFIG_MAPS}?watch=1");
    for _ in 0..3 {
        let mut watcher = server.client(Some("admin")).await;
        let response = watcher.send("GET", &path, &[], "").await;
        assert_eq!(response.status(), 200);
        drop(response);
    }
    let mut client = server.client(Some("admin")).await;
    let (status, _) = client.post(CONFIG_MAPS, &config_map("a")).await;
    assert_eq!(status, 201);
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert_eq!(client.get(CONFIG_MAPS).await.0, 200);
}

#[tokio::test]
async fn head_is_answered_without_a_body_over_both_http_versions() {
    let server = TestServer::start().await;
    let mut client = server.client(Some("admin")).await;
    let body = client::bytes(client.send("GET", CONFIG_MAPS, &[], "").await).await;
    let config = client::config(&server.folder.path().join("pki"), Some("admin"));
    let over_2 = client::over_http2(server.address, config, "HEAD", CONFIG_MAPS).await;
    let over_1 = client.send("HEAD", CONFIG_MAPS, &[], "").await;
    for response in [over_1, over_2] {
        assert_eq!(response.status(), 200);
        let length = response.headers()["content-length"].to_str().unwrap();
        assert_eq!(length, body.len().to_string());
        assert!(client::bytes(response).await.is_empty());
    }
}
