//! The namespaces that always exist: made at start, and made again when somebody deletes one.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tholepin_informer::{ObjectKey, WorkQueue};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::context::{Context, ReconcileError};
use crate::runner::{self, Reconciler};

const NAMES: [&str; 4] = ["default", "kube-system", "kube-public", "kube-node-lease"];

#[derive(Debug)]
struct SystemNamespaces {
    context: Context,
}

/// Starts the worker. Keys are names.
pub(crate) fn spawn(context: &Context, tasks: &mut JoinSet<()>, cancel: &CancellationToken) {
    let queue = Arc::new(WorkQueue::<String>::new());
    NAMES
        .into_iter()
        .for_each(|name| queue.add(name.to_owned()));
    let add = queue.clone();
    context.caches.namespaces.on_change(move |change| {
        if change.new.is_none()
            && let Some(name) = change
                .old
                .as_ref()
                .and_then(|old| old.metadata.name.clone())
            && NAMES.contains(&name.as_str())
        {
            add.add(name);
        }
    });
    let controller = Arc::new(SystemNamespaces {
        context: context.clone(),
    });
    runner::spawn(context, tasks, cancel, queue, controller, 1);
}

impl Reconciler for SystemNamespaces {
    type Key = String;
    const NAME: &'static str = "system-namespaces";

    async fn reconcile(&self, name: &String) -> Result<Option<Duration>, ReconcileError> {
        let namespaces = &self.context.caches.namespaces;
        if namespaces.get(&ObjectKey::new("", name)).is_some() {
            return Ok(None);
        }
        let namespace =
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        match namespaces.create("", namespace).await {
            Err(error) if !error.is_already_exists() => {
                Err(ReconcileError::of("create namespace", name)(error))
            }
            _ => Ok(None),
        }
    }
}
