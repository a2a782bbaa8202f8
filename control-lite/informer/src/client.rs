//! What controllers ask of the API: an object-safe trait, so that tests run over an in-memory one.

use std::fmt::Debug;
use std::sync::Arc;

use async_trait::async_trait;
use futures::stream::BoxStream;
use serde_json::Value;

use crate::kind::Kind;

/// The API as controllers use it. All writes are optimistic where the patch carries a resourceVersion.
#[async_trait]
pub trait Client: Debug + Send + Sync + 'static {
    /// All objects of a kind (in one namespace if given) and the revision they were read at.
    async fn list(
        &self,
        kind: Kind,
        namespace: Option<&str>,
    ) -> Result<(Vec<Arc<Value>>, u64), ClientError>;

    /// Changes of a kind after `from`, in revision order.
    async fn watch(&self, kind: Kind, from: u64) -> Result<WatchStream, ClientError>;

    /// One object, read from the store and not from a cache.
    async fn get(&self, kind: Kind, namespace: &str, name: &str)
    -> Result<Arc<Value>, ClientError>;

    /// Creates an object.
    async fn create(
        &self,
        kind: Kind,
        namespace: &str,
        object: Value,
    ) -> Result<Arc<Value>, ClientError>;

    /// Applies a JSON merge patch. A `metadata.resourceVersion` in it is a precondition.
    async fn patch(
        &self,
        kind: Kind,
        namespace: &str,
        name: &str,
        subresource: Subresource,
        patch: Value,
    ) -> Result<Arc<Value>, ClientError>;

    /// Deletes an object, or marks it deleted when finalizers or a grace period hold it.
    async fn delete(
        &self,
        kind: Kind,
        namespace: &str,
        name: &str,
        options: DeleteOptions,
    ) -> Result<(), ClientError>;

    /// Binds a pod to a node (`pods/binding`).
    async fn bind(
        &self,
        namespace: &str,
        name: &str,
        uid: &str,
        node: &str,
    ) -> Result<(), ClientError>;

    /// Removes the `kubernetes` finalizer of a namespace (`namespaces/finalize`).
    async fn finalize_namespace(&self, name: &str) -> Result<(), ClientError>;
}

/// Changes of one kind. It ends when the server closes the watch.
pub type WatchStream = BoxStream<'static, Result<WatchEvent, ClientError>>;

/// One change.
#[derive(Clone, Debug)]
pub enum WatchEvent {
    /// Added or modified.
    Applied(Arc<Value>),
    /// Gone; the last state.
    Deleted(Arc<Value>),
    /// Everything up to this revision has been sent.
    Bookmark(u64),
}

/// Which part of an object a patch is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Subresource {
    /// The object but for its status.
    Main,
    /// The status.
    Status,
}

/// How dependents are treated.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    /// Delete the object at once, dependents after it.
    Background,
    /// Dependents first.
    Foreground,
    /// Dependents lose the owner reference.
    Orphan,
}

impl Propagation {
    /// The word of `DeleteOptions.propagationPolicy`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Background => "Background",
            Self::Foreground => "Foreground",
            Self::Orphan => "Orphan",
        }
    }
}

/// Options of a deletion.
#[derive(Clone, Debug, Default)]
pub struct DeleteOptions {
    /// Only if the object still has this uid.
    pub uid: Option<String>,
    /// Overrides the pod's own grace period.
    pub grace_period_secs: Option<i64>,
    /// What happens to dependents.
    pub propagation: Option<Propagation>,
}

/// A refused request, as the API's Status says it.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{message}")]
pub struct ClientError {
    /// HTTP code.
    pub code: u16,
    /// Status reason, such as `NotFound`.
    pub reason: String,
    /// Message for people.
    pub message: String,
    /// Whether the cause is that the namespace is being terminated.
    pub namespace_terminating: bool,
}

impl ClientError {
    /// An error with a code, reason and message.
    #[must_use]
    pub fn new(code: u16, reason: &str, message: impl Into<String>) -> Self {
        Self {
            code,
            reason: reason.to_owned(),
            message: message.into(),
            namespace_terminating: false,
        }
    }

    /// The object does not exist.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        self.reason == "NotFound"
    }

    /// An object of that name exists.
    #[must_use]
    pub fn is_already_exists(&self) -> bool {
        self.reason == "AlreadyExists"
    }

    /// The resourceVersion or uid precondition failed.
    #[must_use]
    pub fn is_conflict(&self) -> bool {
        self.reason == "Conflict"
    }

    /// The watch's start revision is compacted.
    #[must_use]
    pub fn is_expired(&self) -> bool {
        self.code == 410
    }
}
