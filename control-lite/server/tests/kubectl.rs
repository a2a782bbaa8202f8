//! An unmodified kubectl against a real server.

#![expect(clippy::unwrap_used, reason = "a test panics")]

mod support;

use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use support::TestServer;
use tokio::io::{AsyncBufReadExt as _, BufReader};

const CONFIG_MAP: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\ndata: {a: b}\n";

const WEB: &str = "
apiVersion: apps/v1
kind: Deployment
metadata: {name: web, labels: {app: web}}
spec:
  replicas: 3
  selector: {matchLabels: {app: web}}
  template:
    metadata: {labels: {app: web}}
    spec:
      containers:
      - {name: web, image: tholepin.test/web:1, ports: [{containerPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: web}
spec:
  selector: {app: web}
  ports: [{port: 80, targetPort: 8080}]
";

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
    let words = ["create", "-f", "-"];
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_applies_patches_labels_and_scales() {
    let server = TestServer::start().await;
    let created = server.kubectl_apply(&["apply", "-f", "-"], WEB).await;
    assert_eq!(
        created,
        "deployment.apps/web created\nservice/web created\n"
    );
    let again = server.kubectl_apply(&["apply", "-f", "-"], WEB).await;
    assert_eq!(
        again,
        "deployment.apps/web unchanged\nservice/web unchanged\n"
    );
    let changed = WEB.replace("web:1", "web:2");
    let configured = server.kubectl_apply(&["apply", "-f", "-"], &changed).await;
    assert_eq!(
        configured,
        "deployment.apps/web configured\nservice/web unchanged\n"
    );
    let image = "jsonpath={.spec.template.spec.containers[*].image} {.metadata.generation}";
    let image = server
        .kubectl(&["get", "deployment", "web", "-o", image])
        .await;
    assert_eq!(image, "tholepin.test/web:2 2");
    let labelled = server
        .kubectl(&["label", "deployment", "web", "tier=front"])
        .await;
    assert_eq!(labelled, "deployment.apps/web labeled\n");
    let scaled = server
        .kubectl(&["scale", "deployment", "web", "--replicas=5"])
        .await;
    assert_eq!(scaled, "deployment.apps/web scaled\n");
    let patch = r#"[{"op": "replace", "path": "/spec/replicas", "value": 2}]"#;
    server
        .kubectl(&["patch", "deployment", "web", "--type=json", "-p", patch])
        .await;
    let row = server
        .kubectl(&["get", "deployments", "-l", "tier=front"])
        .await;
    assert!(row.contains("UP-TO-DATE") && row.contains("0/2"), "{row}");
    let difference = server.kubectl_with(&["diff", "-f", "-"], &changed).await;
    assert_eq!(difference.status.code(), Some(1), "{difference:?}");
    let address = "jsonpath={.spec.clusterIP}";
    let address = server
        .kubectl(&["get", "service", "web", "-o", address])
        .await;
    assert!(address.starts_with("10.96."), "{address}");
    server
        .kubectl_apply(&["replace", "-f", "-"], &changed)
        .await;
    server.kubectl_apply(&["delete", "-f", "-"], WEB).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_create_subcommands_send_protobuf() {
    let server = TestServer::start().await;
    server
        .kubectl(&[
            "create",
            "deployment",
            "d",
            "--image=busybox",
            "--replicas=2",
        ])
        .await;
    server
        .kubectl(&["create", "configmap", "m", "--from-literal=k=v"])
        .await;
    server
        .kubectl(&["create", "secret", "generic", "s", "--from-literal=k=v"])
        .await;
    server.kubectl(&["create", "namespace", "n"]).await;
    server
        .kubectl(&["create", "service", "clusterip", "c", "--tcp=80:8080"])
        .await;
    server.kubectl(&["create", "serviceaccount", "a"]).await;
    let deployment = server
        .kubectl(&["get", "deployment", "d", "-o", "json"])
        .await;
    let deployment: Value = serde_json::from_str(&deployment).unwrap();
    assert_eq!(deployment["spec"]["replicas"], 2);
    assert_eq!(
        deployment["spec"]["template"]["spec"]["containers"][0]["image"],
        "busybox"
    );
    assert_eq!(deployment["spec"]["selector"]["matchLabels"]["app"], "d");
    let value = server
        .kubectl(&["get", "secret", "s", "-o", "jsonpath={.data.k}"])
        .await;
    assert_eq!(value, "dg==");
    let port = "jsonpath={.spec.ports[0].targetPort}";
    assert_eq!(
        server.kubectl(&["get", "service", "c", "-o", port]).await,
        "8080"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_shows_what_is_wrong_with_a_manifest() {
    let server = TestServer::start().await;
    let unknown = WEB.replace("replicas: 3", "replicaz: 3");
    let error = server.kubectl_fails(&["create", "-f", "-"], &unknown).await;
    assert!(
        error.contains("strict decoding error: unknown field \"spec.replicaz\""),
        "{error}"
    );
    let invalid = WEB.replace("name: web, image", "name: Web_, image");
    let error = server.kubectl_fails(&["create", "-f", "-"], &invalid).await;
    assert!(
        error.contains("Deployment.apps \"web\" is invalid"),
        "{error}"
    );
    let error = server.kubectl_fails(&["get", "widgets"], "").await;
    assert!(
        error.contains("the server doesn't have a resource type \"widgets\""),
        "{error}"
    );
    let error = server
        .kubectl_fails(&["create", "-n", "none", "-f", "-"], CONFIG_MAP)
        .await;
    assert!(error.contains("namespaces \"none\" not found"), "{error}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_discovers_and_explains() {
    let server = TestServer::start().await;
    let resources = server.kubectl(&["api-resources"]).await;
    for line in [
        "deployments",
        "endpointslices",
        "replicationcontrollers",
        "leases",
    ] {
        assert!(resources.contains(line), "{line} is missing in {resources}");
    }
    assert!(server.kubectl(&["api-versions"]).await.contains("apps/v1"));
    let all = server.kubectl(&["get", "all"]).await;
    assert!(all.contains("No resources found"), "{all}");
    let explained = server
        .kubectl(&["explain", "deployment.spec.replicas"])
        .await;
    assert!(explained.contains("replicas <integer>"), "{explained}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_watches_with_one_header() {
    let server = TestServer::start().await;
    server
        .kubectl_apply(&["create", "-f", "-"], CONFIG_MAP)
        .await;
    let mut child = server
        .command(&["get", "configmaps", "-w"])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut seen = Vec::new();
    for _ in 0..2 {
        seen.push(next_line(&mut lines).await);
    }
    server.kubectl(&["create", "configmap", "second"]).await;
    seen.push(next_line(&mut lines).await);
    server.kubectl(&["delete", "configmap", "second"]).await;
    seen.push(next_line(&mut lines).await);
    child.kill().await.unwrap();
    let first_words: Vec<_> = seen
        .iter()
        .map(|line| line.split_whitespace().next().unwrap())
        .collect();
    assert_eq!(first_words, ["NAME", "c", "second", "second"]);
}

async fn next_line<R: tokio::io::AsyncBufRead + Unpin>(lines: &mut tokio::io::Lines<R>) -> String {
    tokio::time::timeout(Duration::from_secs(60), lines.next_line())
        .await
        .expect("a line in time")
        .unwrap()
        .expect("the watch goes on")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_waits_for_deletion_and_pages() {
    let server = TestServer::start().await;
    for number in 0..4 {
        server
            .kubectl(&["create", "configmap", &format!("c{number}")])
            .await;
    }
    let names = server
        .kubectl(&["get", "configmaps", "--chunk-size=3", "-o", "name"])
        .await;
    assert_eq!(names.lines().count(), 4, "{names}");
    server.kubectl(&["run", "p", "--image=busybox"]).await;
    let row = server.kubectl(&["get", "pods", "-o", "wide"]).await;
    assert!(
        row.contains("Pending") && row.contains("NOMINATED NODE"),
        "{row}"
    );
    let error = server.kubectl_fails(&["logs", "p"], "").await;
    assert!(
        error.contains("pod p does not have a host assigned"),
        "{error}"
    );
    let deleted = server.kubectl(&["delete", "pod", "p"]).await;
    assert!(deleted.starts_with("pod \"p\" deleted"), "{deleted}");
    server.kubectl(&["delete", "configmap", "--all"]).await;
    let described = server.kubectl(&["describe", "namespace", "default"]).await;
    assert!(described.contains("Status:       Active"), "{described}");
}
