//! A pod's life without failures of the node: start, restarts, back-off, admission, deletion.

use std::time::Duration;

use serde_json::json;

use super::runtime::Behaviour;
use super::world::World;
use crate::watch::objects::ObjectKey;
use tholepin_model::pod::env::ObjectKind;

fn seconds(times: &[Duration]) -> Vec<u64> {
    times
        .windows(2)
        .map(|pair| (pair[1] - pair[0] + Duration::from_millis(500)).as_secs())
        .collect()
}

#[tokio::test(start_paused = true)]
async fn a_pod_is_started_in_kubernetes_order_and_reported_ready() {
    let mut world = World::new();
    world.start_agent();
    world.apply("web", json!({}));
    world.until("ready", |world| world.is_ready("web")).await;
    let calls: Vec<String> = {
        let state = world.node.state();
        state.calls.iter().map(|(_, call)| call.clone()).collect()
    };
    assert_eq!(
        calls,
        ["sandbox web", "attach web", "pull web:1", "start web 0"]
    );
    let status = world.status("web");
    assert_eq!(status["phase"], "Running");
    assert_eq!(status["podIPs"][1]["ip"], "fd00:10:244:1::9");
    assert_eq!(world.reasons(), ["Pulling", "Pulled", "Created", "Started"]);
}

#[tokio::test(start_paused = true)]
async fn crashes_are_restarted_at_once_then_after_10_20_40_up_to_300_seconds() {
    let mut world = World::new();
    world
        .node
        .state()
        .behaviour
        .insert("web".to_owned(), Behaviour::ExitsAtOnce(3));
    world.start_agent();
    world.apply("web", json!({}));
    world
        .until("eight starts", |world| {
            world.node.times("start web").len() >= 8
        })
        .await;
    let gaps = seconds(&world.node.times("start web"));
    assert_eq!(gaps, [0, 10, 20, 40, 80, 160, 300]);
    world
        .until("CrashLoopBackOff", |world| {
            world.container("web")["state"]["waiting"]["reason"] == "CrashLoopBackOff"
        })
        .await;
    let container = world.container("web");
    assert_eq!(container["restartCount"], 7);
    assert_eq!(container["lastState"]["terminated"]["exitCode"], 3);
    assert_eq!(world.status("web")["phase"], "Running");
}

#[tokio::test(start_paused = true)]
async fn a_container_that_cannot_start_counts_restarts_whether_or_not_the_runtime_lists_it() {
    for listed in [false, true] {
        let mut world = World::new();
        let behaviour = Behaviour::CannotStart { listed };
        world
            .node
            .state()
            .behaviour
            .insert("web".to_owned(), behaviour);
        world.start_agent();
        world.apply("web", json!({}));
        let reason = |world: &World| world.container("web")["state"]["waiting"]["reason"].clone();
        world
            .until("RunContainerError", |world| {
                reason(world) == "RunContainerError"
            })
            .await;
        let message = world.container("web")["state"]["waiting"]["message"].clone();
        assert_eq!(
            message,
            "exec: \"nothing\": executable file not found in $PATH"
        );
        world
            .until("CrashLoopBackOff", |world| {
                reason(world) == "CrashLoopBackOff"
            })
            .await;
        for count in 1..4 {
            let what = format!("restart {count}, listed: {listed}");
            world
                .until(&what, |world| {
                    world.container("web")["restartCount"] == count
                })
                .await;
            let last = world.container("web")["lastState"]["terminated"].clone();
            assert_eq!(last["exitCode"], 128, "{what}");
            assert_eq!(last["reason"], "StartError", "{what}");
        }
        // With restartPolicy Never the same ends the pod.
        world
            .node
            .state()
            .behaviour
            .insert("once".to_owned(), behaviour);
        world.apply("once", json!({"restartPolicy": "Never"}));
        world
            .until("Failed", |world| world.status("once")["phase"] == "Failed")
            .await;
        let state = world.container("once")["state"]["terminated"].clone();
        assert_eq!(state["reason"], "StartError");
    }
}

#[tokio::test(start_paused = true)]
async fn a_missing_image_is_pulled_again_after_10_20_40_seconds() {
    let mut world = World::new();
    world.node.state().missing_images.insert("web:1".to_owned());
    world.start_agent();
    world.apply("web", json!({}));
    world
        .until("ImagePullBackOff", |world| {
            world.container("web")["state"]["waiting"]["reason"] == "ImagePullBackOff"
        })
        .await;
    world
        .until("four pulls", |world| world.node.times("pull").len() >= 4)
        .await;
    assert_eq!(seconds(&world.node.times("pull")), [10, 20, 40]);
    world.node.state().missing_images.clear();
    world.until("ready", |world| world.is_ready("web")).await;
}

#[tokio::test(start_paused = true)]
async fn a_graceful_deletion_reports_the_end_before_the_object_goes() {
    let mut world = World::new();
    world
        .node
        .state()
        .behaviour
        .insert("web".to_owned(), Behaviour::IgnoresTerm);
    world.start_agent();
    world.apply("web", json!({}));
    world.until("ready", |world| world.is_ready("web")).await;
    let before = tokio::time::Instant::now();
    world.delete("web", 30);
    world.until("gone", |world| world.is_gone("web")).await;
    assert_eq!(before.elapsed().as_secs(), 30);
    assert_eq!(world.node.times("stop web 30s").len(), 1);
    let written = world.api.written.lock().unwrap();
    let last = &written.last().unwrap().1;
    assert_eq!(last["phase"], "Failed");
    let state = &last["containerStatuses"][0]["state"]["terminated"];
    assert_eq!(state["exitCode"], 137);
    assert!(!world.config.log_dir.join("default_web_uid-web").exists());
}

#[tokio::test(start_paused = true)]
async fn a_forced_deletion_cuts_a_graceful_one_short() {
    let mut world = World::new();
    world
        .node
        .state()
        .behaviour
        .insert("web".to_owned(), Behaviour::IgnoresTerm);
    world.start_agent();
    world.apply("web", json!({}));
    world.until("ready", |world| world.is_ready("web")).await;
    world.delete("web", 300);
    world
        .until("stopping", |world| {
            !world.node.times("stop web 300s").is_empty()
        })
        .await;
    let before = tokio::time::Instant::now();
    // `kubectl delete --force`: the object goes at once, with grace 0.
    world.api.view.send_modify(|view| {
        view.pods.clear();
        view.deleted.push_back(("uid-web".to_owned(), Some(0)));
    });
    world.until("gone", |world| world.is_gone("web")).await;
    assert!(
        before.elapsed() < Duration::from_secs(1),
        "{:?}",
        before.elapsed()
    );
    assert_eq!(world.node.times("stop web 0s").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_finished_pod_keeps_its_records_and_gives_back_its_address() {
    let mut world = World::new();
    world
        .node
        .state()
        .behaviour
        .insert("job".to_owned(), Behaviour::ExitsAtOnce(0));
    world.start_agent();
    world.apply("job", json!({"restartPolicy": "OnFailure"}));
    world
        .until("Succeeded", |world| {
            world.status("job")["phase"] == "Succeeded"
        })
        .await;
    world
        .until("detached", |world| world.node.state().attached.is_empty())
        .await;
    assert_eq!(world.node.state().sandboxes["uid-job"].containers.len(), 1);
    // A new agent does not run it again.
    world.kill_agent().await;
    world.start_agent();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(world.node.times("start job").len(), 1);
    assert_eq!(world.status("job")["phase"], "Succeeded");
}

#[tokio::test(start_paused = true)]
async fn pods_beyond_the_nodes_room_fail_and_admitted_ones_are_never_judged_again() {
    let mut world = World::new();
    world.capacity.pods = 1;
    world.start_agent();
    world.apply("one", json!({}));
    world.until("ready", |world| world.is_ready("one")).await;
    world.apply("two", json!({}));
    world
        .until("Failed", |world| world.status("two")["phase"] == "Failed")
        .await;
    let status = world.status("two");
    assert_eq!(status["reason"], "OutOfpods");
    assert_eq!(
        status["message"],
        "Pod was rejected: Node didn't have enough resource: pods, requested: 1, used: 1, capacity: 1"
    );
    assert_eq!(status["containerStatuses"], json!([]));
    assert!(world.reasons().contains(&"OutOfpods"));
    world.kill_agent().await;
    world.capacity.pods = 0;
    world.start_agent();
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(world.status("one")["phase"], "Running");
    assert_eq!(world.node.times("start").len(), 1);
    world.delete("two", 0);
    world.until("gone", |world| world.is_gone("two")).await;
}

#[tokio::test(start_paused = true)]
async fn a_volume_waits_for_its_config_map_and_an_adopted_pod_still_follows_it() {
    let mut world = World::new();
    let key: ObjectKey = (
        ObjectKind::ConfigMap,
        "default".to_owned(),
        "settings".to_owned(),
    );
    world.start_agent();
    world.apply(
        "web",
        json!({"volumes": [{"name": "v", "configMap": {"name": "settings"}}]}),
    );
    world
        .until("FailedMount", |world| {
            world.reasons().contains(&"FailedMount")
        })
        .await;
    let reason = world.container("web")["state"]["waiting"]["reason"].clone();
    assert_eq!(reason, "ContainerCreating");
    world.api.set_object(key.clone(), &[("k", "1")]);
    world.until("ready", |world| world.is_ready("web")).await;
    let file = world
        .config
        .pod_dir("uid-web")
        .join("volumes/kubernetes.io~configmap/v/k");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "1");
    world.kill_agent().await;
    world.start_agent();
    tokio::time::sleep(Duration::from_secs(1)).await;
    world.api.set_object(key, &[("k", "2")]);
    let is_new = |_: &World| std::fs::read_to_string(&file).is_ok_and(|text| text == "2");
    world.until("the new contents", is_new).await;
    assert_eq!(world.node.times("start").len(), 1);
}
