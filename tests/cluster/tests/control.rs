//! The control plane by itself, with unmodified kubectls: what a user types before there is a node, and
//! that a kill loses nothing that was acknowledged.

use anyhow::{Result, ensure};
use tholepin_harness::{Cluster, Kubectl, Options, skip, tools};
use tholepin_tests_cluster::cluster;

async fn control_plane() -> Option<Cluster> {
    cluster(Options {
        nodes: 0,
        ..Options::default()
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_kubectls_see_the_namespaces_and_the_kubernetes_service() -> Result<()> {
    let Some(cluster) = control_plane().await else {
        return Ok(());
    };
    for version in ["1.32", "1.36"] {
        let Some(tool) = skip::unless(tools::kubectl(Some(version))) else {
            continue;
        };
        let kubectl = cluster.kubectl.with_program(&tool.path);
        let namespaces = kubectl.run(&["get", "namespaces", "--no-headers"])?;
        for name in ["default", "kube-system", "kube-public", "kube-node-lease"] {
            ensure!(namespaces.contains(name), "kubectl {version}: {namespaces}");
        }
        ensure!(
            kubectl
                .run(&["get", "service", "kubernetes"])?
                .contains("10.96.0.1")
        );
        ensure!(
            kubectl
                .run(&["cluster-info"])?
                .contains(&cluster.server_url())
        );
        says_what_upstream_says(&kubectl)?;
    }
    cluster.remove()
}

fn says_what_upstream_says(kubectl: &Kubectl) -> Result<()> {
    let missing = kubectl.outcome(&["get", "pod", "nobody"])?;
    ensure!(
        missing.stderr.contains(r#"pods "nobody" not found"#),
        "{missing:?}"
    );
    let typo = "apiVersion: v1\nkind: Pod\nmetadata: {name: x}\nspec: {containrs: []}\n";
    let error = kubectl
        .run_with_input(&["create", "-f", "-"], typo)
        .err()
        .map(|e| e.to_string());
    let text = error.unwrap_or_default();
    ensure!(text.contains(r#"unknown field "spec.containrs""#), "{text}");
    kubectl.run(&["create", "configmap", "taken"])?;
    let taken = kubectl.outcome(&["create", "configmap", "taken"])?;
    ensure!(
        taken
            .stderr
            .contains(r#"configmaps "taken" already exists"#),
        "{taken:?}"
    );
    kubectl.run(&["delete", "configmap", "taken"])?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_acknowledged_is_lost_when_the_control_plane_is_killed() -> Result<()> {
    let Some(mut cluster) = control_plane().await else {
        return Ok(());
    };
    for round in 0..3 {
        for number in 0..10 {
            let name = format!("kept-{round}-{number}");
            cluster
                .kubectl
                .run(&["create", "configmap", &name, "--from-literal=a=b"])?;
        }
        cluster.kill_control()?;
        cluster.start_control()?;
    }
    let names = cluster.kubectl.run(&["get", "configmaps", "-o", "name"])?;
    let kept = names.lines().filter(|name| name.contains("/kept-")).count();
    ensure!(kept == 30, "{kept} of 30 ConfigMaps are there:\n{names}");
    cluster.remove()
}
