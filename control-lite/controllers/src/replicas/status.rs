//! The status of a ReplicaSet or ReplicationController.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use tholepin_informer::{is_pod_available, is_pod_ready, truncate_to_secs};

use super::target::{Target, TargetCondition, TargetStatus};
use crate::ownership::has_labels;

const REPLICA_FAILURE: &str = "ReplicaFailure";

/// Why a round could not make or delete its pods.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    /// `FailedCreate` or `FailedDelete`.
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

/// The status to report, and after which time a pod becomes available without any event.
pub(crate) fn status(
    target: &Target,
    active: &[Arc<Pod>],
    terminating: usize,
    failure: Option<&Failure>,
    now: Timestamp,
) -> (TargetStatus, Option<Duration>) {
    let mut again: Option<Duration> = None;
    let template_labels = target
        .template
        .metadata
        .as_ref()
        .and_then(|metadata| metadata.labels.as_ref());
    let mut status = TargetStatus {
        replicas: count(active.len()),
        terminating: target
            .status
            .terminating
            .or(Some(0))
            .filter(|_| target.kind == tholepin_informer::kinds::REPLICA_SET),
        observed_generation: target.meta.generation.unwrap_or(0),
        conditions: target.status.conditions.clone(),
        ..Default::default()
    };
    if let Some(known) = status.terminating.as_mut() {
        *known = count(terminating);
    }
    for pod in active {
        if has_labels(pod.metadata.labels.as_ref(), template_labels) {
            status.fully_labeled += 1;
        }
        if is_pod_ready(pod) {
            status.ready += 1;
        }
        match is_pod_available(pod, target.min_ready_secs, now) {
            Ok(true) => status.available += 1,
            Ok(false) => (),
            Err(missing) => again = Some(again.map_or(missing, |soonest| soonest.min(missing))),
        }
    }
    let known = status
        .conditions
        .iter()
        .any(|condition| condition.type_ == REPLICA_FAILURE);
    match failure {
        Some(failure) if !known => status.conditions.push(TargetCondition {
            type_: REPLICA_FAILURE.to_owned(),
            status: "True".to_owned(),
            reason: failure.reason.to_owned(),
            message: failure.message.clone(),
            since: Some(truncate_to_secs(now)),
        }),
        None if known => status
            .conditions
            .retain(|condition| condition.type_ != REPLICA_FAILURE),
        _ => (),
    }
    (status, again)
}

fn count(pods: usize) -> i32 {
    i32::try_from(pods).unwrap_or(i32::MAX)
}
