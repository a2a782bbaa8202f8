//! Who is on the other end: the client certificate of the connection.

use std::sync::Arc;

use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::registry::UserInfo;

/// The other end of a connection. TLS has verified the certificate against the cluster's CA.
#[derive(Clone, Debug, Default)]
pub(crate) struct Peer {
    user: Option<Arc<UserInfo>>,
    /// When the certificate ends; a connection may outlive it.
    valid_until: Option<i64>,
}

impl Peer {
    /// The peer of a connection with this certificate chain. A certificate without a name is
    /// nobody's.
    pub(crate) fn of(chain: Option<&[CertificateDer<'_>]>) -> Self {
        let Some(leaf) = chain.and_then(<[_]>::first) else {
            return Self::default();
        };
        let Ok((_, certificate)) = X509Certificate::from_der(leaf) else {
            return Self::default();
        };
        let subject = certificate.subject();
        let name = subject
            .iter_common_name()
            .find_map(|name| name.as_str().ok());
        let Some(name) = name.filter(|name| !name.is_empty()) else {
            return Self::default();
        };
        let organizations = subject
            .iter_organization()
            .filter_map(|name| name.as_str().ok());
        let mut groups: Vec<String> = organizations.map(str::to_owned).collect();
        groups.push("system:authenticated".to_owned());
        let user = UserInfo {
            name: name.to_owned(),
            groups,
            ..UserInfo::default()
        };
        let valid_until = Some(certificate.validity().not_after.timestamp());
        Self {
            user: Some(Arc::new(user)),
            valid_until,
        }
    }
}

/// The user of a request, if its credentials (still) hold.
pub(super) fn user(peer: &Peer) -> Option<UserInfo> {
    let now = jiff::Timestamp::now().as_second();
    let user = peer.user.as_deref()?;
    peer.valid_until
        .is_none_or(|end| now <= end)
        .then(|| user.clone())
}

/// What everybody may see: health and version.
pub(super) fn is_public(path: &str) -> bool {
    let first = path
        .trim_start_matches('/')
        .split('/')
        .next()
        .unwrap_or_default();
    matches!(first, "healthz" | "livez" | "readyz" | "version")
}
