//! Connections to a node's kubelet API.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::HOST;
use http::{Request, Response};
use http_body_util::Empty;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls_pki_types::ServerName;
use tholepin_apimachinery::ApiError;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::target::Target;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// What could not be done, naming the node, as upstream's messages do.
pub(super) fn failed(target: &Target, error: &dyn std::fmt::Display) -> ApiError {
    let cause = format!(
        "error dialing backend: node {} at {}: {error}",
        target.node,
        target.authority()
    );
    ApiError::internal(cause)
}

/// A verified TLS connection.
pub(super) async fn tls(
    config: &Arc<ClientConfig>,
    target: &Target,
) -> Result<TlsStream<TcpStream>, ApiError> {
    let connecting = async {
        let stream = TcpStream::connect((target.address, target.port)).await?;
        stream.set_nodelay(true)?;
        let name = ServerName::IpAddress(target.address.into());
        TlsConnector::from(Arc::clone(config))
            .connect(name, stream)
            .await
    };
    match tokio::time::timeout(CONNECT_TIMEOUT, connecting).await {
        Ok(connected) => connected.map_err(|error| failed(target, &error)),
        Err(_) => Err(failed(target, &"i/o timeout")),
    }
}

/// `GET` of the target. The body streams for as long as both ends like.
pub(super) async fn get(
    config: &Arc<ClientConfig>,
    target: &Target,
) -> Result<Response<Incoming>, ApiError> {
    let stream = tls(config, target).await?;
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .map_err(|error| failed(target, &error))?;
    // Ends when the answer's body was read or dropped.
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "the connection to a node ended");
        }
    });
    let request = Request::get(target.uri.clone())
        .header(HOST, target.authority())
        .body(Empty::<Bytes>::new())
        .map_err(|error| failed(target, &error))?;
    sender
        .send_request(request)
        .await
        .map_err(|error| failed(target, &error))
}
