//! Random Services, endpoints and packets: the programs stay within what the model allows, flows go on
//! where the rules say, every byte of a packet arrives, and answers come back as from the Service.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use serde_json::{Value, json};
use tholepin_tests_dataplane::cases::{self, NODE};
use tholepin_tests_dataplane::reference::{
    Answer, Prefix, Protocol, Question, Service, Slice, Style, World,
};
use tholepin_tests_dataplane::stage::{NODES, in_v6};
use tholepin_tests_dataplane::wire::Body;
use tholepin_tests_dataplane::{Hook, Packet};

use crate::node::{Client, Node, Observed, client_of, opening};

const SEEDS: u64 = 50;
const STEPS: u32 = 90;
const SERVICES: usize = 4;

/// The cluster as API objects, by Service.
struct Cluster {
    services: Vec<Value>,
    slices: Vec<Vec<Value>>,
}

fn service(chance: &mut StdRng, number: usize) -> Value {
    let address = format!("10.96.0.{}", 20 + number);
    let policy = |local: bool| if local { "Local" } else { "Cluster" };
    let (internal, external) = (chance.random_bool(0.2), chance.random_bool(0.3));
    let mut ports = Vec::new();
    for (index, protocol) in ["TCP", "UDP"].into_iter().enumerate() {
        let port = 80 + u16::from(chance.random_bool(0.1));
        ports.push(json!({
            "name": format!("p{index}"),
            "port": port,
            "protocol": protocol,
            "nodePort": 30_000 + 10 * number + index,
        }));
    }
    json!({
        "metadata": {"namespace": "ns", "name": format!("s{number}")},
        "spec": {
            "type": "NodePort",
            "clusterIP": address,
            "clusterIPs": [address, in_v6(&address)],
            "internalTrafficPolicy": policy(internal),
            "externalTrafficPolicy": policy(external),
            "ports": ports,
        },
    })
}

/// One slice for each family, of pods here and on another node in all conditions.
fn slices(chance: &mut StdRng, number: usize) -> Vec<Value> {
    let hints = chance.random_range(0..4);
    let mut endpoints = [Vec::new(), Vec::new()];
    for last in 10..16 {
        for (node, prefix) in [(NODE, "10.244.1"), ("other", "10.244.2")] {
            if chance.random_bool(0.65) {
                continue;
            }
            let states = [
                (true, true, false),
                (true, true, false),
                (false, true, true),
                (false, false, true),
                (false, false, false),
            ];
            let (ready, serving, terminating) = *states.choose(chance).expect("some");
            let mut endpoint = json!({
                "conditions": {"ready": ready, "serving": serving, "terminating": terminating},
                "nodeName": node,
            });
            let zone = ["a", "b"].choose(chance).expect("some");
            // No hints, hints of zones, of both, and hints that one may lack.
            if hints == 1 || hints == 2 || (hints == 3 && chance.random_bool(0.8)) {
                endpoint["hints"] = json!({"forZones": [{"name": zone}]});
            }
            if hints == 2 {
                endpoint["hints"]["forNodes"] = json!([{"name": node}]);
            }
            let address = format!("{prefix}.{last}");
            for (family, address) in [address.clone(), in_v6(&address)].into_iter().enumerate() {
                let mut endpoint = endpoint.clone();
                endpoint["addresses"] = json!([address]);
                endpoints[family].push(endpoint);
            }
        }
    }
    let target = 8080 + u16::from(chance.random_bool(0.1));
    let kinds = ["IPv4", "IPv6"];
    let slice = |(family, endpoints): (usize, Vec<Value>)| {
        json!({
            "metadata": {
                "namespace": "ns",
                "name": format!("s{number}-{family}"),
                "labels": {"kubernetes.io/service-name": format!("s{number}")},
            },
            "addressType": kinds[family],
            "ports": [
                {"name": "p0", "port": target, "protocol": "TCP"},
                {"name": "p1", "port": target, "protocol": "UDP"},
            ],
            "endpoints": endpoints,
        })
    };
    endpoints.into_iter().enumerate().map(slice).collect()
}

/// A flow that has been seen.
#[derive(Clone, Copy, Debug)]
struct Flow {
    endpoint: SocketAddr,
    hidden: bool,
    /// Its endpoint has not been serving at some time since.
    cut: bool,
}

struct Trial {
    node: Node,
    cluster: Cluster,
    world: World,
    flows: BTreeMap<(Protocol, SocketAddr, SocketAddr), Flow>,
    /// Packets, by what became of them.
    counts: BTreeMap<&'static str, u32>,
}

impl Trial {
    fn publish(&mut self) {
        let services = Value::Array(self.cluster.services.clone());
        let slices = Value::Array(self.cluster.slices.concat());
        let node_ports = cases::addresses(&NODES);
        self.node.zone = Some("a".to_owned());
        self.node.apply(&services, &slices, &node_ports);
        let every = |value: &Value| value.as_array().cloned().unwrap_or_default();
        self.world = World {
            style: Style::Tholepin,
            node: NODE.to_owned(),
            zone: Some("a".to_owned()),
            node_addresses: node_ports.clone(),
            node_port_addresses: node_ports,
            pod_ranges: vec![
                Prefix::parse("10.244.0.0/16"),
                Prefix::parse("fd00:10:244::/48"),
            ],
            service_ranges: vec![
                Prefix::parse("10.96.0.0/16"),
                Prefix::parse("fd00:10:96::/48"),
            ],
            services: every(&services).iter().map(Service::read).collect(),
            slices: every(&slices).iter().map(Slice::read).collect(),
        };
        for ((protocol, _, frontend), flow) in &mut self.flows {
            flow.cut |= !stays(&self.world, *protocol, *frontend, flow.endpoint);
        }
    }

    fn step(&mut self, chance: &mut StdRng) {
        if chance.random_bool(0.15) {
            let number = chance.random_range(0..SERVICES);
            if chance.random_bool(0.3) {
                self.cluster.services[number] = service(chance, number);
            }
            self.cluster.slices[number] = slices(chance, number);
            return self.publish();
        }
        let clients = [
            "10.244.1.2",
            "10.244.1.3",
            "10.244.1.11",
            "10.244.1.12",
            NODES[0],
        ];
        let v6 = chance.random_bool(0.5);
        let text = |text: &str| if v6 { in_v6(text) } else { text.to_owned() };
        let client = text(clients.choose(chance).expect("some"));
        let client: IpAddr = client.parse().expect("an address");
        let client = SocketAddr::new(client, 4000 + chance.random_range(0..5_u16));
        let number = 20 + chance.random_range(0..=SERVICES);
        let to: IpAddr = text(&format!("10.96.0.{number}"))
            .parse()
            .expect("an address");
        let to = SocketAddr::new(to, 80 + u16::from(chance.random_bool(0.1)));
        let protocol = *[Protocol::Tcp, Protocol::Udp].choose(chance).expect("some");
        let mut key = (protocol, client, to);
        if !self.flows.is_empty() && chance.random_bool(0.6) {
            let index = chance.random_range(0..self.flows.len());
            key = *self.flows.keys().nth(index).expect("there are as many");
        }
        let (protocol, client, to) = key;
        let known = self.flows.get(&key).copied();
        let goes_on = known.is_some() && chance.random_bool(0.8);
        let mut packet = opening(protocol, client, to);
        match &mut packet.body {
            Body::Tcp { flags, payload, .. } if goes_on => {
                *flags = 0x18;
                payload.extend((0..chance.random_range(0..200_u16)).map(|at| (at % 251) as u8));
            }
            Body::Udp { payload } => {
                payload.extend((0..chance.random_range(0..200_u16)).map(|at| (at % 251) as u8));
            }
            _ => {}
        }
        self.exchange(&packet, protocol, known, goes_on);
    }

    fn exchange(
        &mut self,
        packet: &Packet,
        protocol: Protocol,
        known: Option<Flow>,
        goes_on: bool,
    ) {
        let key = (protocol, packet.source, packet.destination);
        let question = Question {
            from: packet.source.ip(),
            protocol,
            to: packet.destination,
        };
        let mut allowed: BTreeSet<Observed> = match self.world.ask(&question) {
            Answer::To(endpoints) => endpoints
                .into_iter()
                .map(|(at, hidden)| Observed::To(at, hidden))
                .collect(),
            Answer::Drop => [Observed::Drop].into(),
            Answer::Reject => [Observed::Reject].into(),
            Answer::Untouched => [Observed::Untouched].into(),
        };
        if let Some(flow) = known {
            let same = Observed::To(flow.endpoint, flow.hidden);
            match protocol {
                Protocol::Udp if flow.cut => {}
                Protocol::Udp => allowed = [same].into(),
                _ if goes_on => allowed = [same].into(),
                // A SYN may be a retransmitted one or a new connection.
                _ => drop(allowed.insert(same)),
            }
        }
        let (seen, out) = self.node.send_out(packet, client_of(packet.source.ip()));
        assert!(
            allowed.contains(&seen),
            "{packet} {known:?}\n  is      {seen:?}\n  must be {allowed:?}"
        );
        let kind = match (&seen, known) {
            (Observed::Drop, _) => "dropped",
            (Observed::Reject, _) => "rejected",
            (Observed::Untouched, _) => "untouched",
            (Observed::To(at, _), _) if at.ip() == packet.source.ip() => "to itself",
            (Observed::To(..), None) => "new",
            (Observed::To(at, _), Some(flow)) if *at == flow.endpoint => "went on",
            (Observed::To(..), Some(_)) => "moved",
        };
        *self.counts.entry(kind).or_default() += 1;
        let (Observed::To(endpoint, hidden), Some(out)) = (seen, out) else {
            self.flows.remove(&key);
            return;
        };
        assert_eq!(out.body, packet.body, "{packet} became {out}");
        let flow = Flow {
            endpoint,
            hidden,
            cut: false,
        };
        self.flows.insert(key, flow);
        self.answer(packet, &out, protocol);
    }

    /// The endpoint answers what it got; the client must see the Service.
    fn answer(&mut self, asked: &Packet, got: &Packet, protocol: Protocol) {
        let mut answer = opening(protocol, got.destination, got.source);
        if let Body::Tcp { flags, .. } = &mut answer.body {
            *flags = 0x12;
        }
        let local = client_of(got.destination.ip()) == Client::Pod
            && self.node.is_local(got.destination.ip());
        let hook = if local {
            Hook::PodEgress
        } else {
            Hook::OverlayIn
        };
        let back = self.node.run(hook, &answer);
        let back = back.unwrap_or_else(|| panic!("{answer} to {asked} was not delivered"));
        assert_eq!(
            (back.source, back.destination),
            (asked.destination, asked.source),
            "{answer} to {asked}"
        );
    }
}

fn stays(world: &World, protocol: Protocol, frontend: SocketAddr, endpoint: SocketAddr) -> bool {
    let has = |service: &&Service| service.cluster_ips.contains(&frontend.ip());
    let Some(service) = world.services.iter().find(has) else {
        return false;
    };
    let is = |port: usize| {
        let port = &service.ports[port];
        port.protocol == protocol && port.port == frontend.port()
    };
    let port = (0..service.ports.len()).find(|port| is(*port));
    port.is_some_and(|port| world.stays(service, port, endpoint))
}

#[test]
fn random_clusters_are_balanced_within_what_the_model_allows() {
    let Some(mut node) = Node::start() else {
        return;
    };
    let mut counts = BTreeMap::new();
    for seed in 0..SEEDS {
        println!("seed {seed}");
        let mut chance = StdRng::seed_from_u64(seed);
        node.stage.reset_flows();
        let cluster = Cluster {
            services: (0..SERVICES).map(|one| service(&mut chance, one)).collect(),
            slices: (0..SERVICES).map(|one| slices(&mut chance, one)).collect(),
        };
        let mut trial = Trial {
            world: cases::world(Style::Tholepin, &Value::Null, &Value::Null),
            node,
            cluster,
            flows: BTreeMap::new(),
            counts,
        };
        trial.publish();
        for _ in 0..STEPS {
            trial.step(&mut chance);
        }
        (node, counts) = (trial.node, trial.counts);
    }
    println!("{counts:?}");
    for kind in [
        "dropped",
        "rejected",
        "to itself",
        "new",
        "went on",
        "moved",
    ] {
        assert!(
            counts.get(kind).is_some_and(|count| *count > 10),
            "{kind}: {counts:?}"
        );
    }
}
