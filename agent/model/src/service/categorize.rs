//! Which endpoints of a Service port may serve: kube-proxy's rules, word for word.
//!
//! Two lists: for traffic under a Cluster policy and under a Local one. Topology and termination are
//! judged once per port on this node; nothing falls back for a single packet.

use super::{BackendAddress, Conditions};

/// An endpoint of one port with what the choice needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate<'a> {
    /// Where it listens.
    pub backend: BackendAddress,
    /// Conditions.
    pub conditions: Conditions,
    /// Runs on this node.
    pub local: bool,
    /// Nodes whose clients should prefer it.
    pub node_hints: &'a [String],
    /// Zones whose clients should prefer it.
    pub zone_hints: &'a [String],
}

impl Candidate<'_> {
    fn drains(&self) -> bool {
        !self.conditions.ready && self.conditions.serving && self.conditions.terminating
    }

    /// Its established UDP flows must survive.
    #[must_use]
    pub fn serves(&self) -> bool {
        self.conditions.serving || self.conditions.ready
    }
}

/// Where the clients are.
#[derive(Clone, Copy, Debug)]
pub struct Place<'a> {
    /// Name of the node.
    pub node: &'a str,
    /// Its zone.
    pub zone: Option<&'a str>,
}

/// The outcome: indexes into the candidates, ascending.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Categories {
    /// For traffic under a Cluster policy. Empty only if there is nothing anywhere.
    pub cluster: Vec<usize>,
    /// For traffic under a Local policy. Empty with `cluster` not empty means drop, not reject.
    pub local: Vec<usize>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Topology {
    Anywhere,
    SameZone,
    SameNode,
}

/// Sorts the endpoints of one port.
#[must_use]
pub fn categorize(candidates: &[Candidate<'_>], place: Place<'_>) -> Categories {
    let topology = topology(candidates, place);
    let indexes = |wanted: &dyn Fn(&Candidate<'_>) -> bool| -> Vec<usize> {
        let all = candidates.iter().enumerate();
        all.filter(|(_, candidate)| wanted(candidate))
            .map(|(index, _)| index)
            .collect()
    };
    let mut cluster = indexes(&|c| c.conditions.ready && available(c, topology, place));
    if cluster.is_empty() {
        cluster = indexes(&|c| c.drains());
    }
    let mut local = indexes(&|c| c.local && c.conditions.ready);
    if local.is_empty() {
        local = indexes(&|c| c.local && c.drains());
    }
    Categories { cluster, local }
}

/// One ready endpoint without hints switches topology off, as do hints that leave this place out.
fn topology(candidates: &[Candidate<'_>], place: Place<'_>) -> Topology {
    let (mut all_nodes, mut this_node) = (true, false);
    let (mut all_zones, mut this_zone) = (true, false);
    for candidate in candidates.iter().filter(|c| c.conditions.ready) {
        all_nodes &= !candidate.node_hints.is_empty();
        all_zones &= !candidate.zone_hints.is_empty();
        this_node |= hints(candidate.node_hints, place.node);
        this_zone |= place
            .zone
            .is_some_and(|zone| hints(candidate.zone_hints, zone));
    }
    if all_nodes && this_node {
        Topology::SameNode
    } else if all_zones && this_zone {
        Topology::SameZone
    } else {
        Topology::Anywhere
    }
}

fn available(candidate: &Candidate<'_>, topology: Topology, place: Place<'_>) -> bool {
    match topology {
        Topology::Anywhere => true,
        Topology::SameNode => hints(candidate.node_hints, place.node),
        Topology::SameZone => place
            .zone
            .is_some_and(|zone| hints(candidate.zone_hints, zone)),
    }
}

fn hints(names: &[String], name: &str) -> bool {
    names.iter().any(|hint| hint == name)
}

#[cfg(test)]
mod tests;
