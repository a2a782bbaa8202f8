//! The Rust client that agents use, against a real server: typed writes, status patches, watchers.

#![expect(clippy::unwrap_used, reason = "a test panics")]

mod support;

use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::watcher;
use kube::{Client, Config};
use serde_json::{Value, json};
use support::TestServer;

async fn client(server: &TestServer) -> Client {
    let kubeconfig = Kubeconfig::read_from(server.kubeconfig()).unwrap();
    let options = KubeConfigOptions::default();
    let config = Config::from_custom_kubeconfig(kubeconfig, &options)
        .await
        .unwrap();
    Client::try_from(config).unwrap()
}

fn typed<T: serde::de::DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn pod(name: &str) -> Pod {
    typed(json!({
        "metadata": {"name": name}, "spec": {"containers": [{"name": "c", "image": "i"}]},
    }))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_registers_reports_and_renews_its_lease() {
    let server = TestServer::start().await;
    let client = client(&server).await;
    let nodes: Api<Node> = Api::all(client.clone());
    let node: Node =
        typed(json!({"metadata": {"name": "n1", "labels": {"kubernetes.io/os": "linux"}}}));
    nodes.create(&PostParams::default(), &node).await.unwrap();
    let status = json!({"status": {"conditions": [{
        "type": "Ready", "status": "True", "reason": "KubeletReady", "message": "ready",
        "lastHeartbeatTime": "2026-01-01T00:00:00Z", "lastTransitionTime": "2026-01-01T00:00:00Z",
    }]}});
    let patch = Patch::Strategic(&status);
    let patched = nodes
        .patch_status("n1", &PatchParams::default(), &patch)
        .await
        .unwrap();
    assert_eq!(
        patched.status.unwrap().conditions.unwrap()[0].status,
        "True"
    );
    let row = server.kubectl(&["get", "nodes"]).await;
    assert!(row.contains("n1") && row.contains("Ready"), "{row}");
    let leases: Api<Lease> = Api::namespaced(client, "kube-node-lease");
    let spec = json!({"holderIdentity": "n1", "leaseDurationSeconds": 40, "renewTime": "2026-01-01T00:00:00.000000Z"});
    let lease: Lease = typed(json!({"metadata": {"name": "n1"}, "spec": spec}));
    let mut lease = leases.create(&PostParams::default(), &lease).await.unwrap();
    let before = lease.metadata.resource_version.clone();
    lease.spec.as_mut().unwrap().lease_transitions = Some(1);
    let renewed = leases
        .replace("n1", &PostParams::default(), &lease)
        .await
        .unwrap();
    assert_ne!(renewed.metadata.resource_version, before);
    let stale = leases
        .replace("n1", &PostParams::default(), &lease)
        .await
        .unwrap_err();
    assert!(matches!(stale, kube::Error::Api(status) if status.is_conflict()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watchers_of_both_strategies_see_the_pods_of_their_node() {
    let server = TestServer::start().await;
    let client = client(&server).await;
    let pods: Api<Pod> = Api::namespaced(client.clone(), "default");
    pods.create(&PostParams::default(), &pod("before"))
        .await
        .unwrap();
    for config in [
        watcher::Config::default(),
        watcher::Config::default().streaming_lists(),
    ] {
        let all: Api<Pod> = Api::all(client.clone());
        let mine = watcher(all.clone(), config.clone().fields("spec.nodeName=n1"));
        let mut mine = Box::pin(mine);
        let mut every = Box::pin(watcher(all, config));
        assert!(matches!(
            every.try_next().await.unwrap(),
            Some(watcher::Event::Init)
        ));
        let Some(watcher::Event::InitApply(first)) = every.try_next().await.unwrap() else {
            panic!("no pod in the first list")
        };
        assert_eq!(first.metadata.name.as_deref(), Some("before"));
        assert!(matches!(
            every.try_next().await.unwrap(),
            Some(watcher::Event::InitDone)
        ));
        assert!(matches!(
            mine.try_next().await.unwrap(),
            Some(watcher::Event::Init)
        ));
        assert!(matches!(
            mine.try_next().await.unwrap(),
            Some(watcher::Event::InitDone)
        ));

        pods.create(&PostParams::default(), &pod("live"))
            .await
            .unwrap();
        let binding = json!({
            "kind": "Binding", "apiVersion": "v1", "metadata": {"name": "live"},
            "target": {"kind": "Node", "name": "n1"},
        });
        let _: Value = pods
            .create_subresource("binding", "live", &PostParams::default(), &binding)
            .await
            .unwrap();
        let next = tokio::time::timeout(Duration::from_secs(60), mine.next());
        let Some(Ok(watcher::Event::Apply(live))) = next.await.expect("an event in time") else {
            panic!("the binding did not reach the node's watch")
        };
        assert_eq!(live.metadata.name.as_deref(), Some("live"));
        let now = DeleteParams::default().grace_period(0);
        pods.delete("live", &now).await.unwrap();
        let next = tokio::time::timeout(Duration::from_secs(60), mine.next());
        assert!(matches!(
            next.await.expect("in time"),
            Some(Ok(watcher::Event::Delete(_)))
        ));
    }
}
