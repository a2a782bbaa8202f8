//! A ReplicaSet or ReplicationController reduced to what the engine needs.

use k8s_openapi::api::apps::v1::{ReplicaSet, ReplicaSetStatus};
use k8s_openapi::api::core::v1::{
    PodTemplateSpec, ReplicationController, ReplicationControllerStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde_json::{Value, json};
use tholepin_informer::{InvalidSelector, Kind, ObjectRef, Selector, kinds};

/// What is to be kept running.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    pub(crate) kind: Kind,
    pub(crate) meta: ObjectMeta,
    pub(crate) replicas: i32,
    pub(crate) min_ready_secs: i32,
    pub(crate) selector: Selector,
    pub(crate) template: PodTemplateSpec,
    pub(crate) status: TargetStatus,
}

/// The status both kinds share.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TargetStatus {
    pub(crate) replicas: i32,
    pub(crate) fully_labeled: i32,
    pub(crate) ready: i32,
    pub(crate) available: i32,
    /// Only ReplicaSets have it.
    pub(crate) terminating: Option<i32>,
    pub(crate) observed_generation: i64,
    pub(crate) conditions: Vec<TargetCondition>,
}

/// A condition of both kinds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct TargetCondition {
    pub(crate) type_: String,
    pub(crate) status: String,
    pub(crate) reason: String,
    pub(crate) message: String,
    pub(crate) since: Option<Time>,
}

impl TargetStatus {
    /// As JSON of the API.
    pub(crate) fn to_value(&self) -> Value {
        let conditions: Vec<Value> = self
            .conditions
            .iter()
            .map(|condition| {
                json!({
                    "type": condition.type_, "status": condition.status,
                    "lastTransitionTime": condition.since,
                    "reason": condition.reason, "message": condition.message,
                })
            })
            .collect();
        // Upstream omits zeros, except for `replicas`; null removes a field in a merge patch.
        let count = |count: i32| {
            if count == 0 {
                Value::Null
            } else {
                json!(count)
            }
        };
        let mut status = json!({
            "replicas": self.replicas,
            "fullyLabeledReplicas": count(self.fully_labeled),
            "readyReplicas": count(self.ready),
            "availableReplicas": count(self.available),
            "observedGeneration": self.observed_generation,
            "conditions": if conditions.is_empty() { Value::Null } else { json!(conditions) },
        });
        if let Some(terminating) = self.terminating {
            status["terminatingReplicas"] = json!(terminating);
        }
        status
    }
}

/// The status of either kind: same names, types without anything in common.
macro_rules! target_status {
    ($status:expr, terminating: $terminating:expr) => {{
        let status = $status;
        TargetStatus {
            terminating: $terminating(&status),
            replicas: status.replicas,
            fully_labeled: status.fully_labeled_replicas.unwrap_or(0),
            ready: status.ready_replicas.unwrap_or(0),
            available: status.available_replicas.unwrap_or(0),
            observed_generation: status.observed_generation.unwrap_or(0),
            conditions: status
                .conditions
                .into_iter()
                .flatten()
                .map(|condition| TargetCondition {
                    type_: condition.type_,
                    status: condition.status,
                    reason: condition.reason.unwrap_or_default(),
                    message: condition.message.unwrap_or_default(),
                    since: condition.last_transition_time,
                })
                .collect(),
        }
    }};
}

impl Target {
    pub(crate) fn object_ref(&self) -> ObjectRef {
        ObjectRef::of(self.kind, &self.meta)
    }

    pub(crate) fn from_replica_set(set: &ReplicaSet) -> Result<Self, InvalidSelector> {
        let spec = set.spec.clone().unwrap_or_default();
        Ok(Self {
            kind: kinds::REPLICA_SET,
            meta: set.metadata.clone(),
            replicas: spec.replicas.unwrap_or(1),
            min_ready_secs: spec.min_ready_seconds.unwrap_or(0),
            selector: Selector::new(&spec.selector)?,
            template: spec.template.unwrap_or_default(),
            status: target_status!(
                set.status.clone().unwrap_or_default(),
                terminating: |status: &ReplicaSetStatus| status.terminating_replicas
            ),
        })
    }

    pub(crate) fn from_replication_controller(rc: &ReplicationController) -> Self {
        let spec = rc.spec.clone().unwrap_or_default();
        Self {
            kind: kinds::REPLICATION_CONTROLLER,
            meta: rc.metadata.clone(),
            replicas: spec.replicas.unwrap_or(1),
            min_ready_secs: spec.min_ready_seconds.unwrap_or(0),
            selector: Selector::from_labels(spec.selector.as_ref()),
            template: spec.template.unwrap_or_default(),
            status: target_status!(
                rc.status.clone().unwrap_or_default(),
                terminating: |_: &ReplicationControllerStatus| None
            ),
        }
    }
}
