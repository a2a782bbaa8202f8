//! Agents, containerds and shims that die, and a machine that was switched off.

use std::time::Duration;

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tholepin_agent::runtime::{ContainerState, Runtime, RuntimeError};

use crate::world::{World, container, eventually, exit_of, pod};

const COUNT: &str = "i=0; while [ $i -lt 400 ]; do i=$((i+1)); echo $i; sleep 0.01; done; exit 6";

fn assert_counted(log: &[String]) {
    let expected: Vec<_> = (1..=400)
        .map(|number| format!("stdout F {number}"))
        .collect();
    assert_eq!(log, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_agent_adopts_containers_and_no_line_of_their_logs_is_lost() {
    let Some(world) = World::start() else { return };
    let first = world.runtime();
    first.ensure_sandbox(&world.sandbox("r")).await.unwrap();
    let spec = world.shell("r", "main", COUNT);
    let before = first.start_container(&spec).await.unwrap();
    let brief = world.shell("r", "brief", "echo words; sleep 0.5; exit 5");
    first.start_container(&brief).await.unwrap();
    eventually("both have logged", || {
        world.log(&spec).len() > 20 && world.log(&brief).len() == 1
    })
    .await;
    drop(first);

    // `brief` ends while nobody looks. (Output that nobody had read by then is gone with its pipe.)
    tokio::time::sleep(Duration::from_millis(900)).await;
    let seen = world.log(&spec).len();
    let second = world.runtime();
    let begin = std::time::Instant::now();
    let adopted = container(&second, "main").await;
    assert!(
        begin.elapsed() < Duration::from_secs(1),
        "adopting took {:?}",
        begin.elapsed()
    );
    assert_eq!((adopted.id, adopted.state), (before.id, before.state));
    assert!(seen < 400);
    let exit = exit_of(&second, "brief").await;
    assert_eq!(exit.exit_code, 5);
    assert_eq!(world.log(&brief), ["stdout F words"]);
    assert_eq!(exit_of(&second, "main").await.exit_code, 6);
    assert_counted(&world.log(&spec));
    second.remove_sandbox(&pod("r")).await.unwrap();
    world.assert_clean("r").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_outlive_a_killed_containerd_and_the_driver_finds_it_again() {
    let Some(mut world) = World::start() else {
        return;
    };
    let runtime = world.runtime();
    runtime.ensure_sandbox(&world.sandbox("k")).await.unwrap();
    let spec = world.shell("k", "main", COUNT);
    let before = runtime.start_container(&spec).await.unwrap();
    world.kill_containerd();
    let error = runtime.list().await.unwrap_err();
    assert!(
        matches!(error, RuntimeError::Unreachable { .. }),
        "{error:?}"
    );
    assert!(error.is_transient());
    let logged = world.log(&spec).len();
    eventually("it still logs", || world.log(&spec).len() > logged + 20).await;

    let mut changes = runtime.changes();
    changes.borrow_and_update();
    world.start_containerd();
    tokio::time::timeout(Duration::from_secs(10), changes.changed())
        .await
        .unwrap()
        .unwrap();
    let after = container(&runtime, "main").await;
    assert_eq!(after.state, before.state, "the same process");
    assert_eq!(exit_of(&runtime, "main").await.exit_code, 6);
    assert_counted(&world.log(&spec));
    runtime.remove_sandbox(&pod("k")).await.unwrap();
    world.assert_clean("k").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exit_during_containerds_absence_is_reported_when_it_is_back() {
    let Some(mut world) = World::start() else {
        return;
    };
    let runtime = world.runtime();
    runtime.ensure_sandbox(&world.sandbox("w")).await.unwrap();
    let spec = world.shell("w", "main", "sleep 0.5; echo end; exit 8");
    runtime.start_container(&spec).await.unwrap();
    world.kill_containerd();
    eventually("it ended", || world.log(&spec).len() == 1).await;
    tokio::time::sleep(Duration::from_millis(200)).await;
    world.start_containerd();
    eventually("containerd answers", || world.socket().exists()).await;
    assert_eq!(exit_of(&runtime, "main").await.exit_code, 8);
    runtime.remove_sandbox(&pod("w")).await.unwrap();
    world.assert_clean("w").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_shim_ends_its_containers_and_the_pod_can_go_on() {
    let Some(world) = World::start() else { return };
    let runtime = world.runtime();
    runtime.ensure_sandbox(&world.sandbox("h")).await.unwrap();
    runtime
        .start_container(&world.shell("h", "main", "sleep 1000"))
        .await
        .unwrap();
    for pid in world.pids_of_shims() {
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
    }
    let exit = exit_of(&runtime, "main").await;
    assert!([137, 255].contains(&exit.exit_code), "{exit:?}");
    let mut next = world.shell("h", "main", "exit 2");
    next.attempt = 1;
    let id = runtime.start_container(&next).await.unwrap().id;
    eventually("the next one ended", || {
        world.ctr(&["tasks", "ls", "-q"]).is_empty()
    })
    .await;
    let sandboxes = runtime.list().await.unwrap();
    let found = sandboxes[0]
        .containers
        .iter()
        .find(|container| container.id == id)
        .unwrap();
    assert!(matches!(&found.state, ContainerState::Exited(exit) if exit.exit_code == 2));
    runtime.remove_sandbox(&pod("h")).await.unwrap();
    world.assert_clean("h").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_whose_namespaces_are_gone_is_not_ready_and_is_made_anew() {
    let Some(world) = World::start() else { return };
    let runtime = world.runtime();
    let made = runtime.ensure_sandbox(&world.sandbox("z")).await.unwrap();
    // What a switched-off machine leaves when the run directory is on a disk.
    for kind in ["net", "ipc", "uts"] {
        let pin = made.netns.as_ref().unwrap().with_file_name(kind);
        umount2(&pin, MntFlags::MNT_DETACH).unwrap();
    }
    let listed = runtime.list().await.unwrap();
    assert!(listed.len() == 1 && !listed[0].ready);
    let error = runtime
        .start_container(&world.shell("z", "main", "exit 0"))
        .await
        .unwrap_err();
    assert!(matches!(error, RuntimeError::NotFound { .. }), "{error:?}");
    assert!(
        runtime
            .ensure_sandbox(&world.sandbox("z"))
            .await
            .unwrap()
            .ready
    );
    runtime
        .start_container(&world.shell("z", "main", "exit 0"))
        .await
        .unwrap();
    assert_eq!(exit_of(&runtime, "main").await.exit_code, 0);
    runtime.remove_sandbox(&pod("z")).await.unwrap();
    world.assert_clean("z").await;
}
