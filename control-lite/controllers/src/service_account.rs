//! A `default` ServiceAccount in every namespace.

use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use tholepin_informer::{ObjectKey, WorkQueue};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::context::{Context, ReconcileError};
use crate::runner::{self, Reconciler};

const NAME: &str = "default";

#[derive(Debug)]
struct ServiceAccountController {
    context: Context,
}

/// Registers handlers and starts the worker. Keys are namespaces.
pub(crate) fn spawn(context: &Context, tasks: &mut JoinSet<()>, cancel: &CancellationToken) {
    let queue = Arc::new(WorkQueue::<String>::new());
    let add = queue.clone();
    context.caches.namespaces.on_change(move |change| {
        if let Some(name) = change
            .new
            .as_ref()
            .and_then(|namespace| namespace.metadata.name.clone())
        {
            add.add(name);
        }
    });
    let add = queue.clone();
    context.caches.service_accounts.on_change(move |change| {
        if change.new.is_none()
            && let Some(old) = &change.old
            && old.metadata.name.as_deref() == Some(NAME)
        {
            add.add(old.metadata.namespace.clone().unwrap_or_default());
        }
    });
    let controller = Arc::new(ServiceAccountController {
        context: context.clone(),
    });
    runner::spawn(context, tasks, cancel, queue, controller, 1);
}

impl Reconciler for ServiceAccountController {
    type Key = String;
    const NAME: &'static str = "service-account";

    async fn reconcile(&self, namespace: &String) -> Result<Option<Duration>, ReconcileError> {
        let caches = &self.context.caches;
        let active = caches
            .namespaces
            .get(&ObjectKey::new("", namespace))
            .is_some_and(|namespace| namespace.metadata.deletion_timestamp.is_none());
        if !active
            || caches
                .service_accounts
                .get(&ObjectKey::new(namespace, NAME))
                .is_some()
        {
            return Ok(None);
        }
        let account = json!({"apiVersion": "v1", "kind": "ServiceAccount",
            "metadata": {"name": NAME, "namespace": namespace}});
        match caches.service_accounts.create(namespace, account).await {
            Ok(_) => Ok(None),
            Err(error) if error.is_already_exists() || error.namespace_terminating => Ok(None),
            Err(error) => Err(ReconcileError::of(
                "create the default service account in",
                namespace,
            )(error)),
        }
    }
}
