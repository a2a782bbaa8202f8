//! The kubelet's HTTPS API on 10250: logs, exec, pods, metrics, for one authorised client.
//!
//! Every request needs a client certificate signed by the configured CA (else 401) that carries the
//! authorised name (else 403).

mod exec;
mod logs;
mod route;

use std::convert::Infallible;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::RootCertStore;
use rustls::server::WebPkiClientVerifier;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use crate::config::{Config, KubeletApiConfig};
use crate::observe::metrics::Metrics;
use crate::reconcile::pods::runtime_view::RuntimeView;
use crate::runtime::Runtime;
use crate::watch::pods::PodsView;

/// Body of every answer.
pub(crate) type Body = UnsyncBoxBody<Bytes, std::io::Error>;

/// Why the API cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum KubeletApiError {
    #[error("failed to read {what} from {path}")]
    Pem {
        what: &'static str,
        path: PathBuf,
        source: rustls_pki_types::pem::Error,
    },
    #[error("{path} holds no certificate")]
    NoCertificate { path: PathBuf },
    #[error("the TLS configuration is not usable")]
    Tls {
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("failed to listen on {address}")]
    Listen {
        address: SocketAddr,
        source: std::io::Error,
    },
}

/// What the handlers look at.
#[derive(Clone)]
pub struct ApiContext {
    pub config: Arc<Config>,
    pub runtime: Arc<dyn Runtime>,
    pub pods: watch::Receiver<PodsView>,
    pub view: RuntimeView,
    pub metrics: Metrics,
    pub heartbeat: watch::Receiver<Instant>,
}

impl std::fmt::Debug for ApiContext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiContext").finish_non_exhaustive()
    }
}

/// The IPv4 wildcard means every family, as it does for the kubelet; a machine without IPv6 keeps IPv4.
async fn bind_families(address: SocketAddr) -> std::io::Result<TcpListener> {
    if address.ip() == Ipv4Addr::UNSPECIFIED {
        let every_family = SocketAddr::from((Ipv6Addr::UNSPECIFIED, address.port()));
        match TcpListener::bind(every_family).await {
            Err(error) if error.raw_os_error() == Some(libc::EAFNOSUPPORT) => {}
            outcome => return outcome,
        }
    }
    TcpListener::bind(address).await
}

/// A bound listener that is not served yet.
pub struct Server {
    listener: TcpListener,
    acceptor: TlsAcceptor,
    context: Arc<ApiContext>,
    authorized: Arc<str>,
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server")
            .field("listener", &self.listener)
            .finish_non_exhaustive()
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, KubeletApiError> {
    let failed = |source| KubeletApiError::Pem {
        what: "certificates",
        path: path.to_path_buf(),
        source,
    };
    let found = CertificateDer::pem_file_iter(path)
        .map_err(failed)?
        .collect::<Result<Vec<_>, _>>()
        .map_err(failed)?;
    if found.is_empty() {
        return Err(KubeletApiError::NoCertificate {
            path: path.to_path_buf(),
        });
    }
    Ok(found)
}

fn tls(config: &KubeletApiConfig) -> Result<rustls::ServerConfig, KubeletApiError> {
    fn failed<E: std::error::Error + Send + Sync + 'static>(source: E) -> KubeletApiError {
        KubeletApiError::Tls {
            source: Box::new(source),
        }
    }
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&config.client_ca)? {
        roots.add(certificate).map_err(failed)?;
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    // Unauthenticated clients complete the handshake, so that they can be told 401 in words.
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .allow_unauthenticated()
            .build()
            .map_err(failed)?;
    let key = PrivateKeyDer::from_pem_file(&config.private_key).map_err(|source| {
        KubeletApiError::Pem {
            what: "a private key",
            path: config.private_key.clone(),
            source,
        }
    })?;
    let mut server = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(failed)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificates(&config.certificate)?, key)
        .map_err(failed)?;
    // WebSockets are HTTP/1.1 upgrades.
    server.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(server)
}

/// Loads certificates and binds the port.
pub async fn bind(
    config: &KubeletApiConfig,
    context: ApiContext,
) -> Result<Server, KubeletApiError> {
    let tls = tls(config)?;
    let address = config.listen;
    let listener = bind_families(address)
        .await
        .map_err(|source| KubeletApiError::Listen { address, source })?;
    Ok(Server {
        listener,
        acceptor: TlsAcceptor::from(Arc::new(tls)),
        context: Arc::new(context),
        authorized: Arc::from(config.authorized_client_name.as_str()),
    })
}

impl Server {
    /// Serves until cancelled.
    pub async fn serve(self, cancel: CancellationToken) {
        loop {
            let accepted = tokio::select! {
                () = cancel.cancelled() => return,
                accepted = self.listener.accept() => accepted,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "accept failed");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let (acceptor, context) = (self.acceptor.clone(), Arc::clone(&self.context));
            let (authorized, cancel) = (Arc::clone(&self.authorized), cancel.clone());
            tokio::spawn(async move {
                let handshake =
                    tokio::time::timeout(Duration::from_secs(10), acceptor.accept(stream));
                let stream = match handshake.await {
                    Ok(Ok(stream)) => stream,
                    Ok(Err(error)) => {
                        tracing::debug!(%error, "TLS handshake failed");
                        return;
                    }
                    Err(_) => return,
                };
                let access = access(stream.get_ref().1.peer_certificates(), &authorized);
                let service = service_fn(move |request: Request<Incoming>| {
                    let (context, access) = (Arc::clone(&context), access.clone());
                    async move {
                        Ok::<_, Infallible>(match access {
                            Ok(()) => route::handle(request, context).await,
                            Err((status, message)) => plain(status, message),
                        })
                    }
                });
                let mut builder = auto::Builder::new(TokioExecutor::new());
                builder
                    .http1()
                    .timer(TokioTimer::new())
                    .header_read_timeout(Duration::from_secs(30));
                let connection =
                    builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
                tokio::select! {
                    () = cancel.cancelled() => {}
                    ended = connection => if let Err(error) = ended {
                        tracing::debug!(%error, "connection ended");
                    }
                }
            });
        }
    }
}

/// Whether the peer may use the API; else status and text.
fn access(
    certificates: Option<&[CertificateDer<'_>]>,
    authorized: &str,
) -> Result<(), (StatusCode, String)> {
    let Some(certificate) = certificates.and_then(<[_]>::first) else {
        return Err((StatusCode::UNAUTHORIZED, "Unauthorized".to_owned()));
    };
    let name = x509_parser::parse_x509_certificate(certificate.as_ref())
        .ok()
        .and_then(|(_, certificate)| {
            let name = certificate
                .subject()
                .iter_common_name()
                .next()?
                .as_str()
                .ok()?;
            Some(name.to_owned())
        });
    match name {
        Some(name) if name == authorized => Ok(()),
        name => Err((
            StatusCode::FORBIDDEN,
            format!(
                "Forbidden (user={}, verb=*, resource=nodes, subresource=proxy)",
                name.unwrap_or_default()
            ),
        )),
    }
}

pub(crate) fn plain(status: StatusCode, text: impl Into<String>) -> Response<Body> {
    let body = Full::new(Bytes::from(text.into()))
        .map_err(|never| match never {})
        .boxed_unsync();
    let mut response = Response::new(body);
    *response.status_mut() = status;
    let kind = http::HeaderValue::from_static("text/plain; charset=utf-8");
    response
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, kind);
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(name: &str) -> CertificateDer<'static> {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut parameters = rcgen::CertificateParams::default();
        parameters
            .distinguished_name
            .push(rcgen::DnType::CommonName, name);
        parameters.self_signed(&key).unwrap().der().clone()
    }

    #[test]
    fn only_the_authorised_name_gets_in() {
        let name = "kube-apiserver-kubelet-client";
        assert!(access(Some(&[certificate(name)]), name).is_ok());
        let (status, _) = access(None, name).unwrap_err();
        assert_eq!(status, StatusCode::UNAUTHORIZED);
        let (status, text) = access(Some(&[certificate("system:node:n1")]), name).unwrap_err();
        assert_eq!(status, StatusCode::FORBIDDEN);
        assert!(text.contains("user=system:node:n1"));
    }
}
