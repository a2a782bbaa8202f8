//! Options of the registry's verbs, already parsed.

use bytes::Bytes;
use serde_json::Value;
use tholepin_apimachinery::ApiError;
pub use tholepin_apimachinery::patch::PatchType as PatchKind;

/// Shorthand of the whole crate.
pub type ApiResult<T> = Result<T, ApiError>;

/// A resource by API group and plural: what a controller calls "deployments.apps".
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct GroupResource {
    /// API group; empty for the core group.
    pub group: &'static str,
    /// Lower-case plural.
    pub resource: &'static str,
}

impl GroupResource {
    /// A resource of the core group.
    #[must_use]
    pub const fn core(resource: &'static str) -> Self {
        Self {
            group: "",
            resource,
        }
    }
}

/// The resources by name.
pub mod resources {
    use super::GroupResource;

    /// `namespaces`
    pub const NAMESPACES: GroupResource = GroupResource::core("namespaces");
    /// `nodes`
    pub const NODES: GroupResource = GroupResource::core("nodes");
    /// `pods`
    pub const PODS: GroupResource = GroupResource::core("pods");
    /// `services`
    pub const SERVICES: GroupResource = GroupResource::core("services");
    /// `endpoints`
    pub const ENDPOINTS: GroupResource = GroupResource::core("endpoints");
    /// `configmaps`
    pub const CONFIG_MAPS: GroupResource = GroupResource::core("configmaps");
    /// `secrets`
    pub const SECRETS: GroupResource = GroupResource::core("secrets");
    /// `serviceaccounts`
    pub const SERVICE_ACCOUNTS: GroupResource = GroupResource::core("serviceaccounts");
    /// `events`
    pub const EVENTS: GroupResource = GroupResource::core("events");
    /// `replicationcontrollers`
    pub const REPLICATION_CONTROLLERS: GroupResource =
        GroupResource::core("replicationcontrollers");
    /// `deployments.apps`
    pub const DEPLOYMENTS: GroupResource = GroupResource {
        group: "apps",
        resource: "deployments",
    };
    /// `replicasets.apps`
    pub const REPLICA_SETS: GroupResource = GroupResource {
        group: "apps",
        resource: "replicasets",
    };
    /// `endpointslices.discovery.k8s.io`
    pub const ENDPOINT_SLICES: GroupResource = GroupResource {
        group: "discovery.k8s.io",
        resource: "endpointslices",
    };
    /// `leases.coordination.k8s.io`
    pub const LEASES: GroupResource = GroupResource {
        group: "coordination.k8s.io",
        resource: "leases",
    };
}

/// Which part of an object a write may change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Subresource {
    /// The object without its status.
    #[default]
    Main,
    /// Its status only.
    Status,
    /// A namespace's `spec.finalizers` only: the last step of its deletion.
    Finalize,
}

/// How the `resource_version` of a list is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VersionMatch {
    /// At least as new.
    NotOlderThan,
    /// As it was then.
    Exact,
}

/// Options of list and delete-collection.
#[derive(Clone, Debug, Default)]
pub struct ListOptions {
    /// Label selector in the API's syntax; empty: everything.
    pub label_selector: String,
    /// Field selector in the API's syntax; empty: everything.
    pub field_selector: String,
    /// At most this many objects; 0: all.
    pub limit: usize,
    /// The token of the previous page.
    pub continue_token: Option<String>,
    /// `None` (or `"0"`): now.
    pub resource_version: Option<String>,
    /// How `resource_version` is meant.
    pub version_match: Option<VersionMatch>,
}

/// A list and the revision it shows.
#[derive(Clone, Debug, Default)]
pub struct ObjectList {
    /// The objects in key order.
    pub items: Vec<Value>,
    /// The list's `metadata.resourceVersion`.
    pub resource_version: u64,
    /// There are further pages.
    pub continue_token: Option<String>,
    /// How many objects follow, where that is known.
    pub remaining: Option<usize>,
}

/// Options of a watch.
#[derive(Clone, Debug, Default)]
pub struct WatchOptions {
    /// Label selector; empty: everything.
    pub label_selector: String,
    /// Field selector; empty: everything.
    pub field_selector: String,
    /// `Some("N")`: changes after revision N. `None` or `Some("0")`: the present objects as `ADDED`
    /// events first, then changes.
    pub resource_version: Option<String>,
    /// The present objects first, then a bookmark that says so, then changes.
    pub send_initial_events: bool,
    /// Bookmarks are wanted.
    pub bookmarks: bool,
}

/// What happens to objects that are owned by a deleted one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    /// They stay, without their owner.
    Orphan,
    /// The garbage collector deletes them afterwards.
    Background,
    /// The owner goes last.
    Foreground,
}

/// Options of a deletion.
#[derive(Clone, Debug, Default)]
pub struct DeleteOptions {
    /// Seconds a pod may take to stop; `None`: what the pod says.
    pub grace_period_seconds: Option<i64>,
    /// `None`: what the kind does by default.
    pub propagation: Option<Propagation>,
    /// Delete only this uid.
    pub uid: Option<String>,
    /// Delete only this version.
    pub resource_version: Option<String>,
}

/// What a deletion did.
#[derive(Clone, Debug)]
pub enum DeleteOutcome {
    /// The object is gone; this was its last state.
    Deleted(Value),
    /// The object now has a deletionTimestamp and goes when its finalizers or its grace period do.
    Terminating(Value),
}

impl DeleteOutcome {
    /// The object's last or present state.
    #[must_use]
    pub fn object(&self) -> &Value {
        match self {
            Self::Deleted(object) | Self::Terminating(object) => object,
        }
    }
}

/// A patch and its kind.
#[derive(Clone, Debug)]
pub struct Patch {
    /// How `body` is meant.
    pub kind: PatchKind,
    /// The patch's text.
    pub body: Bytes,
}
