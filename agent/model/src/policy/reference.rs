//! What policies allow, said as the API's documentation says it: rule by rule for one connection, and
//! without anything that `table` is made of but the types.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::{
    Direction, Labels, Namespaces, NetworkPolicy, ObjectName, Peer, Pod, PodPeers, PortRule,
    Protocol, Rule,
};

/// A cluster.
#[derive(Clone, Debug, Default)]
pub(super) struct Cluster {
    pub(super) policies: BTreeMap<ObjectName, Arc<NetworkPolicy>>,
    pub(super) namespaces: BTreeMap<Arc<str>, Labels>,
    pub(super) pods: BTreeMap<ObjectName, Arc<Pod>>,
}

impl Cluster {
    /// Whether the policies of `subject` let it talk to `other` in one direction. The port is the one
    /// the connection goes to.
    pub(super) fn allows(
        &self,
        subject: &ObjectName,
        direction: Direction,
        other: IpAddr,
        target: Option<(Protocol, u16)>,
    ) -> bool {
        let pod = &self.pods[subject];
        let isolating: Vec<_> = self
            .policies
            .values()
            .filter(|policy| policy.name.namespace == subject.namespace)
            .filter(|policy| policy.pods.matches(&pod.labels))
            .filter_map(|policy| policy.rules(direction))
            .collect();
        isolating.is_empty()
            || isolating.iter().any(|rules| {
                rules.iter().any(|rule| {
                    self.is_peer(rule, other) && self.is_port(rule, pod, direction, other, target)
                })
            })
    }

    fn is_peer(&self, rule: &Rule, other: IpAddr) -> bool {
        rule.peers.is_empty()
            || rule.peers.iter().any(|peer| match peer {
                Peer::Pods(pods) => self
                    .owners(other)
                    .any(|(name, pod)| self.is_in(pods, name) && pods.pods.matches(&pod.labels)),
                Peer::Block { cidr, except } => {
                    cidr.contains(&other) && !except.iter().any(|cut| cut.contains(&other))
                }
            })
    }

    fn is_in(&self, peers: &PodPeers, pod: &ObjectName) -> bool {
        match &peers.namespaces {
            Namespaces::Only(namespace) => *namespace == pod.namespace,
            Namespaces::Matching(selector) => self
                .namespaces
                .get(&pod.namespace)
                .is_some_and(|labels| selector.matches(labels)),
        }
    }

    fn is_port(
        &self,
        rule: &Rule,
        pod: &Pod,
        direction: Direction,
        other: IpAddr,
        target: Option<(Protocol, u16)>,
    ) -> bool {
        if rule.ports.is_empty() {
            return true;
        }
        let Some((protocol, port)) = target else {
            return false;
        };
        let has = |pod: &Pod, name: &super::PortName| {
            pod.named_ports
                .iter()
                .any(|own| own.name == *name && own.port == port && name.protocol == protocol)
        };
        rule.ports.iter().any(|one| match one {
            PortRule::Range(range) => {
                range.protocol == protocol && range.first <= port && port <= range.last
            }
            PortRule::Named(name) => match direction {
                Direction::Ingress => has(pod, name),
                Direction::Egress => self.owners(other).any(|(_, pod)| has(pod, name)),
            },
        })
    }

    fn owners(&self, address: IpAddr) -> impl Iterator<Item = (&ObjectName, &Arc<Pod>)> {
        self.pods
            .iter()
            .filter(move |(_, pod)| pod.addresses.contains(&address))
    }
}
