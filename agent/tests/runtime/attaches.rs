//! Clients that join the streams of running containers.

use std::time::Duration;

use tholepin_agent::runtime::{AttachRequest, ExecSession, Runtime, RuntimeError};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};

use crate::world::{World, eventually, exit_of, pod};

const LIMIT: Duration = Duration::from_secs(60);
/// The terminal's size is applied by a task of its own, soon and not at once.
const TTY_SCRIPT: &str =
    "echo ready; read x; until stty size | grep '37 101'; do sleep 0.1; done; exit 6";

async fn attach(runtime: &dyn Runtime, id: &str, stdin: bool) -> ExecSession {
    let request = AttachRequest {
        container_id: id.into(),
        stdin,
    };
    runtime.attach(request).await.unwrap()
}

async fn rest(mut stream: impl AsyncRead + Unpin) -> String {
    let mut text = String::new();
    tokio::time::timeout(LIMIT, stream.read_to_string(&mut text))
        .await
        .expect("an end")
        .unwrap();
    text
}

/// Reads until the text is there.
async fn until(stream: &mut (impl AsyncRead + Unpin), wanted: &str) -> String {
    let mut seen = String::new();
    let mut chunk = vec![0; 4096];
    while !seen.contains(wanted) {
        let count = tokio::time::timeout(LIMIT, stream.read(&mut chunk))
            .await
            .unwrap_or_else(|_| panic!("{wanted:?} in {seen:?}"))
            .unwrap();
        assert!(count > 0, "ended without {wanted:?}: {seen:?}");
        seen.push_str(&String::from_utf8_lossy(&chunk[..count]));
    }
    seen
}

#[tokio::test(flavor = "multi_thread")]
async fn attached_clients_see_the_first_lines_both_streams_and_the_exit() {
    let Some(world) = World::start() else { return };
    let runtime = world.runtime();
    runtime.ensure_sandbox(&world.sandbox("a")).await.unwrap();
    let script = "echo early; echo problem >&2; read go; i=0; \
                  while [ $i -lt 2000 ]; do i=$((i+1)); echo line $i; done; exit 4";
    let mut spec = world.shell("a", "main", script);
    spec.stdin = true;
    let id = runtime.start_container(&spec).await.unwrap().id;
    eventually("it has logged", || world.log(&spec).len() == 2).await;

    let first = attach(&runtime, &id, false).await;
    assert!(first.stdin.is_none());
    let mut second = attach(&runtime, &id, true).await;
    let gone = attach(&runtime, &id, true).await;
    drop((gone.stdout, gone.stderr, gone.stdin));
    let mut stdin = second.stdin.take().unwrap();
    stdin.write_all(b"go\n").await.unwrap();
    let expected: String = (1..=2000)
        .map(|number| format!("line {number}\n"))
        .collect();
    let expected = format!("early\n{expected}");
    for session in [first, second] {
        let (out, err) = tokio::join!(rest(session.stdout), rest(session.stderr.unwrap()));
        assert!(out == expected, "{} bytes: {out}", out.len());
        assert_eq!(err, "problem\n");
        assert_eq!(session.exit.await.unwrap().unwrap(), 4);
    }
    assert_eq!(world.log(&spec).len(), 2002, "the log has it all the same");

    let request = AttachRequest {
        container_id: id,
        stdin: false,
    };
    let error = runtime.attach(request).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "failed to attach to container main: container is not running"
    );
    runtime.remove_sandbox(&pod("a")).await.unwrap();
    world.assert_clean("a").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_input_stays_open_for_the_next_client_unless_it_is_for_one_only() {
    let Some(world) = World::start() else { return };
    let runtime = world.runtime();
    runtime.ensure_sandbox(&world.sandbox("i")).await.unwrap();
    let mut many = world.shell("i", "many", "read a; read b; echo $a $b; exit 3");
    many.stdin = true;
    let mut once = world.shell("i", "once", "wc -c; exec sleep 1000");
    once.stdin = true;
    once.stdin_once = true;
    let many = (runtime.start_container(&many).await.unwrap().id, many);
    let once = (runtime.start_container(&once).await.unwrap().id, once);

    let mut session = attach(&runtime, &many.0, true).await;
    let mut stdin = session.stdin.take().unwrap();
    stdin.write_all(b"one\n").await.unwrap();
    stdin.shutdown().await.unwrap();
    drop((stdin, session));
    let mut session = attach(&runtime, &once.0, true).await;
    let mut stdin = session.stdin.take().unwrap();
    stdin.write_all(&vec![b'x'; 300_000]).await.unwrap();
    drop(stdin);
    until(&mut session.stdout, "300000\n").await;
    assert!(attach(&runtime, &once.0, true).await.stdin.is_none());
    drop(runtime);

    // Neither changes with the agent.
    let runtime = world.runtime();
    assert!(attach(&runtime, &once.0, true).await.stdin.is_none());
    let mut session = attach(&runtime, &many.0, true).await;
    let mut stdin = session.stdin.take().unwrap();
    stdin.write_all(b"two\n").await.unwrap();
    assert_eq!(rest(session.stdout).await, "one two\n");
    assert_eq!(session.exit.await.unwrap().unwrap(), 3);
    runtime.remove_sandbox(&pod("i")).await.unwrap();
    world.assert_clean("i").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_attached_terminal_echoes_and_has_the_clients_size() {
    let Some(world) = World::start() else { return };
    let runtime = world.runtime();
    runtime.ensure_sandbox(&world.sandbox("t")).await.unwrap();
    let mut spec = world.shell("t", "main", TTY_SCRIPT);
    (spec.stdin, spec.stdin_once, spec.tty) = (true, true, true);
    let id = runtime.start_container(&spec).await.unwrap().id;
    let mut session = attach(&runtime, &id, true).await;
    assert!(session.stderr.is_none());
    until(&mut session.stdout, "ready\r\n").await;
    session.resize.send((101, 37)).await.unwrap();
    let mut stdin = session.stdin.take().unwrap();
    stdin.write_all(b"typed\n").await.unwrap();
    let out = rest(session.stdout).await;
    assert!(
        out.contains("typed\r\n") && out.contains("37 101\r\n"),
        "{out:?}"
    );
    assert_eq!(session.exit.await.unwrap().unwrap(), 6);
    let error = runtime
        .attach(AttachRequest {
            container_id: "gone".into(),
            stdin: false,
        })
        .await
        .unwrap_err();
    assert!(matches!(error, RuntimeError::NotFound { .. }), "{error:?}");
    assert_eq!(exit_of(&runtime, "main").await.exit_code, 6);
    runtime.remove_sandbox(&pod("t")).await.unwrap();
    world.assert_clean("t").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_never_reads_stops_neither_the_container_nor_its_log() {
    let Some(world) = World::start() else { return };
    let runtime = world.runtime();
    runtime.ensure_sandbox(&world.sandbox("s")).await.unwrap();
    let script = "sleep 0.3; head -c 12000000 /dev/zero | tr '\\0' 'x' | fold -w 99; exit 7";
    let spec = world.shell("s", "main", script);
    let id = runtime.start_container(&spec).await.unwrap().id;
    let _stuck = attach(&runtime, &id, false).await;
    assert_eq!(exit_of(&runtime, "main").await.exit_code, 7);
    let bytes: usize = world.log(&spec).iter().map(|line| line.len() - 9).sum();
    assert_eq!(bytes, 12_000_000);
    runtime.remove_sandbox(&pod("s")).await.unwrap();
    world.assert_clean("s").await;
}
