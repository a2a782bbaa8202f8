//! Sessions over in-memory streams, with a tungstenite client on the other end.

use tokio::io::{DuplexStream, duplex};

use super::*;

type Client = WebSocketStream<DuplexStream>;

async fn client_of(io: DuplexStream) -> Client {
    WebSocketStream::from_raw_socket(io, Role::Client, None).await
}

async fn next_on(client: &mut Client, channel: u8) -> Vec<u8> {
    loop {
        match client.next().await.expect("the session is open").unwrap() {
            Message::Binary(bytes) if bytes[0] == channel && bytes.len() > 1 => {
                return bytes[1..].to_vec();
            }
            Message::Close(_) => panic!("closed before a message on channel {channel}"),
            _ => {}
        }
    }
}

#[tokio::test]
async fn output_arrives_before_the_status_and_the_close() {
    let (near, far) = duplex(1 << 16);
    let (mut process_out, agent_out) = duplex(1024);
    let (mut process_err, agent_err) = duplex(1024);
    let server = tokio::spawn(serve_websocket(
        near,
        Protocol::V5,
        SessionStreams {
            stdin: None,
            stdout: Some(Box::new(agent_out)),
            stderr: Some(Box::new(agent_err)),
            resize: None,
        },
        async { ExecOutcome::Exited(7) },
    ));
    let mut client = client_of(far).await;
    process_out.write_all(b"out").await.unwrap();
    process_err.write_all(b"err").await.unwrap();
    drop((process_out, process_err));
    let mut seen = Vec::new();
    while let Some(message) = client.next().await {
        match message.unwrap() {
            Message::Binary(bytes) if bytes.len() > 1 => seen.push(bytes.to_vec()),
            Message::Close(frame) => {
                assert_eq!(frame.unwrap().code, CloseCode::Normal);
                break;
            }
            _ => {}
        }
    }
    drop(client);
    assert!(seen[..2].contains(&b"\x01out".to_vec()) && seen[..2].contains(&b"\x02err".to_vec()));
    let status: serde_json::Value = serde_json::from_slice(&seen[2][1..]).unwrap();
    assert_eq!(seen[2][0], STATUS);
    assert_eq!(status["details"]["causes"][0]["message"], "7");
    assert_eq!(server.await.unwrap(), SessionEnd::Finished);
}

#[tokio::test]
async fn v5_close_ends_stdin_and_the_process_sees_end_of_file() {
    let (near, far) = duplex(1 << 16);
    let (agent_in, mut process_in) = duplex(1024);
    let (exited, exit) = tokio::sync::oneshot::channel();
    let server = tokio::spawn(serve_websocket(
        near,
        Protocol::V5,
        SessionStreams {
            stdin: Some(Box::new(agent_in)),
            stdout: None,
            stderr: None,
            resize: None,
        },
        async move { exit.await.unwrap() },
    ));
    let mut client = client_of(far).await;
    client.send(framed(STDIN, b"hello ")).await.unwrap();
    client.send(framed(STDIN, b"world")).await.unwrap();
    client.send(framed(CLOSE, &[STDIN])).await.unwrap();
    let mut all = String::new();
    process_in.read_to_string(&mut all).await.unwrap();
    assert_eq!(all, "hello world");
    exited.send(ExecOutcome::Exited(0)).unwrap();
    let status: serde_json::Value =
        serde_json::from_slice(&next_on(&mut client, STATUS).await).unwrap();
    assert_eq!(status["status"], "Success");
    drop(client);
    assert_eq!(server.await.unwrap(), SessionEnd::Finished);
}

#[tokio::test]
async fn terminal_sizes_are_forwarded_as_columns_and_rows() {
    let (near, far) = duplex(1 << 16);
    let (sizes, mut received) = mpsc::channel(4);
    let server = tokio::spawn(serve_websocket(
        near,
        Protocol::V4,
        SessionStreams {
            stdin: None,
            stdout: None,
            stderr: None,
            resize: Some(sizes),
        },
        std::future::pending(),
    ));
    let mut client = client_of(far).await;
    client
        .send(framed(RESIZE, br#"{"Width":120,"Height":40}"#))
        .await
        .unwrap();
    assert_eq!(received.recv().await, Some((120, 40)));
    drop(client);
    assert_eq!(server.await.unwrap(), SessionEnd::Disconnected);
}

#[tokio::test(start_paused = true)]
async fn a_pipe_held_open_by_a_child_does_not_hold_the_session() {
    let (near, far) = duplex(1 << 16);
    let (_held_open, agent_out) = duplex(1024);
    let server = tokio::spawn(serve_websocket(
        near,
        Protocol::V4,
        SessionStreams {
            stdin: None,
            stdout: Some(Box::new(agent_out)),
            stderr: None,
            resize: None,
        },
        async { ExecOutcome::Exited(0) },
    ));
    let mut client = client_of(far).await;
    let status = next_on(&mut client, STATUS).await;
    assert!(String::from_utf8(status).unwrap().contains("Success"));
    drop(client);
    assert_eq!(server.await.unwrap(), SessionEnd::Finished);
}

#[tokio::test]
async fn a_process_that_closed_stdin_keeps_its_session() {
    let (near, far) = duplex(1 << 16);
    let (agent_in, process_in) = duplex(16);
    drop(process_in);
    let (mut process_out, agent_out) = duplex(1024);
    let _server = tokio::spawn(serve_websocket(
        near,
        Protocol::V4,
        SessionStreams {
            stdin: Some(Box::new(agent_in)),
            stdout: Some(Box::new(agent_out)),
            stderr: None,
            resize: None,
        },
        std::future::pending(),
    ));
    let mut client = client_of(far).await;
    client
        .send(framed(STDIN, b"nobody reads this"))
        .await
        .unwrap();
    process_out.write_all(b"still here").await.unwrap();
    assert_eq!(next_on(&mut client, STDOUT).await, b"still here");
}
