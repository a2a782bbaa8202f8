//! Gives every node a range of pod addresses per family, and takes it back when the node is deleted.

mod cidr_set;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use serde_json::json;
use tholepin_informer::{EventType, ObjectKey, ObjectRef, Recorder, Subresource, WorkQueue};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::context::{Context, ReconcileError, Settings};
use crate::runner::{self, Reconciler};
use cidr_set::CidrSet;

/// Retry when every range is taken: another node has to go first.
const EXHAUSTED_RETRY: Duration = Duration::from_secs(30);

#[derive(Debug)]
struct NodeIpam {
    context: Context,
    recorder: Recorder,
    /// One per family; a short lock, never held across an await.
    sets: Arc<Mutex<Vec<CidrSet>>>,
}

/// Registers handlers and starts the worker.
pub(crate) fn spawn(
    context: &Context,
    settings: &Settings,
    tasks: &mut JoinSet<()>,
    cancel: &CancellationToken,
) {
    let queue = Arc::new(WorkQueue::<ObjectKey>::new());
    let sets = settings.cluster_cidrs.iter().map(|range| {
        let mask = if range.addr().is_ipv4() {
            settings.node_mask_v4
        } else {
            settings.node_mask_v6
        };
        CidrSet::new(*range, mask)
    });
    let sets = Arc::new(Mutex::new(sets.collect::<Vec<_>>()));
    let (add, shared) = (queue.clone(), sets.clone());
    context.caches.nodes.on_change(move |change| {
        let mut sets = shared.lock().unwrap_or_else(PoisonError::into_inner);
        match (&change.old, &change.new) {
            (Some(old), None) => {
                for range in ranges_of(old) {
                    sets.iter_mut().for_each(|set| set.release(&range));
                }
            }
            (_, Some(new)) => {
                for range in ranges_of(new) {
                    sets.iter_mut().for_each(|set| set.occupy(&range));
                }
                add.add(ObjectKey::of(&new.metadata));
            }
            (None, None) => (),
        }
    });
    let controller = Arc::new(NodeIpam {
        context: context.clone(),
        recorder: context.recorder.component("cidrAllocator"),
        sets,
    });
    // One worker: two must not race for the same range.
    runner::spawn(context, tasks, cancel, queue, controller, 1);
}

fn ranges_of(node: &Node) -> Vec<IpNet> {
    let Some(spec) = node.spec.as_ref() else {
        return Vec::new();
    };
    let listed = spec.pod_cidrs.iter().flatten().chain(&spec.pod_cidr);
    listed.filter_map(|text| text.parse().ok()).collect()
}

impl Reconciler for NodeIpam {
    type Key = ObjectKey;
    const NAME: &'static str = "node-ipam";

    async fn reconcile(&self, key: &ObjectKey) -> Result<Option<Duration>, ReconcileError> {
        let Some(node) = self.context.caches.nodes.get(key) else {
            return Ok(None);
        };
        if !ranges_of(&node).is_empty() {
            return Ok(None);
        }
        let Some(ranges) = self.allocate() else {
            let name = &key.name;
            tracing::warn!(node = name, "no pod range is left");
            let message = format!("Node {name} status is now: CIDRNotAvailable");
            let about = ObjectRef::node(name);
            self.recorder
                .record(about, EventType::Normal, "CIDRNotAvailable", message);
            return Ok(Some(EXHAUSTED_RETRY));
        };
        let texts: Vec<String> = ranges.iter().map(ToString::to_string).collect();
        let patch = json!({
            "metadata": {"resourceVersion": node.metadata.resource_version},
            "spec": {"podCIDR": texts.first(), "podCIDRs": texts},
        });
        match self
            .context
            .caches
            .nodes
            .patch(key, Subresource::Main, patch)
            .await
        {
            Ok(_) => {
                tracing::info!(node = key.name, ranges = ?texts, "pod ranges assigned");
                Ok(None)
            }
            Err(error) => {
                self.release(&ranges);
                Err(ReconcileError::of("assign pod ranges to node", key)(error))
            }
        }
    }
}

impl NodeIpam {
    /// A range of every family, or nothing at all.
    fn allocate(&self) -> Option<Vec<IpNet>> {
        let mut sets = self.sets.lock().unwrap_or_else(PoisonError::into_inner);
        let ranges: Vec<IpNet> = sets.iter_mut().map_while(CidrSet::allocate).collect();
        if ranges.len() == sets.len() && !ranges.is_empty() {
            return Some(ranges);
        }
        for range in &ranges {
            sets.iter_mut().for_each(|set| set.release(range));
        }
        None
    }

    fn release(&self, ranges: &[IpNet]) {
        let mut sets = self.sets.lock().unwrap_or_else(PoisonError::into_inner);
        for range in ranges {
            sets.iter_mut().for_each(|set| set.release(range));
        }
    }
}
