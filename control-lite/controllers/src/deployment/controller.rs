//! Asks the caches, lets `plan.rs` decide, and writes the differences.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use serde_json::{Value, json};
use tholepin_informer::{
    ClientError, DeleteOptions, EventType, ObjectKey, ObjectRef, Recorder, Selector, Subresource,
    WorkQueue, is_pod_terminal, kinds,
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::round::{Round, without_hash};
use super::status::set_condition;
use crate::context::{Context, ReconcileError};
use crate::ownership::{
    Claim, adoption_patch, claim, controller_of, controller_reference, release_patch,
};
use crate::patch::{object_diff, status_diff, to_value};
use crate::runner::{self, Reconciler};

const WORKERS: usize = 5;

/// Keeps Deployments.
#[derive(Debug)]
pub(super) struct DeploymentController {
    context: Context,
    recorder: Recorder,
}

/// Registers handlers and starts the workers.
pub(crate) fn spawn(context: &Context, tasks: &mut JoinSet<()>, cancel: &CancellationToken) {
    let queue = Arc::new(WorkQueue::new());
    watch(context, &queue);
    let controller = Arc::new(DeploymentController {
        context: context.clone(),
        recorder: context.recorder.component("deployment-controller"),
    });
    runner::spawn(context, tasks, cancel, queue, controller, WORKERS);
}

fn watch(context: &Context, queue: &Arc<WorkQueue<ObjectKey>>) {
    let caches = &context.caches;
    let add = queue.clone();
    caches.deployments.on_change(move |change| {
        change
            .latest()
            .into_iter()
            .for_each(|d| add.add(ObjectKey::of(&d.metadata)));
    });
    let (add, deployments) = (queue.clone(), caches.deployments.clone());
    caches.replica_sets.on_change(move |change| {
        for set in change.old.iter().chain(&change.new) {
            let namespace = set.metadata.namespace.clone().unwrap_or_default();
            match controller_of(&set.metadata) {
                Some(owner) if owner.kind == kinds::DEPLOYMENT.kind => {
                    add.add(ObjectKey::new(namespace, owner.name.clone()));
                }
                Some(_) => (),
                None => {
                    for deployment in deployments.list_in(&namespace) {
                        if selector_of(&deployment)
                            .is_some_and(|s| s.matches(set.metadata.labels.as_ref()))
                        {
                            add.add(ObjectKey::of(&deployment.metadata));
                        }
                    }
                }
            }
        }
    });
    // Recreate waits for the last old pod to be gone, which no ReplicaSet says.
    let (add, sets, deployments) = (
        queue.clone(),
        caches.replica_sets.clone(),
        caches.deployments.clone(),
    );
    caches.pods.on_change(move |change| {
        let gone = change.new.as_ref().is_none_or(|pod| is_pod_terminal(pod));
        let Some(pod) = change.latest().filter(|_| gone) else {
            return;
        };
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        let Some(owner) = controller_of(&pod.metadata) else {
            return;
        };
        let Some(set) = sets.get(&ObjectKey::new(&namespace, &owner.name)) else {
            return;
        };
        let Some(owner) = controller_of(&set.metadata) else {
            return;
        };
        let key = ObjectKey::new(namespace, owner.name.clone());
        let recreate = deployments.get(&key).is_some_and(|deployment| {
            let strategy = deployment
                .spec
                .as_ref()
                .and_then(|spec| spec.strategy.as_ref());
            strategy.and_then(|strategy| strategy.type_.as_deref()) == Some("Recreate")
        });
        if recreate {
            add.add(key);
        }
    });
}

fn selector_of(deployment: &Deployment) -> Option<Selector> {
    Selector::new(&deployment.spec.as_ref()?.selector).ok()
}

impl Reconciler for DeploymentController {
    type Key = ObjectKey;
    const NAME: &'static str = "deployment";

    async fn reconcile(&self, key: &ObjectKey) -> Result<Option<Duration>, ReconcileError> {
        let Some(deployment) = self.context.caches.deployments.get(key) else {
            return Ok(None);
        };
        let Some(selector) = selector_of(&deployment) else {
            tracing::error!(%key, "deployment has a bad selector");
            return Ok(None);
        };
        if selector.is_empty() {
            self.record(
                &deployment,
                EventType::Warning,
                "SelectingAll",
                "This deployment is selecting all pods. A non-empty selector is required.".into(),
            );
            return Ok(None);
        }
        let sets = self.claim_sets(&deployment, &selector).await?;
        // Boxed: these objects are large, and a future holds what it awaits over.
        let mut round = self.round(&deployment, &sets);
        let again = round.decide(self.old_pods_run(&round));
        Box::pin(self.carry_out(&deployment, &sets, round)).await?;
        Ok(again)
    }
}

impl DeploymentController {
    fn round(&self, deployment: &Deployment, sets: &[ReplicaSet]) -> Box<Round> {
        let round = Round::new(deployment.clone(), sets.to_vec(), Timestamp::now());
        Box::new(round)
    }

    fn record(
        &self,
        deployment: &Deployment,
        type_: EventType,
        reason: &'static str,
        message: String,
    ) {
        let about = ObjectRef::of(kinds::DEPLOYMENT, &deployment.metadata);
        self.recorder.record(about, type_, reason, message);
    }

    /// Our ReplicaSets, after adopting orphans that match and releasing those that no longer do.
    async fn claim_sets(
        &self,
        deployment: &Deployment,
        selector: &Selector,
    ) -> Result<Vec<ReplicaSet>, ReconcileError> {
        let owner = &deployment.metadata;
        let store = &self.context.caches.replica_sets;
        let mut ours = Vec::new();
        for set in store.list_in(owner.namespace.as_deref().unwrap_or_default()) {
            let patch = match claim(owner, selector, &set.metadata) {
                Claim::Ignore => continue,
                Claim::Keep => {
                    ours.push(ReplicaSet::clone(&set));
                    continue;
                }
                Claim::Adopt => {
                    let key = ObjectKey::of(owner);
                    let fresh = self.context.caches.client();
                    let fresh = fresh
                        .get(kinds::DEPLOYMENT, &key.namespace, &key.name)
                        .await;
                    let fresh = fresh.map_err(ReconcileError::of("read", &key))?;
                    // A deleted owner must not adopt.
                    if fresh.pointer("/metadata/uid").and_then(Value::as_str)
                        != owner.uid.as_deref()
                        || fresh.pointer("/metadata/deletionTimestamp").is_some()
                    {
                        continue;
                    }
                    adoption_patch(
                        &set.metadata,
                        controller_reference(kinds::DEPLOYMENT, owner),
                    )
                }
                Claim::Release => {
                    release_patch(&set.metadata, &[owner.uid.as_deref().unwrap_or_default()])
                }
            };
            let adopting = claim(owner, selector, &set.metadata) == Claim::Adopt;
            let key = ObjectKey::of(&set.metadata);
            let patched = store.patch(&key, Subresource::Main, patch).await;
            match patched {
                Ok(set) if adopting => ours.push(ReplicaSet::clone(&set)),
                Ok(_) => (),
                Err(error) if error.is_not_found() => (),
                Err(error) => return Err(ReconcileError::of("claim replica set", key)(error)),
            }
        }
        Ok(ours)
    }

    fn old_pods_run(&self, round: &Round) -> bool {
        round.is_recreate()
            && round
                .old
                .iter()
                .filter_map(|set| set.metadata.uid.as_deref())
                .any(|uid| {
                    self.context
                        .caches
                        .pods
                        .owned_by(uid)
                        .iter()
                        .any(|pod| !is_pod_terminal(pod))
                })
    }

    async fn carry_out(
        &self,
        before: &Deployment,
        sets: &[ReplicaSet],
        mut round: Box<Round>,
    ) -> Result<(), ReconcileError> {
        let store = &self.context.caches.replica_sets;
        let namespace = before.metadata.namespace.as_deref().unwrap_or_default();
        if round.create_new {
            let Some(new) = round.new.take().map(Box::new) else {
                return Ok(());
            };
            match store.create(namespace, to_value(&new)).await {
                Ok(_) => (),
                Err(error) if error.is_already_exists() => {
                    return Box::pin(self.resolve_collision(before, &new, error)).await;
                }
                Err(error) => {
                    return Box::pin(self.creation_failed(before, round, &new, error)).await;
                }
            }
        } else if let Some(new) = &round.new {
            self.write_set(sets, new).await?;
        }
        for old in &round.old {
            self.write_set(sets, old).await?;
        }
        for (type_, reason, message) in std::mem::take(&mut round.events) {
            self.record(before, type_, reason, message);
        }
        for set in &round.expired {
            let options = DeleteOptions {
                uid: set.metadata.uid.clone(),
                ..Default::default()
            };
            match store.delete(set, options).await {
                Err(error) if !error.is_not_found() => {
                    let key = ObjectKey::of(&set.metadata);
                    return Err(ReconcileError::of("delete old replica set", key)(error));
                }
                _ => (),
            }
        }
        Box::pin(self.write_deployment(before, &round.deployment)).await
    }

    async fn write_set(&self, sets: &[ReplicaSet], set: &ReplicaSet) -> Result<(), ReconcileError> {
        let Some(old) = sets.iter().find(|old| old.metadata.uid == set.metadata.uid) else {
            return Ok(());
        };
        let Some(patch) = object_diff(old, set) else {
            return Ok(());
        };
        let key = ObjectKey::of(&set.metadata);
        let store = &self.context.caches.replica_sets;
        store
            .patch(&key, Subresource::Main, patch)
            .await
            .map(drop)
            .map_err(ReconcileError::of("update replica set", key))
    }

    async fn write_deployment(
        &self,
        before: &Deployment,
        after: &Deployment,
    ) -> Result<(), ReconcileError> {
        let key = ObjectKey::of(&before.metadata);
        let store = &self.context.caches.deployments;
        let mut version = before.metadata.resource_version.clone();
        if before.metadata.annotations != after.metadata.annotations {
            let patch = json!({"metadata": {
                "resourceVersion": version, "annotations": after.metadata.annotations,
            }});
            // Through the status, as upstream: a note of the controller is no new generation.
            let written = store.patch(&key, Subresource::Status, patch).await;
            let written = written.map_err(ReconcileError::of("note the revision of", &key))?;
            version = written.metadata.resource_version.clone();
        }
        let (old, new) = (before.status.clone().unwrap_or_default(), &after.status);
        let new = new.clone().unwrap_or_default();
        if let Some(patch) = status_diff(version.as_deref(), &old, &new) {
            let written = store.patch(&key, Subresource::Status, patch).await;
            written.map_err(ReconcileError::of("update the status of", &key))?;
        }
        Ok(())
    }

    /// A set of that name exists: perhaps ours (the cache was behind), perhaps another template's.
    async fn resolve_collision(
        &self,
        deployment: &Deployment,
        new: &ReplicaSet,
        error: ClientError,
    ) -> Result<(), ReconcileError> {
        let key = ObjectKey::of(&new.metadata);
        let client = self.context.caches.client();
        let found = client
            .get(kinds::REPLICA_SET, &key.namespace, &key.name)
            .await;
        let found = found.map_err(ReconcileError::of("read replica set", &key))?;
        let found: Option<ReplicaSet> = serde::Deserialize::deserialize(&*found).ok();
        let ours = found.is_some_and(|found| {
            let template = |set: &ReplicaSet| {
                without_hash(set.spec.as_ref().and_then(|s| s.template.as_ref()))
            };
            controller_of(&found.metadata).map(|owner| &owner.uid)
                == deployment.metadata.uid.as_ref()
                && template(&found) == template(new)
        });
        if !ours {
            let mut after = deployment.clone();
            let status = after.status.get_or_insert_default();
            status.collision_count = Some(status.collision_count.unwrap_or(0) + 1);
            self.write_deployment(deployment, &after).await?;
        }
        Err(ReconcileError::of("create replica set", key)(error))
    }

    async fn creation_failed(
        &self,
        before: &Deployment,
        mut round: Box<Round>,
        new: &ReplicaSet,
        error: ClientError,
    ) -> Result<(), ReconcileError> {
        let key = ObjectKey::of(&new.metadata);
        if !error.namespace_terminating {
            let message = format!("Failed to create new replica set \"{}\": {error}", key.name);
            if round.progress_deadline().is_some() {
                let condition = round.make_condition(
                    "Progressing",
                    "False",
                    "ReplicaSetCreateError",
                    message.clone(),
                );
                let mut after = before.clone();
                set_condition(after.status.get_or_insert_default(), condition);
                self.write_deployment(before, &after).await?;
            }
            self.record(before, EventType::Warning, "ReplicaSetCreateError", message);
        }
        round.events.clear();
        Err(ReconcileError::of("create replica set", key)(error))
    }
}
