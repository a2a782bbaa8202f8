//! Services as the dataplane sees them. Knows nothing of Kubernetes' wire types, ids or maps.

use std::fmt;
use std::net::IpAddr;
use std::time::SystemTime;

use ipnet::IpNet;

pub mod categorize;
pub mod fold;
pub mod maglev;
pub mod table;

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

/// What frontends belong to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Owner {
    /// A Service.
    Service(ServiceName),
    /// The host ports of a pod of this node.
    Pod {
        /// Namespace.
        namespace: String,
        /// Name.
        name: String,
    },
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(name) => write!(f, "Service {name}"),
            Self::Pod { namespace, name } => write!(f, "the host ports of pod {namespace}/{name}"),
        }
    }
}

/// Transport protocol of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// The number in the IP header.
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Self::Tcp => 6,
            Self::Udp => 17,
            Self::Sctp => 132,
        }
    }

    /// The protocol with that number, if the dataplane balances it.
    #[must_use]
    pub fn from_number(number: u8) -> Option<Self> {
        match number {
            6 => Some(Self::Tcp),
            17 => Some(Self::Udp),
            132 => Some(Self::Sctp),
            _ => None,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Sctp => "sctp",
        })
    }
}

/// Which endpoints may serve a kind of traffic.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TrafficPolicy {
    /// Every eligible endpoint.
    #[default]
    Cluster,
    /// Only endpoints of the node where the traffic comes in.
    Local,
}

/// How a backend is chosen for a new flow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Selection {
    /// By chance.
    #[default]
    Random,
    /// By a table that all nodes agree on.
    Maglev,
}

/// What becomes of a client from outside whose backend is on another node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Forwarding {
    /// The backend sees the client's address and its node answers (direct server return).
    #[default]
    Direct,
    /// The backend sees this node's address and answers through it.
    Masquerade,
}

/// One port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Matches the port of the same name in the slices; empty for a single unnamed port.
    pub name: String,
    /// Protocol.
    pub protocol: Protocol,
    /// Port at the Service's own addresses.
    pub port: u16,
    /// Port at the nodes' addresses.
    pub node_port: Option<u16>,
}

/// A Service with at least the shape of a ClusterIP one. Headless ones do not get here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// Identity.
    pub name: ServiceName,
    /// `metadata.uid`, for events.
    pub uid: String,
    /// Creation time in seconds; older Services keep their place when a map is full.
    pub created_at_secs: i64,
    /// One per family.
    pub cluster_ips: Vec<IpAddr>,
    /// `externalIPs`.
    pub external_ips: Vec<IpAddr>,
    /// Ingress addresses of the load balancer that it does not answer for itself.
    pub load_balancer_ips: Vec<IpAddr>,
    /// `loadBalancerSourceRanges`; a family with a range is closed to everybody else.
    pub source_ranges: Vec<IpNet>,
    /// Ports the dataplane serves.
    pub ports: Vec<ServicePort>,
    /// `internalTrafficPolicy`.
    pub internal_policy: TrafficPolicy,
    /// `externalTrafficPolicy`.
    pub external_policy: TrafficPolicy,
    /// `sessionAffinity: ClientIP` with its timeout.
    pub affinity_timeout_secs: Option<u32>,
    /// How backends are chosen.
    pub selection: Selection,
    /// Forwarding of this Service alone.
    pub forwarding: Option<Forwarding>,
    /// Where the load balancer asks whether this node has endpoints.
    pub health_check_node_port: Option<u16>,
    /// What of the object could not be used, in words for its author.
    pub complaints: Vec<String>,
}

/// Who looks a frontend up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Scope {
    /// Pods and nodes.
    Cluster,
    /// Clients outside the cluster.
    External,
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
    /// Who looks it up.
    pub scope: Scope,
}

impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            IpAddr::V4(address) => write!(f, "{address}:{}/{}", self.port, self.protocol),
            IpAddr::V6(address) => write!(f, "[{address}]:{}/{}", self.port, self.protocol),
        }
    }
}

/// Where a connection ends up.
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
    /// Nodes whose clients should prefer it.
    pub node_hints: Vec<String>,
    /// Zones whose clients should prefer it.
    pub zone_hints: Vec<String>,
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
    /// When what the slice tells of happened, if its controller says so.
    pub triggered_at: Option<SystemTime>,
}

/// A `hostPort` of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPort {
    /// The address of the node it is at; all of them without one.
    pub host_ip: Option<IpAddr>,
    /// Port at the node.
    pub port: u16,
    /// Protocol.
    pub protocol: Protocol,
    /// Port in the pod.
    pub container_port: u16,
}

/// The host ports of a pod of this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostPorts {
    /// `metadata.uid`, for events.
    pub uid: String,
    /// Creation time of the pod in seconds.
    pub created_at_secs: i64,
    /// The pod's addresses.
    pub pod_ips: Vec<IpAddr>,
    /// Its ports.
    pub ports: Vec<HostPort>,
}

/// What of this node decides about Services.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NodeView {
    /// Name.
    pub name: String,
    /// `topology.kubernetes.io/zone`.
    pub zone: Option<String>,
    /// Addresses at which NodePorts are served.
    pub node_port_addresses: Vec<IpAddr>,
    /// The node's own underlay addresses.
    pub addresses: Vec<IpAddr>,
    /// Forwarding of Services that do not say.
    pub forwarding: Forwarding,
}
