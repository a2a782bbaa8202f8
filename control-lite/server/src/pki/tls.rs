//! TLS configurations whose certificate can be exchanged while connections are being made.

use std::sync::{Arc, PoisonError, RwLock};

use rustls::client::ResolvesClientCert;
use rustls::crypto::ring;
use rustls::server::{ClientHello, ResolvesServerCert, WebPkiClientVerifier};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore, ServerConfig, SignatureScheme};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::authority::Credentials;
use super::files::PkiError;

/// A certificate that is read at every handshake.
#[derive(Debug)]
pub(super) struct Swappable(RwLock<Arc<CertifiedKey>>);

impl Swappable {
    pub(super) fn new(credentials: &Credentials) -> Result<Self, PkiError> {
        Ok(Self(RwLock::new(certified_key(credentials)?)))
    }

    pub(super) fn swap(&self, credentials: &Credentials) -> Result<(), PkiError> {
        let key = certified_key(credentials)?;
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = key;
        Ok(())
    }

    fn present(&self) -> Arc<CertifiedKey> {
        Arc::clone(&self.0.read().unwrap_or_else(PoisonError::into_inner))
    }
}

impl ResolvesServerCert for Swappable {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.present())
    }
}

impl ResolvesClientCert for Swappable {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.present())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

fn certified_key(credentials: &Credentials) -> Result<Arc<CertifiedKey>, PkiError> {
    let damaged = |what: &str| PkiError::Damaged {
        subject: what.to_owned(),
    };
    let chain = CertificateDer::pem_slice_iter(credentials.certificate_pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|_| damaged("a certificate"))?;
    let key = PrivateKeyDer::from_pem_slice(credentials.key_pem.as_bytes())
        .map_err(|_| damaged("a key"))?;
    let key = ring::sign::any_supported_type(&key).map_err(|source| PkiError::Tls { source })?;
    Ok(Arc::new(CertifiedKey::new(chain, key)))
}

fn roots(ca_pem: &str) -> Result<Arc<RootCertStore>, PkiError> {
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(ca_pem.as_bytes()) {
        let certificate = certificate.map_err(|_| PkiError::Damaged {
            subject: "ca.crt".to_owned(),
        })?;
        roots
            .add(certificate)
            .map_err(|source| PkiError::Tls { source })?;
    }
    Ok(Arc::new(roots))
}

pub(super) fn server_config(
    ca_pem: &str,
    certificate: Arc<Swappable>,
) -> Result<Arc<ServerConfig>, PkiError> {
    let provider = Arc::new(ring::default_provider());
    let verifier =
        WebPkiClientVerifier::builder_with_provider(roots(ca_pem)?, Arc::clone(&provider))
            .allow_unauthenticated()
            .build()
            .map_err(|source| PkiError::Verifier { source })?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|source| PkiError::Tls { source })?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(certificate);
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

pub(super) fn client_config(
    ca_pem: &str,
    certificate: Arc<Swappable>,
) -> Result<Arc<ClientConfig>, PkiError> {
    let config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|source| PkiError::Tls { source })?
        .with_root_certificates(roots(ca_pem)?)
        .with_client_cert_resolver(certificate);
    Ok(Arc::new(config))
}
