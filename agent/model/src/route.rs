//! Nodes as the dataplane sees them: which tunnel endpoint a pod range is behind.

use std::collections::BTreeMap;
use std::net::IpAddr;

use ipnet::IpNet;

/// A node of the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    /// Name.
    pub name: String,
    /// Creation time in seconds; decides who keeps a range two nodes claim.
    pub created_at_secs: i64,
    /// `spec.podCIDRs`, primary family first.
    pub pod_ranges: Vec<IpNet>,
    /// `InternalIP` addresses in the order of the status.
    pub addresses: Vec<IpAddr>,
    /// `topology.kubernetes.io/zone`.
    pub zone: Option<String>,
    /// It is being deleted, or an autoscaler is about to: no new connections should come.
    pub is_leaving: bool,
}

/// Remote pod ranges and the tunnel endpoints they are behind.
pub type RouteTable = BTreeMap<IpNet, IpAddr>;

/// Why a node's range has no route.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RouteProblem {
    /// Nothing to send to.
    #[error("node {node} has no InternalIP of a family this node can reach")]
    NoEndpoint {
        /// The node without an address.
        node: String,
    },
    /// Two nodes cannot own an address.
    #[error("pod range {range} of node {node} overlaps {taken} of node {owner}")]
    Overlap {
        /// The refused node.
        node: String,
        /// Its range.
        range: IpNet,
        /// The range that was there first.
        taken: IpNet,
        /// Its owner.
        owner: String,
    },
}

/// The tunnel endpoint of a node: IPv4 when both ends have it, because its header is smaller.
#[must_use]
pub fn tunnel_endpoint(own: &[IpAddr], remote: &[IpAddr]) -> Option<IpAddr> {
    let first =
        |addresses: &[IpAddr], v4: bool| addresses.iter().copied().find(|a| a.is_ipv4() == v4);
    [true, false]
        .into_iter()
        .find_map(|v4| first(own, v4).and(first(remote, v4)))
}

/// Routes to every other node. A node that cannot be routed degrades itself only.
#[must_use]
pub fn fold<'a>(
    nodes: impl IntoIterator<Item = &'a Node>,
    own_name: &str,
    own_addresses: &[IpAddr],
) -> (RouteTable, Vec<RouteProblem>) {
    let mut sorted: Vec<&Node> = nodes.into_iter().collect();
    // This node first: nobody else may claim its addresses. Then the older one wins.
    sorted.sort_by_key(|node| {
        (
            node.name != own_name,
            node.created_at_secs,
            node.name.clone(),
        )
    });
    let mut owners: Vec<(IpNet, &str)> = Vec::new();
    let mut routes = RouteTable::new();
    let mut problems = Vec::new();
    for node in sorted {
        let endpoint = tunnel_endpoint(own_addresses, &node.addresses);
        if node.name != own_name && endpoint.is_none() && !node.pod_ranges.is_empty() {
            problems.push(RouteProblem::NoEndpoint {
                node: node.name.clone(),
            });
        }
        for range in node.pod_ranges.iter().map(IpNet::trunc) {
            let clash = owners
                .iter()
                .find(|(taken, _)| taken.contains(&range) || range.contains(taken));
            if let Some((taken, owner)) = clash {
                problems.push(RouteProblem::Overlap {
                    node: node.name.clone(),
                    range,
                    taken: *taken,
                    owner: (*owner).to_owned(),
                });
                continue;
            }
            owners.push((range, &node.name));
            if let Some(endpoint) = endpoint
                && node.name != own_name
            {
                routes.insert(range, endpoint);
            }
        }
    }
    (routes, problems)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, ranges: &[&str], addresses: &[&str]) -> Node {
        Node {
            name: name.to_owned(),
            created_at_secs: 0,
            pod_ranges: ranges.iter().map(|r| r.parse().unwrap()).collect(),
            addresses: addresses.iter().map(|a| a.parse().unwrap()).collect(),
            zone: None,
            is_leaving: false,
        }
    }

    #[test]
    fn both_families_of_a_node_are_behind_its_ipv4_address() {
        let own = node("a", &["10.244.0.0/24"], &["172.30.0.11", "fd00:30::11"]);
        let other = node(
            "b",
            &["10.244.1.0/24", "fd00:10:244:1::/64"],
            &["172.30.0.12", "fd00:30::12"],
        );
        let (routes, problems) = fold([&own, &other], "a", &own.addresses);
        assert_eq!(problems, []);
        let endpoint: IpAddr = "172.30.0.12".parse().unwrap();
        assert_eq!(routes.values().collect::<Vec<_>>(), [&endpoint, &endpoint]);
    }

    #[test]
    fn a_range_that_overlaps_our_own_is_refused_and_named() {
        let own = node("z", &["10.244.0.0/24"], &["172.30.0.11"]);
        let thief = node("a", &["10.244.0.0/25", "10.244.9.0/24"], &["172.30.0.12"]);
        let (routes, problems) = fold([&thief, &own], "z", &own.addresses);
        assert_eq!(routes.len(), 1);
        assert_eq!(
            problems[0].to_string(),
            "pod range 10.244.0.0/25 of node a overlaps 10.244.0.0/24 of node z"
        );
    }

    #[test]
    fn a_node_without_a_common_family_is_reported_not_routed() {
        let other = node("b", &["10.244.1.0/24"], &["fd00:30::12"]);
        let (routes, problems) = fold([&other], "a", &["172.30.0.11".parse().unwrap()]);
        assert!(routes.is_empty());
        assert_eq!(
            problems,
            [RouteProblem::NoEndpoint {
                node: "b".to_owned()
            }]
        );
    }
}
