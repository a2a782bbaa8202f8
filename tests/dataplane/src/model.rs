//! The reference model: what must come out of a hook, from the rules and not from the programs.
//!
//! Where the rules leave a choice (which backend, which substitute port) the model takes the one
//! it observes if it is allowed, and holds the programs to it from then on.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};

use crate::stage::{Hook, OVERLAY_MTU, Outcome};
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

        let forward = |flow: &Flow| {
            flow.protocol == protocol && flow.client == source && flow.frontend == destination
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

    fn is_current(&self, flow: &Flow) -> bool {
        self.endpoints
            .get(&flow.backend_id)
            .is_some_and(|endpoint| endpoint.serving && endpoint.generation == flow.generation)
    }

    /// A packet without a flow.
    fn balance(&mut self, hook: Hook, packet: &Packet, observed: &Outcome) -> Result<(), String> {
        let key = (packet.destination, packet.protocol());
        let service = match self.services.get(&key) {
            Some(service) if hook != Hook::OverlayIn => service.clone(),
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
                    self.flows.retain(|other| {
                        other.protocol != flow.protocol
                            || other.backend != flow.backend
                            || other.seen_as != flow.seen_as
                    });
                    self.flows.push(flow);
                    return Ok(());
                }
                Err(error) => wrong += &error,
            }
        }
        Err(format!("none of the backends fits\n{wrong}"))
    }

    /// The flow that `observed` shows, if it is a right way of sending `packet` to a backend.
    fn accept(
        &self,
        hook: Hook,
        packet: &Packet,
        observed: &Outcome,
        backend_id: u32,
    ) -> Result<Flow, String> {
        let endpoint = self.endpoints[&backend_id];
        let client = packet.source;
        let mut seen_as = client;
        if endpoint.at.ip() == client.ip() {
            seen_as.set_ip(packet.destination.ip());
        } else if hook == Hook::HostEgress {
            seen_as.set_ip(self.gateway(packet));
        }
        // A live flow between the same two ends forces another port; one that is over may.
        let owner = self.flows.iter().find(|flow| {
            flow.protocol == packet.protocol()
                && flow.backend == endpoint.at
                && flow.seen_as == seen_as
        });
        let sent = sent_from(observed);
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
        let remote = Self::is_remote_pod(to.destination.ip()) && hook != Hook::OverlayIn;
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
        match hook {
            Hook::HostEgress => Outcome::Drop, // Refused by an answer, see `expect`.
            _ if to.destination.ip() == self.gateway(packet) => Outcome::Gateway(to),
            Hook::PodEgress => Outcome::Pass(to),
            Hook::OverlayIn => Outcome::Drop,
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
