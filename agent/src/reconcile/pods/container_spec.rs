//! From a container of the pod to what the runtime is told: environment, mounts, limits.
//!
//! Blocking parts (files, sub-paths) are in [`prepare`]; the environment is pure.

use std::collections::BTreeMap;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use tholepin_model::pod::env::{EnvValue, Environment, ObjectKind};
use tholepin_model::pod::resources::{KernelLimits, kernel_limits, qos_class};
use tholepin_model::pod::{Container, Pod};

use crate::config::Config;
use crate::runtime::{ContainerSpec, MountSpec, PodIdentity, ResourceLimits};
use crate::volumes::pod_files::PodFiles;
use crate::volumes::render::{RenderError, SourceLookup, downward};
use crate::volumes::{mounts, volume_dir};

/// Why a container cannot be described (CreateContainerConfigError).
#[derive(Debug, thiserror::Error)]
pub(super) enum SpecError {
    #[error(transparent)]
    Render(#[from] RenderError),
    #[error("volume mount {volume:?} of container {container:?} names no volume of the pod")]
    NoVolume { container: String, volume: String },
    #[error("failed to prepare subPath for volumeMount {volume:?} of container {container:?}")]
    SubPath {
        container: String,
        volume: String,
        source: std::io::Error,
    },
    #[error("failed to prepare {path}")]
    Io {
        path: PathBuf,
        source: std::io::Error,
    },
}

/// The whole environment in upstream's order: envFrom, then env, then Services nobody overrode.
pub(super) fn environment(
    pod: &Pod,
    container: &Container,
    services: &BTreeMap<String, String>,
    lookup: &dyn SourceLookup,
) -> Result<Vec<(String, String)>, RenderError> {
    let mut environment = Environment::default();
    for from in &container.env_from {
        let Some(data) = lookup.object(from.kind, &from.name)? else {
            if from.optional {
                continue;
            }
            return Err(not_found(from.kind, &from.name));
        };
        for (key, value) in &data.entries {
            let name = format!("{}{key}", from.prefix);
            environment.set(&name, String::from_utf8_lossy(value).into_owned());
        }
    }
    for variable in &container.env {
        let value = match &variable.value {
            EnvValue::Literal(text) => environment.expand(text, services),
            EnvValue::Downward(value) => downward(pod, &container.name, value, lookup.facts())?,
            EnvValue::Key(reference) => {
                let data = lookup.object(reference.kind, &reference.name)?;
                let found = data
                    .as_ref()
                    .and_then(|data| data.entries.get(&reference.key));
                match (found, reference.optional, data.is_some()) {
                    (Some(value), ..) => String::from_utf8_lossy(value).into_owned(),
                    (None, true, _) => continue,
                    (None, false, false) => {
                        return Err(not_found(reference.kind, &reference.name));
                    }
                    (None, false, true) => {
                        return Err(RenderError::NoKey {
                            kind: reference.kind.as_str(),
                            key: reference.key.clone(),
                            namespace: pod.namespace.clone(),
                            name: reference.name.clone(),
                        });
                    }
                }
            }
        };
        environment.set(&variable.name, value);
    }
    environment.add_missing(services);
    Ok(environment.into_pairs())
}

fn not_found(kind: ObjectKind, name: &str) -> RenderError {
    RenderError::NotFound {
        resource: kind.resource(),
        name: name.to_owned(),
    }
}

/// Everything of one attempt that does not depend on the pod's spec alone.
pub(super) struct Attempt<'a> {
    pub(super) config: &'a Config,
    pub(super) identity: &'a PodIdentity,
    pub(super) attempt: u32,
    pub(super) image: String,
    pub(super) services: BTreeMap<String, String>,
    pub(super) node_memory_bytes: i64,
}

/// Host file of a container's termination message.
pub(super) fn termination_file(pod_dir: &Path, container: &str, attempt: u32) -> PathBuf {
    pod_dir
        .join("containers")
        .join(container)
        .join(attempt.to_string())
}

/// Builds the spec and makes the files and directories it points at. Blocking.
pub(super) fn prepare(
    pod: &Pod,
    container: &Container,
    attempt: &Attempt<'_>,
    lookup: &dyn SourceLookup,
) -> Result<ContainerSpec, SpecError> {
    let env = environment(pod, container, &attempt.services, lookup)?;
    let known: BTreeMap<String, String> = env.iter().cloned().collect();
    let expand = |texts: &[String]| -> Vec<String> {
        texts
            .iter()
            .map(|text| tholepin_model::pod::env::expand(text, &|name| known.get(name).cloned()))
            .collect()
    };
    let pod_dir = attempt.config.pod_dir(&pod.uid);
    let mut mounts = Vec::new();
    for (index, mount) in container.mounts.iter().enumerate() {
        let volume = pod
            .volumes
            .iter()
            .find(|volume| volume.name == mount.volume)
            .ok_or_else(|| SpecError::NoVolume {
                container: container.name.clone(),
                volume: mount.volume.clone(),
            })?;
        let directory = volume_dir(&pod_dir, volume);
        let host_path = if mount.sub_path.is_empty() {
            directory
        } else {
            let target = pod_dir
                .join("volume-subpaths")
                .join(&mount.volume)
                .join(&container.name)
                .join(index.to_string());
            sub_path(&directory, &mount.sub_path, &target).map_err(|source| {
                SpecError::SubPath {
                    container: container.name.clone(),
                    volume: mount.volume.clone(),
                    source,
                }
            })?;
            target
        };
        mounts.push(MountSpec {
            host_path,
            container_path: PathBuf::from(&mount.path),
            read_only: mount.read_only || is_files(volume),
        });
    }
    let files = PodFiles::of(&pod_dir);
    let message = termination_file(&pod_dir, &container.name, attempt.attempt);
    make_file(&message)?;
    for (host_path, container_path, read_only) in [
        (files.hosts, "/etc/hosts", false),
        (files.hostname, "/etc/hostname", false),
        (files.resolv_conf, "/etc/resolv.conf", false),
        (message, container.termination_message_path.as_str(), false),
    ] {
        let container_path = PathBuf::from(container_path);
        if !mounts
            .iter()
            .any(|mount| mount.container_path == container_path)
        {
            mounts.push(MountSpec {
                host_path,
                container_path,
                read_only,
            });
        }
    }
    let log_path = attempt
        .config
        .log_path(attempt.identity, &container.name, attempt.attempt);
    if let Some(parent) = log_path.parent() {
        std::fs::create_dir_all(parent).map_err(|source| SpecError::Io {
            path: parent.to_path_buf(),
            source,
        })?;
    }
    let limits = kernel_limits(
        &container.resources,
        qos_class(&pod.containers),
        attempt.node_memory_bytes,
    );
    let security = container.security.clone();
    Ok(ContainerSpec {
        pod: attempt.identity.clone(),
        name: container.name.clone(),
        attempt: attempt.attempt,
        image: attempt.image.clone(),
        command: expand(&container.command),
        args: expand(&container.args),
        working_dir: container.working_dir.clone(),
        env,
        mounts,
        run_as_user: security.run_as_user,
        run_as_group: security.run_as_group,
        run_as_non_root: security.run_as_non_root,
        supplemental_groups: security.supplemental_groups,
        privileged: security.privileged,
        read_only_root: security.read_only_root,
        allow_privilege_escalation: security.allow_privilege_escalation,
        added_capabilities: security.added_capabilities,
        dropped_capabilities: security.dropped_capabilities,
        resources: limits_of(limits),
        stdin: container.stdin,
        stdin_once: container.stdin_once,
        tty: container.tty,
        log_path,
        labels: BTreeMap::from([(
            "tholepin.io/termination-grace-period".to_owned(),
            pod.termination_grace_secs.to_string(),
        )]),
    })
}

fn limits_of(limits: KernelLimits) -> ResourceLimits {
    ResourceLimits {
        cpu_shares: limits.cpu_shares,
        cpu_quota_us: limits.cpu_quota_us,
        cpu_period_us: limits.cpu_period_us,
        memory_limit_bytes: limits.memory_limit_bytes,
        oom_score_adj: limits.oom_score_adj,
    }
}

/// Limits of the pod's own cgroup: sums, and unlimited as soon as one container is.
pub(super) fn pod_limits(pod: &Pod) -> ResourceLimits {
    let sum = |value: fn(&Container) -> Option<i64>| -> Option<i64> {
        pod.containers
            .iter()
            .map(|container| value(container).filter(|value| *value > 0))
            .sum()
    };
    let requested: i64 = pod
        .containers
        .iter()
        .map(|container| container.resources.effective_requests().0.unwrap_or(0))
        .sum();
    let total = tholepin_model::pod::resources::Resources {
        cpu_request_milli: Some(requested),
        cpu_limit_milli: sum(|container| container.resources.cpu_limit_milli),
        memory_request_bytes: None,
        memory_limit_bytes: sum(|container| container.resources.memory_limit_bytes),
    };
    limits_of(kernel_limits(&total, qos_class(&pod.containers), 0))
}

fn is_files(volume: &tholepin_model::pod::Volume) -> bool {
    matches!(
        volume.source,
        tholepin_model::pod::VolumeSource::Files { .. }
    )
}

fn make_file(path: &Path) -> Result<(), SpecError> {
    use std::os::unix::fs::PermissionsExt;
    let failed = |source| SpecError::Io {
        path: path.to_path_buf(),
        source,
    };
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).map_err(failed)?;
    }
    if !path.exists() {
        std::fs::write(path, b"").map_err(failed)?;
        // Any user of the container may write its message.
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o666)).map_err(failed)?;
    }
    Ok(())
}

/// Binds `sub_path` of a volume on `target`. Containers can write into the volume, so the path is
/// resolved by the kernel with the volume as root: no link can lead out of it.
fn sub_path(volume: &Path, sub_path: &str, target: &Path) -> std::io::Result<()> {
    use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
    use nix::sys::stat::{Mode, mkdirat};
    let root = std::fs::File::open(volume)?;
    let resolve = |path: &str| {
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        openat2(&root, path, how)
    };
    let found = match resolve(sub_path) {
        Ok(found) => found,
        Err(nix::errno::Errno::ENOENT) => {
            // Made as a directory, one component at a time and never through a link that leads out.
            let mut path = String::new();
            let mut parent = resolve(".")?;
            for part in sub_path.split('/').filter(|part| !part.is_empty()) {
                if part == ".." {
                    return Err(std::io::Error::from(std::io::ErrorKind::InvalidInput));
                }
                match mkdirat(&parent, part, Mode::from_bits_truncate(0o755)) {
                    Ok(()) | Err(nix::errno::Errno::EEXIST) => {}
                    Err(error) => return Err(error.into()),
                }
                if !path.is_empty() {
                    path.push('/');
                }
                path.push_str(part);
                parent = resolve(&path)?;
            }
            parent
        }
        Err(error) => return Err(error.into()),
    };
    // A later attempt binds anew: the volume may have been replaced.
    mounts::unmount(target)?;
    let link = PathBuf::from(format!("/proc/self/fd/{}", found.as_raw_fd()));
    if std::fs::metadata(&link)?.is_dir() {
        std::fs::create_dir_all(target)?;
    } else {
        if let Some(parent) = target.parent() {
            std::fs::create_dir_all(parent)?;
        }
        if !target.exists() {
            std::fs::write(target, b"")?;
        }
    }
    mounts::bind(&link, target)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tholepin_model::pod::env::{EnvFrom, EnvVar, KeyRef};
    use tholepin_model::pod::resources::Resources;

    use super::*;
    use crate::volumes::render::Facts;
    use crate::watch::objects::ObjectData;

    struct Fixed(Facts);

    impl SourceLookup for Fixed {
        fn object(
            &self,
            _: ObjectKind,
            name: &str,
        ) -> Result<Option<Arc<ObjectData>>, RenderError> {
            let entries = BTreeMap::from([("k".to_owned(), b"v".to_vec())]);
            Ok((name == "there").then(|| Arc::new(ObjectData { entries })))
        }
        fn facts(&self) -> &Facts {
            &self.0
        }
    }

    fn key(name: &str, key: &str, optional: bool) -> EnvVar {
        EnvVar {
            name: "X".to_owned(),
            value: EnvValue::Key(KeyRef {
                kind: ObjectKind::ConfigMap,
                name: name.to_owned(),
                key: key.to_owned(),
                optional,
            }),
        }
    }

    fn of(container: &Container) -> Result<Vec<(String, String)>, RenderError> {
        let pod = Pod {
            namespace: "ns".to_owned(),
            ..Pod::default()
        };
        let services = BTreeMap::from([("S_SERVICE_HOST".to_owned(), "10.96.0.1".to_owned())]);
        environment(&pod, container, &services, &Fixed(Facts::default()))
    }

    #[test]
    fn missing_sources_fail_with_upstreams_texts() {
        let with = |variable: EnvVar| Container {
            env: vec![variable],
            ..Container::default()
        };
        assert_eq!(
            of(&with(key("gone", "k", false))).unwrap_err().to_string(),
            "configmap \"gone\" not found"
        );
        assert_eq!(
            of(&with(key("there", "z", false))).unwrap_err().to_string(),
            "couldn't find key z in ConfigMap ns/there"
        );
        assert_eq!(of(&with(key("gone", "k", true))).unwrap().len(), 1);
    }

    #[test]
    fn later_variables_see_earlier_ones_and_services() {
        let literal = |name: &str, value: &str| EnvVar {
            name: name.to_owned(),
            value: EnvValue::Literal(value.to_owned()),
        };
        let container = Container {
            env_from: vec![EnvFrom {
                kind: ObjectKind::Secret,
                name: "there".to_owned(),
                prefix: "P_".to_owned(),
                optional: false,
            }],
            env: vec![
                literal("A", "$(P_k)-$(S_SERVICE_HOST)"),
                literal("B", "$(A)$(LATER)"),
            ],
            ..Container::default()
        };
        let pairs: BTreeMap<String, String> = of(&container).unwrap().into_iter().collect();
        assert_eq!(pairs["A"], "v-10.96.0.1");
        assert_eq!(pairs["B"], "v-10.96.0.1$(LATER)");
        assert_eq!(pairs["S_SERVICE_HOST"], "10.96.0.1");
    }

    #[test]
    fn the_pods_cgroup_is_limited_only_if_every_container_is() {
        let limited = Container {
            resources: Resources {
                memory_limit_bytes: Some(5),
                ..Resources::default()
            },
            ..Container::default()
        };
        let pod = Pod {
            containers: vec![limited.clone(), limited.clone()],
            ..Pod::default()
        };
        assert_eq!(pod_limits(&pod).memory_limit_bytes, 10);
        let pod = Pod {
            containers: vec![limited, Container::default()],
            ..Pod::default()
        };
        assert_eq!(pod_limits(&pod).memory_limit_bytes, 0);
    }
}
