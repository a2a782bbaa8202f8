//! Failures, lost answers, kills, hangs and panics at any point, and an API server that is away.

use std::time::Duration;

use serde_json::json;

use super::runtime::{Behaviour, Fault};
use super::world::World;

/// Runs a pod from its creation to its deletion with one fault; false when the fault never came up.
async fn whole_life_with(fault: Fault, index: usize) -> bool {
    let mut world = World::new();
    world.node.state().fault = Some((index, fault));
    world.start_agent();
    world.apply("web", json!({}));
    let is_fatal = matches!(fault, Fault::Hangs | Fault::HangsAfter);
    for (what, deleted) in [("ready", false), ("gone", true)] {
        if deleted {
            world.delete("web", 30);
        }
        let is_done = |world: &World| {
            if deleted {
                world.is_gone("web")
            } else {
                world.is_ready("web")
            }
        };
        let what = format!("{what} with {fault:?} at {index}");
        if is_fatal {
            let hung = tokio::select! {
                () = world.node.hung.notified() => true,
                () = world.until(&what, is_done) => false,
            };
            if hung {
                world.kill_agent().await;
                world.start_agent();
            }
        }
        world.until(&what, is_done).await;
    }
    let state = world.node.state();
    let starts = state.calls.iter().filter(|(_, call)| call == "start web 1");
    assert_eq!(
        starts.count(),
        0,
        "a start was repeated with {fault:?} at {index}"
    );
    state.operations > index
}

#[tokio::test(start_paused = true)]
async fn a_pod_converges_whichever_operation_fails() {
    for fault in [Fault::Fails, Fault::LosesAnswer] {
        let mut index = 0;
        while whole_life_with(fault, index).await {
            index += 1;
        }
        assert!(index >= 6, "only {index} operations were tried");
    }
}

#[tokio::test(start_paused = true)]
async fn a_new_agent_goes_on_whichever_operation_the_old_one_was_killed_in() {
    for fault in [Fault::Hangs, Fault::HangsAfter] {
        let mut index = 0;
        while whole_life_with(fault, index).await {
            index += 1;
        }
        assert!(index >= 6, "only {index} operations were tried");
    }
}

#[tokio::test(start_paused = true)]
async fn a_restarted_agent_adopts_its_pods_without_touching_or_misreporting_them() {
    let mut world = World::new();
    world.start_agent();
    for name in ["one", "two"] {
        world.apply(name, json!({}));
        world.until("ready", |world| world.is_ready(name)).await;
    }
    world.kill_agent().await;
    world.node.state().calls.clear();
    world.api.written.lock().unwrap().clear();
    world.start_agent();
    tokio::time::sleep(Duration::from_secs(120)).await;
    assert_eq!(world.node.state().calls, []);
    for (name, status) in world.api.written.lock().unwrap().iter() {
        assert_eq!(status["containerStatuses"][0]["ready"], true, "{name}");
    }
}

#[tokio::test(start_paused = true)]
async fn stuck_pods_do_not_delay_others() {
    let mut world = World::new();
    world.start_agent();
    // More of them than starts are allowed at a time.
    for index in 0..5 {
        let name = format!("stuck{index}");
        world
            .node
            .state()
            .behaviour
            .insert(name.clone(), Behaviour::Hangs);
        world.apply(&name, json!({}));
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    let before = tokio::time::Instant::now();
    world.apply("web", json!({}));
    world.until("ready", |world| world.is_ready("web")).await;
    assert!(
        before.elapsed() < Duration::from_secs(60),
        "{:?}",
        before.elapsed()
    );
    // And a stuck pod can be deleted.
    world.delete("stuck0", 30);
    world.until("gone", |world| world.is_gone("stuck0")).await;
}

#[tokio::test(start_paused = true)]
async fn a_panicking_worker_starts_again_with_back_off_by_itself() {
    let mut world = World::new();
    world
        .node
        .state()
        .behaviour
        .insert("bad".to_owned(), Behaviour::Panics);
    world.start_agent();
    world.apply("bad", json!({}));
    world.apply("good", json!({}));
    world
        .until("good is ready", |world| world.is_ready("good"))
        .await;
    world
        .until("three panics", |world| {
            world
                .reasons()
                .iter()
                .filter(|reason| **reason == "FailedSync")
                .count()
                >= 3
        })
        .await;
    let events = world.events.lock().unwrap().clone();
    let delays: Vec<&str> = events
        .iter()
        .filter(|event| event.reason == "FailedSync")
        .map(|event| event.message.rsplit(' ').next().unwrap())
        .collect();
    assert_eq!(delays[..3], ["1s", "2s", "4s"]);
    world.node.state().behaviour.clear();
    world
        .until("bad is ready", |world| world.is_ready("bad"))
        .await;
}

#[tokio::test(start_paused = true)]
async fn without_the_api_pods_run_from_the_journal_and_status_follows_when_it_is_back() {
    let mut world = World::new();
    world.start_agent();
    world.apply("web", json!({}));
    world.until("ready", |world| world.is_ready("web")).await;
    world.kill_agent().await;
    // The node reboots while the API server is away: no namespaces, no processes.
    world.api.away.send_replace(true);
    let before = world.api.view.borrow().clone();
    world
        .api
        .view
        .send_modify(|view| *view = Default::default());
    for sandbox in world.node.state().sandboxes.values_mut() {
        sandbox.ready = false;
        sandbox.containers.clear();
    }
    world.start_agent();
    world
        .until("running again", |world| {
            world.node.times("start web").len() == 2
        })
        .await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert_eq!(world.node.times("start web").len(), 2);
    world.api.away.send_replace(false);
    world.api.view.send_modify(|view| *view = before);
    world
        .until("the restart is known", |world| {
            world.container("web")["restartCount"] == 1 && world.is_ready("web")
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn a_deletion_waits_for_the_api_and_ends_when_it_is_back() {
    let mut world = World::new();
    world.start_agent();
    world.apply("web", json!({}));
    world.until("ready", |world| world.is_ready("web")).await;
    world.delete("web", 1);
    world.api.away.send_replace(true);
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert!(world.node.state().sandboxes.is_empty());
    assert!(world.api.view.borrow().pods.contains_key("uid-web"));
    world.api.away.send_replace(false);
    world.until("gone", |world| world.is_gone("web")).await;
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_is_merely_missing_ends_in_the_second_pass_and_only_if_the_runtime_answers() {
    let mut world = World::new();
    world.start_agent();
    world.apply("web", json!({}));
    world.until("ready", |world| world.is_ready("web")).await;
    world.node.state().list_fails = true;
    world.node.bump();
    tokio::time::sleep(Duration::from_secs(1)).await;
    world.api.view.send_modify(|view| view.pods.clear());
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert!(world.node.times("stop").is_empty());
    world.node.state().list_fails = false;
    let before = tokio::time::Instant::now();
    world.until("gone", |world| world.is_gone("web")).await;
    assert!(
        before.elapsed() > Duration::from_secs(10),
        "{:?}",
        before.elapsed()
    );
}
