//! The registry as controllers and scheduler see it: their `Client` without HTTP.

use std::sync::Arc;

use async_trait::async_trait;
use futures::StreamExt;
use serde_json::{Value, json};
use tholepin_apimachinery::ApiError;
use tholepin_apiserver as api;
use tholepin_informer::{
    Client, ClientError, DeleteOptions, Kind, Propagation, Subresource, WatchEvent, WatchStream,
};

/// In-process client.
#[derive(Debug)]
pub(crate) struct RegistryClient {
    registry: api::Registry,
    context: api::RequestContext,
}

impl RegistryClient {
    pub(crate) fn new(registry: api::Registry) -> Arc<Self> {
        let context = api::RequestContext::component("kube-controller-manager");
        Arc::new(Self { registry, context })
    }
}

fn resource(kind: Kind) -> api::GroupResource {
    api::GroupResource {
        group: kind.group,
        resource: kind.resource,
    }
}

fn refused(error: ApiError) -> ClientError {
    let causes = error.details.iter().flat_map(|details| &details.causes);
    let terminating = causes
        .into_iter()
        .any(|cause| cause.reason == "NamespaceTerminating");
    let mut refused = ClientError::new(error.code(), error.reason.as_str(), error.message.clone());
    refused.namespace_terminating = terminating;
    refused
}

fn applied(event: &api::WatchEvent) -> Result<WatchEvent, ClientError> {
    let object = || event.object().map_err(refused);
    Ok(match event.kind() {
        api::WatchEventKind::Added | api::WatchEventKind::Modified => {
            WatchEvent::Applied(object()?)
        }
        api::WatchEventKind::Deleted => WatchEvent::Deleted(object()?),
        api::WatchEventKind::Bookmark => WatchEvent::Bookmark(event.resource_version()),
    })
}

#[async_trait]
impl Client for RegistryClient {
    async fn list(
        &self,
        kind: Kind,
        namespace: Option<&str>,
    ) -> Result<(Vec<Arc<Value>>, u64), ClientError> {
        let options = api::ListOptions::default();
        let namespace = namespace.unwrap_or_default();
        let list = self
            .registry
            .list(&self.context, resource(kind), namespace, &options)
            .await;
        let list = list.map_err(refused)?;
        Ok((
            list.items.into_iter().map(Arc::new).collect(),
            list.resource_version,
        ))
    }

    async fn watch(&self, kind: Kind, from: u64) -> Result<WatchStream, ClientError> {
        let options = api::WatchOptions {
            // "0" (an empty store) means the present objects first, which are none.
            resource_version: Some(from.to_string()),
            ..Default::default()
        };
        let watch = self
            .registry
            .watch(&self.context, resource(kind), "", &options)
            .await;
        let watch = watch.map_err(refused)?;
        Ok(futures::stream::unfold(watch, |mut watch| async move {
            let event = watch.next().await?;
            let event = event.map_err(refused).and_then(|event| applied(&event));
            Some((event, watch))
        })
        .boxed())
    }

    async fn get(
        &self,
        kind: Kind,
        namespace: &str,
        name: &str,
    ) -> Result<Arc<Value>, ClientError> {
        let object = self
            .registry
            .get(&self.context, resource(kind), namespace, name)
            .await;
        object.map(Arc::new).map_err(refused)
    }

    async fn create(
        &self,
        kind: Kind,
        namespace: &str,
        mut object: Value,
    ) -> Result<Arc<Value>, ClientError> {
        object["apiVersion"] = json!(kind.api_version());
        object["kind"] = json!(kind.kind);
        let created = self
            .registry
            .create(&self.context, resource(kind), namespace, object)
            .await;
        created.map(Arc::new).map_err(refused)
    }

    async fn patch(
        &self,
        kind: Kind,
        namespace: &str,
        name: &str,
        subresource: Subresource,
        patch: Value,
    ) -> Result<Arc<Value>, ClientError> {
        let subresource = match subresource {
            Subresource::Main => api::Subresource::Main,
            Subresource::Status => api::Subresource::Status,
        };
        let patch = api::Patch::merge(&patch).map_err(refused)?;
        self.registry
            .patch(
                &self.context,
                resource(kind),
                namespace,
                name,
                subresource,
                &patch,
            )
            .await
            .map(Arc::new)
            .map_err(refused)
    }

    async fn delete(
        &self,
        kind: Kind,
        namespace: &str,
        name: &str,
        options: DeleteOptions,
    ) -> Result<(), ClientError> {
        let options = api::DeleteOptions {
            grace_period_seconds: options.grace_period_secs,
            propagation: options.propagation.map(|propagation| match propagation {
                Propagation::Background => api::Propagation::Background,
                Propagation::Foreground => api::Propagation::Foreground,
                Propagation::Orphan => api::Propagation::Orphan,
            }),
            uid: options.uid,
            resource_version: None,
        };
        self.registry
            .delete(&self.context, resource(kind), namespace, name, &options)
            .await
            .map(drop)
            .map_err(refused)
    }

    async fn bind(
        &self,
        namespace: &str,
        name: &str,
        uid: &str,
        node: &str,
    ) -> Result<(), ClientError> {
        let binding = json!({
            "apiVersion": "v1", "kind": "Binding",
            "metadata": {"name": name, "namespace": namespace, "uid": uid},
            "target": {"apiVersion": "v1", "kind": "Node", "name": node},
        });
        self.registry
            .bind(&self.context, namespace, name, binding)
            .await
            .map_err(refused)
    }

    async fn finalize_namespace(&self, name: &str) -> Result<(), ClientError> {
        let patch = api::Patch::merge(&json!({"spec": {"finalizers": []}})).map_err(refused)?;
        let kind = tholepin_informer::kinds::NAMESPACE;
        let part = api::Subresource::Finalize;
        self.registry
            .patch(&self.context, resource(kind), "", name, part, &patch)
            .await
            .map(drop)
            .map_err(refused)
    }
}
