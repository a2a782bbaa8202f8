//! Asks the caches, lets `plan.rs` decide, and writes.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Node;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use tholepin_informer::{
    Change, DeleteOptions, EventType, ObjectKey, ObjectRef, Recorder, Subresource, WorkQueue, kinds,
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::desired::groups;
use super::plan::{MANAGED_BY, MANAGER, SERVICE_NAME, plan};
use crate::context::{Context, ReconcileError};
use crate::patch::{object_diff, to_value};
use crate::runner::{self, Reconciler};
use crate::service_pods::{Family, enqueue_services_of_pods, families, selected_pods, selector};

const WORKERS: usize = 5;
const ZONE: &str = "topology.kubernetes.io/zone";

/// Keeps EndpointSlices.
#[derive(Debug)]
pub(super) struct EndpointSliceController {
    context: Context,
    recorder: Recorder,
}

/// Registers handlers and starts the workers.
pub(crate) fn spawn(context: &Context, tasks: &mut JoinSet<()>, cancel: &CancellationToken) {
    let queue = Arc::new(WorkQueue::new());
    let caches = &context.caches;
    let add = queue.clone();
    caches.services.on_change(move |change| {
        change
            .latest()
            .into_iter()
            .for_each(|service| add.add(ObjectKey::of(&service.metadata)));
    });
    enqueue_services_of_pods(caches, &queue);
    let add = queue.clone();
    caches.endpoint_slices.on_change(move |change| {
        let Some(slice) = change.latest().filter(|slice| is_managed(slice)) else {
            return;
        };
        let name = slice
            .metadata
            .labels
            .as_ref()
            .and_then(|labels| labels.get(SERVICE_NAME));
        if let Some(name) = name {
            let namespace = slice.metadata.namespace.clone().unwrap_or_default();
            add.add(ObjectKey::new(namespace, name.clone()));
        }
    });
    let (add, services) = (queue.clone(), caches.services.clone());
    caches.nodes.on_change(move |change: &Change<Node>| {
        let zone = |node: &Option<Arc<Node>>| node.as_deref().and_then(zone_of);
        if zone(&change.old) != zone(&change.new) {
            services
                .list()
                .iter()
                .for_each(|service| add.add(ObjectKey::of(&service.metadata)));
        }
    });
    let controller = Arc::new(EndpointSliceController {
        context: context.clone(),
        recorder: context.recorder.component("endpoint-slice-controller"),
    });
    runner::spawn(context, tasks, cancel, queue, controller, WORKERS);
}

fn zone_of(node: &Node) -> Option<String> {
    node.metadata.labels.as_ref()?.get(ZONE).cloned()
}

fn is_managed(slice: &EndpointSlice) -> bool {
    let by = slice
        .metadata
        .labels
        .as_ref()
        .and_then(|labels| labels.get(MANAGED_BY));
    by.is_some_and(|by| by == MANAGER)
}

impl Reconciler for EndpointSliceController {
    type Key = ObjectKey;
    const NAME: &'static str = "endpoint-slice";

    async fn reconcile(&self, key: &ObjectKey) -> Result<Option<Duration>, ReconcileError> {
        let caches = &self.context.caches;
        // Slices of a Service that is gone go with it, through their owner reference.
        let Some(service) = caches.services.get(key) else {
            return Ok(None);
        };
        if selector(&service).is_none() || service.metadata.deletion_timestamp.is_some() {
            return Ok(None);
        }
        let pods = selected_pods(caches, &service);
        let mut slices = caches.endpoint_slices.by_index(&key.to_string());
        slices.retain(|slice| is_managed(slice) && slice.metadata.deletion_timestamp.is_none());
        let zone = |node: &str| zone_of(&*caches.nodes.get(&ObjectKey::new("", node))?);
        let wanted = families(&service);
        for family in [Family::V4, Family::V6] {
            let mut existing = slices.clone();
            existing.retain(|slice| slice.address_type == family.as_str());
            if !wanted.contains(&family) {
                for slice in &existing {
                    self.delete(slice).await?;
                }
                continue;
            }
            let plan = plan(
                &service,
                family,
                groups(&service, family, &pods, &zone),
                &existing,
            );
            let outcome = self.write(&key.namespace, plan).await;
            if let Err(error) = outcome {
                if !error.is_expected() {
                    let about = ObjectRef::of(kinds::SERVICE, &service.metadata);
                    let message = format!(
                        "Error updating Endpoint Slices for Service {key}: {error}: {}",
                        error.source
                    );
                    let reason = "FailedToUpdateEndpointSlices";
                    self.recorder
                        .record(about, EventType::Warning, reason, message);
                }
                return Err(error);
            }
        }
        Ok(None)
    }
}

impl EndpointSliceController {
    /// New endpoints before removed ones, so that a client always finds somebody.
    async fn write(&self, namespace: &str, plan: super::plan::Plan) -> Result<(), ReconcileError> {
        let store = &self.context.caches.endpoint_slices;
        for slice in &plan.create {
            let created = store.create(namespace, to_value(slice)).await;
            created.map_err(ReconcileError::of("create an endpoint slice in", namespace))?;
        }
        for (before, after) in &plan.update {
            let Some(patch) = object_diff(&**before, after) else {
                continue;
            };
            let key = ObjectKey::of(&before.metadata);
            let patched = store.patch(&key, Subresource::Main, patch).await;
            patched.map_err(ReconcileError::of("update endpoint slice", key))?;
        }
        for slice in &plan.delete {
            self.delete(slice).await?;
        }
        Ok(())
    }

    async fn delete(&self, slice: &EndpointSlice) -> Result<(), ReconcileError> {
        let options = DeleteOptions {
            uid: slice.metadata.uid.clone(),
            ..Default::default()
        };
        match self
            .context
            .caches
            .endpoint_slices
            .delete(slice, options)
            .await
        {
            Err(error) if !error.is_not_found() => {
                let key = ObjectKey::of(&slice.metadata);
                Err(ReconcileError::of("delete endpoint slice", key)(error))
            }
            _ => Ok(()),
        }
    }
}
