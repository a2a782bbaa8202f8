//! Containers from start to removal.

use std::time::{Duration, Instant};

use tholepin_agent::runtime::containerd::ContainerdRuntime;
use tholepin_agent::runtime::log_file::{self, LogLimits};
use tholepin_agent::runtime::{
    ContainerSpec, ContainerState, ResourceLimits, Runtime, RuntimeError,
};
use tholepin_harness::image::Recipe;

use crate::world::{World, container, eventually, exit_of, pod};

#[tokio::test(flavor = "multi_thread")]
async fn a_container_runs_logs_both_streams_and_leaves_nothing_behind() {
    let Some(world) = World::start() else { return };
    let runtime = world.runtime();
    let realized = runtime.ensure_sandbox(&world.sandbox("a")).await.unwrap();
    assert!(realized.ready && realized.netns.as_ref().unwrap().exists());
    let again = runtime.ensure_sandbox(&world.sandbox("a")).await.unwrap();
    assert_eq!(again.created_at, realized.created_at);

    let script = "echo out; echo err >&2; hostname; echo $HOSTNAME $A; pwd; printf part; exit 3";
    let spec = ContainerSpec {
        env: vec![("A".into(), "own value".into())],
        working_dir: Some("/tmp".into()),
        ..world.shell("a", "main", script)
    };
    let started = runtime.start_container(&spec).await.unwrap();
    assert_eq!((started.name.as_str(), started.attempt), ("main", 0));
    assert_eq!(started.labels["hash"], "abc");
    assert!(
        started
            .image_id
            .starts_with("tholepin.test/busybox@sha256:"),
        "{}",
        started.image_id
    );
    let exit = exit_of(&runtime, "main").await;
    assert_eq!(
        (exit.exit_code, exit.signal, exit.oom_killed),
        (3, 0, false)
    );
    assert!(exit.started_at <= exit.finished_at);

    // The log is whole as soon as the exit is visible.
    let mut log = world.log(&spec);
    log.sort();
    assert_eq!(
        log,
        [
            "stderr F err",
            "stdout F /tmp",
            "stdout F a",
            "stdout F a own value",
            "stdout F out",
            "stdout P part"
        ]
    );
    let same = runtime.start_container(&spec).await.unwrap();
    assert_eq!(
        same.id, started.id,
        "the same attempt is found, not started twice"
    );
    assert!(matches!(same.state, ContainerState::Exited(_)));

    runtime.remove_container(&started.id).await.unwrap();
    runtime.remove_container(&started.id).await.unwrap();
    runtime
        .stop_container(&started.id, Duration::from_secs(1))
        .await
        .unwrap();
    runtime.remove_sandbox(&pod("a")).await.unwrap();
    runtime.remove_sandbox(&pod("a")).await.unwrap();
    assert!(runtime.list().await.unwrap().is_empty());
    assert!(spec.log_path.exists(), "logs stay");
    world.assert_clean("a").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn containers_of_a_pod_share_namespaces_shm_and_one_shim() {
    let Some(world) = World::start() else { return };
    let runtime = world.runtime();
    runtime.ensure_sandbox(&world.sandbox("s")).await.unwrap();
    let script = "for kind in net ipc uts; do readlink /proc/self/ns/$kind; done; \
                  touch /dev/shm/shared; sleep 1000";
    let first = world.shell("s", "one", script);
    let second = world.shell("s", "two", script);
    runtime.start_container(&first).await.unwrap();
    runtime.start_container(&second).await.unwrap();
    eventually("both have logged", || {
        world.log(&first).len() == 3 && world.log(&second).len() == 3
    })
    .await;
    assert_eq!(world.log(&first), world.log(&second));
    assert_eq!(world.pids_of_shims().len(), 1);
    let host = std::fs::read_link("/proc/self/ns/net").unwrap();
    assert!(!world.log(&first)[0].contains(host.to_str().unwrap()));
    assert!(world.path("run/pods/uid-s/shm/shared").exists());
    // Removing the sandbox ends what still runs in it.
    runtime.remove_sandbox(&pod("s")).await.unwrap();
    world.assert_clean("s").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn stopping_is_gentle_within_the_grace_period_and_then_kills() {
    let Some(world) = World::start() else { return };
    let runtime = world.runtime();
    runtime.ensure_sandbox(&world.sandbox("t")).await.unwrap();
    let gentle = world.shell(
        "t",
        "gentle",
        "trap 'echo bye; exit 7' TERM; echo up; while :; do sleep 0.05; done",
    );
    let deaf = world.shell(
        "t",
        "deaf",
        "trap '' TERM; echo up; while :; do sleep 0.05; done",
    );
    let gentle_id = runtime.start_container(&gentle).await.unwrap().id;
    let deaf_id = runtime.start_container(&deaf).await.unwrap().id;
    eventually("traps are set", || {
        !world.log(&gentle).is_empty() && !world.log(&deaf).is_empty()
    })
    .await;

    runtime
        .stop_container(&gentle_id, Duration::from_secs(20))
        .await
        .unwrap();
    assert_eq!(exit_of(&runtime, "gentle").await.exit_code, 7);
    assert_eq!(world.log(&gentle), ["stdout F up", "stdout F bye"]);

    let begin = Instant::now();
    runtime
        .stop_container(&deaf_id, Duration::from_millis(700))
        .await
        .unwrap();
    assert!(begin.elapsed() >= Duration::from_millis(700));
    let exit = exit_of(&runtime, "deaf").await;
    assert_eq!(
        (exit.exit_code, exit.signal, exit.oom_killed),
        (137, 9, false)
    );
    runtime.remove_sandbox(&pod("t")).await.unwrap();
    world.assert_clean("t").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_images_stop_signal_is_used() {
    let Some(world) = World::start() else { return };
    let image = Recipe::new(&[], &["sh"])
        .with_config("StopSignal", "SIGUSR1".into())
        .with_busybox()
        .unwrap()
        .build("tholepin.test/usr1:1")
        .unwrap();
    world.import(&image);
    let runtime = world.runtime();
    runtime.ensure_sandbox(&world.sandbox("u")).await.unwrap();
    let script = "trap 'exit 4' USR1; echo up; while :; do sleep 0.05; done";
    let spec = ContainerSpec {
        image: image.name.clone(),
        ..world.shell("u", "main", script)
    };
    let id = runtime.start_container(&spec).await.unwrap().id;
    eventually("the trap is set", || !world.log(&spec).is_empty()).await;
    runtime
        .stop_container(&id, Duration::from_secs(20))
        .await
        .unwrap();
    assert_eq!(exit_of(&runtime, "main").await.exit_code, 4);
    runtime.remove_sandbox(&pod("u")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_that_is_not_there_is_named_and_the_attempt_can_be_repeated() {
    let Some(world) = World::start() else { return };
    let runtime = world.runtime();
    runtime.ensure_sandbox(&world.sandbox("m")).await.unwrap();
    let missing = ContainerSpec {
        command: vec!["nope".into()],
        ..world.shell("m", "main", "")
    };
    let error = runtime.start_container(&missing).await.unwrap_err();
    assert!(matches!(error, RuntimeError::Start { .. }), "{error:?}");
    assert!(!error.is_transient());
    let text = error.to_string();
    assert!(
        text.starts_with("failed to start container main: failed to create containerd task: "),
        "{text}"
    );
    assert!(
        text.contains("exec: \"nope\": executable file not found in $PATH"),
        "{text}"
    );
    runtime
        .start_container(&world.shell("m", "main", "exit 0"))
        .await
        .unwrap();
    assert_eq!(exit_of(&runtime, "main").await.exit_code, 0);

    let orphan = world.shell("nowhere", "main", "exit 0");
    let error = runtime.start_container(&orphan).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "sandbox of pod default/nowhere not found"
    );
    runtime.remove_sandbox(&pod("m")).await.unwrap();
    world.assert_clean("m").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn command_args_and_users_come_from_pod_and_image() {
    let Some(world) = World::start() else { return };
    let image = Recipe::new(&["/bin/echo", "entry"], &["cmd"])
        .with_config("User", "app".into())
        .with_config("Env", serde_json::json!(["PATH=/bin", "FROM=image"]))
        .with_busybox()
        .unwrap()
        .with_file(
            "etc/passwd",
            0o644,
            b"root:x:0:0::/:/bin/sh\napp:x:1000:1001::/:/bin/sh\n".to_vec(),
        )
        .with_file(
            "etc/group",
            0o644,
            b"root:x:0:\napp:x:1001:\nlog:x:44:app\n".to_vec(),
        )
        .build("tholepin.test/users:1")
        .unwrap();
    world.import(&image);
    let runtime = world.runtime();
    runtime.ensure_sandbox(&world.sandbox("c")).await.unwrap();
    let words = |words: &[&str]| {
        words
            .iter()
            .map(|word| (*word).to_owned())
            .collect::<Vec<_>>()
    };
    let base = ContainerSpec {
        image: image.name.clone(),
        ..world.shell("c", "x", "")
    };
    let id = words(&["sh", "-c", "id -u; id -g; id -G; echo $FROM"]);
    let cases = [
        ("none", words(&[]), words(&[]), None, vec!["entry cmd"]),
        ("args", words(&[]), words(&["own"]), None, vec!["entry own"]),
        (
            "command",
            words(&["echo", "only"]),
            words(&[]),
            None,
            vec!["only"],
        ),
        (
            "both",
            words(&["echo"]),
            words(&["a", "b"]),
            None,
            vec!["a b"],
        ),
        (
            "image-user",
            id.clone(),
            words(&[]),
            None,
            vec!["1000", "1001", "1001 44", "image"],
        ),
        (
            "own-user",
            id,
            words(&[]),
            Some(7),
            vec!["7", "0", "0", "image"],
        ),
    ];
    for (name, command, args, run_as_user, expected) in cases {
        let spec = ContainerSpec {
            name: name.into(),
            command,
            args,
            run_as_user,
            log_path: world.path("log").join(format!("{name}.log")),
            ..base.clone()
        };
        runtime.start_container(&spec).await.unwrap();
        assert_eq!(
            exit_of(&runtime, name).await.exit_code,
            0,
            "{name}: {:?}",
            world.log(&spec)
        );
        let log: Vec<_> = world
            .log(&spec)
            .iter()
            .map(|line| line[9..].to_owned())
            .collect();
        assert_eq!(log, expected, "{name}");
    }
    let non_root = ContainerSpec {
        name: "n".into(),
        run_as_non_root: true,
        ..base
    };
    let error = runtime.start_container(&non_root).await.unwrap_err();
    assert!(
        error
            .to_string()
            .contains("image has non-numeric user (app)"),
        "{error}"
    );
    runtime.remove_sandbox(&pod("c")).await.unwrap();
    world.assert_clean("c").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_over_its_memory_limit_is_oom_killed() {
    let Some(world) = World::start() else { return };
    let runtime = world.runtime();
    runtime.ensure_sandbox(&world.sandbox("o")).await.unwrap();
    let resources = ResourceLimits {
        memory_limit_bytes: 24 << 20,
        oom_score_adj: 1000,
        ..Default::default()
    };
    let spec = ContainerSpec {
        resources,
        command: vec!["/bin/tail".into(), "/dev/zero".into()],
        ..world.shell("o", "main", "")
    };
    runtime.start_container(&spec).await.unwrap();
    let exit = exit_of(&runtime, "main").await;
    assert_eq!((exit.exit_code, exit.oom_killed), (137, true));
    runtime.remove_sandbox(&pod("o")).await.unwrap();
    world.assert_clean("o").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn much_output_is_logged_whole_and_in_order() {
    let Some(world) = World::start() else { return };
    let runtime = world.runtime();
    runtime.ensure_sandbox(&world.sandbox("b")).await.unwrap();
    let spec = world.shell("b", "main", "seq 1 200000");
    runtime.start_container(&spec).await.unwrap();
    exit_of(&runtime, "main").await;
    let log = world.log(&spec);
    assert_eq!(log.len(), 200_000);
    assert!(
        log.iter()
            .enumerate()
            .all(|(at, line)| *line == format!("stdout F {}", at + 1))
    );
    assert!(matches!(
        container(&runtime, "main").await.state,
        ContainerState::Exited(_)
    ));
    runtime.remove_sandbox(&pod("b")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_are_rotated_by_size_and_the_oldest_parts_go() {
    let Some(world) = World::start() else { return };
    let mut config = world.config();
    config.log_limits = LogLimits {
        max_bytes: 200_000,
        max_files: 3,
    };
    let runtime = ContainerdRuntime::new(config).unwrap();
    runtime.ensure_sandbox(&world.sandbox("l")).await.unwrap();
    // In bursts with pauses: a file is rotated between two reads, and one read may take all there is.
    let bursts = "for i in 0 1 2 3 4 5 6 7 8 9; do seq $((i * 6000 + 1)) $((i * 6000 + 6000)); sleep 0.2; done";
    let spec = world.shell("l", "main", bursts);
    runtime.start_container(&spec).await.unwrap();
    exit_of(&runtime, "main").await;
    let mut files = log_file::rotated(&spec.log_path).unwrap();
    assert_eq!(files.len(), 2);
    files.push(spec.log_path);
    let text: String = files
        .iter()
        .map(|path| std::fs::read_to_string(path).unwrap())
        .collect();
    let numbers: Vec<u32> = text
        .lines()
        .map(|line| line.rsplit(' ').next().unwrap().parse().unwrap())
        .collect();
    assert!(numbers[0] > 1, "the oldest part is gone");
    let expected: Vec<u32> = (numbers[0]..=60_000).collect();
    assert!(numbers == expected, "in order, with nothing missing");
    runtime.remove_sandbox(&pod("l")).await.unwrap();
    world.assert_clean("l").await;
}
