//! The working copies of one round, and the numbers every step asks for.

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{
    Deployment, DeploymentCondition, DeploymentSpec, DeploymentStatus, ReplicaSet,
};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tholepin_informer::{EventType, truncate_to_secs};

pub(super) const REVISION: &str = "deployment.kubernetes.io/revision";
pub(super) const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
pub(super) const DESIRED_REPLICAS: &str = "deployment.kubernetes.io/desired-replicas";
pub(super) const MAX_REPLICAS: &str = "deployment.kubernetes.io/max-replicas";
pub(super) const HASH_LABEL: &str = "pod-template-hash";

/// One round over one Deployment. Steps change the copies; the differences are written at the end.
#[derive(Clone, Debug)]
pub(super) struct Round {
    pub(super) deployment: Deployment,
    /// The set with the Deployment's template, if there is one.
    pub(super) new: Option<ReplicaSet>,
    /// Whether `new` does not exist yet.
    pub(super) create_new: bool,
    pub(super) old: Vec<ReplicaSet>,
    /// Sets of the past that the history limit removes.
    pub(super) expired: Vec<ReplicaSet>,
    pub(super) events: Vec<(EventType, &'static str, String)>,
    pub(super) now: Timestamp,
}

impl Round {
    /// Sorts `sets` into the new one and the old ones.
    pub(super) fn new(deployment: Deployment, mut sets: Vec<ReplicaSet>, now: Timestamp) -> Self {
        sort_by_age(&mut sets);
        let wanted = without_hash(deployment.spec.as_ref().map(|spec| &spec.template));
        // The oldest match, so that two sets of one template always give the same answer.
        let position = sets.iter().position(|set| {
            let template = set.spec.as_ref().and_then(|spec| spec.template.as_ref());
            without_hash(template) == wanted
        });
        let new = position.map(|position| sets.remove(position));
        Self {
            deployment,
            new,
            create_new: false,
            old: sets,
            expired: Vec::new(),
            events: Vec::new(),
            now,
        }
    }

    pub(super) fn spec(&self) -> &DeploymentSpec {
        self.deployment
            .spec
            .as_ref()
            .expect("the controller skips Deployments without a spec")
    }

    pub(super) fn status(&mut self) -> &mut DeploymentStatus {
        self.deployment.status.get_or_insert_default()
    }

    pub(super) fn replicas(&self) -> i32 {
        self.spec().replicas.unwrap_or(1)
    }

    pub(super) fn is_recreate(&self) -> bool {
        self.spec()
            .strategy
            .as_ref()
            .and_then(|s| s.type_.as_deref())
            == Some("Recreate")
    }

    pub(super) fn max_surge(&self) -> i32 {
        if self.is_recreate() {
            0
        } else {
            self.fenceposts().0
        }
    }

    pub(super) fn max_unavailable(&self) -> i32 {
        if self.is_recreate() || self.replicas() == 0 {
            return 0;
        }
        self.fenceposts().1.min(self.replicas())
    }

    fn fenceposts(&self) -> (i32, i32) {
        let rolling = self
            .spec()
            .strategy
            .as_ref()
            .and_then(|strategy| strategy.rolling_update.as_ref());
        let default = IntOrString::String("25%".to_owned());
        let surge = rolling
            .and_then(|rolling| rolling.max_surge.as_ref())
            .unwrap_or(&default);
        let unavailable = rolling
            .and_then(|rolling| rolling.max_unavailable.as_ref())
            .unwrap_or(&default);
        resolve_fenceposts(surge, unavailable, self.replicas())
    }

    /// Whether `progressDeadlineSeconds` is set (the highest number means that it is not).
    pub(super) fn progress_deadline(&self) -> Option<i64> {
        self.spec()
            .progress_deadline_seconds
            .filter(|secs| *secs != i32::MAX)
            .map(i64::from)
    }

    /// Every set: the new one first, as upstream lists them.
    pub(super) fn all(&self) -> impl Iterator<Item = &ReplicaSet> {
        self.new.iter().chain(&self.old)
    }

    pub(super) fn condition(&self, type_: &str) -> Option<&DeploymentCondition> {
        let conditions = self.deployment.status.as_ref()?.conditions.as_ref()?;
        conditions.iter().find(|condition| condition.type_ == type_)
    }

    pub(super) fn make_condition(
        &self,
        type_: &str,
        status: &str,
        reason: &str,
        message: String,
    ) -> DeploymentCondition {
        let now = truncate_to_secs(self.now);
        DeploymentCondition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: Some(reason.to_owned()),
            message: Some(message),
            last_update_time: Some(now.clone()),
            last_transition_time: Some(now),
        }
    }

    /// Sets `replicas` of a set together with the annotations that remember what it was scaled for.
    pub(super) fn scale(&mut self, which: Which, replicas: i32) {
        let (desired, max) = (self.replicas(), self.replicas() + self.max_surge());
        let set = match which {
            Which::New => self.new.as_mut(),
            Which::Old(index) => self.old.get_mut(index),
        };
        let Some(set) = set else { return };
        set_replicas_annotations(set, desired, max);
        let before = size(set);
        if before == replicas {
            return;
        }
        set.spec.get_or_insert_default().replicas = Some(replicas);
        let direction = if before < replicas { "up" } else { "down" };
        let name = set.metadata.name.as_deref().unwrap_or_default();
        self.events.push((
            EventType::Normal,
            "ScalingReplicaSet",
            format!("Scaled {direction} replica set {name} from {before} to {replicas}"),
        ));
    }
}

/// One of a round's sets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Which {
    New,
    Old(usize),
}

/// maxSurge rounds up, maxUnavailable down; both zero would never move, so one may be unavailable.
pub(super) fn resolve_fenceposts(
    surge: &IntOrString,
    unavailable: &IntOrString,
    desired: i32,
) -> (i32, i32) {
    let surge = scaled(surge, desired, true);
    let unavailable = scaled(unavailable, desired, false);
    if surge == 0 && unavailable == 0 {
        (0, 1)
    } else {
        (surge, unavailable)
    }
}

fn scaled(value: &IntOrString, total: i32, round_up: bool) -> i32 {
    match value {
        IntOrString::Int(count) => *count,
        IntOrString::String(text) => {
            // Validation admits only percentages.
            let percent = text.trim_end_matches('%').parse::<i64>().unwrap_or(0);
            let hundredths = percent * i64::from(total);
            let result = if round_up {
                (hundredths + 99) / 100
            } else {
                hundredths / 100
            };
            i32::try_from(result).unwrap_or(i32::MAX)
        }
    }
}

/// `spec.replicas` of a set.
pub(super) fn size(set: &ReplicaSet) -> i32 {
    set.spec
        .as_ref()
        .and_then(|spec| spec.replicas)
        .unwrap_or(1)
}

/// `status.availableReplicas` of a set.
pub(super) fn available(set: &ReplicaSet) -> i32 {
    set.status
        .as_ref()
        .and_then(|status| status.available_replicas)
        .unwrap_or(0)
}

/// `status.replicas` of a set: its pods that exist.
pub(super) fn actual(set: &ReplicaSet) -> i32 {
    set.status.as_ref().map_or(0, |status| status.replicas)
}

pub(super) fn annotation<'a>(set: &'a ReplicaSet, key: &str) -> Option<&'a str> {
    set.metadata
        .annotations
        .as_ref()?
        .get(key)
        .map(String::as_str)
}

pub(super) fn number_annotation<T: std::str::FromStr>(set: &ReplicaSet, key: &str) -> Option<T> {
    annotation(set, key)?.parse().ok()
}

pub(super) fn set_replicas_annotations(set: &mut ReplicaSet, desired: i32, max: i32) {
    let annotations = set.metadata.annotations.get_or_insert_default();
    annotations.insert(DESIRED_REPLICAS.to_owned(), desired.to_string());
    annotations.insert(MAX_REPLICAS.to_owned(), max.to_string());
}

/// Oldest first; the name decides between equals.
pub(super) fn sort_by_age(sets: &mut [ReplicaSet]) {
    sets.sort_by(|a, b| {
        (&a.metadata.creation_timestamp, &a.metadata.name)
            .cmp(&(&b.metadata.creation_timestamp, &b.metadata.name))
    });
}

/// A template as the user wrote it.
pub(super) fn without_hash(template: Option<&PodTemplateSpec>) -> PodTemplateSpec {
    let mut template = template.cloned().unwrap_or_default();
    let metadata = template.metadata.get_or_insert_default();
    if let Some(labels) = metadata.labels.as_mut() {
        labels.remove(HASH_LABEL);
        if labels.is_empty() {
            metadata.labels = None;
        }
    }
    // The server may add these; they are no part of what the user asked for.
    metadata.creation_timestamp = None;
    template
}
