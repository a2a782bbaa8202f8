//! Revisions: the new ReplicaSet, its name and annotations, and the removal of old ones.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetSpec};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use tholepin_informer::{EventType, kinds};

use super::round::{
    DESIRED_REPLICAS, HASH_LABEL, MAX_REPLICAS, REVISION, REVISION_HISTORY, Round, actual,
    annotation, number_annotation, set_replicas_annotations, size,
};
use super::status::set_condition;
use crate::ownership::controller_reference;
use crate::patch::to_value;

/// The history annotation grows no longer than this.
const MAX_HISTORY_CHARS: usize = 2000;

/// Annotations of a Deployment that mean nothing on its ReplicaSets.
const NOT_COPIED: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    REVISION_HISTORY,
    DESIRED_REPLICAS,
    MAX_REPLICAS,
    "deprecated.deployment.rollback.to",
];

impl Round {
    /// Numbers the new set, and makes one if there is none and `create` says so.
    pub(super) fn ensure_new_set(&mut self, create: bool) {
        let newest_old = self
            .old
            .iter()
            .filter_map(|set| number_annotation::<i64>(set, REVISION))
            .max();
        let revision = newest_old.unwrap_or(0) + 1;
        if self.new.is_some() {
            self.renew_existing(revision);
        } else if create {
            self.make_new(revision);
        }
    }

    fn renew_existing(&mut self, revision: i64) {
        let Some(mut set) = self.new.take() else {
            return;
        };
        let name = set.metadata.name.clone().unwrap_or_default();
        self.copy_annotations(&mut set);
        raise_revision(&mut set, revision);
        let min_ready = self.spec().min_ready_seconds;
        let spec = set.spec.get_or_insert_default();
        if spec.min_ready_seconds.unwrap_or(0) != min_ready.unwrap_or(0) {
            spec.min_ready_seconds = min_ready;
        }
        let number = annotation(&set, REVISION).map(str::to_owned);
        self.set_deployment_revision(number);
        if self.progress_deadline().is_some() && self.condition("Progressing").is_none() {
            let message = format!("Found new replica set \"{name}\"");
            let condition =
                self.make_condition("Progressing", "True", "FoundNewReplicaSet", message);
            set_condition(self.status(), condition);
        }
        self.new = Some(set);
    }

    fn make_new(&mut self, revision: i64) {
        let spec = self.spec().clone();
        let collisions = self
            .deployment
            .status
            .as_ref()
            .and_then(|s| s.collision_count);
        let hash = template_hash(&spec.template, collisions);
        let mut template = spec.template;
        let labels = template
            .metadata
            .get_or_insert_default()
            .labels
            .get_or_insert_default();
        labels.insert(HASH_LABEL.to_owned(), hash.clone());
        let labels = labels.clone();
        let mut selector = spec.selector;
        selector
            .match_labels
            .get_or_insert_default()
            .insert(HASH_LABEL.to_owned(), hash.clone());
        let owner = &self.deployment.metadata;
        let name = format!("{}-{hash}", owner.name.as_deref().unwrap_or_default());
        let mut set = ReplicaSet {
            metadata: ObjectMeta {
                name: Some(name.clone()),
                namespace: owner.namespace.clone(),
                labels: Some(labels),
                owner_references: Some(vec![controller_reference(kinds::DEPLOYMENT, owner)]),
                ..Default::default()
            },
            spec: Some(ReplicaSetSpec {
                replicas: Some(0),
                min_ready_seconds: spec.min_ready_seconds,
                selector,
                template: Some(template),
            }),
            status: None,
        };
        self.copy_annotations(&mut set);
        raise_revision(&mut set, revision);
        self.create_new = true;
        let size = self.new_set_size();
        set.spec.get_or_insert_default().replicas = Some(size);
        set_replicas_annotations(
            &mut set,
            self.replicas(),
            self.replicas() + self.max_surge(),
        );
        if size > 0 {
            let message = format!("Scaled up replica set {name} from 0 to {size}");
            self.events
                .push((EventType::Normal, "ScalingReplicaSet", message));
        }
        self.new = Some(set);
        self.set_deployment_revision(Some(revision.to_string()));
        if self.progress_deadline().is_some() {
            let message = format!("Created new replica set \"{name}\"");
            let condition =
                self.make_condition("Progressing", "True", "NewReplicaSetCreated", message);
            set_condition(self.status(), condition);
        }
    }

    fn copy_annotations(&self, set: &mut ReplicaSet) {
        for (key, value) in self.deployment.metadata.annotations.iter().flatten() {
            if !NOT_COPIED.contains(&key.as_str()) {
                set.metadata
                    .annotations
                    .get_or_insert_default()
                    .insert(key.clone(), value.clone());
            }
        }
    }

    fn set_deployment_revision(&mut self, revision: Option<String>) {
        if let Some(revision) = revision {
            self.deployment
                .metadata
                .annotations
                .get_or_insert_default()
                .insert(REVISION.to_owned(), revision);
        }
    }

    /// Lets go of the oldest empty sets beyond `revisionHistoryLimit`.
    pub(super) fn expire_old(&mut self) {
        let limit = self.spec().revision_history_limit.unwrap_or(10);
        let mut alive: Vec<&ReplicaSet> = self
            .old
            .iter()
            .filter(|set| set.metadata.deletion_timestamp.is_none())
            .collect();
        let surplus = alive
            .len()
            .saturating_sub(usize::try_from(limit).unwrap_or(usize::MAX));
        alive.sort_by_key(|set| number_annotation::<i64>(set, REVISION).unwrap_or(0));
        self.expired = alive
            .into_iter()
            .take(surplus)
            .filter(|set| {
                let observed = set
                    .status
                    .as_ref()
                    .and_then(|status| status.observed_generation)
                    .unwrap_or(0);
                actual(set) == 0
                    && size(set) == 0
                    && set.metadata.generation.unwrap_or(0) <= observed
            })
            .cloned()
            .collect();
    }
}

/// Gives a set a higher revision; the one it had goes into its history.
fn raise_revision(set: &mut ReplicaSet, revision: i64) {
    let old = annotation(set, REVISION).map(str::to_owned);
    let old_number = old
        .as_deref()
        .and_then(|text| text.parse::<i64>().ok())
        .unwrap_or(0);
    if old_number >= revision {
        return;
    }
    let annotations = set.metadata.annotations.get_or_insert_default();
    annotations.insert(REVISION.to_owned(), revision.to_string());
    let Some(old) = old else { return };
    remember(annotations, &old);
}

fn remember(annotations: &mut BTreeMap<String, String>, revision: &str) {
    let known = annotations
        .get(REVISION_HISTORY)
        .cloned()
        .unwrap_or_default();
    let mut history: Vec<&str> = known.split(',').filter(|text| !text.is_empty()).collect();
    history.push(revision);
    while history.len() > 1 && history.join(",").len() > MAX_HISTORY_CHARS {
        history.remove(0);
    }
    annotations.insert(REVISION_HISTORY.to_owned(), history.join(","));
}

/// The `pod-template-hash` of a template: FNV-1a over its JSON, in letters that spell no words.
pub(super) fn template_hash(template: &PodTemplateSpec, collisions: Option<i32>) -> String {
    const LETTERS: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
    let mut hash: u32 = 0x811c_9dc5;
    let mut feed = |bytes: &[u8]| {
        for byte in bytes {
            hash = (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
        }
    };
    feed(to_value(template).to_string().as_bytes());
    if let Some(collisions) = collisions {
        feed(&collisions.to_le_bytes());
    }
    let digits = hash.to_string();
    digits
        .bytes()
        .map(|digit| char::from(LETTERS[usize::from(digit) % LETTERS.len()]))
        .collect()
}
