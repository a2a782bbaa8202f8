//! The API in process: every verb over every kind, with everything that makes it *the* API.
//!
//! Controllers, the scheduler and the HTTP layer call the same functions; defaulting, validation,
//! admission, optimistic concurrency, finalizers, graceful deletion and address allocation happen
//! here and nowhere else. Objects are JSON values in the kind's version.

mod admission;
mod advice;
mod bind;
mod cluster_ips;
mod context;
mod create;
mod delete;
mod expiry;
mod ip_allocator;
mod list;
mod node_ports;
mod options;
mod patch;
mod scale;
mod selection;
pub(crate) mod stored;
mod update;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use serde_json::Value;
use tholepin_apimachinery::{ApiError, Kind, kinds};
use tholepin_store::{Class, Expected, PutRequest, Store, StoreError};

pub use context::{RequestContext, UserInfo, Warnings};
pub use options::{
    ApiResult, DeleteOptions, DeleteOutcome, GroupResource, ListOptions, ObjectList, Patch,
    PatchKind, Propagation, Subresource, VersionMatch, WatchOptions, resources,
};
pub use tholepin_apimachinery::codec::FieldValidation;
pub use watch::{ObjectWatch, WatchEvent, WatchEventKind};

pub(crate) use list::StoredList;

use cluster_ips::ClusterIps;
use expiry::Expiry;
use node_ports::NodePorts;

/// What the registry has to know about the cluster.
#[derive(Clone, Debug)]
pub struct RegistryConfig {
    /// Service ranges, the primary family first; one or two of different families.
    pub service_ranges: Vec<IpNet>,
    /// How long an Event is kept after its last change.
    pub event_ttl: Duration,
}

impl Default for RegistryConfig {
    fn default() -> Self {
        Self {
            service_ranges: vec![
                "10.96.0.0/16".parse().expect("a valid range"),
                "fd00:10:96::/112".parse().expect("a valid range"),
            ],
            event_ttl: Duration::from_secs(3600),
        }
    }
}

/// The API in process. Cloning is cheap and shares everything.
#[derive(Clone, Debug)]
pub struct Registry {
    shared: Arc<Shared>,
}

struct Shared {
    store: Arc<dyn Store>,
    cluster_ips: ClusterIps,
    node_ports: NodePorts,
    expiry: Expiry,
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared")
            .field("cluster_ips", &self.cluster_ips)
            .finish_non_exhaustive()
    }
}

/// Something that names a kind: a kind, or a group and a plural.
pub trait Resource: Copy + Send {
    /// The kind. An unknown resource is "the server could not find the requested resource".
    fn kind(self) -> ApiResult<&'static Kind>;
}

impl Resource for &'static Kind {
    fn kind(self) -> ApiResult<&'static Kind> {
        Ok(self)
    }
}

impl Resource for GroupResource {
    fn kind(self) -> ApiResult<&'static Kind> {
        kinds::all()
            .iter()
            .copied()
            .find(|kind| kind.group == self.group && kind.plural == self.resource)
            .ok_or_else(ApiError::unknown_path)
    }
}

/// An object as it was read, with what a conditional write needs.
struct Current {
    object: Value,
    revision: u64,
}

impl Registry {
    /// A registry over a store. Reads the Services in it, so that no address is given out twice,
    /// and starts the task that expires Events (it ends with the registry).
    pub async fn open(store: Arc<dyn Store>, config: RegistryConfig) -> ApiResult<Self> {
        let cluster_ips = ClusterIps::new(&config.service_ranges);
        let (expiry, due) = Expiry::new(config.event_ttl);
        let registry = Self {
            shared: Arc::new(Shared {
                store,
                cluster_ips,
                node_ports: NodePorts::default(),
                expiry,
            }),
        };
        registry.restore_cluster_ips().await?;
        registry.restore_node_ports().await?;
        registry.start_expiry(due).await?;
        Ok(registry)
    }

    /// The store below.
    #[must_use]
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.shared.store
    }

    /// The revision of the last change.
    #[must_use]
    pub fn current_revision(&self) -> u64 {
        self.shared.store.current_revision()
    }

    /// One object.
    pub async fn get(
        &self,
        _ctx: &RequestContext,
        resource: impl Resource,
        namespace: &str,
        name: &str,
    ) -> ApiResult<Value> {
        let kind = resource.kind()?;
        Ok(kind.from_storage(self.read(kind, namespace, name).await?.object))
    }

    /// One object in the stored form, or `NotFound`.
    async fn read(&self, kind: &'static Kind, namespace: &str, name: &str) -> ApiResult<Current> {
        self.find(kind, namespace, name)
            .await?
            .ok_or_else(|| ApiError::not_found(kind.group, kind.plural, name))
    }

    async fn find(
        &self,
        kind: &'static Kind,
        namespace: &str,
        name: &str,
    ) -> ApiResult<Option<Current>> {
        let fetched = self.shared.store.get(&key(kind, namespace, name)).await;
        let Some(stored) = fetched.map_err(store_error)?.stored else {
            return Ok(None);
        };
        let object = stored::decode(&stored.value, stored.revision)?;
        Ok(Some(Current {
            object,
            revision: stored.revision,
        }))
    }

    /// Writes an object in the stored form. The outer result is a failure, the inner one a
    /// conflict, which callers branch on.
    async fn write(
        &self,
        kind: &'static Kind,
        namespace: &str,
        name: &str,
        object: &mut Value,
        expected: Expected,
    ) -> ApiResult<Result<(), WriteConflict>> {
        let request = PutRequest {
            key: key(kind, namespace, name),
            value: stored::encode(object)?,
            expected,
            class: if kind.is_volatile {
                Class::Volatile
            } else {
                Class::Durable
            },
        };
        match self.shared.store.put(request).await {
            Ok(revision) => {
                tholepin_apimachinery::meta::set_resource_version(object, revision);
                if is_event(kind) {
                    self.shared
                        .expiry
                        .wrote(key(kind, namespace, name), revision);
                }
                Ok(Ok(()))
            }
            Err(StoreError::Conflict { .. }) => Ok(Err(WriteConflict)),
            Err(error) => Err(store_error(error)),
        }
    }
}

/// Somebody else wrote the object in between.
#[derive(Clone, Copy, Debug)]
struct WriteConflict;

fn is_event(kind: &Kind) -> bool {
    kind.kind == "Event"
}

/// The folder a kind's objects of a namespace (or of all) are stored in.
fn folder(kind: &Kind, namespace: &str) -> String {
    if namespace.is_empty() {
        format!("/registry/{}/", kind.storage)
    } else {
        format!("/registry/{}/{namespace}/", kind.storage)
    }
}

fn key(kind: &Kind, namespace: &str, name: &str) -> String {
    let mut key = folder(kind, if kind.is_namespaced { namespace } else { "" });
    key.push_str(name);
    key
}

/// A store failure in the API's words.
fn store_error(error: StoreError) -> ApiError {
    match error {
        StoreError::Compacted { requested, oldest } => {
            ApiError::too_old_resource_version(requested, oldest)
        }
        StoreError::FutureRevision { requested, current } => {
            ApiError::resource_version_too_large(requested, current)
        }
        StoreError::Closed => ApiError::service_unavailable("the server is shutting down"),
        StoreError::Conflict { .. } | StoreError::Write { .. } => {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "store operation failed"
            );
            ApiError::internal(error)
        }
    }
}

#[cfg(test)]
mod tests;
