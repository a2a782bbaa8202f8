//! Which endpoints a Service port has for whom: kube-proxy's `CategorizeEndpoints` in words of rules.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use super::objects::Endpoint;

/// The lists of a Service port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// For Cluster policy, if any traffic uses it.
    pub cluster: Option<BTreeSet<SocketAddr>>,
    /// For Local policy, if any traffic uses it.
    pub local: Option<BTreeSet<SocketAddr>>,
    /// Whether there is a usable endpoint on any node, which makes the difference of drop and reject.
    pub any: bool,
}

/// Which endpoints are preferred over others for where they are.
enum Topology {
    None,
    SameZone,
    SameNode,
}

/// The lists for a node.
pub fn categorize(
    endpoints: &[Endpoint],
    uses_cluster: bool,
    uses_local: bool,
    node: &str,
    zone: &str,
) -> Choice {
    let draining = |endpoint: &&Endpoint| endpoint.serving && endpoint.terminating;
    let places = |list: Vec<&Endpoint>| list.into_iter().map(|endpoint| endpoint.at).collect();
    let mut choice = Choice::default();
    if uses_cluster {
        let topology = topology(endpoints, node, zone);
        let near = |endpoint: &&Endpoint| match topology {
            Topology::None => true,
            Topology::SameZone => endpoint.zone_hints.contains(zone),
            Topology::SameNode => endpoint.node_hints.contains(node),
        };
        let ready = endpoints.iter().filter(|endpoint| endpoint.ready);
        let mut list: Vec<_> = ready.filter(near).collect();
        if list.is_empty() {
            list = endpoints.iter().filter(draining).collect();
        }
        choice.any |= !list.is_empty();
        choice.cluster = Some(places(list));
    }
    if uses_local {
        let usable = |endpoint: &Endpoint| endpoint.ready || draining(&endpoint);
        choice.any |= endpoints.iter().any(usable);
        let here = || endpoints.iter().filter(|endpoint| endpoint.local);
        let mut list: Vec<_> = here().filter(|endpoint| endpoint.ready).collect();
        if list.is_empty() {
            list = here()
                .filter(|endpoint| !endpoint.ready)
                .filter(draining)
                .collect();
        }
        choice.local = Some(places(list));
    }
    choice
}

/// Decided once for the Service on this node, from its ready endpoints: all must have the hint, and
/// one must have it for us.
fn topology(endpoints: &[Endpoint], node: &str, zone: &str) -> Topology {
    let ready: Vec<_> = endpoints.iter().filter(|endpoint| endpoint.ready).collect();
    let decides = |hints: fn(&Endpoint) -> &BTreeSet<String>, ours: &str| {
        ready.iter().all(|endpoint| !hints(endpoint).is_empty())
            && ready.iter().any(|endpoint| hints(endpoint).contains(ours))
    };
    if decides(|endpoint| &endpoint.node_hints, node) {
        Topology::SameNode
    } else if decides(|endpoint| &endpoint.zone_hints, zone) {
        Topology::SameZone
    } else {
        Topology::None
    }
}
