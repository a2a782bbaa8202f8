//! Commands run in running containers.

use std::time::Duration;

use tholepin_agent::runtime::{ExecRequest, ExecSession, Runtime, RuntimeError};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};

use crate::world::{World, exit_of, pod};

fn request(id: &str, command: &[&str]) -> ExecRequest {
    ExecRequest {
        container_id: id.into(),
        command: command.iter().map(|word| (*word).to_owned()).collect(),
        stdin: false,
        tty: false,
    }
}

async fn read(stream: impl AsyncRead + Unpin) -> String {
    let mut text = String::new();
    let mut stream = stream;
    let reading = stream.read_to_string(&mut text);
    tokio::time::timeout(Duration::from_secs(60), reading)
        .await
        .expect("an end")
        .unwrap();
    text
}

/// Output, errors and exit code.
async fn outcome(session: ExecSession) -> (String, String, i32) {
    let stderr = async {
        match session.stderr {
            Some(stderr) => read(stderr).await,
            None => String::new(),
        }
    };
    let (out, err, code) = tokio::join!(read(session.stdout), stderr, session.exit);
    (out, err, code.unwrap().unwrap())
}

#[tokio::test(flavor = "multi_thread")]
async fn exec_gives_output_errors_exit_code_and_takes_input() {
    let Some(world) = World::start() else { return };
    let runtime = world.runtime();
    runtime.ensure_sandbox(&world.sandbox("e")).await.unwrap();
    let mut spec = world.shell("e", "main", "sleep 1000");
    spec.env = vec![("A".into(), "inherited".into())];
    let id = runtime.start_container(&spec).await.unwrap().id;

    let command = ["sh", "-c", "echo out $A $HOSTNAME; echo err >&2; exit 5"];
    let session = runtime.exec(request(&id, &command)).await.unwrap();
    assert_eq!(
        outcome(session).await,
        ("out inherited e\n".into(), "err\n".into(), 5)
    );

    let mut session = runtime
        .exec(ExecRequest {
            stdin: true,
            ..request(&id, &["cat"])
        })
        .await
        .unwrap();
    let mut stdin = session.stdin.take().unwrap();
    let big = "0123456789abcdef".repeat(20_000);
    let feeding = async move {
        stdin.write_all(big.as_bytes()).await.unwrap();
        stdin.shutdown().await.unwrap();
        big
    };
    let (big, (out, _, code)) = tokio::join!(feeding, outcome(session));
    assert_eq!(code, 0);
    assert!(out == big, "{} bytes instead of {}", out.len(), big.len());

    let error = runtime.exec(request(&id, &["nope"])).await.unwrap_err();
    assert!(matches!(error, RuntimeError::Exec { .. }), "{error:?}");
    let text = error.to_string();
    assert!(
        text.contains("exec: \"nope\": executable file not found in $PATH"),
        "{text}"
    );

    runtime.stop_container(&id, Duration::ZERO).await.unwrap();
    exit_of(&runtime, "main").await;
    let error = runtime.exec(request(&id, &["true"])).await.unwrap_err();
    assert_eq!(
        error.to_string(),
        "failed to exec in container main: container is not running"
    );
    let error = runtime.exec(request("gone", &["true"])).await.unwrap_err();
    assert!(matches!(error, RuntimeError::NotFound { .. }), "{error:?}");
    runtime.remove_sandbox(&pod("e")).await.unwrap();
    world.assert_clean("e").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_has_one_stream_a_size_and_an_end_of_input() {
    let Some(world) = World::start() else { return };
    let runtime = world.runtime();
    runtime.ensure_sandbox(&world.sandbox("y")).await.unwrap();
    let id = runtime
        .start_container(&world.shell("y", "main", "sleep 1000"))
        .await
        .unwrap()
        .id;
    let request = ExecRequest {
        stdin: true,
        tty: true,
        ..request(
            &id,
            // The size is applied by a task of its own, soon and not at once.
            &[
                "sh",
                "-c",
                "read x; until stty size | grep '45 123'; do sleep 0.1; done; tty; \
                 echo $TERM >&2; exit 9",
            ],
        )
    };
    let mut session = runtime.exec(request).await.unwrap();
    assert!(session.stderr.is_none());
    session.resize.send((123, 45)).await.unwrap();
    let mut stdin = session.stdin.take().unwrap();
    stdin.write_all(b"go\n").await.unwrap();
    let (out, _, code) = outcome(session).await;
    assert_eq!(code, 9);
    assert!(out.contains("45 123\r\n"), "{out:?}");
    assert!(
        out.contains("/dev/pts/") && out.contains("xterm"),
        "{out:?}"
    );
    runtime.remove_sandbox(&pod("y")).await.unwrap();
    world.assert_clean("y").await;
}
