//! The reference model of a node's Services: what may become of a packet, from kube-proxy's rules.
//!
//! Written from the rules (section 1.1 of the dataplane research, and the upstream files it names),
//! never from `ebpf/core`, the agent's model or its planner: it shares no code with them, reads
//! Kubernetes objects by itself, and says sets of outcomes where the rules leave a choice.

mod choice;
mod objects;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

pub use choice::{Choice, categorize};
pub use objects::{Endpoint, Prefix, Protocol, Service, Slice};

/// Where packets that are meant for nobody, and clients' addresses, are treated differently.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// kube-proxy's iptables mode.
    Iptables,
    /// kube-proxy's nftables mode.
    Nftables,
    /// Ours: the client's address is kept wherever the answer finds its way without help, and a
    /// Service address that nobody has is refused like a port that nobody has.
    Tholepin,
}

/// A node and everything it knows.
#[derive(Clone, Debug)]
pub struct World {
    pub style: Style,
    pub node: String,
    pub zone: Option<String>,
    /// Addresses of the node; packets from them are its own processes'.
    pub node_addresses: Vec<IpAddr>,
    /// Addresses whose ports are node ports.
    pub node_port_addresses: Vec<IpAddr>,
    /// What is in these is a pod.
    pub pod_ranges: Vec<Prefix>,
    pub service_ranges: Vec<Prefix>,
    pub services: Vec<Service>,
    pub slices: Vec<Slice>,
}

/// A packet that opens a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    pub from: IpAddr,
    pub protocol: Protocol,
    pub to: SocketAddr,
}

/// What may become of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// One of these endpoints, and whether it then sees another address than the client's.
    To(BTreeMap<SocketAddr, bool>),
    Drop,
    Reject,
    /// It is not Services' business.
    Untouched,
}

/// Who sends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Client {
    Pod,
    Node,
    Outside,
}

/// What a packet is addressed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Front {
    ClusterIp,
    ExternalIp,
    LoadBalancer,
    NodePort,
}

impl World {
    fn client(&self, from: IpAddr) -> Client {
        if self.node_addresses.contains(&from) || from.is_loopback() {
            return Client::Node;
        }
        match self.pod_ranges.iter().any(|range| range.contains(from)) {
            true => Client::Pod,
            false => Client::Outside,
        }
    }

    /// The Service port that a destination belongs to.
    fn find(&self, to: SocketAddr, protocol: Protocol) -> Option<(&Service, usize, Front)> {
        let address = to.ip();
        let mut node_port = None;
        for service in self.services.iter().filter(|service| service.is_ours()) {
            for (index, port) in service.ports.iter().enumerate() {
                if port.protocol != protocol {
                    continue;
                }
                if port.port == to.port() {
                    let front = [
                        (&service.cluster_ips, Front::ClusterIp),
                        (&service.external_ips, Front::ExternalIp),
                        (&service.load_balancer_ips, Front::LoadBalancer),
                    ];
                    let here = front.iter().find(|(list, _)| list.contains(&address));
                    if let Some((_, front)) = here {
                        return Some((service, index, *front));
                    }
                }
                let own = self.node_port_addresses.contains(&address);
                // Addresses of Services come first: an external IP may be the node's.
                if own && port.node_port == Some(to.port()) {
                    node_port = Some((service, index, Front::NodePort));
                }
            }
        }
        node_port
    }

    /// Endpoints of a Service port in the family of its address.
    pub fn endpoints(&self, service: &Service, port: usize, v4: bool) -> Vec<Endpoint> {
        let port = &service.ports[port];
        let mut endpoints = Vec::new();
        for slice in self.slices.iter().filter(|slice| slice.is_of(service)) {
            for target in slice.ports.iter().filter(|target| target.matches(port)) {
                for endpoint in slice.endpoints.iter().filter(|one| one.at.is_ipv4() == v4) {
                    let mut endpoint = endpoint.clone();
                    endpoint.at.set_port(target.port);
                    endpoint.local = endpoint.node.as_deref() == Some(self.node.as_str());
                    endpoints.push(endpoint);
                }
            }
        }
        endpoints
    }

    /// The two lists of a Service port on this node.
    pub fn choice(&self, service: &Service, port: usize, v4: bool) -> Choice {
        let endpoints = self.endpoints(service, port, v4);
        let external = service.is_external(port);
        categorize(
            &endpoints,
            !service.internal_local || external,
            service.internal_local || (service.external_local && external),
            &self.node,
            self.zone.as_deref().unwrap_or_default(),
        )
    }

    /// What may become of a packet that opens a flow.
    pub fn ask(&self, question: &Question) -> Answer {
        let v4 = question.to.is_ipv4();
        let Some((service, port, front)) = self.find(question.to, question.protocol) else {
            return self.nobodys(question.to.ip());
        };
        if front == Front::LoadBalancer && !self.is_admitted(service, question) {
            return Answer::Drop;
        }
        let choice = self.choice(service, port, v4);
        if !choice.any {
            return Answer::Reject;
        }
        let client = self.client(question.from);
        let local = match front {
            Front::ClusterIp => service.internal_local,
            // From inside the cluster it is as if the packet went out and came in where it is best.
            _ => service.external_local && client == Client::Outside,
        };
        let list = match local {
            true => choice.local.unwrap_or_default(),
            false => choice.cluster.unwrap_or_default(),
        };
        if list.is_empty() {
            return Answer::Drop;
        }
        let hidden = self.is_hidden(service, client, front);
        let to = list.into_iter().map(|endpoint| {
            let itself = endpoint.ip() == question.from;
            (endpoint, hidden || itself)
        });
        Answer::To(to.collect())
    }

    /// Whether the endpoint sees another address than the client's.
    fn is_hidden(&self, service: &Service, client: Client, front: Front) -> bool {
        match (front, client) {
            (Front::ClusterIp, Client::Pod) => false,
            (_, Client::Node) | (Front::ClusterIp, Client::Outside) => true,
            _ if service.external_local => false,
            _ => self.style != Style::Tholepin,
        }
    }

    /// A packet for an address or port that no Service has.
    fn nobodys(&self, address: IpAddr) -> Answer {
        let ours = self.services.iter().filter(|service| service.is_ours());
        let is_cluster_ip = ours
            .into_iter()
            .any(|service| service.cluster_ips.contains(&address));
        let in_range = self
            .service_ranges
            .iter()
            .any(|range| range.contains(address));
        match self.style {
            Style::Nftables if is_cluster_ip => Answer::Reject,
            Style::Nftables if in_range => Answer::Drop,
            Style::Tholepin if in_range => Answer::Reject,
            _ => Answer::Untouched,
        }
    }

    fn is_admitted(&self, service: &Service, question: &Question) -> bool {
        let ranges = &service.source_ranges;
        if ranges.is_empty() {
            return true;
        }
        let admits = |address: IpAddr| ranges.iter().any(|range| range.contains(address));
        // A node that is admitted may have been given the load balancer's address on the way.
        let node = self.node_addresses.iter().any(|address| admits(*address));
        admits(question.from) || (question.from == question.to.ip() && node)
    }

    /// Service ports that there are frontends for.
    pub fn ports(&self) -> usize {
        let ours = self.services.iter().filter(|service| service.is_ours());
        ours.map(|service| service.ports.len()).sum()
    }

    /// The ports on which load balancers ask whether this node has endpoints.
    pub fn health_checks(&self) -> BTreeMap<String, u16> {
        let ours = self.services.iter().filter(|service| service.is_ours());
        let asked = ours.filter(|service| service.external_local);
        let port = |service: &Service| Some((service.to_string(), service.health_check_node_port?));
        asked.filter_map(port).collect()
    }

    /// Ready endpoints of this node by Service, what a health check counts.
    pub fn local_ready(&self) -> BTreeMap<String, usize> {
        let mut ready: BTreeMap<String, BTreeSet<IpAddr>> = BTreeMap::new();
        for slice in &self.slices {
            let name = format!("{}/{}", slice.namespace, slice.service);
            let here = slice.endpoints.iter().filter(|endpoint| {
                endpoint.ready && endpoint.node.as_deref() == Some(self.node.as_str())
            });
            let addresses: Vec<_> = here.map(|endpoint| endpoint.at.ip()).collect();
            if !addresses.is_empty() && !slice.ports.is_empty() {
                ready.entry(name).or_default().extend(addresses);
            }
        }
        let counted = ready.into_iter().map(|(name, list)| (name, list.len()));
        counted.collect()
    }

    /// Whether a flow that a Service gave to `endpoint` stays there when it goes on.
    ///
    /// UDP stays as long as the endpoint serves; policy, topology and termination do not matter. It
    /// leaves at once when it does not, also when no other is left: the upstream function keeps the
    /// flow of a Service that has lost all its endpoints, which is its bug 139628. Other protocols
    /// are never moved.
    pub fn stays(&self, service: &Service, port: usize, endpoint: SocketAddr) -> bool {
        if service.ports[port].protocol != Protocol::Udp {
            return true;
        }
        let endpoints = self.endpoints(service, port, endpoint.is_ipv4());
        endpoints
            .iter()
            .any(|one| one.at == endpoint && one.serving)
    }
}
