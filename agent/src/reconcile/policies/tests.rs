//! The programmer over maps in memory, and the task over both.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use ipnet::IpNet;
use tholepin_ebpf_abi::policy::PORTS_NONE;
use tholepin_ebpf_abi::workload::POLICY_DENY_ALL;
use tholepin_model::policy::ports::PortPrefix;
use tholepin_model::policy::{
    Namespaces, Peer, PodPeers, PortRange, PortRule, Protocol, Rule, Selector,
};

use super::program::Realized;
use super::*;
use crate::dataplane::maps::MapAccessError;
use crate::dataplane::maps::workloads::PodPolicy;

/// Maps that record what a packet could find after every single write.
#[derive(Default)]
struct Kernel {
    realized: Realized,
    pods: BTreeMap<IpAddr, PodPolicy>,
    /// Room for peers.
    room: usize,
    writes: usize,
    /// What an address may do by each id, asked after every write.
    watched: Vec<(IpAddr, u16)>,
    seen: Vec<BTreeMap<(IpAddr, u16), BTreeSet<u32>>>,
}

#[derive(Clone, Default)]
struct Fake(Arc<Mutex<Kernel>>);

impl Kernel {
    fn allows(&self, id: u32, other: IpAddr, port: u16) -> bool {
        let entries = self.realized.peers.get(&id).into_iter().flatten();
        let longest = entries
            .filter(|(prefix, _)| prefix.contains(&other))
            .max_by_key(|(prefix, _)| prefix.prefix_len());
        let ports = |set: u32| match set {
            PORTS_NONE => false,
            u32::MAX => true,
            set => self
                .realized
                .sets
                .get(&set)
                .into_iter()
                .flatten()
                .any(|prefix| {
                    let range = prefix.range();
                    range.protocol == Protocol::Tcp && (range.first..=range.last).contains(&port)
                }),
        };
        longest.is_some_and(|(_, set)| ports(*set))
    }

    fn written(&mut self) {
        self.writes += 1;
        let allowed = |(other, port): (IpAddr, u16)| {
            let ids = self.realized.peers.keys().copied();
            let ids = ids.filter(|id| self.allows(*id, other, port)).collect();
            ((other, port), ids)
        };
        self.seen
            .push(self.watched.iter().map(|one| allowed(*one)).collect());
    }
}

impl PolicyMaps for Fake {
    fn read(&self) -> Result<Realized, MapAccessError> {
        Ok(self.0.lock().unwrap().realized.clone())
    }

    fn upsert_peer(&mut self, id: u32, prefix: &IpNet, set: u32) -> Result<(), MapAccessError> {
        let mut kernel = self.0.lock().unwrap();
        let count: usize = kernel.realized.peers.values().map(BTreeMap::len).sum();
        if count >= kernel.room {
            return Err(MapAccessError::Full {
                map: "POLICY_PEERS",
            });
        }
        let peers = kernel.realized.peers.entry(id).or_default();
        peers.insert(*prefix, set);
        kernel.written();
        Ok(())
    }

    fn remove_peer(&mut self, id: u32, prefix: &IpNet) -> Result<(), MapAccessError> {
        let mut kernel = self.0.lock().unwrap();
        let peers = kernel.realized.peers.entry(id).or_default();
        peers.remove(prefix);
        if peers.is_empty() {
            kernel.realized.peers.remove(&id);
        }
        kernel.written();
        Ok(())
    }

    fn add_port(&mut self, set: u32, ports: PortPrefix) -> Result<(), MapAccessError> {
        let mut kernel = self.0.lock().unwrap();
        kernel.realized.sets.entry(set).or_default().insert(ports);
        kernel.written();
        Ok(())
    }

    fn remove_port(&mut self, set: u32, ports: PortPrefix) -> Result<(), MapAccessError> {
        let mut kernel = self.0.lock().unwrap();
        let left = kernel.realized.sets.entry(set).or_default();
        left.remove(&ports);
        if left.is_empty() {
            kernel.realized.sets.remove(&set);
        }
        kernel.written();
        Ok(())
    }

    fn pod(&self, address: IpAddr) -> Option<PodPolicy> {
        self.0.lock().unwrap().pods.get(&address).copied()
    }

    fn set_pod(&mut self, address: IpAddr, policy: PodPolicy) -> Result<(), MapAccessError> {
        self.0.lock().unwrap().pods.insert(address, policy);
        Ok(())
    }

    fn newest_generation(&self) -> u32 {
        let kernel = self.0.lock().unwrap();
        kernel
            .pods
            .values()
            .map(|pod| pod.generation)
            .max()
            .unwrap_or(0)
    }

    fn wait_for_readers(&mut self) {}

    fn now(&self) -> u32 {
        100
    }
}

fn name(name: &str) -> ObjectName {
    ObjectName::new("x", name)
}

fn address(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn range(port: u16) -> PortRule {
    PortRule::Range(PortRange::one(Protocol::Tcp, port))
}

fn block(cidr: &str, except: &[&str], ports: &[u16]) -> Rule {
    Rule {
        peers: vec![Peer::Block {
            cidr: cidr.parse().unwrap(),
            except: except.iter().map(|one| one.parse().unwrap()).collect(),
        }],
        ports: ports.iter().map(|port| range(*port)).collect(),
    }
}

fn from_everybody_here() -> Rule {
    let peers = Peer::Pods(PodPeers {
        namespaces: Namespaces::Only("x".into()),
        pods: Selector::all(),
    });
    Rule {
        peers: vec![peers],
        ports: Vec::new(),
    }
}

fn policy(ingress: Vec<Rule>) -> Arc<NetworkPolicy> {
    Arc::new(NetworkPolicy {
        name: name("p"),
        uid: "u".to_owned(),
        pods: Selector::all(),
        ingress: Some(ingress),
        egress: None,
        problems: Vec::new(),
    })
}

fn pod(text: &str) -> Arc<Pod> {
    Arc::new(Pod {
        labels: Labels::default(),
        addresses: [address(text)].into(),
        named_ports: [].into(),
    })
}

/// A node with one pod `a`, a table and a programmer over `kernel`.
struct Node {
    kernel: Fake,
    table: PolicyTable,
    programmer: Programmer<Fake>,
}

impl Node {
    fn new() -> Self {
        let kernel = Fake::default();
        kernel.0.lock().unwrap().room = 1000;
        let mut node = Self::over(kernel);
        node.table.set_pod(&name("a"), Some(pod("10.0.0.1")));
        node.table
            .set_subject(&name("a"), Some(vec![address("10.0.0.1")]));
        node
    }

    fn over(kernel: Fake) -> Self {
        let programmer = Programmer::open(kernel.clone()).unwrap();
        Self {
            kernel,
            table: PolicyTable::default(),
            programmer,
        }
    }

    fn set(&mut self, ingress: Vec<Rule>) {
        self.table.set_policy(&name("p"), Some(policy(ingress)));
        self.program();
    }

    fn program(&mut self) {
        let changes = self.table.take_changes();
        self.programmer.program(&self.table, &changes);
    }

    fn pod(&self) -> PodPolicy {
        self.kernel.pod(address("10.0.0.1")).unwrap()
    }

    fn writes(&self) -> usize {
        self.kernel.0.lock().unwrap().writes
    }

    fn allows(&self, other: &str, port: u16) -> bool {
        let kernel = self.kernel.0.lock().unwrap();
        kernel.allows(
            kernel.pods[&address("10.0.0.1")].ingress,
            address(other),
            port,
        )
    }
}

#[test]
fn a_pod_gets_its_policies_and_loses_them_with_a_new_generation_each() {
    let mut node = Node::new();
    node.program();
    assert_eq!((node.pod().ingress, node.pod().egress), (0, 0));
    let first = node.pod().generation;
    node.set(vec![block(
        "192.168.0.0/16",
        &["192.168.7.0/24"],
        &[80, 443],
    )]);
    assert!(node.allows("192.168.1.1", 443) && !node.allows("192.168.1.1", 81));
    assert!(!node.allows("192.168.7.1", 80) && !node.allows("10.0.0.9", 80));
    assert_eq!(node.pod().egress, 0);
    let second = node.pod().generation;
    assert!(second > first);
    node.table.set_policy(&name("p"), None);
    node.program();
    assert_eq!(node.pod().ingress, 0);
    assert!(node.pod().generation > second);
    let kernel = node.kernel.0.lock().unwrap();
    assert_eq!(kernel.realized, Realized::default(), "nothing is left");
}

#[test]
fn a_change_of_a_peer_costs_one_write_and_makes_verdicts_stale() {
    let mut node = Node::new();
    node.set(vec![from_everybody_here()]);
    let before = (node.writes(), node.pod());
    node.table.set_pod(&name("b"), Some(pod("10.0.0.2")));
    node.program();
    assert_eq!(node.writes(), before.0 + 1);
    assert_eq!(node.pod().ingress, before.1.ingress);
    assert!(node.pod().generation > before.1.generation);
    assert!(node.allows("10.0.0.2", 80) && !node.allows("10.0.0.3", 80));
}

#[test]
fn every_address_goes_from_its_old_verdict_to_its_new_one_in_one_step() {
    let mut node = Node::new();
    let watched = ["10.1.0.1", "10.1.2.1", "10.1.2.3", "10.9.0.1"].map(address);
    let watched = watched.into_iter().flat_map(|one| [(one, 80), (one, 81)]);
    node.kernel.0.lock().unwrap().watched = watched.collect();
    let rules = [
        vec![block("10.1.2.0/24", &[], &[80])],
        vec![block("10.0.0.0/8", &["10.1.2.0/24"], &[80])],
        vec![
            block("10.0.0.0/8", &["10.1.0.0/16"], &[81]),
            block("10.1.2.3/32", &[], &[]),
        ],
        vec![block("10.1.0.0/16", &["10.1.2.0/24"], &[80, 81])],
        vec![],
    ];
    for rules in rules {
        node.kernel.0.lock().unwrap().seen.clear();
        let before = node
            .kernel
            .pod(address("10.0.0.1"))
            .map_or(0, |pod| pod.ingress);
        node.set(rules);
        let kernel = node.kernel.0.lock().unwrap();
        let id = kernel.pods[&address("10.0.0.1")].ingress;
        if id != before {
            continue; // The pod was switched to an id that was complete.
        }
        for one in &kernel.watched {
            let verdicts: Vec<bool> = kernel
                .seen
                .iter()
                .map(|seen| seen[one].contains(&id))
                .collect();
            let steps = verdicts
                .windows(2)
                .filter(|pair| pair[0] != pair[1])
                .count();
            assert!(steps <= 1, "{one:?}: {verdicts:?}");
        }
    }
}

#[test]
fn what_does_not_fit_denies_and_is_tried_again() {
    let mut node = Node::new();
    node.kernel.0.lock().unwrap().room = 1;
    node.set(vec![block("10.0.0.0/8", &["10.1.0.0/16"], &[])]);
    assert_eq!(node.pod().ingress, POLICY_DENY_ALL);
    let failed: Vec<_> = node.programmer.failed().values().cloned().collect();
    assert_eq!(failed, ["the POLICY_PEERS map is full"]);
    node.kernel.0.lock().unwrap().room = 10;
    node.program();
    assert!(node.programmer.failed().is_empty());
    assert!(node.allows("10.2.0.1", 80) && !node.allows("10.1.0.1", 80));
}

#[test]
fn an_agent_that_starts_anew_writes_nothing_if_nothing_has_changed() {
    let mut node = Node::new();
    node.set(vec![from_everybody_here(), block("fd00::/8", &[], &[80])]);
    let (before, writes) = (node.pod(), node.writes());
    let mut next = Node::over(node.kernel.clone());
    next.table = node.table;
    let mut changes = Changes::default();
    for content in next.table.content_ids() {
        changes.contents.insert(content, BTreeSet::new());
    }
    changes.subjects.insert(name("a"));
    next.programmer.program(&next.table, &changes);
    next.programmer.prune();
    assert_eq!((next.pod(), next.writes()), (before, writes));
}

#[test]
fn what_a_former_agent_left_and_nobody_wants_is_removed() {
    let mut node = Node::new();
    node.set(vec![block("10.0.0.0/8", &[], &[80])]);
    let mut next = Node::over(node.kernel.clone());
    next.program();
    assert!(
        node.allows("10.0.0.9", 80),
        "nothing is touched before everything is known"
    );
    next.programmer.prune();
    assert_eq!(next.kernel.0.lock().unwrap().realized, Realized::default());
}

/// A running task over `kernel`.
fn task(
    kernel: &Fake,
) -> (
    PolicyGate,
    watch::Receiver<PoliciesStatus>,
    watch::Receiver<bool>,
    CancellationToken,
) {
    let (gate, inputs) = PolicyGate::new();
    let (status_sender, status) = watch::channel(PoliciesStatus::default());
    let (wanted, is_wanted) = watch::channel(false);
    let programmer = Programmer::open(kernel.clone()).unwrap();
    let cancel = CancellationToken::new();
    let task = PoliciesTask {
        programmer,
        inputs,
        wanted,
        events: None,
        status: status_sender,
    };
    tokio::spawn(task.run(cancel.clone()));
    (gate, status, is_wanted, cancel)
}

fn wired(pod: &str, text: &str) -> Wired {
    Wired {
        pod: name(pod),
        uid: "u".to_owned(),
        key: AttachmentKey {
            container_id: pod.to_owned(),
            interface: "eth0".to_owned(),
        },
        addresses: vec![address(text)],
        done: None,
    }
}

fn kernel() -> Fake {
    let kernel = Fake::default();
    kernel.0.lock().unwrap().room = 100;
    kernel
}

#[tokio::test(start_paused = true)]
async fn without_policies_no_pod_waits_and_no_pods_are_watched() {
    let kernel = kernel();
    let (gate, _status, wanted, _cancel) = task(&kernel);
    gate.send(Input::Policy(Change::Replace(BTreeMap::new())));
    let before = tokio::time::Instant::now();
    assert!(gate.admit(wired("a", "10.0.0.1")).await);
    assert_eq!(tokio::time::Instant::now(), before);
    let pod = kernel.pod(address("10.0.0.1")).unwrap();
    assert_eq!((pod.ingress, pod.egress), (0, 0));
    assert!(!*wanted.borrow());
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_comes_before_anything_is_known_is_denied_until_it_is() {
    let kernel = kernel();
    let (gate, mut status, mut wanted, _cancel) = task(&kernel);
    assert!(gate.admit(wired("a", "10.0.0.1")).await);
    let denied = kernel.pod(address("10.0.0.1")).unwrap();
    assert_eq!(
        (denied.ingress, denied.egress),
        (POLICY_DENY_ALL, POLICY_DENY_ALL)
    );
    let policies = [(name("p"), policy(vec![from_everybody_here()]))];
    gate.send(Input::Policy(Change::Replace(policies.into())));
    wanted.wait_for(|wanted| *wanted).await.unwrap();
    assert!(!status.borrow().synced);
    gate.send(Input::Namespace(Change::Replace(BTreeMap::new())));
    gate.send(Input::Pod(Change::Replace(
        [(name("a"), pod("10.0.0.1"))].into(),
    )));
    status.wait_for(|status| status.synced).await.unwrap();
    let pod = kernel.pod(address("10.0.0.1")).unwrap();
    assert_eq!(pod.egress, 0);
    assert!(![0, POLICY_DENY_ALL].contains(&pod.ingress) && pod.generation > denied.generation);
    assert_eq!(status.borrow().programmed.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn pods_that_are_there_keep_what_they_have_until_everything_is_known() {
    let kernel = kernel();
    let left = PodPolicy {
        ingress: 7,
        egress: 0,
        generation: 3,
    };
    kernel
        .0
        .lock()
        .unwrap()
        .pods
        .insert(address("10.0.0.1"), left);
    let (gate, mut status, _wanted, _cancel) = task(&kernel);
    gate.send(Input::Wired(wired("a", "10.0.0.1")));
    gate.send(Input::Namespace(Change::Replace(BTreeMap::new())));
    assert!(gate.admit(wired("b", "10.0.0.2")).await);
    assert_eq!(kernel.pod(address("10.0.0.1")), Some(left));
    gate.send(Input::Policy(Change::Replace(BTreeMap::new())));
    status.wait_for(|status| status.synced).await.unwrap();
    assert_eq!(kernel.pod(address("10.0.0.1")).unwrap().ingress, 0);
}

#[tokio::test(start_paused = true)]
async fn a_policy_that_is_not_understood_is_reported() {
    let kernel = kernel();
    let (gate, mut status, _wanted, _cancel) = task(&kernel);
    let mut broken = (*policy(Vec::new())).clone();
    broken.problems = vec!["spec.ingress[0]: a peer names nobody".to_owned()];
    gate.send(Input::Policy(Change::Replace(
        [(name("p"), Arc::new(broken))].into(),
    )));
    let status = status
        .wait_for(|status| !status.problems.is_empty())
        .await
        .unwrap();
    assert_eq!(
        status.problems[&name("p")],
        "spec.ingress[0]: a peer names nobody"
    );
}
