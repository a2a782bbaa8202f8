//! The fold of the cluster's nodes, and what it implies for this node. Services have a table of their
//! own, see [`crate::service::table`].
//!
//! Watches write it, reconcilers read snapshots of it. Objects are shared, so a snapshot is cheap.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::route::{self, Node, RouteProblem, RouteTable};

/// Which sources have been seen whole at least once. Nothing is pruned before.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SyncState {
    /// Nodes were listed.
    pub nodes: bool,
}

/// What the pod network is judged against.
#[derive(Clone, Debug, Default)]
pub struct Desired {
    /// Nodes by name, this one included.
    pub nodes: BTreeMap<String, Arc<Node>>,
    /// What has synced.
    pub sync: SyncState,
}

impl Desired {
    /// Routes to the other nodes.
    #[must_use]
    pub fn route_table(
        &self,
        node_name: &str,
        own_addresses: &[IpAddr],
    ) -> (RouteTable, Vec<RouteProblem>) {
        route::fold(
            self.nodes.values().map(Arc::as_ref),
            node_name,
            own_addresses,
        )
    }

    /// Pod ranges of the node, once the control plane has handed them out.
    #[must_use]
    pub fn pod_ranges(&self, node_name: &str) -> Option<Vec<IpNet>> {
        let ranges = &self.nodes.get(node_name)?.pod_ranges;
        (!ranges.is_empty()).then(|| ranges.clone())
    }
}
