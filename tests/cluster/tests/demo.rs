//! The demo's path with every supported pair of containerd and kubectl: a Deployment on two nodes, its
//! Service answered from a pod and from a node by every backend, logs, exec, scaling, deletion.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Result, ensure};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use tholepin_harness::client::wait_for;
use tholepin_harness::{Cluster, Options};
use tholepin_tests_cluster::{answers, apply_web, pods, service_url};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployment_and_its_service_work_with_containerd_1_6_and_kubectl_1_32() -> Result<()> {
    demo("1.6", "1.32").await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deployment_and_its_service_work_with_containerd_2_1_and_kubectl_1_36() -> Result<()> {
    demo("2.1", "1.36").await
}

async fn demo(containerd: &str, kubectl: &str) -> Result<()> {
    let options = Options {
        containerd: Some(containerd.to_owned()),
        kubectl: Some(kubectl.to_owned()),
        ..Options::default()
    };
    let Some(cluster) = tholepin_tests_cluster::cluster(options).await else {
        return Ok(());
    };
    let client = cluster.client().await?;
    // kubectl is a program: it runs on this thread while the client's tasks go on on the other.
    let cluster =
        Cluster::blocking(move || everything_but_waiting(&cluster).map(|()| cluster)).await??;

    let deployments: Api<Deployment> = Api::default_namespaced(client.clone());
    let scaled = |deployment: Option<&Deployment>| {
        let status = deployment.and_then(|deployment| deployment.status.as_ref());
        status.is_some_and(|status| status.ready_replicas == Some(5))
    };
    cluster
        .kubectl
        .run(&["scale", "deployment/web", "--replicas=5"])?;
    let limit = Duration::from_secs(60);
    wait_for(deployments, "web", "scaled to 5", limit, scaled).await?;

    let names = pods(&cluster, "web")?;
    cluster
        .kubectl
        .run(&["delete", "deployment/web", "service/web"])?;
    for name in names {
        let api: Api<Pod> = Api::default_namespaced(client.clone());
        wait_for(api, &name, "gone", limit, |pod| pod.is_none()).await?;
    }
    Cluster::blocking(move || cluster.remove()).await?
}

fn everything_but_waiting(cluster: &Cluster) -> Result<()> {
    apply_web(cluster)?;
    let list = cluster.kubectl.json(&["get", "pods", "-l", "app=web"])?;
    let empty = Vec::new();
    let items = list["items"].as_array().unwrap_or(&empty);
    let nodes: BTreeSet<_> = items
        .iter()
        .filter_map(|pod| pod["spec"]["nodeName"].as_str())
        .collect();
    ensure!(
        nodes.len() == 2,
        "three pods are spread over two nodes, not on {nodes:?}"
    );
    ensure!(
        items.iter().all(|pod| pod["status"]["phase"] == "Running"),
        "{list:#}"
    );

    let backends: BTreeSet<String> = pods(cluster, "web")?.into_iter().collect();
    ensure!(backends.len() == 3, "{backends:?}");
    let url = service_url(cluster, "web")?;
    let call = ["call", "--url", &url, "--count", "200"];
    for node in 0..2 {
        let seen = answers(&cluster.toolbox_on_node(node, &call)?)?;
        ensure!(
            seen.keys().eq(backends.iter()),
            "node {node} was answered by {seen:?}"
        );
    }

    let run = [
        "run",
        "caller",
        "--image=tholepin.test/web:1",
        "--restart=Never",
        "--",
        "sleep",
    ];
    cluster.kubectl.run(&run)?;
    cluster.kubectl.run(&[
        "wait",
        "pod/caller",
        "--for=condition=Ready",
        "--timeout=60s",
    ])?;
    let exec = [&["exec", "caller", "--", "/toolbox"][..], &call[..]].concat();
    let output = cluster.kubectl.command(&exec).output()?;
    let seen = answers(&output)?;
    ensure!(
        seen.keys().eq(backends.iter()),
        "the pod was answered by {seen:?}"
    );

    for pod in &backends {
        let log = cluster.kubectl.run(&["logs", pod])?;
        ensure!(
            log.contains(&format!("serving as {pod}")),
            "the log of {pod}: {log}"
        );
    }
    let echoed = cluster
        .kubectl
        .run(&["exec", "caller", "--", "sh", "-c", "echo out; exit 0"])?;
    ensure!(echoed == "out\n", "{echoed:?}");
    let failed = cluster
        .kubectl
        .outcome(&["exec", "caller", "--", "sh", "-c", "exit 7"])?;
    ensure!(
        failed.code == Some(7),
        "kubectl passes the command's code on: {failed:?}"
    );
    cluster.kubectl.run(&["delete", "pod", "caller", "--now"])?;
    Ok(())
}
