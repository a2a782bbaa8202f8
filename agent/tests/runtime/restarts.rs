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

    // `brief` ends while nobody looks.
    tokio::time::sleep(Duration::from_millis(900)).await;
    let seen = world.log(&spec).len();
    let second = world.runtime();
    let begin = std::time::Instant::now();
    let adopted = container(&second, "main").await;
    assert!(
        begin.elapsed() < Duration::from_secs(10),
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

const LAST_WORDS: &str = "sleep 0.5; i=0; while [ $i -lt 100 ]; do i=$((i+1)); echo $i; done; \
                          echo end >&2; exit 9";

fn assert_last_words(log: &[String]) {
    let (out, err): (Vec<_>, Vec<_>) = log.iter().partition(|line| line.starts_with("stdout"));
    let expected: Vec<_> = (1..=100)
        .map(|number| format!("stdout F {number}"))
        .collect();
    assert_eq!(out, expected.iter().collect::<Vec<_>>());
    assert_eq!(err, ["stderr F end"]);
}

/// Waits until the container has ended, with nobody but containerd looking.
async fn ended_unseen(world: &World, id: &str) {
    let stopped = || {
        let tasks = world.ctr(&["tasks", "ls"]);
        tasks
            .lines()
            .any(|line| line.contains(id) && line.contains("STOPPED"))
    };
    eventually("it ended", stopped).await;
}

/// Not by `ctr`, which would remove the FIFOs too.
async fn delete_task(world: &World, id: &str) {
    use containerd_client::services::v1::{DeleteTaskRequest, tasks_client::TasksClient};
    let channel = containerd_client::connect(world.socket()).await.unwrap();
    let mut request = containerd_client::tonic::Request::new(DeleteTaskRequest {
        container_id: id.into(),
    });
    let namespace = "tholepin".parse().unwrap();
    request
        .metadata_mut()
        .insert("containerd-namespace", namespace);
    TasksClient::new(channel).delete(request).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn output_of_a_container_that_ends_while_no_agent_runs_is_in_its_log() {
    let Some(world) = World::start() else { return };
    let first = world.runtime();
    first.ensure_sandbox(&world.sandbox("o")).await.unwrap();
    let spec = world.shell("o", "main", LAST_WORDS);
    let id = first.start_container(&spec).await.unwrap().id;
    let lost = world.shell("o", "lost", LAST_WORDS);
    let lost_id = first.start_container(&lost).await.unwrap().id;
    drop(first);
    ended_unseen(&world, &id).await;
    ended_unseen(&world, &lost_id).await;
    // As if an agent had been killed between the end of a task and the end of its log.
    delete_task(&world, &lost_id).await;
    assert_eq!(world.log(&spec), [""; 0]);

    let second = world.runtime();
    assert_eq!(exit_of(&second, "main").await.exit_code, 9);
    assert_last_words(&world.log(&spec));
    assert_eq!(exit_of(&second, "lost").await.exit_code, 255);
    assert_last_words(&world.log(&lost));
    eventually("nothing is left to hold", || {
        world.pids_of_holders().is_empty()
    })
    .await;
    second.remove_sandbox(&pod("o")).await.unwrap();
    world.assert_clean("o").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn there_is_one_small_holder_it_is_adopted_and_replaced_when_killed() {
    let Some(world) = World::start() else { return };
    let first = world.runtime();
    first.ensure_sandbox(&world.sandbox("j")).await.unwrap();
    let specs: Vec<_> = (0..3)
        .map(|number| {
            world.shell(
                "j",
                &format!("c{number}"),
                LAST_WORDS.replace("0.5", "4").as_str(),
            )
        })
        .collect();
    let starts = specs.iter().map(|spec| first.start_container(spec));
    let started = futures::future::try_join_all(starts).await.unwrap();
    let [holder] = world.pids_of_holders()[..] else {
        panic!("{:?}", world.pids_of_holders());
    };
    let status = std::fs::read_to_string(format!("/proc/{holder}/status")).unwrap();
    let anonymous = status
        .lines()
        .find(|line| line.starts_with("RssAnon:"))
        .unwrap();
    let kib: u64 = anonymous
        .split_whitespace()
        .nth(1)
        .unwrap()
        .parse()
        .unwrap();
    println!("{anonymous}");
    assert!(kib < 1024, "{anonymous}");
    drop(first);
    let second = world.runtime();
    container(&second, "c0").await;
    assert_eq!(world.pids_of_holders(), [holder], "adopted");
    drop(second);

    kill(Pid::from_raw(holder), Signal::SIGKILL).unwrap();
    let third = world.runtime();
    container(&third, "c0").await;
    eventually("there is one again", || world.pids_of_holders().len() == 1).await;
    kill(Pid::from_raw(world.pids_of_holders()[0]), Signal::SIGKILL).unwrap();
    eventually("there is none", || world.pids_of_holders().is_empty()).await;
    eventually("there is a third one", || {
        world.pids_of_holders().len() == 1
    })
    .await;
    drop(third);
    for container in &started {
        ended_unseen(&world, &container.id).await;
    }
    let fourth = world.runtime();
    for spec in &specs {
        assert_eq!(exit_of(&fourth, &spec.name).await.exit_code, 9);
        assert_last_words(&world.log(spec));
    }
    fourth.remove_sandbox(&pod("j")).await.unwrap();
    world.assert_clean("j").await;
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
    tokio::time::timeout(Duration::from_secs(60), changes.changed())
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
