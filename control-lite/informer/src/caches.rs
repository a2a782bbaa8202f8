//! The caches of all kinds, made once and shared by every controller and the scheduler.

use std::sync::Arc;

use futures::future::BoxFuture;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{
    Endpoints, Namespace, Node, Pod, ReplicationController, Service, ServiceAccount,
};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::Value;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::client::{Client, ClientError, DeleteOptions, Subresource};
use crate::kind::{Kind, kinds};
use crate::reflector;
use crate::store::{Cached, ObjectKey, Partial, Store};

/// One cache per kind. Events are not cached: nothing decides by them.
#[derive(Debug)]
pub struct Caches {
    /// Pods, indexed by node name.
    pub pods: Arc<Store<Pod>>,
    /// Nodes.
    pub nodes: Arc<Store<Node>>,
    /// Services.
    pub services: Arc<Store<Service>>,
    /// EndpointSlices, indexed by `namespace/service`.
    pub endpoint_slices: Arc<Store<EndpointSlice>>,
    /// Endpoints.
    pub endpoints: Arc<Store<Endpoints>>,
    /// Namespaces.
    pub namespaces: Arc<Store<Namespace>>,
    /// ServiceAccounts.
    pub service_accounts: Arc<Store<ServiceAccount>>,
    /// Leases.
    pub leases: Arc<Store<Lease>>,
    /// Deployments.
    pub deployments: Arc<Store<Deployment>>,
    /// ReplicaSets.
    pub replica_sets: Arc<Store<ReplicaSet>>,
    /// ReplicationControllers.
    pub replication_controllers: Arc<Store<ReplicationController>>,
    /// ConfigMaps, metadata only.
    pub config_maps: Arc<Store<Partial>>,
    /// Secrets, metadata only: their content stays in the store.
    pub secrets: Arc<Store<Partial>>,
    client: Arc<dyn Client>,
}

fn node_of(pod: &Pod) -> Option<String> {
    pod.spec
        .as_ref()?
        .node_name
        .clone()
        .filter(|name| !name.is_empty())
}

fn service_of(slice: &EndpointSlice) -> Option<String> {
    let service = slice
        .metadata
        .labels
        .as_ref()?
        .get("kubernetes.io/service-name")?;
    Some(format!(
        "{}/{service}",
        slice.metadata.namespace.as_deref().unwrap_or_default()
    ))
}

impl Caches {
    /// Empty caches over `client`.
    pub fn new(client: Arc<dyn Client>) -> Arc<Self> {
        fn store<T: Cached>(client: &Arc<dyn Client>, kind: Kind) -> Arc<Store<T>> {
            Arc::new(Store::new(kind, client.clone(), None))
        }
        Arc::new(Self {
            pods: Arc::new(Store::new(kinds::POD, client.clone(), Some(node_of))),
            nodes: store(&client, kinds::NODE),
            services: store(&client, kinds::SERVICE),
            endpoint_slices: Arc::new(Store::new(
                kinds::ENDPOINT_SLICE,
                client.clone(),
                Some(service_of),
            )),
            endpoints: store(&client, kinds::ENDPOINTS),
            namespaces: store(&client, kinds::NAMESPACE),
            service_accounts: store(&client, kinds::SERVICE_ACCOUNT),
            leases: store(&client, kinds::LEASE),
            deployments: store(&client, kinds::DEPLOYMENT),
            replica_sets: store(&client, kinds::REPLICA_SET),
            replication_controllers: store(&client, kinds::REPLICATION_CONTROLLER),
            config_maps: store(&client, kinds::CONFIG_MAP),
            secrets: store(&client, kinds::SECRET),
            client,
        })
    }

    /// The API behind the caches.
    pub fn client(&self) -> &Arc<dyn Client> {
        &self.client
    }

    /// Starts one reflector per kind. Register handlers before.
    pub fn spawn(&self, tasks: &mut JoinSet<()>, cancel: &CancellationToken) {
        for store in self.all() {
            tasks.spawn(store.reflect(cancel.clone()));
        }
    }

    /// Waits until every kind was listed once. Nothing may be deleted before.
    pub async fn wait_synced(&self) {
        for store in self.all() {
            store.synced().await;
        }
    }

    /// Every cache, by its metadata alone.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<dyn Dependents>> {
        vec![
            self.pods.clone(),
            self.nodes.clone(),
            self.services.clone(),
            self.endpoint_slices.clone(),
            self.endpoints.clone(),
            self.namespaces.clone(),
            self.service_accounts.clone(),
            self.leases.clone(),
            self.deployments.clone(),
            self.replica_sets.clone(),
            self.replication_controllers.clone(),
            self.config_maps.clone(),
            self.secrets.clone(),
        ]
    }
}

/// A cache without its type: what garbage collection needs of every kind.
pub trait Dependents: Send + Sync {
    /// The kind.
    fn kind(&self) -> Kind;
    /// Metadata of the objects with an owner reference to `uid`.
    fn owned_by(&self, uid: &str) -> Vec<ObjectMeta>;
    /// Metadata of one object.
    fn meta(&self, key: &ObjectKey) -> Option<ObjectMeta>;
    /// Calls back with the metadata before and after every change.
    fn on_meta_change(&self, handler: MetaHandler);
    /// Patches the main resource.
    fn patch_main<'a>(
        &'a self,
        key: &'a ObjectKey,
        patch: Value,
    ) -> BoxFuture<'a, Result<(), ClientError>>;
    /// Deletes an object, if it still has this uid.
    fn delete_uid<'a>(
        &'a self,
        key: &'a ObjectKey,
        options: DeleteOptions,
    ) -> BoxFuture<'a, Result<(), ClientError>>;
    /// Waits for the first list.
    fn synced<'a>(&'a self) -> BoxFuture<'a, ()>;
    /// The reflector's task.
    fn reflect(self: Arc<Self>, cancel: CancellationToken) -> BoxFuture<'static, ()>;
}

/// Called with the metadata before and after a change.
pub type MetaHandler = Box<dyn Fn(Option<&ObjectMeta>, Option<&ObjectMeta>) + Send + Sync>;

impl<T: Cached + Clone> Dependents for Store<T> {
    fn kind(&self) -> Kind {
        Store::kind(self)
    }

    fn owned_by(&self, uid: &str) -> Vec<ObjectMeta> {
        Store::owned_by(self, uid)
            .iter()
            .map(|object| object.meta().clone())
            .collect()
    }

    fn meta(&self, key: &ObjectKey) -> Option<ObjectMeta> {
        self.get(key).map(|object| object.meta().clone())
    }

    fn on_meta_change(&self, handler: MetaHandler) {
        self.on_change(move |change| {
            handler(
                change.old.as_ref().map(|object| object.meta()),
                change.new.as_ref().map(|object| object.meta()),
            );
        });
    }

    fn patch_main<'a>(
        &'a self,
        key: &'a ObjectKey,
        patch: Value,
    ) -> BoxFuture<'a, Result<(), ClientError>> {
        Box::pin(async move { self.patch(key, Subresource::Main, patch).await.map(drop) })
    }

    fn delete_uid<'a>(
        &'a self,
        key: &'a ObjectKey,
        options: DeleteOptions,
    ) -> BoxFuture<'a, Result<(), ClientError>> {
        Box::pin(async move {
            match self.get(key) {
                Some(object) => self.delete(&object, options).await,
                None => {
                    self.client()
                        .delete(Store::kind(self), &key.namespace, &key.name, options)
                        .await
                }
            }
        })
    }

    fn synced<'a>(&'a self) -> BoxFuture<'a, ()> {
        Box::pin(self.wait_synced())
    }

    fn reflect(self: Arc<Self>, cancel: CancellationToken) -> BoxFuture<'static, ()> {
        Box::pin(reflector::run(self, cancel))
    }
}
