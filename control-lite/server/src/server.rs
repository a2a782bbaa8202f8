//! Listening: TLS connections, HTTP/1.1 and HTTP/2 on them, and an orderly end.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::GracefulShutdown;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::http::{Frontend, NodeProxy, Peer};
use crate::pki::{Pki, PkiError};
use crate::registry::Registry;

/// A client that does not finish its handshake is let go.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Also how long an idle HTTP/1.1 connection is kept: longer than clients' pools keep theirs (90 s
/// in Go and in hyper), so that it is the client who closes and no request meets a closing server.
const HEADER_TIMEOUT: Duration = Duration::from_secs(180);
/// Requests that are being answered when the server stops get this long.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause after a failed accept (out of file descriptors): trying at once would only burn a core.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How the server is set up.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Certificates.
    pub pki: Arc<Pki>,
}

/// The API server.
pub struct ApiServer {
    registry: Registry,
    tls: TlsAcceptor,
    node_proxy: NodeProxy,
}

impl std::fmt::Debug for ApiServer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiServer")
            .field("registry", &self.registry)
            .finish_non_exhaustive()
    }
}

impl ApiServer {
    /// A server over a registry.
    pub fn new(config: ServerConfig, registry: Registry) -> Result<Self, PkiError> {
        let tls = TlsAcceptor::from(config.pki.server_config()?);
        let node_proxy = NodeProxy::new(registry.clone(), config.pki.kubelet_config()?);
        Ok(Self {
            registry,
            tls,
            node_proxy,
        })
    }

    /// Serves every listener until cancelled, then ends watches, lets other requests finish, and
    /// returns.
    pub async fn serve(self, listeners: Vec<TcpListener>, cancel: CancellationToken) {
        let frontend = Frontend::new(self.registry, self.node_proxy, cancel.clone());
        let mut tasks = JoinSet::new();
        for listener in listeners {
            let (tls, frontend) = (self.tls.clone(), Arc::clone(&frontend));
            tasks.spawn(accept(listener, tls, frontend, cancel.clone()));
        }
        while tasks.join_next().await.is_some() {}
    }
}

async fn accept(
    listener: TcpListener,
    tls: TlsAcceptor,
    frontend: Arc<Frontend>,
    cancel: CancellationToken,
) {
    let graceful = Arc::new(GracefulShutdown::new());
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
            () = cancel.cancelled() => break,
        };
        match accepted {
            Ok((stream, _)) => {
                let (tls, frontend) = (tls.clone(), Arc::clone(&frontend));
                connections.spawn(connection(stream, tls, frontend, graceful.watcher()));
            }
            Err(error) => {
                tracing::warn!(%error, "accepting a connection failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    if let Some(graceful) = Arc::into_inner(graceful) {
        let drained = tokio::time::timeout(DRAIN_TIMEOUT, graceful.shutdown()).await;
        if drained.is_err() {
            tracing::info!("requests were still running when the server stopped");
        }
    }
    connections.shutdown().await;
}

async fn connection(
    stream: TcpStream,
    tls: TlsAcceptor,
    frontend: Arc<Frontend>,
    watcher: hyper_util::server::graceful::Watcher,
) {
    // Answers are small and urgent; a failure only makes them slower.
    stream.set_nodelay(true).ok();
    let stream = match tokio::time::timeout(HANDSHAKE_TIMEOUT, tls.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(%error, "TLS handshake failed");
            return;
        }
        Err(_) => return,
    };
    let peer = Peer::of(stream.get_ref().1.peer_certificates());
    let service = service_fn(move |request| {
        let (frontend, peer) = (Arc::clone(&frontend), peer.clone());
        async move { Ok::<_, Infallible>(frontend.serve(&peer, request).await) }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT);
    builder
        .http2()
        .timer(TokioTimer::new())
        // A watch is silent for minutes; a dead peer must not keep it.
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(20))
        .max_concurrent_streams(250);
    let serving = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    if let Err(error) = watcher.watch(serving.into_owned()).await {
        tracing::debug!(error, "connection ended");
    }
}
