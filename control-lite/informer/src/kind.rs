//! The kinds the controllers know: names and scope, as constants.

/// One served kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Kind {
    /// API group, empty for the core group.
    pub group: &'static str,
    /// Version within the group.
    pub version: &'static str,
    /// Plural resource name, as in paths.
    pub resource: &'static str,
    /// Kind name, as in manifests.
    pub kind: &'static str,
    /// Whether objects live in a namespace.
    pub namespaced: bool,
}

impl Kind {
    /// The `apiVersion` of manifests.
    #[must_use]
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }
}

const fn kind(
    group: &'static str,
    resource: &'static str,
    kind: &'static str,
    namespaced: bool,
) -> Kind {
    Kind {
        group,
        version: "v1",
        resource,
        kind,
        namespaced,
    }
}

/// Every kind control-lite serves and controls.
pub mod kinds {
    use super::{Kind, kind};

    /// `v1` Namespace.
    pub const NAMESPACE: Kind = kind("", "namespaces", "Namespace", false);
    /// `v1` Node.
    pub const NODE: Kind = kind("", "nodes", "Node", false);
    /// `v1` Pod.
    pub const POD: Kind = kind("", "pods", "Pod", true);
    /// `v1` Service.
    pub const SERVICE: Kind = kind("", "services", "Service", true);
    /// `v1` Endpoints.
    pub const ENDPOINTS: Kind = kind("", "endpoints", "Endpoints", true);
    /// `v1` ConfigMap.
    pub const CONFIG_MAP: Kind = kind("", "configmaps", "ConfigMap", true);
    /// `v1` Secret.
    pub const SECRET: Kind = kind("", "secrets", "Secret", true);
    /// `v1` ServiceAccount.
    pub const SERVICE_ACCOUNT: Kind = kind("", "serviceaccounts", "ServiceAccount", true);
    /// `v1` Event.
    pub const EVENT: Kind = kind("", "events", "Event", true);
    /// `v1` ReplicationController.
    pub const REPLICATION_CONTROLLER: Kind =
        kind("", "replicationcontrollers", "ReplicationController", true);
    /// `apps/v1` Deployment.
    pub const DEPLOYMENT: Kind = kind("apps", "deployments", "Deployment", true);
    /// `apps/v1` ReplicaSet.
    pub const REPLICA_SET: Kind = kind("apps", "replicasets", "ReplicaSet", true);
    /// `discovery.k8s.io/v1` EndpointSlice.
    pub const ENDPOINT_SLICE: Kind =
        kind("discovery.k8s.io", "endpointslices", "EndpointSlice", true);
    /// `coordination.k8s.io/v1` Lease.
    pub const LEASE: Kind = kind("coordination.k8s.io", "leases", "Lease", true);

    /// All of them.
    pub const ALL: [Kind; 14] = [
        NAMESPACE,
        NODE,
        POD,
        SERVICE,
        ENDPOINTS,
        CONFIG_MAP,
        SECRET,
        SERVICE_ACCOUNT,
        EVENT,
        REPLICATION_CONTROLLER,
        DEPLOYMENT,
        REPLICA_SET,
        ENDPOINT_SLICE,
        LEASE,
    ];

    /// The kind an owner reference names, if it is served.
    #[must_use]
    pub fn by_reference(api_version: &str, kind: &str) -> Option<Kind> {
        let group = api_version.split_once('/').map_or("", |(group, _)| group);
        ALL.into_iter()
            .find(|known| known.group == group && known.kind == kind)
    }
}
