//! The scheduler of control-lite: upstream's filters, scores and messages over an in-memory snapshot.
//!
//! Task: `scheduler.rs` (input: the queue of pods without a node; output: bindings, Events, the
//! PodScheduled condition). `filter.rs`, `score.rs` and `message.rs` are pure.

mod filter;
mod message;
mod node_info;
mod resources;
mod scheduler;
mod score;

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};
use tholepin_informer::{Caches, Change, ObjectKey, Recorder, WorkQueue, is_pod_terminal};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use scheduler::{Notes, Parked, Scheduler, wants_node};

/// Registers handlers and starts the scheduling task. Call it before the caches are started.
pub fn spawn(
    caches: &Arc<Caches>,
    recorder: &Recorder,
    tasks: &mut JoinSet<()>,
    cancel: &CancellationToken,
) {
    let queue = Arc::new(WorkQueue::new());
    let (notes, parked) = (Arc::new(Notes::default()), Arc::new(Parked::default()));
    watch_pods(caches, &queue, &notes, &parked);
    watch_nodes(caches, &queue, &notes, &parked);
    let scheduler = Scheduler {
        caches: caches.clone(),
        recorder: recorder.component("default-scheduler"),
        queue,
        notes,
        parked,
        snapshot: node_info::Snapshot::default(),
    };
    let cancel = cancel.clone();
    tasks.spawn(async move {
        tokio::select! {
            () = cancel.cancelled() => (),
            () = scheduler.run() => (),
        }
    });
}

fn watch_pods(
    caches: &Caches,
    queue: &Arc<WorkQueue<ObjectKey>>,
    notes: &Arc<Notes>,
    parked: &Arc<Parked>,
) {
    let (queue, notes, parked) = (queue.clone(), notes.clone(), parked.clone());
    caches.pods.on_change(move |change: &Change<Pod>| {
        if let Some(pod) = change.new.as_ref().filter(|pod| wants_node(pod)) {
            // Our own note of the reason must not start the next try.
            let tried = change
                .old
                .as_ref()
                .is_some_and(|old| same_demands(old, pod));
            if !tried {
                queue.add(ObjectKey::of(&pod.metadata));
            }
        }
        for pod in change.old.iter().chain(&change.new) {
            if let Some(node) = node_of(pod) {
                notes.node(node.to_owned());
            }
        }
        let left = change.old.as_ref().is_some_and(|old| occupies(old))
            && !change.new.as_ref().is_some_and(|new| occupies(new));
        if left {
            parked.wake(&queue);
        }
    });
}

fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec
        .as_ref()?
        .node_name
        .as_deref()
        .filter(|name| !name.is_empty())
}

fn occupies(pod: &Pod) -> bool {
    node_of(pod).is_some() && !is_pod_terminal(pod)
}

/// Whether nothing the scheduler looks at changed.
fn same_demands(old: &Pod, new: &Pod) -> bool {
    old.spec == new.spec
        && old.metadata.labels == new.metadata.labels
        && old.metadata.uid == new.metadata.uid
}

fn watch_nodes(
    caches: &Caches,
    queue: &Arc<WorkQueue<ObjectKey>>,
    notes: &Arc<Notes>,
    parked: &Arc<Parked>,
) {
    let (queue, notes, parked) = (queue.clone(), notes.clone(), parked.clone());
    caches.nodes.on_change(move |change: &Change<Node>| {
        let Some(node) = change.latest() else { return };
        // A heartbeat changes nothing here.
        if let (Some(old), Some(new)) = (&change.old, &change.new)
            && shown(old) == shown(new)
        {
            return;
        }
        notes.node(node.metadata.name.clone().unwrap_or_default());
        if change.new.is_some() {
            parked.wake(&queue);
        }
    });
}

fn shown(node: &Node) -> impl PartialEq + '_ {
    let status = node.status.as_ref();
    (
        node.metadata.labels.as_ref(),
        node.metadata.deletion_timestamp.is_some(),
        node.spec
            .as_ref()
            .map(|spec| (spec.unschedulable, spec.taints.as_ref())),
        status.map(|status| {
            (
                status.allocatable.as_ref(),
                status.capacity.as_ref(),
                status.images.as_ref(),
            )
        }),
    )
}
