//! All workload controllers together over an in-memory API whose watches lag and whose writes fail:
//! whatever is asked, they end at what was asked last, and no pod is made twice.

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use serde_json::{Value, json};
use tholepin_informer::testing::{MemoryApi, Operation};
use tholepin_informer::{Caches, Client, ClientError, Recorder, Subresource, kinds};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::{Context, deployment, garbage_collector, replicas};

#[derive(Clone, Debug)]
enum Step {
    Scale(i32),
    Image(u8),
    Fail(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        (0i32..7).prop_map(Step::Scale),
        (0u8..4).prop_map(Step::Image),
        (1u8..4).prop_map(Step::Fail),
    ]
}

struct World {
    api: Arc<MemoryApi>,
    _tasks: JoinSet<()>,
}

async fn start(lag: Duration) -> World {
    let api = MemoryApi::new(lag);
    let cancel = CancellationToken::new();
    let caches = Caches::new(api.clone());
    let mut tasks = JoinSet::new();
    let (recorder, recording) = Recorder::new(api.clone(), cancel.clone());
    tasks.spawn(recording);
    let context = Context {
        caches: caches.clone(),
        recorder,
    };
    deployment::spawn(&context, &mut tasks, &cancel);
    replicas::spawn(&context, &mut tasks, &cancel);
    garbage_collector::spawn(&context, &mut tasks, &cancel);
    caches.spawn(&mut tasks, &cancel);
    caches.wait_synced().await;
    tasks.spawn(kubelet(api.clone()));
    World { api, _tasks: tasks }
}

/// Makes every pod Ready after a while.
async fn kubelet(api: Arc<MemoryApi>) {
    loop {
        tokio::time::sleep(Duration::from_millis(300)).await;
        for pod in api.objects(kinds::POD) {
            if pod.pointer("/status/conditions").is_none() {
                let name = pod["metadata"]["name"].as_str().expect("named");
                let status = json!({"status": {"phase": "Running", "conditions": [
                    {"type": "Ready", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}});
                api.patch(kinds::POD, "ns", name, Subresource::Status, status)
                    .await
                    .ok();
            }
        }
    }
}

async fn create(api: &MemoryApi, replicas: i32) {
    let object = json!({
        "metadata": {"name": "web"},
        "spec": {"replicas": replicas, "selector": {"matchLabels": {"app": "web"}},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1, "maxUnavailable": 1}},
            "progressDeadlineSeconds": 600, "revisionHistoryLimit": 2,
            "template": {"metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "c", "image": "v0"}]}}},
    });
    api.create(kinds::DEPLOYMENT, "ns", object)
        .await
        .expect("created");
}

async fn change(api: &MemoryApi, spec: Value) {
    let patch = json!({"spec": spec});
    loop {
        // Injected faults hit us as well.
        let done = api
            .patch(
                kinds::DEPLOYMENT,
                "ns",
                "web",
                Subresource::Main,
                patch.clone(),
            )
            .await;
        if done.is_ok() {
            return;
        }
    }
}

fn images(api: &MemoryApi) -> Vec<String> {
    let pods = api.objects(kinds::POD);
    pods.iter()
        .map(|pod| {
            pod["spec"]["containers"][0]["image"]
                .as_str()
                .expect("an image")
                .to_owned()
        })
        .collect()
}

async fn run(steps: Vec<Step>, lag_ms: u64) {
    let world = start(Duration::from_millis(lag_ms)).await;
    let api = &world.api;
    create(api, 3).await;
    let (mut replicas, mut image) = (3, 0);
    for step in steps {
        match step {
            Step::Scale(to) => {
                replicas = to;
                change(api, json!({"replicas": to})).await;
            }
            Step::Image(to) => {
                image = to;
                let containers = json!([{"name": "c", "image": format!("v{to}")}]);
                change(
                    api,
                    json!({"template": {"spec": {"containers": containers}}}),
                )
                .await;
            }
            Step::Fail(count) => {
                let mut left = count;
                api.inject(move |operation, kind| {
                    if left == 0 || operation == Operation::Bind || kind == kinds::EVENT {
                        return None;
                    }
                    left -= 1;
                    Some(ClientError::new(500, "InternalError", "injected"))
                });
            }
        }
        tokio::time::sleep(Duration::from_millis(350)).await;
    }
    tokio::time::sleep(Duration::from_secs(120)).await;
    let wanted = vec![format!("v{image}"); usize::try_from(replicas).expect("not negative")];
    assert_eq!(images(api), wanted);
    let deployment = &api.objects(kinds::DEPLOYMENT)[0];
    assert_eq!(
        deployment["status"]["updatedReplicas"]
            .as_i64()
            .unwrap_or(0),
        i64::from(replicas)
    );
    assert_eq!(
        deployment["status"]["observedGeneration"],
        deployment["metadata"]["generation"]
    );
    // Nothing is written any more once everything is as it should be.
    let settled = api.revision();
    tokio::time::sleep(Duration::from_secs(1200)).await;
    assert_eq!(api.revision(), settled, "a settled cluster writes nothing");
}

#[tokio::test(start_paused = true)]
async fn a_lagging_watch_never_makes_a_pod_twice() {
    let world = start(Duration::from_secs(3)).await;
    create(&world.api, 5).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(world.api.created(kinds::POD), 5);
    assert_eq!(world.api.created(kinds::REPLICA_SET), 1);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn any_sequence_ends_at_what_was_asked_last(
        steps in prop::collection::vec(step(), 0..8),
        lag_ms in prop_oneof![Just(0u64), 1u64..900],
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .start_paused(true)
            .build()
            .expect("a runtime");
        runtime.block_on(run(steps, lag_ms));
    }
}
