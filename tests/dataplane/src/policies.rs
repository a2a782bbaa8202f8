//! NetworkPolicies on a stage: the agent's compiler and programmer over the stage's maps.

use std::net::IpAddr;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use aya::maps::lpm_trie::LpmTrie;
use aya::maps::{MapData, MapError};
use ipnet::IpNet;
use tholepin_agent::dataplane::maps::MapAccessError;
use tholepin_agent::dataplane::maps::policies::{peer_key, port_key};
use tholepin_agent::dataplane::maps::workloads::PodPolicy;
use tholepin_agent::reconcile::policies::program::{PolicyMaps, Programmer, Realized};
use tholepin_agent::reconcile::policies::ticks;
use tholepin_agent::watch::network_policies::policy_of;
use tholepin_ebpf_abi::conntrack::UDP_IDLE;
use tholepin_ebpf_abi::{PolicyPeerValue, PolicyPortValue, names};
use tholepin_model::policy::ports::PortPrefix;
use tholepin_model::policy::table::PolicyTable;
use tholepin_model::policy::{Labels, ObjectName, Pod};

use crate::Stage;

/// A stage that a programmer writes to while a test sends packets through it.
#[derive(Clone, Debug)]
struct Shared {
    stage: Arc<Mutex<Stage>>,
    /// How old changes look, in ticks.
    age: Arc<AtomicU32>,
}

impl Shared {
    fn stage(&self) -> MutexGuard<'_, Stage> {
        self.stage.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One node: its programs and maps, and what it knows of the cluster.
#[derive(Debug)]
pub struct Node {
    shared: Shared,
    table: PolicyTable,
    programmer: Programmer<Shared>,
}

impl Node {
    /// A node over a stage.
    pub fn new(stage: Stage) -> Self {
        let shared = Shared {
            stage: Arc::new(Mutex::new(stage)),
            // Longer than a datagram's flow lives, so that nothing of it may be older.
            age: Arc::new(AtomicU32::new(2 * UDP_IDLE)),
        };
        Self {
            programmer: Programmer::open(shared.clone()).expect("an empty map is readable"),
            shared,
            table: PolicyTable::default(),
        }
    }

    /// The stage, to send packets through.
    pub fn stage(&self) -> MutexGuard<'_, Stage> {
        self.shared.stage()
    }

    /// From here on a change of policies is what it is in life: recent.
    pub fn recent(&mut self) {
        self.shared.age.store(0, Ordering::Relaxed);
    }

    /// Sets the labels of a namespace.
    pub fn namespace(&mut self, name: &str, labels: &[(&str, &str)]) {
        let labels = labels.iter().copied().collect::<Labels>();
        self.table.set_namespace(&name.into(), Some(labels));
        self.program();
    }

    /// Sets what is known of a pod of the cluster.
    pub fn pod(&mut self, name: &ObjectName, pod: Pod) {
        self.table.set_pod(name, Some(Arc::new(pod)));
        self.program();
    }

    /// Says that a pod is on this node.
    pub fn local(&mut self, name: &ObjectName, addresses: &[IpAddr]) {
        self.table.set_subject(name, Some(addresses.to_vec()));
        self.program();
    }

    /// Applies a NetworkPolicy as the API has it.
    pub fn apply(&mut self, namespace: &str, name: &str, spec: serde_json::Value) {
        let metadata = serde_json::json!({"namespace": namespace, "name": name});
        let object = serde_json::json!({"metadata": metadata, "spec": spec});
        let object = serde_json::from_value(object).expect("a NetworkPolicy");
        let policy = policy_of(&object);
        assert_eq!(policy.problems, Vec::<String>::new());
        self.table
            .set_policy(&policy.name.clone(), Some(Arc::new(policy)));
        self.program();
    }

    /// Deletes a NetworkPolicy.
    pub fn delete(&mut self, namespace: &str, name: &str) {
        self.table
            .set_policy(&ObjectName::new(namespace, name), None);
        self.program();
    }

    fn program(&mut self) {
        let changes = self.table.take_changes();
        self.programmer.program(&self.table, &changes);
        assert!(
            self.programmer.failed().is_empty(),
            "{:?}",
            self.programmer.failed()
        );
    }
}

fn written<T>(result: Result<T, MapError>) -> Result<T, MapAccessError> {
    result.map_err(|source| MapAccessError::Access {
        operation: "change",
        map: "a map of the stage",
        source,
    })
}

impl PolicyMaps for Shared {
    fn read(&self) -> Result<Realized, MapAccessError> {
        Ok(Realized::default())
    }

    fn upsert_peer(&mut self, id: u32, prefix: &IpNet, set: u32) -> Result<(), MapAccessError> {
        let mut stage = self.stage();
        let mut peers: LpmTrie<&mut MapData, _, PolicyPeerValue> = stage.trie(names::POLICY_PEERS);
        written(peers.insert(&peer_key(id, prefix), PolicyPeerValue { port_set: set }, 0))
    }

    fn remove_peer(&mut self, id: u32, prefix: &IpNet) -> Result<(), MapAccessError> {
        let mut stage = self.stage();
        let mut peers: LpmTrie<&mut MapData, _, PolicyPeerValue> = stage.trie(names::POLICY_PEERS);
        written(peers.remove(&peer_key(id, prefix)))
    }

    fn add_port(&mut self, set: u32, ports: PortPrefix) -> Result<(), MapAccessError> {
        let mut stage = self.stage();
        let mut all: LpmTrie<&mut MapData, _, PolicyPortValue> = stage.trie(names::POLICY_PORTS);
        written(all.insert(&port_key(set, ports), PolicyPortValue { flags: 0 }, 0))
    }

    fn remove_port(&mut self, set: u32, ports: PortPrefix) -> Result<(), MapAccessError> {
        let mut stage = self.stage();
        let mut all: LpmTrie<&mut MapData, _, PolicyPortValue> = stage.trie(names::POLICY_PORTS);
        written(all.remove(&port_key(set, ports)))
    }

    fn pod(&self, address: IpAddr) -> Option<PodPolicy> {
        let mut found = None;
        self.stage().change_workload(&address.to_string(), |value| {
            found = Some(PodPolicy {
                ingress: value.ingress_policy,
                egress: value.egress_policy,
                generation: value.policy_generation,
            });
        });
        found
    }

    fn set_pod(&mut self, address: IpAddr, policy: PodPolicy) -> Result<(), MapAccessError> {
        self.stage().change_workload(&address.to_string(), |value| {
            value.ingress_policy = policy.ingress;
            value.egress_policy = policy.egress;
            value.policy_generation = policy.generation;
        });
        Ok(())
    }

    fn newest_generation(&self) -> u32 {
        0
    }

    fn wait_for_readers(&mut self) {}

    fn now(&self) -> u32 {
        ticks() - self.age.load(Ordering::Relaxed)
    }
}
