//! Judges the health of nodes: silent ones become Unknown, get taints, and their pods are not Ready.
//!
//! Every few seconds while there are nodes (silence makes no event), and at once when a node changes.
//! Lease renewals and status heartbeats are compared with what was seen before, by this machine's own
//! clock: a node whose clock is wrong is not lost.

mod health;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod, PodCondition};
use serde_json::json;
use tholepin_informer::{
    EventType, ObjectKey, ObjectRef, Recorder, Subresource, WorkQueue, is_pod_ready, kinds, now,
};
use tokio::sync::Mutex;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::context::{Context, ReconcileError, Settings};
use crate::runner::{self, Reconciler};
use health::{READY, Sign, condition_status, overdue, wanted_taints};

const LEASES: &str = "kube-node-lease";

#[derive(Debug)]
struct NodeLifecycle {
    context: Context,
    recorder: Recorder,
    settings: Settings,
    /// The last sign of life of every node, and when it was first seen. Owned by the single worker; the
    /// lock is for the type system only.
    signs: Mutex<HashMap<String, (Sign, Instant)>>,
}

/// Registers handlers and starts the worker.
pub(crate) fn spawn(
    context: &Context,
    settings: &Settings,
    tasks: &mut JoinSet<()>,
    cancel: &CancellationToken,
) {
    let queue = Arc::new(WorkQueue::<ObjectKey>::new());
    let add = queue.clone();
    context.caches.nodes.on_change(move |change| {
        change
            .latest()
            .into_iter()
            .for_each(|node| add.add(ObjectKey::of(&node.metadata)));
    });
    let controller = Arc::new(NodeLifecycle {
        context: context.clone(),
        recorder: context.recorder.component("node-controller"),
        settings: settings.clone(),
        signs: Mutex::new(HashMap::new()),
    });
    runner::spawn(context, tasks, cancel, queue, controller, 1);
}

impl Reconciler for NodeLifecycle {
    type Key = ObjectKey;
    const NAME: &'static str = "node-lifecycle";

    async fn reconcile(&self, key: &ObjectKey) -> Result<Option<Duration>, ReconcileError> {
        let caches = &self.context.caches;
        let Some(node) = caches.nodes.get(key) else {
            self.signs.lock().await.remove(&key.name);
            return Ok(None);
        };
        let silence = self.silence(&key.name, &node).await;
        let node = if silence > self.settings.node_monitor_grace {
            self.declare_unknown(key, node).await?
        } else {
            node
        };
        self.keep_taints(key, &node).await?;
        if condition_status(&node, READY).is_some_and(|status| status != "True") {
            self.mark_pods_not_ready(&key.name).await?;
        }
        Ok(Some(self.settings.node_monitor_period))
    }
}

impl NodeLifecycle {
    /// How long ago the node last gave a sign of life.
    async fn silence(&self, name: &str, node: &Node) -> Duration {
        let lease = self
            .context
            .caches
            .leases
            .get(&ObjectKey::new(LEASES, name));
        let sign = Sign::of(node, lease.as_deref());
        let mut signs = self.signs.lock().await;
        match signs.get(name) {
            Some((known, since)) if *known == sign => since.elapsed(),
            _ => {
                signs.insert(name.to_owned(), (sign, Instant::now()));
                Duration::ZERO
            }
        }
    }

    async fn declare_unknown(
        &self,
        key: &ObjectKey,
        node: Arc<Node>,
    ) -> Result<Arc<Node>, ReconcileError> {
        let Some(conditions) = overdue(&node, now()) else {
            return Ok(node);
        };
        let was_ready = condition_status(&node, READY) == Some("True");
        let patch = json!({
            "metadata": {"resourceVersion": node.metadata.resource_version},
            "status": {"conditions": conditions},
        });
        let nodes = &self.context.caches.nodes;
        let patched = nodes.patch(key, Subresource::Status, patch).await;
        let patched = patched.map_err(ReconcileError::of("declare unknown node", key))?;
        // Our own write is no sign of life.
        let lease = self
            .context
            .caches
            .leases
            .get(&ObjectKey::new(LEASES, &key.name));
        if let Some((known, _)) = self.signs.lock().await.get_mut(&key.name) {
            *known = Sign::of(&patched, lease.as_deref());
        }
        tracing::warn!(node = key.name, "the node stopped posting its status");
        if was_ready {
            let name = &key.name;
            let message = format!("Node {name} status is now: NodeNotReady");
            let about = ObjectRef::node(name);
            self.recorder
                .record(about, EventType::Normal, "NodeNotReady", message);
        }
        Ok(patched)
    }

    async fn keep_taints(&self, key: &ObjectKey, node: &Node) -> Result<(), ReconcileError> {
        let Some(taints) = wanted_taints(node, now()) else {
            return Ok(());
        };
        let taints = if taints.is_empty() {
            serde_json::Value::Null
        } else {
            json!(taints)
        };
        let patch = json!({
            "metadata": {"resourceVersion": node.metadata.resource_version},
            "spec": {"taints": taints},
        });
        let patched = self
            .context
            .caches
            .nodes
            .patch(key, Subresource::Main, patch)
            .await;
        patched
            .map(drop)
            .map_err(ReconcileError::of("taint node", key))
    }

    /// The node cannot say any more that its pods are not served.
    async fn mark_pods_not_ready(&self, node: &str) -> Result<(), ReconcileError> {
        for pod in self.context.caches.pods.by_index(node) {
            if !is_pod_ready(&pod) {
                continue;
            }
            let key = ObjectKey::of(&pod.metadata);
            let patch = json!({
                "metadata": {"resourceVersion": pod.metadata.resource_version},
                "status": {"conditions": not_ready(&pod)},
            });
            match self
                .context
                .caches
                .pods
                .patch(&key, Subresource::Status, patch)
                .await
            {
                Ok(_) => {
                    let about = ObjectRef::of(kinds::POD, &pod.metadata);
                    let message = "Node is not ready";
                    self.recorder
                        .record(about, EventType::Warning, "NodeNotReady", message);
                }
                Err(error) if error.is_not_found() => (),
                Err(error) => {
                    return Err(ReconcileError::of("mark not ready pod", key)(error));
                }
            }
        }
        Ok(())
    }
}

fn not_ready(pod: &Pod) -> Vec<PodCondition> {
    let conditions = pod
        .status
        .as_ref()
        .and_then(|status| status.conditions.clone());
    let mut conditions = conditions.unwrap_or_default();
    for condition in conditions
        .iter_mut()
        .filter(|condition| condition.type_ == READY)
    {
        condition.status = "False".to_owned();
        condition.last_transition_time =
            Some(tholepin_informer::truncate_to_secs(Timestamp::now()));
    }
    conditions
}
