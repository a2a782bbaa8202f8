//! Labels on containerd's containers: what identifies ours, and what a later agent must know of them.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;

use sha2::{Digest, Sha256};

use super::exits::Follow;
use super::{ContainerSpec, PodIdentity};

pub(super) const POD_UID: &str = "io.kubernetes.pod.uid";
const POD_NAME: &str = "io.kubernetes.pod.name";
const POD_NAMESPACE: &str = "io.kubernetes.pod.namespace";
const CONTAINER_NAME: &str = "io.kubernetes.container.name";
pub(super) const KIND: &str = "io.tholepin.kind";
pub(super) const KIND_CONTAINER: &str = "container";
const ATTEMPT: &str = "io.tholepin.attempt";
const IMAGE_ID: &str = "io.tholepin.image-id";
const LOG_PATH: &str = "io.tholepin.log-path";
const STDIN: &str = "io.tholepin.stdin";
const STDIN_ONCE: &str = "io.tholepin.stdin-once";
const TTY: &str = "io.tholepin.tty";
const CGROUP: &str = "io.tholepin.cgroup";
const STOP_SIGNAL: &str = "io.tholepin.stop-signal";
/// Prefix of the caller's own labels, so that they can never shadow ours.
const CALLER: &str = "io.tholepin.label/";

/// What only the driver knows about a container it makes.
#[derive(Debug)]
pub(super) struct Facts<'a> {
    pub(super) image_id: &'a str,
    pub(super) cgroup_path: &'a str,
    pub(super) stop_signal: &'a str,
}

/// containerd id of a container. A hash, so that a create that timed out is found again by whoever asks
/// for the same attempt.
pub(super) fn container_id(pod_uid: &str, name: &str, attempt: u32) -> String {
    hex::encode(Sha256::digest(format!("{pod_uid}\0{name}\0{attempt}")))
}

pub(super) fn build(spec: &ContainerSpec, facts: &Facts<'_>) -> HashMap<String, String> {
    let own = [
        (KIND, KIND_CONTAINER.to_owned()),
        (POD_UID, spec.pod.uid.clone()),
        (POD_NAME, spec.pod.name.clone()),
        (POD_NAMESPACE, spec.pod.namespace.clone()),
        (CONTAINER_NAME, spec.name.clone()),
        (ATTEMPT, spec.attempt.to_string()),
        (IMAGE_ID, facts.image_id.to_owned()),
        (LOG_PATH, spec.log_path.display().to_string()),
        (STDIN, spec.stdin.to_string()),
        (STDIN_ONCE, spec.stdin_once.to_string()),
        (TTY, spec.tty.to_string()),
        (CGROUP, facts.cgroup_path.to_owned()),
        (STOP_SIGNAL, facts.stop_signal.to_owned()),
    ];
    let callers = spec
        .labels
        .iter()
        .map(|(name, value)| (format!("{CALLER}{name}"), value.clone()));
    own.into_iter()
        .map(|(name, value)| (name.to_owned(), value))
        .chain(callers)
        .collect()
}

/// A container's labels, parsed. Missing ones read as empty: a foreign container is nobody's.
#[derive(Clone, Debug)]
pub(super) struct Parsed {
    pub(super) pod: PodIdentity,
    pub(super) name: String,
    pub(super) attempt: u32,
    pub(super) image_id: String,
    pub(super) stop_signal: String,
    pub(super) follow: Follow,
    pub(super) callers: BTreeMap<String, String>,
}

pub(super) fn parse(id: &str, labels: &HashMap<String, String>) -> Parsed {
    let get = |name: &str| labels.get(name).cloned().unwrap_or_default();
    let pod = PodIdentity {
        uid: get(POD_UID),
        namespace: get(POD_NAMESPACE),
        name: get(POD_NAME),
    };
    Parsed {
        name: get(CONTAINER_NAME),
        attempt: get(ATTEMPT).parse().unwrap_or_default(),
        image_id: get(IMAGE_ID),
        stop_signal: get(STOP_SIGNAL),
        follow: Follow {
            id: id.to_owned(),
            pod_uid: pod.uid.clone(),
            log_path: PathBuf::from(get(LOG_PATH)),
            stdin: get(STDIN) == "true",
            stdin_once: get(STDIN_ONCE) == "true",
            tty: get(TTY) == "true",
            cgroup_path: get(CGROUP),
        },
        callers: labels
            .iter()
            .filter_map(|(name, value)| {
                Some((name.strip_prefix(CALLER)?.to_owned(), value.clone()))
            })
            .collect(),
        pod,
    }
}

#[cfg(test)]
mod tests {
    use super::container_id;

    #[test]
    fn ids_differ_by_every_part_and_are_stable() {
        let id = container_id("u", "c", 0);
        assert_eq!(id, container_id("u", "c", 0));
        assert_eq!(id.len(), 64);
        for other in [
            container_id("u", "c", 1),
            container_id("uc", "", 0),
            container_id("v", "c", 0),
        ] {
            assert_ne!(id, other);
        }
    }
}
