//! The scheduling task: takes pods without a node in order, decides, binds.
//!
//! One task owns the [`Snapshot`]. Handlers only note what changed (`Notes`), the task reads the caches
//! for it before the next decision. Bindings run beside it; until they are seen, their pods are assumed.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use rand::seq::IndexedRandom;
use serde_json::json;
use tholepin_informer::{
    Caches, ClientError, EventType, ObjectKey, ObjectRef, Recorder, Selector, Subresource,
    WorkQueue, is_pod_terminal, kinds, now, pod_condition,
};
use tokio::sync::mpsc;

use crate::filter::{Rejection, filter};
use crate::message::unschedulable;
use crate::node_info::{NodeInfo, Snapshot};
use crate::score::score;

/// Back-off of a pod that did not fit: 1 s doubling to 10 s.
const FIRST_BACK_OFF: Duration = Duration::from_secs(1);
const LAST_BACK_OFF: Duration = Duration::from_secs(10);
/// A pod that nothing woke is tried again after this.
const FLUSH: Duration = Duration::from_secs(300);

/// What changed since the task last looked.
#[derive(Debug, Default)]
pub(crate) struct Notes {
    nodes: Mutex<BTreeSet<String>>,
}

impl Notes {
    pub(crate) fn node(&self, name: String) {
        self.nodes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(name);
    }

    fn take(&self) -> BTreeSet<String> {
        std::mem::take(&mut *self.nodes.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Pods that wait for a change, and how often each failed.
#[derive(Debug, Default)]
pub(crate) struct Parked {
    inner: Mutex<(HashSet<ObjectKey>, HashMap<ObjectKey, u32>)>,
}

impl Parked {
    fn park(&self, key: ObjectKey) -> u32 {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.0.insert(key.clone());
        let attempts = inner.1.entry(key).or_insert(0);
        *attempts += 1;
        *attempts
    }

    fn forget(&self, key: &ObjectKey) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        inner.0.remove(key);
        inner.1.remove(key);
    }

    /// Something changed that may make room: everybody gets another chance after its back-off.
    pub(crate) fn wake(&self, queue: &WorkQueue<ObjectKey>) {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        for key in std::mem::take(&mut inner.0) {
            let attempts = inner.1.get(&key).copied().unwrap_or(1);
            queue.add_after(key, back_off(attempts));
        }
    }
}

fn back_off(attempts: u32) -> Duration {
    FIRST_BACK_OFF
        .saturating_mul(1 << attempts.saturating_sub(1).min(8))
        .min(LAST_BACK_OFF)
}

/// The outcome of a binding.
struct Bound {
    key: ObjectKey,
    uid: String,
    node: String,
    /// The pod as it was when the node was chosen: the caches may have forgotten it by now.
    about: ObjectRef,
    outcome: Result<(), ClientError>,
}

pub(crate) struct Scheduler {
    pub(crate) caches: Arc<Caches>,
    pub(crate) recorder: Recorder,
    pub(crate) queue: Arc<WorkQueue<ObjectKey>>,
    pub(crate) notes: Arc<Notes>,
    pub(crate) parked: Arc<Parked>,
    pub(crate) snapshot: Snapshot,
}

impl Scheduler {
    /// Runs until dropped.
    pub(crate) async fn run(mut self) {
        self.caches.wait_synced().await;
        let (sender, mut bound) = mpsc::unbounded_channel();
        loop {
            tokio::select! {
                Some(bound) = bound.recv() => self.settle(bound),
                key = self.queue.get() => {
                    self.schedule(&key, &sender).await;
                    self.queue.done(&key);
                }
            }
        }
    }

    fn refresh(&mut self) {
        for name in self.notes.take() {
            let node = self.caches.nodes.get(&ObjectKey::new("", &name));
            let node = node.filter(|node| node.metadata.deletion_timestamp.is_none());
            self.snapshot
                .refresh(&name, node, self.caches.pods.by_index(&name));
        }
    }

    async fn schedule(&mut self, key: &ObjectKey, sender: &mpsc::UnboundedSender<Bound>) {
        let Some(pod) = self.caches.pods.get(key).filter(|pod| wants_node(pod)) else {
            return self.parked.forget(key);
        };
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        if self.snapshot.assumed.contains_key(&uid) {
            return;
        }
        if has_gates(&pod) {
            let message = "Scheduling is blocked due to non-empty scheduling gates";
            return self.note_condition(&pod, "SchedulingGated", message).await;
        }
        self.refresh();
        match self.choose(&pod) {
            Ok(node) => self.assume_and_bind(key, pod, uid, node, sender),
            Err(message) => {
                let attempts = self.parked.park(key.clone());
                self.queue.add_after(key.clone(), FLUSH);
                tracing::debug!(%key, attempts, message, "pod does not fit");
                let about = ObjectRef::of(kinds::POD, &pod.metadata);
                let warning = EventType::Warning;
                self.recorder
                    .record(about, warning, "FailedScheduling", message.clone());
                self.note_condition(&pod, "Unschedulable", &message).await;
            }
        }
    }

    /// The best node, or why there is none.
    fn choose(&self, pod: &Pod) -> Result<String, String> {
        if let Some(what) = unsupported(pod) {
            return Err(format!("{what} is not supported by this scheduler yet"));
        }
        let nodes = &self.snapshot.nodes;
        let mut fitting: Vec<&NodeInfo> = Vec::new();
        let mut rejections: Vec<Rejection> = Vec::new();
        for info in nodes.values() {
            match filter(pod, info) {
                Ok(()) => fitting.push(info),
                Err(rejection) => rejections.push(rejection),
            }
        }
        if fitting.is_empty() {
            return Err(unschedulable(nodes.len(), rejections.iter()));
        }
        let siblings = self.siblings(pod);
        let scores = score(pod, siblings.as_ref(), &fitting, nodes.len());
        let best = scores.iter().copied().fold(f64::MIN, f64::max);
        // Equals are chosen among at random, or one node would get every first pod.
        let equals: Vec<&NodeInfo> = fitting
            .into_iter()
            .zip(scores)
            .filter(|(_, score)| *score >= best)
            .map(|(info, _)| info)
            .collect();
        let chosen = equals.choose(&mut rand::rng());
        Ok(chosen
            .expect("at least one node has the best score")
            .name()
            .to_owned())
    }

    /// What selects the pods of the same Services and owner.
    fn siblings(&self, pod: &Pod) -> Option<Selector> {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let labels = pod.metadata.labels.as_ref();
        let mut merged = LabelSelector::default();
        let mut found = false;
        for service in self.caches.services.list_in(namespace) {
            let selector = service
                .spec
                .as_ref()
                .and_then(|spec| spec.selector.as_ref());
            let Some(selector) = selector.filter(|selector| !selector.is_empty()) else {
                continue;
            };
            if Selector::from_labels(Some(selector)).matches(labels) {
                merged
                    .match_labels
                    .get_or_insert_default()
                    .extend(selector.clone());
                found = true;
            }
        }
        let owners = pod.metadata.owner_references.iter().flatten();
        for owner in owners.filter(|owner| owner.controller == Some(true)) {
            let key = ObjectKey::new(namespace, &owner.name);
            if let Some(set) = self.caches.replica_sets.get(&key)
                && owner.kind == kinds::REPLICA_SET.kind
                && let Some(spec) = set.spec.as_ref()
            {
                let own = spec.selector.clone();
                merged
                    .match_labels
                    .get_or_insert_default()
                    .extend(own.match_labels.unwrap_or_default());
                merged
                    .match_expressions
                    .get_or_insert_default()
                    .extend(own.match_expressions.unwrap_or_default());
                found = true;
            } else if let Some(rc) = self.caches.replication_controllers.get(&key)
                && owner.kind == kinds::REPLICATION_CONTROLLER.kind
                && let Some(selector) = rc.spec.as_ref().and_then(|spec| spec.selector.clone())
            {
                merged.match_labels.get_or_insert_default().extend(selector);
                found = true;
            }
        }
        if found {
            Selector::new(&merged).ok()
        } else {
            None
        }
    }

    fn assume_and_bind(
        &mut self,
        key: &ObjectKey,
        pod: Arc<Pod>,
        uid: String,
        node: String,
        sender: &mpsc::UnboundedSender<Bound>,
    ) {
        let about = ObjectRef::of(kinds::POD, &pod.metadata);
        if let Some(info) = self.snapshot.nodes.get_mut(&node) {
            info.add(pod.clone());
        }
        self.snapshot
            .assumed
            .insert(uid.clone(), (node.clone(), pod));
        self.parked.forget(key);
        let (client, key, sender) = (self.caches.client().clone(), key.clone(), sender.clone());
        tokio::spawn(async move {
            let outcome = client.bind(&key.namespace, &key.name, &uid, &node).await;
            // The task is gone only when the process ends.
            sender
                .send(Bound {
                    key,
                    uid,
                    node,
                    about,
                    outcome,
                })
                .ok();
        });
    }

    /// A binding ended: it is in the caches soon, or never.
    fn settle(&mut self, bound: Bound) {
        let Bound {
            key,
            uid,
            node,
            about,
            outcome,
        } = bound;
        self.notes.node(node.clone());
        match outcome {
            Ok(()) => {
                tracing::debug!(%key, node, "bound");
                let message = format!("Successfully assigned {key} to {node}");
                self.recorder
                    .record(about, EventType::Normal, "Scheduled", message);
                self.expire_assumed();
            }
            Err(error) => {
                self.snapshot.assumed.remove(&uid);
                if error.is_not_found() {
                    return;
                }
                tracing::warn!(%key, node, %error, "binding failed, trying again");
                self.queue.add_rate_limited(key);
            }
        }
    }

    /// Assumptions the caches confirm, or whose pod is gone, are not needed any more.
    fn expire_assumed(&mut self) {
        let pods = &self.caches.pods;
        self.snapshot.assumed.retain(|uid, (_, pod)| {
            let cached = pods.get(&ObjectKey::of(&pod.metadata));
            cached.is_some_and(|cached| {
                cached.metadata.uid.as_ref() == Some(uid) && wants_node(&cached)
            })
        });
    }

    async fn note_condition(&self, pod: &Pod, reason: &str, message: &str) {
        let known = pod_condition(pod, "PodScheduled");
        let same = known.is_some_and(|known| {
            known.status == "False"
                && known.reason.as_deref() == Some(reason)
                && known.message.as_deref() == Some(message)
        });
        if same {
            return;
        }
        let since = known
            .filter(|known| known.status == "False")
            .and_then(|known| known.last_transition_time.clone())
            .unwrap_or_else(now);
        let status = pod.status.as_ref();
        let mut conditions: Vec<_> = status
            .and_then(|status| status.conditions.clone())
            .unwrap_or_default();
        conditions.retain(|condition| condition.type_ != "PodScheduled");
        let mut conditions = json!(conditions);
        if let Some(list) = conditions.as_array_mut() {
            list.push(
                json!({"type": "PodScheduled", "status": "False", "reason": reason,
                "message": message, "lastTransitionTime": since}),
            );
        }
        let patch = json!({
            "metadata": {"resourceVersion": pod.metadata.resource_version},
            "status": {"conditions": conditions},
        });
        let key = ObjectKey::of(&pod.metadata);
        match self
            .caches
            .pods
            .patch(&key, Subresource::Status, patch)
            .await
        {
            Err(error) if !error.is_conflict() && !error.is_not_found() => {
                tracing::warn!(%key, %error, "failed to note why the pod is not scheduled");
            }
            _ => (),
        }
    }
}

/// Whether the pod is ours to schedule.
pub(crate) fn wants_node(pod: &Pod) -> bool {
    let spec = pod.spec.as_ref();
    let unassigned = spec
        .and_then(|spec| spec.node_name.as_deref())
        .unwrap_or_default()
        .is_empty();
    let ours = matches!(
        spec.and_then(|spec| spec.scheduler_name.as_deref()),
        None | Some("" | "default-scheduler")
    );
    unassigned && ours && pod.metadata.deletion_timestamp.is_none() && !is_pod_terminal(pod)
}

fn has_gates(pod: &Pod) -> bool {
    pod.spec
        .as_ref()
        .and_then(|spec| spec.scheduling_gates.as_ref())
        .is_some_and(|g| !g.is_empty())
}

/// A demand nobody here can keep: such a pod waits and says so, instead of running where it must not.
fn unsupported(pod: &Pod) -> Option<&'static str> {
    let spec = pod.spec.as_ref()?;
    let affinity = spec.affinity.as_ref();
    if affinity
        .and_then(|affinity| affinity.pod_affinity.as_ref())
        .and_then(|a| {
            a.required_during_scheduling_ignored_during_execution
                .as_ref()
        })
        .is_some_and(|terms| !terms.is_empty())
    {
        return Some("required pod affinity");
    }
    if affinity
        .and_then(|affinity| affinity.pod_anti_affinity.as_ref())
        .and_then(|a| {
            a.required_during_scheduling_ignored_during_execution
                .as_ref()
        })
        .is_some_and(|terms| !terms.is_empty())
    {
        return Some("required pod anti-affinity");
    }
    let strict = |constraint: &k8s_openapi::api::core::v1::TopologySpreadConstraint| {
        constraint.when_unsatisfiable == "DoNotSchedule"
    };
    spec.topology_spread_constraints
        .iter()
        .flatten()
        .any(strict)
        .then_some("a topology spread constraint with DoNotSchedule")
}
