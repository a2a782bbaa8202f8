//! The scheduler's picture of the cluster: every node with what runs on it, pods being bound included.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};
use tholepin_informer::is_pod_terminal;

use crate::resources::Resources;

/// A host port that a pod occupies: protocol, address, port.
pub(crate) type HostPort = (String, String, i32);

/// One node.
#[derive(Clone, Debug)]
pub(crate) struct NodeInfo {
    pub(crate) node: Arc<Node>,
    pub(crate) allocatable: Resources,
    pub(crate) requested: Resources,
    pub(crate) requested_for_score: Resources,
    pub(crate) host_ports: Vec<HostPort>,
    pub(crate) pods: Vec<Arc<Pod>>,
}

impl NodeInfo {
    pub(crate) fn new(node: Arc<Node>, pods: Vec<Arc<Pod>>) -> Self {
        let mut info = Self {
            allocatable: Resources::allocatable(&node),
            node,
            requested: Resources::default(),
            requested_for_score: Resources::default(),
            host_ports: Vec::new(),
            pods: Vec::new(),
        };
        pods.into_iter().for_each(|pod| info.add(pod));
        info
    }

    pub(crate) fn name(&self) -> &str {
        self.node.metadata.name.as_deref().unwrap_or_default()
    }

    /// Counts a pod in.
    pub(crate) fn add(&mut self, pod: Arc<Pod>) {
        self.requested.add(&Resources::requested(&pod));
        self.requested_for_score
            .add(&Resources::requested_for_score(&pod));
        self.host_ports.extend(host_ports(&pod));
        self.pods.push(pod);
    }
}

/// The host ports a pod wants.
pub(crate) fn host_ports(pod: &Pod) -> Vec<HostPort> {
    let containers = pod.spec.iter().flat_map(|spec| &spec.containers);
    containers
        .flat_map(|container| container.ports.iter().flatten())
        .filter_map(|port| {
            let number = port.host_port.filter(|number| *number > 0)?;
            let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
            let address = port.host_ip.clone().filter(|ip| !ip.is_empty());
            Some((
                protocol,
                address.unwrap_or_else(|| "0.0.0.0".to_owned()),
                number,
            ))
        })
        .collect()
}

/// The nodes with their pods. Kept by the caller between pods, changed for what was touched only.
#[derive(Debug, Default)]
pub(crate) struct Snapshot {
    pub(crate) nodes: BTreeMap<String, NodeInfo>,
    /// Pods whose binding is on its way: uid to (node, pod).
    pub(crate) assumed: HashMap<String, (String, Arc<Pod>)>,
}

impl Snapshot {
    /// Reads one node anew from what the caches know.
    pub(crate) fn refresh(&mut self, name: &str, node: Option<Arc<Node>>, bound: Vec<Arc<Pod>>) {
        let Some(node) = node else {
            self.nodes.remove(name);
            return;
        };
        let mut pods: Vec<Arc<Pod>> = bound
            .into_iter()
            .filter(|pod| !is_pod_terminal(pod))
            .collect();
        for (uid, (at, pod)) in &self.assumed {
            let seen = pods
                .iter()
                .any(|bound| bound.metadata.uid.as_ref() == Some(uid));
            if at == name && !seen {
                pods.push(pod.clone());
            }
        }
        self.nodes
            .insert(name.to_owned(), NodeInfo::new(node, pods));
    }
}
