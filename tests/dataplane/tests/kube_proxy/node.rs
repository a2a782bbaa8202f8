//! A node of the stage whose service maps are written by the agent itself: API objects through its
//! parsers, its table and its planner into pinned maps, which the programs read.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;

use serde_json::Value;
use tholepin_agent::dataplane::maps::workloads::Workloads;
use tholepin_agent::dataplane::pin::PinDirectory;
use tholepin_agent::reconcile::services::{Generations, PinnedServiceMaps, Programmer};
use tholepin_agent::watch::{endpoint_slices, services};
use tholepin_ebpf_abi::names;
use tholepin_model::service::table::{Changes, ServiceSync};
use tholepin_model::service::{Forwarding, NodeView};
use tholepin_tests_dataplane::cases::NODE;
use tholepin_tests_dataplane::reference::{Protocol, Question};
use tholepin_tests_dataplane::stage::{IFINDEX, NODES, Outcome, Stage, stage};
use tholepin_tests_dataplane::wire::Body;
use tholepin_tests_dataplane::{Hook, Packet, tcp, udp};

/// What became of a packet.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Observed {
    /// It went to an endpoint, which sees another address than the client's or not.
    To(SocketAddr, bool),
    Drop,
    Reject,
    Untouched,
}

pub(crate) struct Node {
    pub(crate) stage: Stage,
    programmer: Programmer<PinnedServiceMaps>,
    root: PathBuf,
    _state: tempfile::TempDir,
    port: u16,
    pub(crate) zone: Option<String>,
    pub(crate) name: String,
}

impl Node {
    /// `None`, reported, where eBPF may not be loaded.
    pub(crate) fn start() -> Option<Self> {
        let mut stage = stage()?;
        let thread = format!("{:?}", std::thread::current().id());
        let number: String = thread.chars().filter(char::is_ascii_digit).collect();
        let root = PathBuf::from(format!("/sys/fs/bpf/thpt-{}-k{number}", std::process::id()));
        let pins = PinDirectory::prepare(&root).expect("a bpffs");
        for last in 10..60_u8 {
            stage.workload(&format!("10.244.1.{last}"), IFINDEX, last);
            stage.workload(&format!("fd00:10:244:1::{last}"), IFINDEX, last);
        }
        for name in [
            names::WORKLOADS,
            names::FRONTENDS,
            names::BACKEND_SLOTS,
            names::BACKENDS,
            names::SOURCE_RANGES,
        ] {
            stage.pin(name, &pins.map(name));
        }
        let state = tempfile::tempdir().expect("a directory");
        let workloads = Workloads::default();
        workloads.open(&pins).expect("the pods' map is pinned");
        let maps = PinnedServiceMaps::open(&pins, workloads).expect("the maps are pinned");
        let generations = Generations::open(state.path()).expect("a state directory");
        let ranges = ["10.96.0.0/16", "fd00:10:96::/48"];
        let ranges = ranges.map(|range| range.parse().expect("a range"));
        Some(Self {
            stage,
            programmer: Programmer::new(maps, generations, ranges.to_vec()),
            root,
            _state: state,
            port: 20_000,
            zone: None,
            name: NODE.to_owned(),
        })
    }

    /// Makes these the cluster's objects, as after a list.
    pub(crate) fn apply(&mut self, services: &Value, slices: &Value, node_ports: &[IpAddr]) {
        let mut changes = Changes::default();
        let every = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let parsed = every(services).into_iter().filter_map(|object| {
            let object = serde_json::from_value(object).expect("a Service");
            let service = services::service_of(&object).expect("a valid Service")?;
            Some((service.name.clone(), service.into()))
        });
        changes.services.replace(parsed);
        let parsed = every(slices).into_iter().filter_map(|object| {
            let object = serde_json::from_value(object).expect("an EndpointSlice");
            let (slice, problems) = endpoint_slices::slice_of(&object)?;
            assert!(problems.is_empty(), "{problems:?}");
            Some((slice.name.clone(), slice.into()))
        });
        changes.slices.replace(parsed);
        changes.host_ports.replace([]);
        changes.node = Some(NodeView {
            name: self.name.clone(),
            zone: self.zone.clone(),
            node_port_addresses: node_ports.to_vec(),
            addresses: NODES.map(|text| text.parse().expect("an address")).to_vec(),
            forwarding: Forwarding::Direct,
        });
        changes.sync = ServiceSync {
            services: true,
            slices: true,
            node: true,
            host_ports: true,
        };
        let applied = self.programmer.apply(changes).expect("the maps take it");
        if let Some(applied) = applied {
            self.programmer.release(applied.release);
        }
        let problems = self.programmer.problems();
        assert!(problems.is_empty(), "{problems:?}");
    }

    /// Sends the first packet of a new flow the way the client's would come.
    pub(crate) fn ask(&mut self, question: &Question, client: Client) -> Observed {
        self.port = if self.port > 59_000 {
            20_000
        } else {
            self.port + 1
        };
        let from = SocketAddr::new(question.from, self.port);
        let packet = opening(question.protocol, from, question.to);
        self.send(&packet, client)
    }

    /// Sends a packet and says what it had become where it left the node's programs.
    pub(crate) fn send(&mut self, packet: &Packet, client: Client) -> Observed {
        self.send_out(packet, client).0
    }

    /// The same, with the packet as it then was, if it went anywhere.
    pub(crate) fn send_out(
        &mut self,
        packet: &Packet,
        client: Client,
    ) -> (Observed, Option<Packet>) {
        let hook = match client {
            Client::Pod => Hook::PodEgress,
            Client::Node => Hook::HostEgress,
            Client::Outside => Hook::UnderlayIn,
        };
        let mut outcome = self.stage.run(hook, packet);
        // What is for a Service range goes by the kernel's route into `thp_host`.
        if matches!(&outcome, Outcome::Pass(out) if is_service_range(out.destination.ip()))
            && client != Client::Node
        {
            outcome = self.stage.run(Hook::HostEgress, packet);
        }
        (judge(packet, outcome.clone()), forwarded(outcome))
    }

    /// Runs a packet through a hook; what it had become, if it went anywhere.
    pub(crate) fn run(&mut self, hook: Hook, packet: &Packet) -> Option<Packet> {
        forwarded(self.stage.run(hook, packet))
    }

    /// Whether a pod is of this node.
    pub(crate) fn is_local(&self, pod: IpAddr) -> bool {
        match pod {
            IpAddr::V4(v4) => v4.octets()[2] == 1,
            IpAddr::V6(v6) => v6.segments()[3] == 1,
        }
    }
}

fn forwarded(outcome: Outcome) -> Option<Packet> {
    match outcome {
        Outcome::Pod(_, out) | Outcome::Overlay(out) | Outcome::Gateway(out) => Some(out),
        Outcome::Pass(out) => Some(out),
        _ => None,
    }
}

fn judge(packet: &Packet, outcome: Outcome) -> Observed {
    let out = match outcome {
        Outcome::Drop => return Observed::Drop,
        Outcome::PassRaw => return Observed::Untouched,
        Outcome::Answer(out)
        | Outcome::Gateway(out)
        | Outcome::Pass(out)
        | Outcome::Pod(_, out)
            if is_refusal(packet, &out) =>
        {
            return Observed::Reject;
        }
        Outcome::Answer(out) => panic!("{packet} was answered with {out}"),
        Outcome::Pod(_, out)
        | Outcome::Overlay(out)
        | Outcome::Gateway(out)
        | Outcome::Pass(out) => out,
    };
    if out.destination == packet.destination && out.source == packet.source {
        return Observed::Untouched;
    }
    Observed::To(out.destination, out.source.ip() != packet.source.ip())
}

impl Drop for Node {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.root).ok();
    }
}

/// Where a client sits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Client {
    Pod,
    Node,
    Outside,
}

fn is_service_range(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.octets()[..2] == [10, 96],
        IpAddr::V6(v6) => v6.segments()[..3] == [0xfd00, 0x10, 0x96],
    }
}

/// The packet a client opens a flow with.
pub(crate) fn opening(protocol: Protocol, from: SocketAddr, to: SocketAddr) -> Packet {
    let ends = format!("{from} -> {to}");
    match protocol {
        Protocol::Tcp => tcp("S", &ends),
        Protocol::Udp => udp(&ends),
        Protocol::Sctp => panic!("no SCTP yet"),
    }
}

/// A reset, or that nobody is at the port.
fn is_refusal(packet: &Packet, answer: &Packet) -> bool {
    let back = answer.destination.ip() == packet.source.ip();
    let refuses = match (&packet.body, &answer.body) {
        (Body::Tcp { .. }, Body::Tcp { flags, .. }) => flags & 4 != 0,
        (_, Body::Icmp { kind, code, .. }) => matches!((kind, code), (3, 3) | (1, 4)),
        _ => false,
    };
    back && refuses
}

/// Where packets of an address come from on the stage.
pub(crate) fn client_of(from: IpAddr) -> Client {
    let own = [
        "172.30.0.11",
        "172.17.0.1",
        "fd00:172:30::11",
        "fd00:172:17::1",
    ];
    let is = |text: &&str| text.parse::<IpAddr>().expect("an address") == from;
    let in_pods = match from {
        IpAddr::V4(v4) => v4.octets()[..2] == [10, 244],
        IpAddr::V6(v6) => v6.segments()[..3] == [0xfd00, 0x10, 0x244],
    };
    match (own.iter().any(is) || from.is_loopback(), in_pods) {
        (true, _) => Client::Node,
        (_, true) => Client::Pod,
        _ => Client::Outside,
    }
}

/// The endpoints that answered, and whether they saw the client.
pub(crate) fn reached(seen: &BTreeSet<Observed>) -> BTreeSet<SocketAddr> {
    let to = seen.iter().filter_map(|one| match one {
        Observed::To(at, _) => Some(*at),
        _ => None,
    });
    to.collect()
}
