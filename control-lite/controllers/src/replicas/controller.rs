//! One round of a ReplicaSet or ReplicationController: claim pods, make or delete some, report.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Value, json};
use tholepin_informer::{
    Change, ClientError, DeleteOptions, EventType, Kind, ObjectKey, Recorder, Subresource,
    WorkQueue, is_pod_active, is_pod_terminating, kinds,
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::plan::{Plan, plan, slow_start_batches};
use super::status::{Failure, status};
use super::target::Target;
use crate::context::{Context, ReconcileError};
use crate::ownership::{
    Claim, adoption_patch, claim, controller_of, controller_reference, release_patch,
};
use crate::runner::{self, Reconciler};

const WORKERS: usize = 5;

/// Keeps the replicas of one kind.
#[derive(Debug)]
pub(crate) struct ReplicasController {
    kind: Kind,
    context: Context,
    recorder: Recorder,
}

/// Registers handlers and starts the workers for ReplicaSets and ReplicationControllers.
pub(crate) fn spawn(context: &Context, tasks: &mut JoinSet<()>, cancel: &CancellationToken) {
    for kind in [kinds::REPLICA_SET, kinds::REPLICATION_CONTROLLER] {
        let queue = Arc::new(WorkQueue::new());
        watch_targets(context, kind, &queue);
        watch_pods(context, kind, &queue);
        let controller = Arc::new(ReplicasController::new(context, kind));
        runner::spawn(context, tasks, cancel, queue, controller, WORKERS);
    }
}

fn watch_targets(context: &Context, kind: Kind, queue: &Arc<WorkQueue<ObjectKey>>) {
    let add = {
        let queue = queue.clone();
        move |meta: &ObjectMeta| queue.add(ObjectKey::of(meta))
    };
    if kind == kinds::REPLICA_SET {
        context.caches.replica_sets.on_change(move |change| {
            change
                .latest()
                .into_iter()
                .for_each(|set| add(&set.metadata));
        });
    } else {
        context
            .caches
            .replication_controllers
            .on_change(move |change| {
                change.latest().into_iter().for_each(|rc| add(&rc.metadata));
            });
    }
}

fn watch_pods(context: &Context, kind: Kind, queue: &Arc<WorkQueue<ObjectKey>>) {
    let queue = queue.clone();
    let caches = context.caches.clone();
    context.caches.pods.on_change(move |change: &Change<Pod>| {
        for pod in change.old.iter().chain(&change.new) {
            if let Some(owner) = controller_of(&pod.metadata) {
                if owner.kind == kind.kind {
                    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
                    queue.add(ObjectKey::new(namespace, owner.name.clone()));
                }
                continue;
            }
            // An orphan wakes every target whose selector it matches.
            let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
            let labels = pod.metadata.labels.as_ref();
            if kind == kinds::REPLICA_SET {
                for set in caches.replica_sets.list_in(namespace) {
                    if Target::from_replica_set(&set).is_ok_and(|t| t.selector.matches(labels)) {
                        queue.add(ObjectKey::of(&set.metadata));
                    }
                }
            } else {
                for rc in caches.replication_controllers.list_in(namespace) {
                    if Target::from_replication_controller(&rc)
                        .selector
                        .matches(labels)
                    {
                        queue.add(ObjectKey::of(&rc.metadata));
                    }
                }
            }
        }
    });
}

impl ReplicasController {
    pub(crate) fn new(context: &Context, kind: Kind) -> Self {
        let component = if kind == kinds::REPLICA_SET {
            "replicaset-controller"
        } else {
            "replication-controller"
        };
        Self {
            kind,
            context: context.clone(),
            recorder: context.recorder.component(component),
        }
    }

    fn target(&self, key: &ObjectKey) -> Option<Target> {
        let caches = &self.context.caches;
        if self.kind == kinds::REPLICATION_CONTROLLER {
            let rc = caches.replication_controllers.get(key)?;
            return Some(Target::from_replication_controller(&rc));
        }
        let set = caches.replica_sets.get(key)?;
        Target::from_replica_set(&set)
            .inspect_err(|error| tracing::error!(%key, %error, "replica set has a bad selector"))
            .ok()
    }

    /// Our pods, after adopting orphans that match and releasing those that no longer do.
    async fn claim_pods(&self, target: &Target) -> Result<Vec<Arc<Pod>>, ReconcileError> {
        let pods = &self.context.caches.pods;
        let namespace = target.meta.namespace.as_deref().unwrap_or_default();
        let mut ours = Vec::new();
        let mut may_adopt = None;
        for pod in pods.list_in(namespace) {
            let key = ObjectKey::of(&pod.metadata);
            match claim(&target.meta, &target.selector, &pod.metadata) {
                Claim::Ignore => (),
                Claim::Keep => ours.push(pod),
                Claim::Release => {
                    let uid = target.meta.uid.as_deref().unwrap_or_default();
                    let patch = release_patch(&pod.metadata, &[uid]);
                    ignore_gone(pods.patch(&key, Subresource::Main, patch).await)
                        .map_err(ReconcileError::of("release pod", &key))?;
                }
                Claim::Adopt if !is_pod_active(&pod) => (),
                Claim::Adopt => {
                    if may_adopt.is_none() {
                        may_adopt = Some(self.still_exists(target).await?);
                    }
                    if may_adopt == Some(true) {
                        let reference = controller_reference(self.kind, &target.meta);
                        let patch = adoption_patch(&pod.metadata, reference);
                        let adopted = ignore_gone(pods.patch(&key, Subresource::Main, patch).await)
                            .map_err(ReconcileError::of("adopt pod", &key))?;
                        ours.extend(adopted);
                    }
                }
            }
        }
        Ok(ours)
    }

    /// Asks the store and not the cache: a deleted owner must not adopt.
    async fn still_exists(&self, target: &Target) -> Result<bool, ReconcileError> {
        let key = ObjectKey::of(&target.meta);
        match self
            .context
            .caches
            .client()
            .get(self.kind, &key.namespace, &key.name)
            .await
        {
            Ok(fresh) => Ok(fresh.pointer("/metadata/uid").and_then(Value::as_str)
                == target.meta.uid.as_deref()
                && fresh.pointer("/metadata/deletionTimestamp").is_none()),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(ReconcileError::of("read", key)(error)),
        }
    }

    /// Active pods of every set of the same Deployment: what the deletion order counts per node.
    fn related(&self, target: &Target, ours: &[Arc<Pod>]) -> Vec<Arc<Pod>> {
        let Some(owner) = controller_of(&target.meta) else {
            return ours.to_vec();
        };
        let caches = &self.context.caches;
        caches
            .replica_sets
            .owned_by(&owner.uid)
            .iter()
            .filter_map(|set| set.metadata.uid.clone())
            .flat_map(|uid| caches.pods.owned_by(&uid))
            .collect()
    }

    async fn carry_out(&self, target: &Target, plan: Plan) -> Option<(Failure, ClientError)> {
        if plan.create > 0 {
            self.create_pods(target, plan.create).await
        } else {
            self.delete_pods(target, &plan.delete).await
        }
    }

    async fn create_pods(&self, target: &Target, count: usize) -> Option<(Failure, ClientError)> {
        let pod = pod_from_template(target);
        let namespace = target.meta.namespace.as_deref().unwrap_or_default();
        for batch in slow_start_batches(count) {
            let creations =
                (0..batch).map(|_| self.context.caches.pods.create(namespace, pod.clone()));
            let mut failed = None;
            for outcome in join_all(creations).await {
                match outcome {
                    Ok(pod) => self.recorder.record(
                        target.object_ref(),
                        EventType::Normal,
                        "SuccessfulCreate",
                        format!(
                            "Created pod: {}",
                            pod.metadata.name.as_deref().unwrap_or_default()
                        ),
                    ),
                    // The namespace goes: nothing can be made any more, and that is no failure.
                    Err(error) if error.namespace_terminating => return None,
                    Err(error) => failed = Some(error),
                }
            }
            if let Some(error) = failed {
                let message = format!("Error creating: {error}");
                let about = target.object_ref();
                self.recorder
                    .record(about, EventType::Warning, "FailedCreate", message);
                let failure = Failure {
                    reason: "FailedCreate",
                    message: error.to_string(),
                };
                return Some((failure, error));
            }
        }
        None
    }

    async fn delete_pods(
        &self,
        target: &Target,
        pods: &[Arc<Pod>],
    ) -> Option<(Failure, ClientError)> {
        let deletions = pods.iter().map(|pod| async move {
            let options = DeleteOptions {
                uid: pod.metadata.uid.clone(),
                ..DeleteOptions::default()
            };
            (pod, self.context.caches.pods.delete(pod, options).await)
        });
        let mut failed = None;
        for (pod, outcome) in join_all(deletions).await {
            let name = pod.metadata.name.as_deref().unwrap_or_default();
            match outcome {
                Ok(()) => self.recorder.record(
                    target.object_ref(),
                    EventType::Normal,
                    "SuccessfulDelete",
                    format!("Deleted pod: {name}"),
                ),
                Err(error) if error.is_not_found() => (),
                Err(error) => {
                    let message = format!("Error deleting: {error}");
                    let about = target.object_ref();
                    self.recorder
                        .record(about, EventType::Warning, "FailedDelete", message);
                    let failure = Failure {
                        reason: "FailedDelete",
                        message: error.to_string(),
                    };
                    failed = Some((failure, error));
                }
            }
        }
        failed
    }

    async fn report(
        &self,
        target: &Target,
        pods: &[Arc<Pod>],
        failure: Option<&Failure>,
    ) -> Result<Option<Duration>, ReconcileError> {
        let active: Vec<Arc<Pod>> = pods
            .iter()
            .filter(|pod| is_pod_active(pod))
            .cloned()
            .collect();
        let terminating = pods.iter().filter(|pod| is_pod_terminating(pod)).count();
        let (status, again) = status(target, &active, terminating, failure, Timestamp::now());
        if status == target.status {
            return Ok(again);
        }
        let key = ObjectKey::of(&target.meta);
        let patch = json!({
            "metadata": {"resourceVersion": target.meta.resource_version},
            "status": status.to_value(),
        });
        let caches = &self.context.caches;
        let outcome = if self.kind == kinds::REPLICA_SET {
            caches
                .replica_sets
                .patch(&key, Subresource::Status, patch)
                .await
                .map(drop)
        } else {
            caches
                .replication_controllers
                .patch(&key, Subresource::Status, patch)
                .await
                .map(drop)
        };
        outcome.map_err(ReconcileError::of("update the status of", key))?;
        Ok(again)
    }
}

impl Reconciler for ReplicasController {
    type Key = ObjectKey;
    const NAME: &'static str = "replicas";

    async fn reconcile(&self, key: &ObjectKey) -> Result<Option<Duration>, ReconcileError> {
        let Some(target) = self.target(key) else {
            return Ok(None);
        };
        if target.selector.is_empty() {
            // It would claim every pod of the namespace; validation refuses it, so only log.
            tracing::warn!(%key, "empty selector, nothing is done");
            return Ok(None);
        }
        let mut pods = self.claim_pods(&target).await?;
        let mut failure = None;
        if target.meta.deletion_timestamp.is_none() {
            let active: Vec<Arc<Pod>> = pods
                .iter()
                .filter(|pod| is_pod_active(pod))
                .cloned()
                .collect();
            let surplus = active.len() > usize::try_from(target.replicas).unwrap_or(0);
            let related = if surplus {
                self.related(&target, &active)
            } else {
                Vec::new()
            };
            let plan = plan(target.replicas, &active, &related, Timestamp::now());
            let changed = plan.create > 0 || !plan.delete.is_empty();
            failure = self.carry_out(&target, plan).await;
            if changed {
                // The cache shows our own writes already.
                let uid = target.meta.uid.as_deref().unwrap_or_default();
                pods = self.context.caches.pods.owned_by(uid);
                pods.retain(|pod| {
                    claim(&target.meta, &target.selector, &pod.metadata) == Claim::Keep
                });
            }
        }
        let again = self
            .report(&target, &pods, failure.as_ref().map(|(why, _)| why))
            .await?;
        match failure {
            Some((_, error)) => Err(ReconcileError::of("keep the replicas of", key)(error)),
            None => Ok(again),
        }
    }
}

/// `None` if the object was deleted meanwhile.
fn ignore_gone<T>(outcome: Result<T, ClientError>) -> Result<Option<T>, ClientError> {
    match outcome {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.is_not_found() => Ok(None),
        Err(error) => Err(error),
    }
}

fn pod_from_template(target: &Target) -> Value {
    let template = target.template.metadata.clone().unwrap_or_default();
    let metadata = ObjectMeta {
        generate_name: Some(format!(
            "{}-",
            target.meta.name.as_deref().unwrap_or_default()
        )),
        labels: template.labels,
        annotations: template.annotations,
        finalizers: template.finalizers,
        owner_references: Some(vec![controller_reference(target.kind, &target.meta)]),
        ..Default::default()
    };
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": target.template.spec})
}
