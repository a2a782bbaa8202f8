//! Three namespaces with three pods each, and tables of who must reach whom.
//!
//! Every case runs in both families, with all pods on one node and with the pods `c` on another, where
//! a connection needs the consent of both nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::{Value, json};
use tholepin_model::policy::{NamedPort, ObjectName, Pod, PortName, Protocol};
use tholepin_tests_dataplane::policies::Node;
use tholepin_tests_dataplane::stage::{IFINDEX, Outcome, in_v6};
use tholepin_tests_dataplane::wire::sctp;
use tholepin_tests_dataplane::{Hook, Packet, stage, tcp, udp};

pub(crate) const NAMESPACES: [&str; 3] = ["x", "y", "z"];
const PODS: [&str; 3] = ["a", "b", "c"];
/// Protocols as upstream's tests name them.
pub(crate) const ALL: [Protocol; 3] = Protocol::ALL;
pub(crate) const TCP: [Protocol; 1] = [Protocol::Tcp];

fn every_pod() -> impl Iterator<Item = (&'static str, &'static str)> {
    NAMESPACES
        .into_iter()
        .flat_map(|namespace| PODS.map(|pod| (namespace, pod)))
}

/// A cluster of one or two nodes.
pub(crate) struct World {
    nodes: Vec<Node>,
    v6: bool,
    cells: usize,
    /// What a case has changed, to be undone behind it.
    policies: BTreeSet<(String, String)>,
    labelled_pods: BTreeSet<String>,
    labelled_namespaces: BTreeSet<String>,
}

/// Clean clusters: to load the programs takes longer than to run a case.
static CLEAN: Mutex<Vec<World>> = Mutex::new(Vec::new());

/// Who must reach whom; everybody at first.
#[derive(Default)]
pub(crate) struct Table(BTreeMap<(String, String), bool>);

impl Table {
    /// `from` and `to` are `*`, `x/*` or `x/a`.
    pub(crate) fn peer(mut self, from: &str, to: &str, allowed: bool) -> Self {
        let matches = |pattern: &str, name: &str| match pattern.split_once('/') {
            None => true,
            Some((namespace, "*")) => name.starts_with(&format!("{namespace}/")),
            Some(_) => pattern == name,
        };
        for (a, b) in every_pod() {
            for (c, d) in every_pod() {
                let (source, target) = (format!("{a}/{b}"), format!("{c}/{d}"));
                if matches(from, &source) && matches(to, &target) {
                    self.0.insert((source, target), allowed);
                }
            }
        }
        self
    }

    pub(crate) fn all_ingress(self, to: &str, allowed: bool) -> Self {
        self.peer("*", to, allowed)
    }

    pub(crate) fn all_egress(self, from: &str, allowed: bool) -> Self {
        self.peer(from, "*", allowed)
    }
}

/// Runs a case in every setting.
pub(crate) fn case(case: impl Fn(&mut World)) {
    for count in [1, 2] {
        let Some(mut world) = World::clean(count) else {
            return;
        };
        for v6 in [false, true] {
            world.v6 = v6;
            world.cells = 0;
            case(&mut world);
            assert!(world.cells > 0, "a case that checks nothing");
            world.undo();
        }
        // A cluster whose case has failed does not come here.
        clean().push(world);
    }
}

fn clean() -> MutexGuard<'static, Vec<World>> {
    CLEAN.lock().unwrap_or_else(PoisonError::into_inner)
}

impl World {
    fn clean(count: usize) -> Option<Self> {
        let at = |worlds: &[Self]| worlds.iter().position(|one| one.nodes.len() == count);
        let mut worlds = clean();
        match at(&worlds) {
            Some(at) => Some(worlds.swap_remove(at)),
            None => {
                drop(worlds);
                Self::new(false, count)
            }
        }
    }

    /// Takes back what a case has done.
    fn undo(&mut self) {
        for (namespace, name) in std::mem::take(&mut self.policies) {
            self.delete(&namespace, &name);
        }
        for pod in std::mem::take(&mut self.labelled_pods) {
            self.label_pod(&pod, &[]);
        }
        for namespace in std::mem::take(&mut self.labelled_namespaces) {
            self.label_namespace(&namespace, &[]);
        }
        self.expect(&TCP, &[80], &Table::default());
    }

    fn new(v6: bool, count: usize) -> Option<Self> {
        let nodes: Option<Vec<_>> = (0..count).map(|_| stage().map(Node::new)).collect();
        let mut world = Self {
            nodes: nodes?,
            v6,
            cells: 0,
            policies: BTreeSet::new(),
            labelled_pods: BTreeSet::new(),
            labelled_namespaces: BTreeSet::new(),
        };
        for namespace in NAMESPACES {
            world.label_namespace(namespace, &[]);
        }
        for (namespace, pod) in every_pod() {
            world.label_pod(&format!("{namespace}/{pod}"), &[]);
        }
        for node in 0..count {
            for (namespace, pod) in every_pod() {
                let name = format!("{namespace}/{pod}");
                if world.home(&name) != node {
                    continue;
                }
                let addresses = [false, true].map(|v6| world.address_in(node, &name, v6));
                for address in addresses {
                    let last = last_of(&name);
                    let mut stage = world.nodes[node].stage();
                    stage.workload(&address.to_string(), IFINDEX, last);
                }
                world.nodes[node].local(&object(&name), &addresses);
            }
        }
        Some(world)
    }

    /// The node a pod is on.
    fn home(&self, pod: &str) -> usize {
        usize::from(self.nodes.len() > 1 && pod.ends_with("/c"))
    }

    /// A pod's address, as a node sees it: the stage's own range is the first.
    fn address_in(&self, node: usize, pod: &str, v6: bool) -> IpAddr {
        let range = if self.home(pod) == node { 1 } else { 2 };
        let text = format!("10.244.{range}.{}", last_of(pod));
        let text = if v6 { in_v6(&text) } else { text };
        text.parse().expect("an address")
    }

    pub(crate) fn label_namespace(&mut self, name: &str, more: &[(&str, &str)]) {
        let labels = [&[("kubernetes.io/metadata.name", name)], more].concat();
        if !more.is_empty() {
            self.labelled_namespaces.insert(name.to_owned());
        }
        for node in &mut self.nodes {
            node.namespace(name, &labels);
        }
    }

    pub(crate) fn label_pod(&mut self, name: &str, more: &[(&str, &str)]) {
        let (_, own) = name.split_once('/').expect("namespace/name");
        let labels = [&[("pod", own)], more].concat();
        if !more.is_empty() {
            self.labelled_pods.insert(name.to_owned());
        }
        let protocols = [
            ("tcp", Protocol::Tcp),
            ("udp", Protocol::Udp),
            ("sctp", Protocol::Sctp),
        ];
        let ports = protocols.into_iter().flat_map(|(text, protocol)| {
            [80, 81].map(|port| NamedPort {
                name: PortName {
                    name: format!("serve-{port}-{text}").into(),
                    protocol,
                },
                port,
            })
        });
        let ports: Vec<_> = ports.collect();
        for index in 0..self.nodes.len() {
            let addresses = [false, true].map(|v6| self.address_in(index, name, v6));
            let pod = Pod {
                labels: labels.iter().copied().collect(),
                addresses: addresses.into(),
                named_ports: ports.clone().into(),
            };
            self.nodes[index].pod(&object(name), pod);
        }
    }

    /// Applies a policy; the closure gets pods' addresses in the family that is looked at.
    pub(crate) fn apply_at(
        &mut self,
        namespace: &str,
        name: &str,
        spec: impl Fn(&dyn Fn(&str) -> String) -> Value,
    ) {
        self.policies
            .insert((namespace.to_owned(), name.to_owned()));
        for index in 0..self.nodes.len() {
            let spec = spec(&|pod| self.address_in(index, pod, self.v6).to_string());
            self.nodes[index].apply(namespace, name, spec);
        }
    }

    pub(crate) fn apply(&mut self, namespace: &str, name: &str, spec: &Value) {
        self.apply_at(namespace, name, |_| spec.clone());
    }

    pub(crate) fn delete(&mut self, namespace: &str, name: &str) {
        for node in &mut self.nodes {
            node.delete(namespace, name);
        }
    }

    /// Compares who reaches whom on a port with a table.
    pub(crate) fn expect(&mut self, protocols: &[Protocol], ports: &[u16], table: &Table) {
        for node in &self.nodes {
            node.stage().reset_flows();
        }
        for (protocol, port) in protocols
            .iter()
            .flat_map(|protocol| ports.iter().map(|port| (*protocol, *port)))
        {
            for (a, b) in every_pod() {
                for (c, d) in every_pod() {
                    let pair = (format!("{a}/{b}"), format!("{c}/{d}"));
                    if pair.0 == pair.1 {
                        continue; // Upstream leaves open whether a pod reaches itself.
                    }
                    let expected = table.0.get(&pair).copied().unwrap_or(true);
                    let found = self.reaches(&pair.0, &pair.1, protocol, port);
                    self.cells += 1;
                    assert_eq!(
                        found,
                        expected,
                        "{} to {} on {protocol:?} {port} with {} nodes, IPv6 {}",
                        pair.0,
                        pair.1,
                        self.nodes.len(),
                        self.v6
                    );
                }
            }
        }
    }

    fn reaches(&self, from: &str, to: &str, protocol: Protocol, port: u16) -> bool {
        let (source_node, target_node) = (self.home(from), self.home(to));
        let packet = |node: usize| -> Packet {
            let source = self.address_in(node, from, self.v6);
            let target = self.address_in(node, to, self.v6);
            let text = match self.v6 {
                true => format!("[{source}]:40000 -> [{target}]:{port}"),
                false => format!("{source}:40000 -> {target}:{port}"),
            };
            match protocol {
                Protocol::Tcp => tcp("S", &text),
                Protocol::Udp => udp(&text),
                Protocol::Sctp => sctp(1, &text),
            }
        };
        let sent = self.nodes[source_node]
            .stage()
            .run(Hook::PodEgress, &packet(source_node));
        match sent {
            Outcome::Drop => return false,
            Outcome::Pod(last, _) => {
                assert_eq!((last, source_node), (last_of(to), target_node));
                return true;
            }
            Outcome::Overlay(_) => assert_ne!(source_node, target_node),
            other => panic!("{from} to {to}: {other:?}"),
        }
        let received = self.nodes[target_node]
            .stage()
            .run(Hook::OverlayIn, &packet(target_node));
        match received {
            Outcome::Drop => false,
            Outcome::Pod(last, _) => {
                assert_eq!(last, last_of(to));
                true
            }
            other => panic!("{from} to {to}: {other:?}"),
        }
    }
}

/// The last part of a pod's address, and of its MAC.
fn last_of(pod: &str) -> u8 {
    let (namespace, name) = pod.split_once('/').expect("namespace/name");
    let namespace = NAMESPACES
        .iter()
        .position(|one| *one == namespace)
        .expect("known");
    let name = PODS.iter().position(|one| *one == name).expect("known");
    u8::try_from(10 + 3 * namespace + name).expect("small")
}

fn object(name: &str) -> ObjectName {
    let (namespace, name) = name.split_once('/').expect("namespace/name");
    ObjectName::new(namespace, name)
}

/// A selector of pods by their own label.
pub(crate) fn pods(name: &str) -> Value {
    json!({"matchLabels": {"pod": name}})
}

/// A selector of namespaces by the label that each has.
pub(crate) fn namespaces(name: &str) -> Value {
    json!({"matchLabels": {"kubernetes.io/metadata.name": name}})
}

/// An expression over one label.
pub(crate) fn expression(key: &str, operator: &str, values: &[&str]) -> Value {
    json!({"matchExpressions": [{"key": key, "operator": operator, "values": values}]})
}
