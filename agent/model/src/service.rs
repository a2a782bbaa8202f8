//! Services as the dataplane sees them: frontends, backends, and which endpoints may serve.
//!
//! Knows nothing of Kubernetes' wire types, ids or maps.

use std::fmt;
use std::net::IpAddr;

/// Namespace and name of a Service.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ServiceName {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl fmt::Display for ServiceName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Namespace and name of an EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SliceName {
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
}

/// Transport protocol of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

impl Protocol {
    /// The number in the IP header.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
        }
    }

    /// The protocol with that number, if the dataplane balances it.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        match number {
            6 => Some(Self::Tcp),
            17 => Some(Self::Udp),
            _ => None,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

/// Who may serve traffic from inside the cluster.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TrafficPolicy {
    /// Every eligible endpoint.
    #[default]
    Cluster,
    /// Only endpoints of the client's own node.
    Local,
}

/// One port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Matches the port of the same name in the slices; empty for a single unnamed port.
    pub name: String,
    /// Protocol.
    pub protocol: Protocol,
    /// Port at the cluster IP.
    pub port: u16,
}

/// A Service with at least the shape of a ClusterIP one. Headless ones have no `cluster_ips`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Identity.
    pub name: ServiceName,
    /// Creation time in seconds; older Services keep their place when a map is full.
    pub created_at_secs: i64,
    /// One per family.
    pub cluster_ips: Vec<IpAddr>,
    /// Ports the dataplane serves.
    pub ports: Vec<ServicePort>,
    /// `internalTrafficPolicy`.
    pub internal_policy: TrafficPolicy,
}

/// Where clients connect to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Frontend {
    /// Virtual address.
    pub address: IpAddr,
    /// Virtual port.
    pub port: u16,
    /// Protocol.
    pub protocol: Protocol,
}

impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            IpAddr::V4(address) => write!(f, "{address}:{}/{}", self.port, self.protocol),
            IpAddr::V6(address) => write!(f, "[{address}]:{}/{}", self.port, self.protocol),
        }
    }
}

/// Where a connection ends up. Two Services with the same endpoint share one backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BackendAddress {
    /// Pod or node address.
    pub address: IpAddr,
    /// Port in the pod.
    pub port: u16,
    /// Protocol.
    pub protocol: Protocol,
}

/// The three conditions of an endpoint, with Kubernetes' defaults already applied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Conditions {
    /// Serving and not terminating, or published although not ready.
    pub ready: bool,
    /// Passes its readiness checks.
    pub serving: bool,
    /// Its pod is being deleted.
    pub terminating: bool,
}

/// One address of an EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// First address of the endpoint: all addresses of one endpoint are fungible.
    pub address: IpAddr,
    /// Conditions.
    pub conditions: Conditions,
    /// Node it runs on, when it runs on one.
    pub node_name: Option<String>,
}

/// A port of an EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointPort {
    /// Name of the Service's port it belongs to.
    pub name: String,
    /// Protocol.
    pub protocol: Protocol,
    /// Port in the pod.
    pub port: u16,
}

/// An EndpointSlice that belongs to a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointSlice {
    /// Identity.
    pub name: SliceName,
    /// The Service of the `kubernetes.io/service-name` label.
    pub service: ServiceName,
    /// Ports.
    pub ports: Vec<EndpointPort>,
    /// Endpoints.
    pub endpoints: Vec<Endpoint>,
}

/// An endpoint of one port with what the choice needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Where it listens.
    pub backend: BackendAddress,
    /// Conditions.
    pub conditions: Conditions,
    /// Runs on this node.
    pub local: bool,
}

/// Outcome of the choice for one port.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choice {
    /// Eligible for new flows, local ones first.
    pub backends: Vec<BackendAddress>,
    /// How many of `backends`, from the front, are on this node.
    pub local_count: usize,
    /// Every endpoint that still serves: its established UDP flows must survive.
    pub serving: Vec<BackendAddress>,
    /// Only the local ones may be chosen. When there are none but `backends` is not empty, packets
    /// are dropped; when `backends` is empty they are rejected.
    pub local_only: bool,
}

/// Chooses as kube-proxy does: ready ones; if there is none, those that still serve while terminating.
/// A Local policy applies the same rule to this node's endpoints first; the others are listed behind
/// them only to tell "none here" from "none anywhere".
#[must_use]
pub fn choose(candidates: &[Candidate], policy: TrafficPolicy) -> Choice {
    let by_locality = |local: bool| candidates.iter().filter(move |c| c.local == local);
    let mut chosen = match policy {
        TrafficPolicy::Cluster => eligible(candidates.iter()),
        TrafficPolicy::Local => {
            let mut chosen = eligible(by_locality(true));
            chosen.extend(eligible(by_locality(false)));
            chosen
        }
    };
    chosen.sort_by_key(|candidate| (!candidate.local, candidate.backend));
    Choice {
        local_count: chosen.iter().filter(|candidate| candidate.local).count(),
        local_only: policy == TrafficPolicy::Local,
        backends: chosen
            .into_iter()
            .map(|candidate| candidate.backend)
            .collect(),
        serving: candidates
            .iter()
            .filter(|candidate| candidate.conditions.serving || candidate.conditions.ready)
            .map(|candidate| candidate.backend)
            .collect(),
    }
}

fn eligible<'a>(candidates: impl Iterator<Item = &'a Candidate> + Clone) -> Vec<&'a Candidate> {
    let ready: Vec<_> = candidates.clone().filter(|c| c.conditions.ready).collect();
    if !ready.is_empty() {
        return ready;
    }
    candidates
        .filter(|c| c.conditions.serving && c.conditions.terminating)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn candidate(
        last: u8,
        ready: bool,
        serving: bool,
        terminating: bool,
        local: bool,
    ) -> Candidate {
        Candidate {
            backend: BackendAddress {
                address: IpAddr::from([10, 244, 0, last]),
                port: 80,
                protocol: Protocol::Tcp,
            },
            conditions: Conditions {
                ready,
                serving,
                terminating,
            },
            local,
        }
    }

    fn last_octets(choice: &Choice) -> Vec<u8> {
        let octet = |backend: &BackendAddress| match backend.address {
            IpAddr::V4(address) => address.octets()[3],
            IpAddr::V6(_) => 0,
        };
        choice.backends.iter().map(octet).collect()
    }

    #[test]
    fn ready_endpoints_are_chosen_and_local_ones_come_first() {
        let choice = choose(
            &[
                candidate(1, true, true, false, false),
                candidate(2, true, true, false, true),
                candidate(3, false, true, true, true),
                candidate(4, false, false, false, true),
            ],
            TrafficPolicy::Cluster,
        );
        assert_eq!(last_octets(&choice), [2, 1]);
        assert_eq!(choice.local_count, 1);
        assert_eq!(
            choice.serving.len(),
            3,
            "the terminating one keeps its flows"
        );
    }

    #[test]
    fn serving_terminating_endpoints_serve_only_when_none_is_ready() {
        let terminating = candidate(3, false, true, true, false);
        let gone = candidate(4, false, false, true, false);
        let choice = choose(&[terminating, gone], TrafficPolicy::Cluster);
        assert_eq!(last_octets(&choice), [3]);
        assert_eq!(choice.serving, [terminating.backend]);
    }

    #[test]
    fn no_endpoint_at_all_rejects() {
        let unready = candidate(1, false, false, false, true);
        for policy in [TrafficPolicy::Cluster, TrafficPolicy::Local] {
            let choice = choose(&[unready], policy);
            assert!(choice.backends.is_empty());
        }
    }

    #[test]
    fn local_policy_drops_instead_of_spilling_to_other_nodes() {
        let choice = choose(
            &[candidate(1, true, true, false, false)],
            TrafficPolicy::Local,
        );
        assert!(choice.local_only);
        assert_eq!(
            (choice.local_count, choice.backends.len()),
            (0, 1),
            "none here, but elsewhere"
        );
    }

    #[test]
    fn local_policy_falls_back_to_local_terminating_endpoints() {
        let choice = choose(
            &[
                candidate(1, true, true, false, false),
                candidate(2, false, true, true, true),
            ],
            TrafficPolicy::Local,
        );
        assert_eq!(last_octets(&choice), [2, 1]);
        assert_eq!(choice.local_count, 1);
    }
}
