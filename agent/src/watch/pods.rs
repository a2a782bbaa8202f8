//! The pods bound to this node: one watch by `spec.nodeName`, published as one view.

pub mod parse;
mod unsupported;
mod volumes;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod as ApiPod;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use tholepin_model::pod::Pod;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// How many deletions are remembered: enough for every pod of a node to go at once.
const REMEMBERED_DELETIONS: usize = 512;

/// A pod with the API object it was parsed from (the journal keeps the object).
#[derive(Clone, Debug)]
pub struct PodObject {
    pub pod: Pod,
    pub object: Arc<ApiPod>,
}

/// All pods of this node as the API last said.
#[derive(Clone, Debug, Default)]
pub struct PodsView {
    /// A whole list has been seen since the agent started.
    pub synced: bool,
    pub pods: BTreeMap<String, Arc<PodObject>>,
    /// UIDs the API said were deleted; the grace period of the last object that was seen.
    pub deleted: VecDeque<(String, Option<u64>)>,
}

impl PodsView {
    /// The effective grace of a deletion the API has finished, if it said so.
    #[must_use]
    pub fn deletion(&self, uid: &str) -> Option<Option<u64>> {
        self.deleted
            .iter()
            .find(|(deleted, _)| deleted == uid)
            .map(|(_, grace)| *grace)
    }
}

/// Watches until cancelled. Errors are retried for ever, with back-off; the view stays as it was.
pub async fn run(
    client: Client,
    node_name: String,
    view: watch::Sender<PodsView>,
    cancel: CancellationToken,
) {
    let api: Api<ApiPod> = Api::all(client);
    let config = watcher::Config::default().fields(&format!("spec.nodeName={node_name}"));
    let stream = watcher(api, config).default_backoff();
    futures::pin_mut!(stream);
    let mut listing: BTreeMap<String, Arc<PodObject>> = BTreeMap::new();
    loop {
        let event = tokio::select! {
            () = cancel.cancelled() => return,
            event = stream.next() => event,
        };
        match event {
            Some(Ok(event)) => apply(event, &mut listing, &view),
            Some(Err(error)) => {
                tracing::warn!(error = %crate::errors::chain(&error), "watching pods failed, trying again");
            }
            None => return,
        }
    }
}

fn apply(
    event: watcher::Event<ApiPod>,
    listing: &mut BTreeMap<String, Arc<PodObject>>,
    view: &watch::Sender<PodsView>,
) {
    match event {
        watcher::Event::Init => listing.clear(),
        watcher::Event::InitApply(object) => {
            if let Some((uid, parsed)) = parsed(object) {
                listing.insert(uid, parsed);
            }
        }
        watcher::Event::InitDone => {
            let pods = std::mem::take(listing);
            view.send_modify(|view| {
                view.pods = pods;
                view.synced = true;
            });
        }
        watcher::Event::Apply(object) => {
            if let Some((uid, parsed)) = parsed(object) {
                view.send_modify(|view| {
                    view.pods.insert(uid, parsed);
                });
            }
        }
        watcher::Event::Delete(object) => {
            let Some(uid) = object.metadata.uid.clone() else {
                return;
            };
            let grace = object
                .metadata
                .deletion_grace_period_seconds
                .and_then(|seconds| u64::try_from(seconds).ok());
            view.send_modify(|view| {
                view.pods.remove(&uid);
                view.deleted.push_back((uid, grace));
                if view.deleted.len() > REMEMBERED_DELETIONS {
                    view.deleted.pop_front();
                }
            });
        }
    }
}

fn parsed(mut object: ApiPod) -> Option<(String, Arc<PodObject>)> {
    // Not needed on the node, and often larger than the spec.
    object.metadata.managed_fields = None;
    match parse::pod(&object) {
        Ok(pod) => {
            let uid = pod.uid.clone();
            Some((
                uid,
                Arc::new(PodObject {
                    pod,
                    object: Arc::new(object),
                }),
            ))
        }
        Err(error) => {
            let name = object.metadata.name.as_deref().unwrap_or("?");
            tracing::error!(pod = name, %error, "the API sent a pod that cannot be understood");
            None
        }
    }
}
