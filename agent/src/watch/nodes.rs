//! Nodes: their pod ranges and underlay addresses, this node's included.

use std::net::IpAddr;

use ipnet::IpNet;
use k8s_openapi::api::core::v1 as core_v1;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Api, Client, ResourceExt};
use tholepin_model::desired::Desired;
use tholepin_model::route::Node;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::follow::{Change, Parsed, fold, follow};

/// An autoscaler's taint on nodes it is about to delete.
const LEAVING_TAINT: &str = "ToBeDeletedByClusterAutoscaler";
const ZONE_LABEL: &str = "topology.kubernetes.io/zone";

/// Why a pod range or an address of a Node is not used.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum InvalidNode {
    #[error("podCIDR {range:?} is not an IP range")]
    InvalidRange { range: String },
    #[error("InternalIP {address:?} is not an IP address")]
    InvalidAddress { address: String },
}

/// Follows Nodes until cancelled.
pub async fn watch(client: Client, desired: watch::Sender<Desired>, cancel: CancellationToken) {
    let parse = |object: &core_v1::Node| {
        let (node, problems) = node_of(object);
        for problem in problems {
            tracing::warn!(node = node.name, reason = %problem, "part of a Node is ignored");
        }
        Parsed::Wanted(node.name.clone(), node)
    };
    let apply = |change| {
        desired.send_if_modified(|desired| {
            let whole = matches!(change, Change::Replace(_));
            let first = whole && !desired.sync.nodes;
            desired.sync.nodes |= whole;
            fold(&mut desired.nodes, change) || first
        });
    };
    follow(Api::all(client), parse, apply, cancel).await;
}

/// The node with what cannot be used of it.
#[must_use]
pub fn node_of(object: &core_v1::Node) -> (Node, Vec<InvalidNode>) {
    let mut problems = Vec::new();
    let spec = object.spec.as_ref();
    let listed = spec
        .and_then(|spec| spec.pod_cidrs.clone())
        .unwrap_or_default();
    let ranges = if listed.is_empty() {
        spec.and_then(|spec| spec.pod_cidr.clone())
            .into_iter()
            .collect()
    } else {
        listed
    };
    let mut pod_ranges = Vec::new();
    for range in ranges.into_iter().filter(|range| !range.is_empty()) {
        match range.parse::<IpNet>() {
            Ok(range) => pod_ranges.push(range.trunc()),
            Err(_) => problems.push(InvalidNode::InvalidRange { range }),
        }
    }
    let status = object
        .status
        .as_ref()
        .and_then(|status| status.addresses.as_deref());
    let mut addresses = Vec::new();
    for address in status
        .unwrap_or_default()
        .iter()
        .filter(|a| a.type_ == "InternalIP")
    {
        match address.address.parse::<IpAddr>() {
            Ok(address) => addresses.push(address),
            Err(_) => {
                problems.push(InvalidNode::InvalidAddress {
                    address: address.address.clone(),
                });
            }
        }
    }
    let mut taints = spec
        .into_iter()
        .flat_map(|spec| spec.taints.iter().flatten());
    let is_leaving = taints.any(|taint| taint.key == LEAVING_TAINT);
    let node = Node {
        is_leaving: is_leaving || object.metadata.deletion_timestamp.is_some(),
        name: object.name_any(),
        created_at_secs: created_at_secs(&object.metadata),
        pod_ranges,
        addresses,
        zone: object
            .labels()
            .get(ZONE_LABEL)
            .filter(|zone| !zone.is_empty())
            .cloned(),
    };
    (node, problems)
}

/// Creation time in seconds; objects without one count as the oldest.
pub(super) fn created_at_secs(metadata: &ObjectMeta) -> i64 {
    metadata
        .creation_timestamp
        .as_ref()
        .map_or(0, |time| time.0.as_second())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_node_has_its_ranges_and_internal_addresses_and_bad_ones_are_named() {
        let object = json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1", "creationTimestamp": "2026-01-01T00:00:00Z"},
            "spec": {"podCIDR": "10.244.1.0/24", "podCIDRs": ["10.244.1.0/24", "fd00:10:244:1::/64", "x"]},
            "status": {"addresses": [
                {"type": "Hostname", "address": "n1"},
                {"type": "InternalIP", "address": "172.30.0.11"},
                {"type": "InternalIP", "address": "fd00:30::11"},
            ]},
        });
        let (node, problems) = node_of(&serde_json::from_value(object).unwrap());
        assert_eq!(node.pod_ranges.len(), 2);
        assert_eq!(node.addresses.len(), 2);
        assert_eq!(node.created_at_secs, 1_767_225_600);
        assert_eq!(
            problems,
            [InvalidNode::InvalidRange {
                range: "x".to_owned()
            }]
        );
    }
}
