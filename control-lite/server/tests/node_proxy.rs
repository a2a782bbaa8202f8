//! Logs and exec through a stand-in for a node's kubelet API: real TLS, both certificates verified.

#![expect(clippy::unwrap_used, reason = "a test panics")]

mod support;

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;
use support::{TestServer, client};
use tholepin_apiserver::{NodeCredentials, RequestContext, Subresource, resources};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

type Seen = Arc<Mutex<Vec<String>>>;

/// Starts the stand-in, registers its node, and binds the pod `p` to it.
async fn node(server: &TestServer) -> Seen {
    let out = server.folder.path().join("n1");
    let credentials = NodeCredentials {
        pki_folder: server.folder.path().join("pki"),
        node: "n1".to_owned(),
        addresses: vec!["127.0.0.1".parse().unwrap()],
        server: format!("https://{}", server.address),
        out: out.clone(),
    };
    credentials.write().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let seen = Seen::default();
    tokio::spawn(kubelet(listener, tls(&out), Arc::clone(&seen)));
    register(server, address).await;
    seen
}

fn tls(folder: &std::path::Path) -> TlsAcceptor {
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_file(folder.join("ca.crt")).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
    let certificate = CertificateDer::from_pem_file(folder.join("kubelet.crt")).unwrap();
    let key = PrivateKeyDer::from_pem_file(folder.join("kubelet.key")).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier.build().unwrap())
        .with_single_cert(vec![certificate], key)
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}

async fn kubelet(listener: TcpListener, tls: TlsAcceptor, seen: Seen) {
    while let Ok((stream, _)) = listener.accept().await {
        let (tls, seen) = (tls.clone(), Arc::clone(&seen));
        tokio::spawn(async move {
            let Ok(stream) = tls.accept(stream).await else {
                return;
            };
            let service = service_fn(|request| {
                seen.lock().unwrap().push(request.uri().to_string());
                async { Ok::<_, Infallible>(answer(request)) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .serve_connection(TokioIo::new(stream), service);
            connection.with_upgrades().await.ok();
        });
    }
}

fn answer(mut request: Request<Incoming>) -> Response<Full<Bytes>> {
    let path = request.uri().path().to_owned();
    if path.starts_with("/exec/") && !request.headers().contains_key("upgrade") {
        // The node looks for the container before it looks for an upgrade.
        let text = "container c in pod p is not running";
        return Response::builder()
            .status(400)
            .body(Full::from(text))
            .unwrap();
    }
    if path.starts_with("/exec/") {
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let mut stream = TokioIo::new(upgrade.await.unwrap());
            let mut word = [0; 4];
            stream.read_exact(&mut word).await.unwrap();
            stream
                .write_all(&word.map(|byte| byte.to_ascii_uppercase()))
                .await
                .unwrap();
        });
        let response = Response::builder()
            .status(101)
            .header("connection", "Upgrade")
            .header("upgrade", "websocket");
        return response.body(Full::default()).unwrap();
    }
    if request
        .uri()
        .query()
        .unwrap_or_default()
        .contains("previous")
    {
        let text = "previous terminated container \"c\" in pod \"p\" not found";
        return Response::builder()
            .status(400)
            .body(Full::from(text))
            .unwrap();
    }
    Response::new(Full::from("a line\n"))
}

async fn register(server: &TestServer, address: SocketAddr) {
    let (ctx, registry) = (RequestContext::component("test"), &server.registry);
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1"}});
    registry
        .create(&ctx, resources::NODES, "", node)
        .await
        .unwrap();
    let report = |node: &mut serde_json::Value| {
        node["status"]["addresses"] = json!([{"type": "InternalIP", "address": "127.0.0.1"}]);
        node["status"]["daemonEndpoints"] = json!({"kubeletEndpoint": {"Port": address.port()}});
        Ok(())
    };
    let part = Subresource::Status;
    registry
        .modify(&ctx, resources::NODES, "", "n1", part, report)
        .await
        .unwrap();
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
        "spec": {"containers": [{"name": "c", "image": "i"}]},
    });
    registry
        .create(&ctx, resources::PODS, "default", pod)
        .await
        .unwrap();
    let binding = json!({"target": {"kind": "Node", "name": "n1"}});
    registry.bind(&ctx, "default", "p", binding).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_logs_come_from_the_node() {
    let server = TestServer::start().await;
    let seen = node(&server).await;
    assert_eq!(server.kubectl(&["logs", "p", "--tail=5"]).await, "a line\n");
    assert_eq!(
        seen.lock().unwrap()[0],
        "/containerLogs/default/p/c?tailLines=5"
    );
    let error = server.kubectl_fails(&["logs", "p", "-p"], "").await;
    assert!(
        error.contains("previous terminated container \"c\" in pod \"p\" not found"),
        "{error}"
    );
    let error = server.kubectl_fails(&["logs", "p", "-c", "x"], "").await;
    assert!(
        error.contains("container x is not valid for pod p"),
        "{error}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exec_connection_is_relayed_both_ways() {
    let server = TestServer::start().await;
    let seen = node(&server).await;
    let mut client = server.client(Some("admin")).await;
    let headers = [
        ("connection", "Upgrade"),
        ("upgrade", "websocket"),
        ("sec-websocket-version", "13"),
        ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
        ("sec-websocket-protocol", "v5.channel.k8s.io"),
    ];
    let path = "/api/v1/namespaces/default/pods/p/exec?command=ls&command=-l&stdout=true";
    let mut response = client.send("GET", path, &headers, "").await;
    assert_eq!(response.status(), 101);
    let mut stream = TokioIo::new(hyper::upgrade::on(&mut response).await.unwrap());
    stream.write_all(b"ping").await.unwrap();
    let mut answer = [0; 4];
    stream.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"PING");
    assert_eq!(
        seen.lock().unwrap()[0],
        "/exec/default/p/c?output=1&command=ls&command=-l"
    );
    let mut client = server.client(Some("admin")).await;
    let (status, body) = client::json(client.send("POST", path, &[], "").await).await;
    assert_eq!(status, 400);
    assert!(
        body["message"]
            .as_str()
            .unwrap()
            .contains("container c in pod p is not running"),
        "the fallback must not hide the node's reason: {body}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_does_not_answer_is_named() {
    let server = TestServer::start().await;
    // Nothing listens on the discard port of loopback.
    register(&server, "127.0.0.1:9".parse().unwrap()).await;
    let error = server.kubectl_fails(&["logs", "p"], "").await;
    assert!(
        error.contains("error dialing backend: node n1 at 127.0.0.1:9"),
        "{error}"
    );
}
