//! Image references: parsing and normalising as docker and containerd do. Pure.

use super::PullError;

const DEFAULT_DOMAIN: &str = "docker.io";
const MAX_REPOSITORY_LENGTH: usize = 255;

/// A parsed, normalised reference. It has a tag or a digest, never both: a digest pins, so a tag beside
/// it says nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Reference {
    /// Registry with port, `docker.io` for the default one.
    pub(super) domain: String,
    /// Repository below the registry, `library/busybox`.
    pub(super) path: String,
    pub(super) version: Version,
}

/// What selects an image within a repository.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Version {
    Tag(String),
    Digest(String),
}

impl Reference {
    /// Parses what a user wrote into `image:`.
    pub(super) fn parse(text: &str) -> Result<Self, PullError> {
        parse(text).map_err(|message| PullError::InvalidName {
            reference: text.into(),
            message,
        })
    }

    /// `docker.io/library/busybox`.
    pub(super) fn repository(&self) -> String {
        format!("{}/{}", self.domain, self.path)
    }

    /// Host and port that serve the registry API of this reference.
    pub(super) fn registry_host(&self) -> &str {
        match self.domain.as_str() {
            DEFAULT_DOMAIN => "registry-1.docker.io",
            other => other,
        }
    }
}

impl std::fmt::Display for Reference {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.version {
            Version::Tag(tag) => write!(f, "{}/{}:{tag}", self.domain, self.path),
            Version::Digest(digest) => write!(f, "{}/{}@{digest}", self.domain, self.path),
        }
    }
}

fn parse(text: &str) -> Result<Reference, String> {
    const INVALID: &str = "invalid reference format";
    if text.len() == 64
        && text
            .bytes()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    {
        return Err(format!(
            "invalid repository name ({text}), cannot specify 64-byte hexadecimal strings"
        ));
    }
    let (name, digest) = match text.split_once('@') {
        Some((name, digest)) => (name, Some(digest)),
        None => (text, None),
    };
    let (domain, rest) = split_domain(name);
    let (path, tag) = match rest.split_once(':') {
        Some((path, tag)) => (path, Some(tag)),
        None => (rest, None),
    };
    let path = if domain == DEFAULT_DOMAIN && !path.contains('/') && !path.is_empty() {
        format!("library/{path}")
    } else {
        path.to_owned()
    };
    if path.chars().any(char::is_uppercase) {
        return Err(format!(
            "{INVALID}: repository name ({path}) must be lowercase"
        ));
    }
    let well_formed = is_domain(domain)
        && path.split('/').all(is_path_component)
        && tag.is_none_or(is_tag)
        && digest.is_none_or(is_digest);
    if !well_formed {
        return Err(INVALID.into());
    }
    if domain.len() + 1 + path.len() > MAX_REPOSITORY_LENGTH {
        return Err(format!(
            "repository name must not be more than {MAX_REPOSITORY_LENGTH} characters"
        ));
    }
    let version = match (digest, tag) {
        (Some(digest), _) => {
            if !digest.starts_with("sha256:") || digest.len() != "sha256:".len() + 64 {
                return Err("invalid checksum digest format".into());
            }
            Version::Digest(digest.into())
        }
        (None, Some(tag)) => Version::Tag(tag.into()),
        (None, None) => Version::Tag("latest".into()),
    };
    Ok(Reference {
        domain: domain.into(),
        path,
        version,
    })
}

/// The first component is a registry only when it looks like a host: a dot, a port, `localhost`, or
/// upper case (which no repository may have).
fn split_domain(name: &str) -> (&str, &str) {
    let Some((first, rest)) = name.split_once('/') else {
        return (DEFAULT_DOMAIN, name);
    };
    let is_host =
        first.contains(['.', ':']) || first == "localhost" || first.chars().any(char::is_uppercase);
    match (is_host, first) {
        (true, "index.docker.io") => (DEFAULT_DOMAIN, rest),
        (true, host) => (host, rest),
        (false, _) => (DEFAULT_DOMAIN, name),
    }
}

fn is_domain(domain: &str) -> bool {
    let (host, port) = match domain.rsplit_once(':') {
        // The colons inside `[::1]` belong to the address.
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (domain, None),
    };
    let port_ok =
        port.is_none_or(|port| !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit()));
    let host_ok = match host
        .strip_prefix('[')
        .and_then(|host| host.strip_suffix(']'))
    {
        Some(address) => {
            address.len() > 1
                && address
                    .bytes()
                    .all(|byte| byte.is_ascii_hexdigit() || byte == b':')
        }
        None => host.split('.').all(|label| {
            !label.is_empty()
                && !label.starts_with('-')
                && !label.ends_with('-')
                && label
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        }),
    };
    port_ok && host_ok
}

/// Runs of lower-case letters and digits, joined by `.`, `_`, `__` or any number of `-`.
fn is_path_component(component: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = component.as_bytes();
    let (Some(&first), Some(&last)) = (bytes.first(), bytes.last()) else {
        return false;
    };
    is_word(first)
        && is_word(last)
        && bytes.split(|&byte| is_word(byte)).all(|separator| {
            matches!(separator, b"" | b"." | b"_" | b"__")
                || separator.iter().all(|&byte| byte == b'-')
        })
}

fn is_tag(tag: &str) -> bool {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    (1..=128).contains(&tag.len())
        && tag.bytes().next().is_some_and(is_word)
        && tag
            .bytes()
            .all(|byte| is_word(byte) || matches!(byte, b'.' | b'-'))
}

fn is_digest(digest: &str) -> bool {
    digest.split_once(':').is_some_and(|(algorithm, hex)| {
        !algorithm.is_empty()
            && algorithm
                .bytes()
                .all(|byte| byte.is_ascii_alphanumeric() || b"-_+.".contains(&byte))
            && hex.len() >= 32
            && hex.bytes().all(|byte| byte.is_ascii_hexdigit())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const DIGEST: &str = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn names_are_normalised_as_docker_does() {
        for (written, normalised) in [
            ("busybox", "docker.io/library/busybox:latest".to_owned()),
            ("busybox:1.36", "docker.io/library/busybox:1.36".into()),
            ("user/app", "docker.io/user/app:latest".into()),
            (
                "docker.io/busybox",
                "docker.io/library/busybox:latest".into(),
            ),
            (
                "index.docker.io/busybox:1",
                "docker.io/library/busybox:1".into(),
            ),
            ("localhost/app", "localhost/app:latest".into()),
            ("localhost:5000/app:v1", "localhost:5000/app:v1".into()),
            (
                "127.0.0.1:5000/a/b__c/d-e:v1",
                "127.0.0.1:5000/a/b__c/d-e:v1".into(),
            ),
            (
                "[fd00:30::1]:5000/app",
                "[fd00:30::1]:5000/app:latest".into(),
            ),
            ("tholepin.test/web:1", "tholepin.test/web:1".into()),
            (
                &format!("busybox@{DIGEST}"),
                format!("docker.io/library/busybox@{DIGEST}"),
            ),
            (
                &format!("gcr.io/a/b:tag@{DIGEST}"),
                format!("gcr.io/a/b@{DIGEST}"),
            ),
        ] {
            let parsed = Reference::parse(written).expect(written);
            assert_eq!(parsed.to_string(), normalised, "{written}");
            assert_eq!(
                Reference::parse(&normalised).expect(&normalised),
                parsed,
                "idempotent"
            );
        }
    }

    #[test]
    fn a_bad_name_is_refused_with_the_wording_kubectl_users_know() {
        for (written, message) in [
            ("", "invalid reference format"),
            ("a b", "invalid reference format"),
            ("busybox:", "invalid reference format"),
            ("busybox:-tag", "invalid reference format"),
            ("-busybox", "invalid reference format"),
            ("a//b", "invalid reference format"),
            ("a/_b", "invalid reference format"),
            ("a..b/c", "invalid reference format"),
            ("busybox@sha256:12", "invalid reference format"),
            ("host:port/app", "invalid reference format"),
            (
                "Busybox",
                "invalid reference format: repository name (library/Busybox) must be lowercase",
            ),
        ] {
            let error = Reference::parse(written).expect_err(written).to_string();
            assert_eq!(
                error,
                format!("couldn't parse image name {written:?}: {message}")
            );
        }
        let id = "0123456789abcdef".repeat(4);
        assert!(
            Reference::parse(&id)
                .expect_err("an id is no name")
                .to_string()
                .contains("64-byte")
        );
        let long = "a".repeat(250);
        assert!(
            Reference::parse(&long)
                .expect_err("too long")
                .to_string()
                .contains("255")
        );
    }
}
