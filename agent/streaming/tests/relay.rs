//! A client, a relaying server and a back-end, joined by in-memory streams.

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use http::{Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Empty, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tholepin_streaming::{
    ExecOutcome, SessionStreams, accept, proxy_upgrade, relay, serve_websocket,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

async fn backend(io: DuplexStream) {
    let service = service_fn(|mut request: Request<Incoming>| async move {
        assert!(
            request.headers().get("authorization").is_none(),
            "credentials stay at the relay"
        );
        if request.uri().path() == "/refused" {
            let mut refused = Response::new(Full::new(Bytes::from("container not found")));
            *refused.status_mut() = StatusCode::NOT_FOUND;
            return Ok::<_, hyper::Error>(refused);
        }
        assert_eq!(request.uri().query(), Some("command=cat"));
        let accepted = accept(request.headers()).expect("a WebSocket request");
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let io = TokioIo::new(upgrade.await.expect("the relay upgraded"));
            let (stdin, stdout) = duplex(1024);
            let streams = SessionStreams {
                stdin: Some(Box::new(stdin)),
                stdout: Some(Box::new(stdout)),
                stderr: None,
                resize: None,
            };
            // `stdin` and `stdout` are the two ends of one pipe: an echo.
            serve_websocket(
                io,
                accepted.protocol,
                streams,
                std::future::pending::<ExecOutcome>(),
            )
            .await
        });
        Ok(accepted.response.map(|()| Full::new(Bytes::new())))
    });
    hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(io), service)
        .with_upgrades()
        .await
        .ok();
}

async fn front(io: DuplexStream, target: &'static str) {
    let service = service_fn(move |mut request: Request<Incoming>| async move {
        let (near, far) = duplex(1 << 16);
        tokio::spawn(backend(far));
        let target = Uri::from_static(target);
        proxy_upgrade(&mut request, near, "node", &target).await
    });
    hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(io), service)
        .with_upgrades()
        .await
        .ok();
}

#[tokio::test]
async fn frames_pass_the_relay_unchanged_in_both_directions() {
    let (near, far) = duplex(1 << 16);
    tokio::spawn(front(far, "/exec?command=cat"));
    let mut request = "ws://api/x".into_client_request().unwrap();
    request.headers_mut().insert(
        "sec-websocket-protocol",
        "v5.channel.k8s.io".parse().unwrap(),
    );
    request
        .headers_mut()
        .insert("authorization", "Bearer secret".parse().unwrap());
    let (mut client, response) = tokio_tungstenite::client_async(request, near)
        .await
        .unwrap();
    assert_eq!(
        response.headers()["sec-websocket-protocol"],
        "v5.channel.k8s.io"
    );
    client
        .send(Message::Binary(Bytes::from_static(b"\0echo me")))
        .await
        .unwrap();
    loop {
        match client.next().await.unwrap().unwrap() {
            Message::Binary(bytes) if bytes.len() > 1 => {
                assert_eq!(&bytes[..], b"\x01echo me");
                break;
            }
            _ => {}
        }
    }
}

#[tokio::test]
async fn a_refusal_of_the_backend_reaches_the_client_with_its_body() {
    let (near, far) = duplex(1 << 16);
    tokio::spawn(front(far, "/refused"));
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(near))
        .await
        .unwrap();
    tokio::spawn(connection);
    let request = Request::builder()
        .uri("/x")
        .header("connection", "Upgrade")
        .header("upgrade", "websocket")
        .body(Empty::<Bytes>::new())
        .unwrap();
    let response = sender.send_request(request).await.unwrap();
    assert_eq!(response.status(), StatusCode::NOT_FOUND);
    let body = response.into_body().collect().await.unwrap().to_bytes();
    assert_eq!(&body[..], b"container not found");
}

#[tokio::test]
async fn a_half_close_is_passed_on() {
    let (mut client, near) = duplex(64);
    let (far, mut backend) = duplex(64);
    let task = tokio::spawn(relay(near, far));
    client.write_all(b"ping").await.unwrap();
    client.shutdown().await.unwrap();
    let mut received = Vec::new();
    backend.read_to_end(&mut received).await.unwrap();
    assert_eq!(received, b"ping");
    backend.write_all(b"pong").await.unwrap();
    drop(backend);
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).await.unwrap();
    assert_eq!(answer, b"pong");
    assert_eq!(task.await.unwrap().unwrap(), (4, 4));
}
