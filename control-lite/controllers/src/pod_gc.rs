//! Removes pods that nobody stops any more: those of nodes that were deleted.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tholepin_informer::{
    ClientError, DeleteOptions, ObjectKey, Subresource, WorkQueue, is_pod_terminal, kinds, now,
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::context::{Context, ReconcileError};
use crate::runner::{self, Reconciler};

/// A node may come back under its name within this time.
const QUARANTINE: Duration = Duration::from_secs(40);

#[derive(Debug)]
struct PodGc {
    context: Context,
}

/// Registers handlers and starts the worker. Keys are node names.
pub(crate) fn spawn(context: &Context, tasks: &mut JoinSet<()>, cancel: &CancellationToken) {
    let queue = Arc::new(WorkQueue::<String>::new());
    let add = queue.clone();
    context.caches.nodes.on_change(move |change| {
        if change.new.is_none()
            && let Some(name) = change
                .old
                .as_ref()
                .and_then(|node| node.metadata.name.clone())
        {
            add.add_after(name, QUARANTINE);
        }
    });
    // Also for nodes that were deleted while nobody looked.
    let (add, nodes) = (queue.clone(), context.caches.nodes.clone());
    context.caches.pods.on_change(move |change| {
        let node = change
            .new
            .as_ref()
            .and_then(|pod| pod.spec.as_ref()?.node_name.clone());
        if let Some(node) = node.filter(|node| !node.is_empty())
            && nodes.get(&ObjectKey::new("", &node)).is_none()
        {
            add.add_after(node, QUARANTINE);
        }
    });
    let controller = Arc::new(PodGc {
        context: context.clone(),
    });
    runner::spawn(context, tasks, cancel, queue, controller, 1);
}

impl Reconciler for PodGc {
    type Key = String;
    const NAME: &'static str = "pod-gc";

    async fn reconcile(&self, node: &String) -> Result<Option<Duration>, ReconcileError> {
        let caches = &self.context.caches;
        if caches.pods.by_index(node).is_empty() || self.exists(node).await? {
            return Ok(None);
        }
        for pod in caches.pods.by_index(node) {
            let key = ObjectKey::of(&pod.metadata);
            if !is_pod_terminal(&pod) {
                let known = pod
                    .status
                    .as_ref()
                    .and_then(|status| status.conditions.clone());
                let mut conditions = json!(known.unwrap_or_default());
                if let Some(list) = conditions.as_array_mut() {
                    list.retain(|condition| condition["type"] != "DisruptionTarget");
                    list.push(json!({"type": "DisruptionTarget", "status": "True",
                        "reason": "DeletionByPodGC", "message": "PodGC: node no longer exists",
                        "lastTransitionTime": now()}));
                }
                let patch = json!({"status": {"phase": "Failed", "conditions": conditions}});
                let patched = caches.pods.patch(&key, Subresource::Status, patch).await;
                unless_gone(patched.map(drop))
                    .map_err(ReconcileError::of("fail orphaned pod", &key))?;
            }
            tracing::info!(pod = %key, node, "deleting a pod of a node that no longer exists");
            let options = DeleteOptions {
                uid: pod.metadata.uid.clone(),
                grace_period_secs: Some(0),
                propagation: None,
            };
            unless_gone(caches.pods.delete(&pod, options).await)
                .map_err(ReconcileError::of("delete orphaned pod", &key))?;
        }
        Ok(None)
    }
}

impl PodGc {
    /// Asks the store: pods are not deleted on the word of a cache.
    async fn exists(&self, node: &str) -> Result<bool, ReconcileError> {
        match self
            .context
            .caches
            .client()
            .get(kinds::NODE, "", node)
            .await
        {
            Ok(_) => Ok(true),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(ReconcileError::of("read node", node)(error)),
        }
    }
}

fn unless_gone(outcome: Result<(), ClientError>) -> Result<(), ClientError> {
    match outcome {
        Err(error) if error.is_not_found() => Ok(()),
        other => other,
    }
}
