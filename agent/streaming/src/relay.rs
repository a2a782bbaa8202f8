//! Relaying an upgraded client connection to an upgraded back-end connection, byte for byte.
//!
//! The API server authenticates the client, opens a TLS connection to the agent and calls
//! [`proxy_upgrade`]; it never looks into the frames, so the protocol is end to end.

use bytes::Bytes;
use http::header::{CONNECTION, HOST, HeaderValue, UPGRADE};
use http::{Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Empty, combinators};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite, copy_bidirectional_with_sizes};

/// Body of a proxied answer: empty for an upgrade, the back-end's own otherwise.
pub type BoxBody = combinators::UnsyncBoxBody<Bytes, hyper::Error>;

/// Why a request could not be relayed.
#[derive(Debug, thiserror::Error)]
pub enum RelayError {
    #[error("failed to start HTTP on the connection to the back-end")]
    Handshake { source: hyper::Error },
    #[error("failed to send the upgrade request to the back-end")]
    Send { source: hyper::Error },
    #[error("failed to build the request {uri}")]
    Request { uri: String, source: http::Error },
}

/// Buffer per direction: one frame of kubectl's copy loop.
const BUFFER_BYTES: usize = 32 * 1024;

/// Sends `request` (an HTTP/1.1 upgrade from a client) to `backend` as `GET target`, with the client's
/// handshake headers. On `101` the two connections are joined in a task of their own once the caller has
/// sent the returned response; any other answer is handed through with its body.
///
/// `authority` is the value of the `Host` header. Authorization headers never reach the back-end.
pub async fn proxy_upgrade<B, S>(
    request: &mut Request<B>,
    backend: S,
    authority: &str,
    target: &Uri,
) -> Result<Response<BoxBody>, RelayError>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
{
    let client_upgrade = hyper::upgrade::on(&mut *request);
    let path = target
        .path_and_query()
        .map_or("/", http::uri::PathAndQuery::as_str);
    let mut outgoing = Request::builder()
        .method(request.method().clone())
        .uri(path)
        .body(Empty::<Bytes>::new())
        .map_err(|source| RelayError::Request {
            uri: path.to_owned(),
            source,
        })?;
    for (name, value) in request.headers() {
        let is_credential = name == http::header::AUTHORIZATION
            || name == http::header::COOKIE
            || name == http::header::PROXY_AUTHORIZATION
            || name.as_str().starts_with("impersonate-");
        let is_body =
            name == http::header::CONTENT_LENGTH || name == http::header::TRANSFER_ENCODING;
        if name != HOST && !is_credential && !is_body {
            outgoing.headers_mut().append(name.clone(), value.clone());
        }
    }
    if let Ok(host) = HeaderValue::from_str(authority) {
        outgoing.headers_mut().insert(HOST, host);
    }

    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(backend))
        .await
        .map_err(|source| RelayError::Handshake { source })?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "the connection to the back-end ended");
        }
    });
    let mut answer = sender
        .send_request(outgoing)
        .await
        .map_err(|source| RelayError::Send { source })?;
    if answer.status() != StatusCode::SWITCHING_PROTOCOLS {
        // The task above keeps the connection alive while the body is read.
        return Ok(passed_through(answer));
    }
    let backend_upgrade = hyper::upgrade::on(&mut answer);
    tokio::spawn(join_upgrades(client_upgrade, backend_upgrade));
    let mut response = Response::new(Empty::new().map_err(|never| match never {}).boxed_unsync());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    *response.headers_mut() = answer.headers().clone();
    Ok(response)
}

fn passed_through(answer: Response<Incoming>) -> Response<BoxBody> {
    let (mut parts, body) = answer.into_parts();
    // Hop-by-hop headers belong to the back-end's connection.
    parts.headers.remove(CONNECTION);
    parts.headers.remove(UPGRADE);
    parts.headers.remove(http::header::TRANSFER_ENCODING);
    Response::from_parts(parts, body.boxed_unsync())
}

async fn join_upgrades(client: OnUpgrade, backend: OnUpgrade) {
    let (client, backend) = match tokio::try_join!(client, backend) {
        Ok(both) => both,
        Err(error) => {
            tracing::debug!(%error, "one side did not complete the upgrade");
            return;
        }
    };
    if let Err(error) = relay(TokioIo::new(client), TokioIo::new(backend)).await {
        tracing::debug!(%error, "the relayed connection ended");
    }
}

/// Copies both ways until both sides are finished, passing half-closes on. Returns the bytes from the
/// client and from the back-end.
pub async fn relay<C, S>(mut client: C, mut backend: S) -> std::io::Result<(u64, u64)>
where
    C: AsyncRead + AsyncWrite + Unpin,
    S: AsyncRead + AsyncWrite + Unpin,
{
    copy_bidirectional_with_sizes(&mut client, &mut backend, BUFFER_BYTES, BUFFER_BYTES).await
}
