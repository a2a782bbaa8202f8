//! The reference model: what must come out of a hook, from the rules and not from the programs.
//!
//! Where the rules leave a choice (which backend, which substitute port) the model takes the one
//! it observes if it is allowed, and holds the programs to it from then on.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use crate::stage::{Hook, NODES, OVERLAY_MTU, Outcome};
use crate::wire::{Body, Packet};

/// One endpoint under an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub at: SocketAddr,
    pub serving: bool,
    pub generation: u32,
}

/// A Service port.
#[derive(Clone, Debug, Default)]
pub struct Service {
    pub backends: Vec<u32>,
}

/// A translated flow.
#[derive(Clone, Debug)]
struct Flow {
    protocol: u8,
    client: SocketAddr,
    frontend: SocketAddr,
    backend: SocketAddr,
    backend_id: u32,
    generation: u32,
    /// The client, as the backend sees it.
    seen_as: SocketAddr,
    closing: bool,
}

/// The node.
#[derive(Clone, Debug)]
pub struct Model {
    pods: BTreeMap<IpAddr, u8>,
    gateways: [IpAddr; 2],
    nodes: [IpAddr; 2],
    pub services: BTreeMap<(SocketAddr, u8), Service>,
    pub endpoints: BTreeMap<u32, Endpoint>,
    flows: Vec<Flow>,
}

impl Default for Model {
    fn default() -> Self {
        let ip = |text: &str| text.parse().expect("an address");
        let pods = [2, 3, 7].into_iter().flat_map(|last: u8| {
            [format!("10.244.1.{last}"), format!("fd00:10:244:1::{last}")]
                .map(|text| (text.parse().expect("an address"), last))
        });
        Self {
            pods: pods.collect(),
            gateways: [ip("10.244.1.1"), ip("fd00:10:244:1::1")],
            nodes: NODES.map(ip),
            services: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            flows: Vec::new(),
        }
    }
}

impl Model {
    /// Conntrack entries there must be.
    pub fn entries(&self) -> usize {
        2 * self.flows.len()
    }

    /// Takes note of a packet and what came of it.
    pub fn step(&mut self, hook: Hook, packet: &Packet, observed: &Outcome) -> Result<(), String> {
        let protocol = packet.protocol();
        let (source, destination) = (packet.source, packet.destination);
        let flags = match packet.body {
            Body::Tcp { flags, .. } => flags,
            _ => 0,
        };
        let opens = flags & 0x12 == 0x02;
        if hook == Hook::PodEgress && !self.pods.contains_key(&source.ip()) {
            return expect(observed, &Outcome::Drop, "a forged source");
        }

        if hook == Hook::UnderlayIn && destination.ip() != self.node(packet) {
            return expect(observed, &Outcome::Pass(packet.clone()), "not to the node");
        }
        let forward = |flow: &Flow| {
            hook != Hook::UnderlayIn
                && flow.protocol == protocol
                && flow.client == source
                && flow.frontend == destination
        };
        if let Some(index) = self.flows.iter().position(forward) {
            let flow = self.flows[index].clone();
            let moves = match protocol {
                17 => !self.is_current(&flow),
                _ => opens && (flow.closing || !self.is_current(&flow)),
            };
            if !moves {
                self.flows[index].closing |= flags & 0x05 != 0;
                let translated = between(packet, flow.seen_as, flow.backend);
                return expect(
                    observed,
                    &self.deliver(hook, packet, translated),
                    "a known flow",
                );
            }
            self.flows.remove(index);
            return self.balance(hook, packet, observed);
        }
        let reply = |flow: &Flow| {
            flow.protocol == protocol && flow.backend == source && flow.seen_as == destination
        };
        if let Some(flow) = self.flows.iter_mut().find(|flow| reply(flow)) {
            flow.closing |= flags & 0x05 != 0;
            let translated = between(packet, flow.frontend, flow.client);
            return expect(observed, &self.deliver(hook, packet, translated), "a reply");
        }
        self.balance(hook, packet, observed)
    }

    /// The flows of a backend, or of an address outside: how it sees the clients.
    pub fn seen_as(&self, backend: SocketAddr, protocol: u8) -> Option<SocketAddr> {
        let of = |flow: &&Flow| flow.backend == backend && flow.protocol == protocol;
        self.flows.iter().find(of).map(|flow| flow.seen_as)
    }

    fn is_current(&self, flow: &Flow) -> bool {
        if flow.backend_id == 0 {
            return true; // Masqueraded, and no Service's.
        }
        self.endpoints
            .get(&flow.backend_id)
            .is_some_and(|endpoint| endpoint.serving && endpoint.generation == flow.generation)
    }

    /// A packet without a flow.
    fn balance(&mut self, hook: Hook, packet: &Packet, observed: &Outcome) -> Result<(), String> {
        let key = (packet.destination, packet.protocol());
        let service = match self.services.get(&key) {
            Some(service) if matches!(hook, Hook::PodEgress | Hook::HostEgress) => service.clone(),
            _ if self.is_masqueraded(hook, packet) || self.is_ambiguous(hook, packet) => {
                let flow = self.accept(hook, packet, observed, 0)?;
                self.remember(flow);
                return Ok(());
            }
            _ => {
                let expected = self.deliver(hook, packet, packet.clone());
                return expect(observed, &expected, "no Service's");
            }
        };
        if matches!(packet.body, Body::Tcp { flags, .. } if flags & 4 != 0) {
            return expect(observed, &Outcome::Drop, "a stray reset");
        }
        if service.backends.is_empty() {
            return self.refused(hook, packet, observed);
        }
        let mut wrong = String::new();
        for id in service.backends {
            match self.accept(hook, packet, observed, id) {
                Ok(flow) => {
                    self.remember(flow);
                    return Ok(());
                }
                Err(error) => wrong += &error,
            }
        }
        Err(format!("none of the backends fits\n{wrong}"))
    }

    /// A flow takes its ends from one that is over.
    fn remember(&mut self, flow: Flow) {
        self.flows.retain(|other| {
            other.protocol != flow.protocol
                || other.backend != flow.backend
                || other.seen_as != flow.seen_as
        });
        self.flows.push(flow);
    }

    /// Whether a pod asks for something outside.
    fn is_masqueraded(&self, hook: Hook, packet: &Packet) -> bool {
        let asks = match packet.body {
            Body::Tcp { flags, .. } => flags & 0x12 == 0x02,
            _ => true,
        };
        hook == Hook::PodEgress && asks && self.is_outside(packet.destination.ip())
    }

    /// Whether a new connection to an address of the pod network looks like a translated flow there.
    fn is_ambiguous(&self, hook: Hook, packet: &Packet) -> bool {
        let opens = matches!(packet.body, Body::Tcp { flags, .. } if flags & 0x12 == 0x02);
        let same = |flow: &Flow| {
            flow.protocol == packet.protocol()
                && flow.backend == packet.destination
                && flow.seen_as == packet.source
        };
        let checked = matches!(hook, Hook::PodEgress | Hook::HostEgress);
        opens && checked && self.flows.iter().any(same)
    }

    /// The flow that `observed` shows, if it is a right way of sending `packet` to a backend.
    fn accept(
        &self,
        hook: Hook,
        packet: &Packet,
        observed: &Outcome,
        backend_id: u32,
    ) -> Result<Flow, String> {
        let nowhere = Endpoint {
            at: packet.destination,
            serving: true,
            generation: 0,
        };
        let endpoint = *self.endpoints.get(&backend_id).unwrap_or(&nowhere);
        let client = packet.source;
        let mut seen_as = client;
        let outside = self.is_outside(endpoint.at.ip());
        let itself = hook == Hook::HostEgress && endpoint.at.ip() == self.node(packet);
        if outside {
            seen_as.set_ip(self.node(packet));
        } else if endpoint.at.ip() == client.ip() || itself {
            seen_as.set_ip(packet.destination.ip());
        } else if hook == Hook::HostEgress {
            seen_as.set_ip(self.gateway(packet));
        }
        let sent = sent_from(observed);
        if outside {
            // Any of the ports kept for that will do.
            let port = sent.ok_or("  not sent at all\n")?;
            if port < 61_440 {
                return Err(format!("  port {port} is not one of those kept\n"));
            }
            seen_as.set_port(port);
        }
        // A live flow between the same two ends forces another port; one that is over may.
        let owner = self.flows.iter().find(|flow| {
            flow.protocol == packet.protocol()
                && flow.backend == endpoint.at
                && flow.seen_as == seen_as
        });
        let other_port = sent.is_some_and(|port| port != seen_as.port());
        match owner {
            Some(flow) if !flow.closing && !other_port => {
                return Err("  a live flow has these ends\n".to_owned());
            }
            None if other_port => return Err("  another port without need\n".to_owned()),
            _ => seen_as.set_port(sent.unwrap_or(seen_as.port())),
        }
        let expected = self.deliver(hook, packet, between(packet, seen_as, endpoint.at));
        expect(observed, &expected, "a new flow")?;
        let closing = matches!(packet.body, Body::Tcp { flags, .. } if flags & 0x05 != 0);
        Ok(Flow {
            protocol: packet.protocol(),
            client,
            frontend: packet.destination,
            backend: endpoint.at,
            backend_id,
            generation: endpoint.generation,
            seen_as,
            closing,
        })
    }

    fn refused(&self, hook: Hook, packet: &Packet, observed: &Outcome) -> Result<(), String> {
        let answer = match (hook, observed) {
            (Hook::PodEgress, Outcome::Answer(answer)) => answer,
            (Hook::HostEgress, Outcome::Gateway(answer)) => answer,
            _ => return Err(format!("{observed:?} is no refusal")),
        };
        let right = match (&packet.body, &answer.body) {
            (Body::Tcp { .. }, Body::Tcp { flags, .. }) => {
                flags & 4 != 0
                    && answer.source == packet.destination
                    && answer.destination == packet.source
            }
            (Body::Udp { .. }, Body::Icmp { kind, code, .. }) => {
                (*kind, *code) == if packet.is_v4() { (3, 3) } else { (1, 4) }
                    && answer.destination.ip() == packet.source.ip()
            }
            _ => false,
        };
        if right {
            Ok(())
        } else {
            Err(format!("{answer} does not refuse {packet}"))
        }
    }

    fn node(&self, packet: &Packet) -> IpAddr {
        self.nodes[usize::from(!packet.is_v4())]
    }

    /// Where the routes of [`crate::uplink`] leave the machine.
    fn is_outside(&self, address: IpAddr) -> bool {
        let leaves = match address {
            IpAddr::V4(v4) => matches!(v4.octets()[..2], [172, 30] | [192, 168]),
            IpAddr::V6(v6) => {
                matches!(
                    v6.segments()[..3],
                    [0xfd00, 0x172, 0x30] | [0xfd00, 0x192, 0x168]
                )
            }
        };
        leaves && !self.nodes.contains(&address)
    }

    fn gateway(&self, packet: &Packet) -> IpAddr {
        self.gateways[usize::from(!packet.is_v4())]
    }

    fn is_remote_pod(address: IpAddr) -> bool {
        match address {
            IpAddr::V4(v4) => v4.octets()[..3] == [10, 244, 2],
            IpAddr::V6(v6) => v6.segments()[..4] == [0xfd00, 0x10, 0x244, 2],
        }
    }

    /// Where a packet goes once it looks like `to`.
    fn deliver(&self, hook: Hook, packet: &Packet, mut to: Packet) -> Outcome {
        let pod = self.pods.get(&to.destination.ip());
        let remote = Self::is_remote_pod(to.destination.ip())
            && matches!(hook, Hook::PodEgress | Hook::HostEgress);
        if hook == Hook::PodEgress && (pod.is_some() || remote) {
            to.ttl -= 1;
        }
        if let Some(last) = pod {
            return Outcome::Pod(*last, to);
        }
        if remote {
            assert!(
                to.ip_bytes().len() <= OVERLAY_MTU as usize,
                "the model's packets are small"
            );
            return Outcome::Overlay(to);
        }
        let from_changed = to.source.ip() != packet.source.ip();
        let to_changed = to.destination.ip() != packet.destination.ip();
        let to_gateway = to.destination.ip() == self.gateway(packet);
        let to_node = to.destination.ip() == self.node(packet);
        match hook {
            Hook::UnderlayIn | Hook::LocalOut if !to_changed => Outcome::Pass(to),
            _ if to_gateway && (to_changed || hook != Hook::HostEgress) => Outcome::Gateway(to),
            Hook::PodEgress if from_changed && !to_node => Outcome::Gateway(to),
            Hook::PodEgress => Outcome::Pass(to),
            _ if to_node && to_changed => Outcome::Gateway(to),
            Hook::HostEgress if from_changed => Outcome::Gateway(to),
            // From the node refused by an answer, see `expect`.
            Hook::HostEgress | Hook::OverlayIn | Hook::UnderlayIn | Hook::LocalOut => Outcome::Drop,
        }
    }
}

/// `packet` with other ends.
fn between(packet: &Packet, source: SocketAddr, destination: SocketAddr) -> Packet {
    Packet {
        source,
        destination,
        ..packet.clone()
    }
}

/// The source port of a packet that was forwarded.
fn sent_from(outcome: &Outcome) -> Option<u16> {
    match outcome {
        Outcome::Pod(_, packet)
        | Outcome::Overlay(packet)
        | Outcome::Gateway(packet)
        | Outcome::Pass(packet) => Some(packet.source.port()),
        _ => None,
    }
}

fn expect(observed: &Outcome, expected: &Outcome, what: &str) -> Result<(), String> {
    // What the node sends nowhere is refused with an RST or an ICMP error of its own.
    let refused = *expected == Outcome::Drop
        && matches!(observed, Outcome::Gateway(packet)
            if matches!(packet.body, Body::Icmp { .. })
                || matches!(packet.body, Body::Tcp { flags, .. } if flags & 4 != 0));
    if observed == expected || refused {
        return Ok(());
    }
    Err(format!(
        "  {what}\n  must be {expected:?}\n  is      {observed:?}\n"
    ))
}
