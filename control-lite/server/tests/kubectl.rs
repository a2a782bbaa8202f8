//! An unmodified kubectl against a real server.

#![expect(clippy::unwrap_used, reason = "a test panics")]

mod support;

use support::TestServer;

const CONFIG_MAP: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata: {a: b}\n";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_gets_creates_and_deletes() {
    let server = TestServer::start().await;
    let version = server.kubectl(&["version"]).await;
    assert!(
        version.contains("Server Version: v1.35.0+tholepin"),
        "{version}"
    );
    let names = server.kubectl(&["get", "namespaces"]).await;
    assert!(
        names.contains("NAME") && names.contains("STATUS") && names.contains("AGE"),
        "{names}"
    );
    assert!(
        names.contains("default") && names.contains("kube-system"),
        "{names}"
    );
    let words = ["create", "-f", "-", "--validate=false"];
    let created = server.kubectl_apply(&words, CONFIG_MAP).await;
    assert_eq!(created, "configmap/c created\n");
    let taken = server.kubectl_fails(&words, CONFIG_MAP).await;
    assert!(taken.contains("configmaps \"c\" already exists"), "{taken}");
    let data = server
        .kubectl(&["get", "configmap", "c", "-o", "jsonpath={.data.a}"])
        .await;
    assert_eq!(data, "b");
    let deleted = server.kubectl(&["delete", "configmap", "c"]).await;
    assert!(deleted.starts_with("configmap \"c\" deleted"), "{deleted}");
    let missing = server.kubectl_fails(&["get", "configmap", "c"], "").await;
    assert!(
        missing.contains("Error from server (NotFound): configmaps \"c\" not found"),
        "{missing}"
    );
}
