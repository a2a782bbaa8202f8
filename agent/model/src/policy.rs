//! NetworkPolicies as the dataplane sees them: who is isolated, and who may talk to whom on what.
//!
//! Knows nothing of Kubernetes' wire types, ids or maps. `table` compiles policies, namespaces and
//! pods into what each pod of this node allows; `reference` (tests) says the same in the words of the
//! API's documentation.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

mod content;
mod groups;
pub mod ports;
#[cfg(test)]
mod reference;
pub mod selector;
pub mod table;
#[cfg(test)]
mod tests;

pub use ports::{PortRange, PortSet, Protocol};
pub use selector::{Labels, Requirement, Selector};

/// Namespace and name of a NetworkPolicy or of a pod.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectName {
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
}

impl ObjectName {
    /// From both parts.
    #[must_use]
    pub fn new(namespace: &str, name: &str) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Which way a policy's rules look, from the selected pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Direction {
    /// What comes in.
    Ingress,
    /// What goes out.
    Egress,
}

impl Direction {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Ingress, Self::Egress];
}

/// A NetworkPolicy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkPolicy {
    /// Its name; it selects pods of its own namespace.
    pub name: ObjectName,
    /// `metadata.uid`, for events.
    pub uid: String,
    /// The pods it isolates.
    pub pods: Selector,
    /// Rules of what may come in; `None` when `policyTypes` leaves the direction alone.
    pub ingress: Option<Vec<Rule>>,
    /// Rules of what may go out, likewise.
    pub egress: Option<Vec<Rule>>,
    /// Parts that could not be understood. They allow nothing.
    pub problems: Vec<String>,
}

impl NetworkPolicy {
    /// The rules of one direction, if the policy isolates in it.
    #[must_use]
    pub fn rules(&self, direction: Direction) -> Option<&[Rule]> {
        match direction {
            Direction::Ingress => self.ingress.as_deref(),
            Direction::Egress => self.egress.as_deref(),
        }
    }
}

/// One entry of `ingress` or `egress`: these peers, on these ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// Empty: everybody.
    pub peers: Vec<Peer>,
    /// Empty: everything, also what has no ports.
    pub ports: Vec<PortRule>,
}

/// One entry of `from` or `to`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Pods.
    Pods(PodPeers),
    /// Addresses, whoever has them.
    Block {
        /// The range.
        cidr: IpNet,
        /// Ranges cut out of it.
        except: Vec<IpNet>,
    },
}

/// `podSelector` and `namespaceSelector` of one peer.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PodPeers {
    /// Where the pods are.
    pub namespaces: Namespaces,
    /// Which pods there.
    pub pods: Selector,
}

/// Where the pods of a peer are.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Namespaces {
    /// One namespace: the policy's own.
    Only(Arc<str>),
    /// Those whose labels match.
    Matching(Selector),
}

/// One entry of `ports`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PortRule {
    /// By number; a rule without a port is the whole range of its protocol.
    Range(PortRange),
    /// By the name that a pod gives to one of its ports.
    Named(PortName),
}

/// A port by name. Ingress means the selected pod's port, egress that of each destination pod.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortName {
    /// `port`.
    pub name: Arc<str>,
    /// `protocol`.
    pub protocol: Protocol,
}

/// A pod of the cluster, as far as policies look at it. Pods in the node's own network and pods that
/// have ended are none: their addresses are not (or no longer) theirs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod {
    /// `metadata.labels`.
    pub labels: Labels,
    /// Addresses; empty before the pod has any.
    pub addresses: Box<[IpAddr]>,
    /// Ports that have names.
    pub named_ports: Box<[NamedPort]>,
}

/// A container port with a name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NamedPort {
    /// Name and protocol.
    pub name: PortName,
    /// Number.
    pub port: u16,
}

/// The range that is one address.
#[must_use]
pub fn host(address: IpAddr) -> IpNet {
    IpNet::from(address)
}
