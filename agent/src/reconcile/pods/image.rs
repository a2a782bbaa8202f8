//! Getting an image for a container: policy, back-off, credentials, and the kubelet's events.

use std::time::Instant;

use serde::Deserialize;
use tholepin_model::plan::pods::{PullGate, pull_key};
use tholepin_model::pod::env::ObjectKind;
use tholepin_model::pod::status::Waiting;
use tholepin_model::pod::{Container, PullPolicy};

use super::worker::Worker;
use crate::events::{Severity, Subject};
use crate::runtime::{ImageInfo, PullError, RegistryAuth};
use crate::volumes::render::SourceLookup;

impl Worker {
    /// The image of `container`, pulled if the policy wants it. On failure the waiting reason.
    pub(super) async fn ensure_image(
        &mut self,
        container: &Container,
        gate: PullGate,
    ) -> Result<ImageInfo, Waiting> {
        let image = &container.image;
        let present = match self.context.runtime.image(image).await {
            Ok(present) => present,
            Err(error) => return Err(self.image_failed(container, error, false)),
        };
        match (container.pull_policy, present) {
            (PullPolicy::Never | PullPolicy::IfNotPresent, Some(info)) => {
                let message = format!("Container image \"{image}\" already present on machine");
                self.container_event(container, Severity::Normal, "Pulled", message);
                return Ok(info);
            }
            (PullPolicy::Never, None) => {
                let message =
                    format!("Container image \"{image}\" is not present with pull policy of Never");
                let reason = "ErrImageNeverPull";
                self.container_event(container, Severity::Warning, reason, message.clone());
                self.failed_event(container, reason);
                return Err(Waiting::new(reason, message));
            }
            _ => {}
        }
        if gate == PullGate::BackingOff {
            let message = format!("Back-off pulling image \"{image}\"");
            self.container_event(container, Severity::Normal, "BackOff", message.clone());
            self.failed_event(container, "ImagePullBackOff");
            let full = match self.pull_errors.get(image) {
                Some(error) => format!("{message}: ErrImagePull: {error}"),
                None => message,
            };
            return Err(Waiting::new("ImagePullBackOff", full));
        }
        let message = format!("Pulling image \"{image}\"");
        self.container_event(container, Severity::Normal, "Pulling", message);
        let auth = self.credentials(image);
        let began = Instant::now();
        let pulled = self.context.runtime.pull(image, auth).await;
        let took = began.elapsed();
        self.context
            .metrics
            .runtime_operation("pull_image", took, pulled.is_err());
        match pulled {
            Ok(info) => {
                self.backoff.forget(&pull_key(image));
                self.pull_errors.remove(image);
                let message = format!(
                    "Successfully pulled image \"{image}\" in {0} ({0} including waiting). Image size: {1} bytes.",
                    go_duration(took),
                    info.size_bytes
                );
                self.container_event(container, Severity::Normal, "Pulled", message);
                Ok(info)
            }
            Err(error) => Err(self.image_failed(container, error, true)),
        }
    }

    fn image_failed(&mut self, container: &Container, error: PullError, pulling: bool) -> Waiting {
        let image = &container.image;
        if let PullError::InvalidName { .. } = &error {
            let message = format!(
                "Failed to apply default image tag \"{image}\": couldn't parse image name \"{image}\": invalid reference format"
            );
            let reason = "InspectFailed";
            self.container_event(container, Severity::Warning, reason, message.clone());
            self.failed_event(container, "InvalidImageName");
            return Waiting::new("InvalidImageName", message);
        }
        let text = crate::errors::chain(&error);
        if !pulling {
            // containerd did not answer: nothing is known about the image.
            let message = format!("Failed to inspect image \"{image}\": {text}");
            self.container_event(
                container,
                Severity::Warning,
                "InspectFailed",
                message.clone(),
            );
            return Waiting::new("ImageInspectError", message);
        }
        let message = format!("Failed to pull image \"{image}\": {text}");
        self.container_event(container, Severity::Warning, "Failed", message);
        self.failed_event(container, "ErrImagePull");
        self.backoff
            .advance(&pull_key(image), self.context.clock.now());
        self.pull_errors.insert(image.clone(), text.clone());
        Waiting::new("ErrImagePull", text)
    }

    pub(super) fn container_event(
        &self,
        container: &Container,
        severity: Severity,
        reason: &'static str,
        message: String,
    ) {
        let subject = Subject::container(&self.identity, &container.name);
        self.context
            .recorder
            .record(subject, severity, reason, message);
    }

    pub(super) fn failed_event(&self, container: &Container, error: &str) {
        self.container_event(
            container,
            Severity::Warning,
            "Failed",
            format!("Error: {error}"),
        );
    }

    /// The first pull secret that knows the image's registry.
    fn credentials(&self, image: &str) -> Option<RegistryAuth> {
        let lookup = self.sources.lookup(self.facts());
        let registry = registry_of(image);
        let pod = self.pod()?;
        pod.image_pull_secrets.iter().find_map(|name| {
            let secret = lookup.object(ObjectKind::Secret, name).ok().flatten()?;
            let config = secret.entries.get(".dockerconfigjson")?;
            match auth_for(config, registry) {
                Ok(auth) => auth,
                Err(error) => {
                    tracing::warn!(secret = %name, %error, "the pull secret is not a docker configuration");
                    None
                }
            }
        })
    }
}

/// Whole milliseconds below a second, else seconds with milliseconds, as Go prints durations.
fn go_duration(duration: std::time::Duration) -> String {
    let millis = duration.as_millis();
    if millis < 1000 {
        return format!("{millis}ms");
    }
    let text = format!("{}.{:03}", millis / 1000, millis % 1000);
    format!("{}s", text.trim_end_matches('0').trim_end_matches('.'))
}

fn registry_of(image: &str) -> &str {
    match image.split_once('/') {
        Some((first, _)) if first.contains(['.', ':']) || first == "localhost" => first,
        _ => "docker.io",
    }
}

#[derive(Deserialize)]
struct DockerConfig {
    #[serde(default)]
    auths: std::collections::BTreeMap<String, DockerAuth>,
}

#[derive(Deserialize)]
struct DockerAuth {
    username: Option<String>,
    password: Option<String>,
    auth: Option<String>,
}

fn auth_for(config: &[u8], registry: &str) -> Result<Option<RegistryAuth>, serde_json::Error> {
    use base64::Engine;
    let config: DockerConfig = serde_json::from_slice(config)?;
    let host = |key: &str| {
        let key = key
            .trim_start_matches("https://")
            .trim_start_matches("http://");
        let host = key.split('/').next().unwrap_or(key);
        if host == "index.docker.io" {
            "docker.io".to_owned()
        } else {
            host.to_owned()
        }
    };
    let found = config
        .auths
        .into_iter()
        .find(|(key, _)| host(key) == registry);
    Ok(found.and_then(|(_, auth)| {
        if let (Some(username), Some(password)) = (auth.username, auth.password) {
            return Some(RegistryAuth { username, password });
        }
        let decoded = base64::engine::general_purpose::STANDARD
            .decode(auth.auth?)
            .ok()?;
        let decoded = String::from_utf8(decoded).ok()?;
        let (username, password) = decoded.split_once(':')?;
        Some(RegistryAuth {
            username: username.to_owned(),
            password: password.to_owned(),
        })
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pull_secrets_match_by_registry() {
        let config = br#"{"auths": {
            "https://index.docker.io/v1/": {"auth": "dTpw"},
            "reg.test:5000": {"username": "a", "password": "b"}
        }}"#;
        let user = |registry| {
            auth_for(config, registry)
                .unwrap()
                .map(|auth| auth.username)
        };
        assert_eq!(user("docker.io").as_deref(), Some("u"));
        assert_eq!(user("reg.test:5000").as_deref(), Some("a"));
        assert_eq!(user("other"), None);
        assert_eq!(registry_of("busybox"), "docker.io");
        assert_eq!(registry_of("reg.test:5000/x/y"), "reg.test:5000");
        assert_eq!(registry_of("library/busybox"), "docker.io");
    }

    #[test]
    fn durations_read_like_gos() {
        let of = |millis| go_duration(std::time::Duration::from_millis(millis));
        assert_eq!(
            (of(42), of(1200), of(3000)),
            ("42ms".into(), "1.2s".into(), "3s".into())
        );
    }
}
