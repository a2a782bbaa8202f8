//! kill -9 of every component while a Service is under load: no request fails, no container restarts,
//! nothing acknowledged is lost.

mod common;

use std::collections::BTreeSet;
use std::time::Duration;

use common::{LIMIT, Load, cluster, containers, deploy_web, pause, scale_web, wait_until};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::Api;
use tholepin_harness::client::wait_for;
use tholepin_harness::{Cluster, Options};

const RATE: u32 = 1000;
const SECONDS: u32 = 12;
/// A loaded machine may not reach the whole rate; far less would make the test empty.
const LEAST: u64 = (RATE * SECONDS) as u64 / 4;

/// Runs `harm` while node `client` calls a Service: no request fails, no container restarts, and
/// afterwards the cluster brings up another replica.
async fn under_load(client: usize, harm: impl AsyncFnOnce(&mut Cluster)) {
    let Some(mut cluster) = cluster(Options::default()).await else {
        return;
    };
    let address = deploy_web(&cluster).expect("the Service serves");
    let before = containers(&cluster).expect("containers are listed");
    let load = Load::start(&cluster, client, &address, RATE, SECONDS).expect("the load starts");
    harm(&mut cluster).await;
    load.finish(LEAST).expect("no request fails");
    assert_eq!(containers(&cluster).expect("containers are listed"), before);
    // The agents may take a moment to follow a new control plane.
    wait_until("another replica is ready", || {
        scale_web(&cluster, 5)?;
        Ok(true)
    })
    .expect("the rollout ends");
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_nine_of_the_agent_fails_no_request_and_restarts_no_container() {
    under_load(0, async |cluster| {
        for node in [0, 1, 0] {
            pause(Duration::from_secs(1));
            cluster.kill_agent(node).unwrap();
            pause(Duration::from_millis(700));
            cluster.start_agent(node).unwrap();
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_that_exits_while_the_agent_is_away_is_seen_and_restarted() {
    let Some(mut cluster) = cluster(Options {
        nodes: 1,
        ..Options::default()
    })
    .await
    else {
        return;
    };
    cluster
        .kubectl
        .run(&[
            "run",
            "short",
            "--image=tholepin.test/web:1",
            "--",
            "fail",
            "--code",
            "7",
            "--after",
            "3",
        ])
        .unwrap();
    let pods: Api<Pod> = Api::default_namespaced(cluster.client().await.unwrap());
    let running = |pod: Option<&Pod>| {
        pod.and_then(|pod| pod.status.as_ref())
            .is_some_and(|status| status.phase.as_deref() == Some("Running"))
    };
    wait_for(pods.clone(), "short", "running", LIMIT, running)
        .await
        .unwrap();
    cluster.kill_agent(0).unwrap();
    pause(Duration::from_secs(4));
    cluster.start_agent(0).unwrap();
    let ended_with_seven = |pod: Option<&Pod>| {
        let statuses = pod.and_then(|pod| pod.status.as_ref()?.container_statuses.as_ref());
        statuses
            .and_then(|list| list.first())
            .is_some_and(|status| {
                status.restart_count >= 1
                    && status
                        .last_state
                        .as_ref()
                        .and_then(|state| state.terminated.as_ref())
                        .is_some_and(|end| end.exit_code == 7)
            })
    };
    wait_for(
        pods,
        "short",
        "restarted after exit code 7",
        LIMIT,
        ended_with_seven,
    )
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_nine_of_containerd_leaves_containers_running_and_the_agent_recovers() {
    under_load(1, async |cluster| {
        for node in [0, 1] {
            pause(Duration::from_secs(1));
            cluster.kill_containerd(node).unwrap();
            pause(Duration::from_secs(1));
            cluster.start_containerd(node).unwrap();
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn kill_nine_of_the_control_plane_loses_no_acknowledged_object_and_pods_keep_serving() {
    under_load(0, async |cluster| {
        let client = cluster.client().await.unwrap();
        let writer = tokio::spawn(write_config_maps(client, Duration::from_secs(8)));
        for _ in 0..3 {
            pause(Duration::from_millis(1500));
            cluster.kill_control().unwrap();
            pause(Duration::from_millis(300));
            cluster.start_control().unwrap();
        }
        let acknowledged = writer.await.unwrap();
        let count = acknowledged.len();
        assert!(count > 100, "only {count} writes were acknowledged");
        let list = cluster.kubectl.json(&["get", "configmaps"]).unwrap();
        let names: BTreeSet<&str> = list["items"]
            .as_array()
            .unwrap()
            .iter()
            .filter_map(|item| item["metadata"]["name"].as_str())
            .collect();
        let lost: Vec<&String> = acknowledged
            .iter()
            .filter(|name| !names.contains(name.as_str()))
            .collect();
        assert!(lost.is_empty(), "of {count} objects are lost: {lost:?}");
        eprintln!("{count} acknowledged writes, none lost");
    })
    .await;
}

/// Writes for as long as `duration`; the names of the objects the server acknowledged.
async fn write_config_maps(client: kube::Client, duration: Duration) -> Vec<String> {
    let api: Api<ConfigMap> = Api::default_namespaced(client);
    let mut acknowledged = Vec::new();
    let end = tokio::time::Instant::now() + duration;
    let mut number = 0;
    while tokio::time::Instant::now() < end {
        number += 1;
        let name = format!("written-{number:05}");
        let object = serde_json::from_value(serde_json::json!({
            "metadata": {"name": name}, "data": {"number": number.to_string()},
        }))
        .expect("a ConfigMap");
        match api.create(&Default::default(), &object).await {
            Ok(_) => acknowledged.push(name),
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
    acknowledged
}
