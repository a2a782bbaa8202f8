//! The registry side of one pull, and its answers in the words users know from containerd.

use std::net::IpAddr;
use std::time::Duration;

use oci_client::client::{ClientConfig, ClientProtocol};
use oci_client::errors::{OciDistributionError, OciErrorCode};
use sha2::{Digest, Sha256};

use super::super::RegistryAuth;
use super::super::image::{Blob, ImageError, MAX_DOCUMENT};
use super::super::reference::{Reference, Version};
use super::{Failure, MANIFEST_TYPES};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// A transfer that brings no byte for this long has failed.
const READ_TIMEOUT: Duration = Duration::from_secs(60);

/// The registry side of one pull. A client per pull: credentials of one pod never serve another.
pub(super) struct Source {
    client: oci_client::Client,
    reference: Reference,
    auth: oci_client::secrets::RegistryAuth,
}

impl Source {
    pub(super) fn new(
        reference: &Reference,
        auth: Option<&RegistryAuth>,
        plain_http: &[String],
    ) -> Result<Self, Failure> {
        let host = reference.registry_host();
        let is_plain = is_loopback(host) || plain_http.iter().any(|plain| plain == host);
        let config = ClientConfig {
            protocol: if is_plain {
                ClientProtocol::Http
            } else {
                ClientProtocol::Https
            },
            connect_timeout: Some(CONNECT_TIMEOUT),
            read_timeout: Some(READ_TIMEOUT),
            user_agent: concat!("tholepin/", env!("CARGO_PKG_VERSION")),
            // A proxy from the environment has no business with a registry on loopback. The client
            // forgets the environment's once it is given one, and this one is never used.
            http_proxy: is_loopback(host).then(|| "http://127.0.0.1".to_owned()),
            no_proxy: is_loopback(host).then(|| "localhost,127.0.0.0/8,::1".to_owned()),
            ..ClientConfig::default()
        };
        let client = oci_client::Client::try_from(config).map_err(|error| Failure::Resolve {
            reference: reference.to_string(),
            message: describe(&error),
        })?;
        let auth = match auth {
            Some(auth) => oci_client::secrets::RegistryAuth::Basic(
                auth.username.clone(),
                auth.password.clone(),
            ),
            None => oci_client::secrets::RegistryAuth::Anonymous,
        };
        Ok(Self {
            client,
            reference: reference.clone(),
            auth,
        })
    }

    fn target(&self, digest: Option<&str>) -> oci_client::Reference {
        let registry = self.reference.registry_host().to_owned();
        let path = self.reference.path.clone();
        match (digest, &self.reference.version) {
            (Some(digest), _) => oci_client::Reference::with_digest(registry, path, digest.into()),
            (None, Version::Digest(digest)) => {
                oci_client::Reference::with_digest(registry, path, digest.clone())
            }
            (None, Version::Tag(tag)) => {
                oci_client::Reference::with_tag(registry, path, tag.clone())
            }
        }
    }

    /// The document the reference names, with its digest.
    pub(super) async fn resolve(&self) -> Result<(bytes::Bytes, String), Failure> {
        let failed = |error| Failure::Resolve {
            reference: self.reference.to_string(),
            message: self.explain(&error),
        };
        let target = self.target(None);
        // Asked for first because later calls swallow why a token could not be had.
        self.client
            .auth(&target, &self.auth, oci_client::RegistryOperation::Pull)
            .await
            .map_err(failed)?;
        let (bytes, _) = self
            .client
            .pull_manifest_raw(&target, &self.auth, &MANIFEST_TYPES)
            .await
            .map_err(failed)?;
        let digest = sha256(&bytes);
        if let Version::Digest(expected) = &self.reference.version
            && *expected != digest
        {
            return Err(Failure::Copy(format!(
                "manifest is {digest}, wanted {expected}"
            )));
        }
        Ok((bytes, digest))
    }

    pub(super) async fn manifest(&self, digest: &str) -> Result<bytes::Bytes, Failure> {
        let (bytes, _) = self
            .client
            .pull_manifest_raw(&self.target(Some(digest)), &self.auth, &MANIFEST_TYPES)
            .await
            .map_err(|error| Failure::Copy(self.explain(&error)))?;
        let actual = sha256(&bytes);
        if actual != digest {
            return Err(Failure::Copy(format!(
                "manifest is {actual}, wanted {digest}"
            )));
        }
        if bytes.len() as i64 > MAX_DOCUMENT {
            return Err(ImageError::TooLarge {
                digest: actual,
                size: bytes.len() as i64,
            }
            .into());
        }
        Ok(bytes)
    }

    pub(super) async fn blob(
        &self,
        blob: &Blob,
    ) -> Result<futures::stream::BoxStream<'static, std::io::Result<bytes::Bytes>>, Failure> {
        let stream = self
            .client
            .pull_blob_stream(&self.target(None), blob.digest.as_str())
            .await
            .map_err(|error| Failure::Copy(self.explain(&error)))?;
        Ok(stream.stream)
    }

    /// A registry's answer in the words users know from containerd.
    fn explain(&self, error: &OciDistributionError) -> String {
        const DENIED: &str = "pull access denied, repository does not exist or may require \
                              authorization: authorization failed";
        let not_found = || format!("{}: not found", self.reference);
        match error {
            OciDistributionError::ImageManifestNotFoundError(_) => not_found(),
            OciDistributionError::RegistryError { envelope, .. } => {
                let codes = || envelope.errors.iter().map(|error| &error.code);
                let text = envelope
                    .errors
                    .iter()
                    .map(|error| error.message.as_str())
                    .collect::<Vec<_>>()
                    .join(", ");
                if codes().any(|code| {
                    matches!(
                        code,
                        OciErrorCode::ManifestUnknown
                            | OciErrorCode::NameUnknown
                            | OciErrorCode::NotFound
                    )
                }) {
                    return not_found();
                }
                if codes()
                    .any(|code| matches!(code, OciErrorCode::Unauthorized | OciErrorCode::Denied))
                {
                    return format!("{DENIED}: {text}");
                }
                if codes().any(|code| *code == OciErrorCode::Toomanyrequests) {
                    return format!(
                        "unexpected status code: 429 Too Many Requests - Server message: \
                         toomanyrequests: {text}"
                    );
                }
                format!("unexpected answer of the registry: {text}")
            }
            OciDistributionError::UnauthorizedError { .. } => {
                format!("{DENIED}: no basic auth credentials")
            }
            OciDistributionError::AuthenticationFailure(text) => {
                format!("{DENIED}: server message: {}", text.trim())
            }
            OciDistributionError::ServerError { code: 404, .. } => not_found(),
            OciDistributionError::ServerError { code, message, url } => {
                let reason = http::StatusCode::from_u16(*code)
                    .ok()
                    .and_then(|status| status.canonical_reason())
                    .unwrap_or_default();
                format!(
                    "unexpected status from {url}: {code} {reason}: {}",
                    message.trim()
                )
            }
            OciDistributionError::RequestError(request) => {
                format!("failed to do request: {}", describe(request))
            }
            other => describe(other),
        }
    }
}

/// The whole chain of an error. Never holds credentials: those travel in headers.
pub(super) fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let part = error.to_string();
        if !text.ends_with(&part) {
            text = format!("{text}: {part}");
        }
        source = error.source();
    }
    text
}

fn sha256(bytes: &[u8]) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(bytes)))
}

fn is_loopback(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    };
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    name == "localhost"
        || bare
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_recognised_with_and_without_a_port() {
        for host in [
            "localhost",
            "localhost:5000",
            "127.0.0.1:5000",
            "127.1.2.3",
            "[::1]:5000",
        ] {
            assert!(is_loopback(host), "{host}");
        }
        for host in [
            "docker.io",
            "10.0.0.1:5000",
            "localhost.example:5000",
            "[fd00::1]:5000",
        ] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
