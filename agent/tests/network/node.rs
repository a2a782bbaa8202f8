//! A node process: the network half of the agent, with desired state from standard input.

use std::collections::BTreeMap;
use std::io::BufRead;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use tholepin_agent::dataplane::socket_lb::SocketLb;
use tholepin_agent::dataplane::xdp::XdpFront;
use tholepin_agent::dataplane::{AttachMode, NetworkConfig, start_with};
use tholepin_agent::network::{AttachRequest, AttachmentKey};
use tholepin_agent::watch::changes::ServiceChanges;
use tholepin_model::desired::{Desired, SyncState};
use tholepin_model::route::Node;
use tholepin_model::service::table::Changes;
use tholepin_model::service::{
    Conditions, Endpoint, EndpointPort, EndpointSlice, Forwarding, Protocol, Selection, Service,
    ServiceName, ServicePort, SliceName, TrafficPolicy,
};
use tokio_util::sync::CancellationToken;

pub(crate) const CONFIG_VARIABLE: &str = "THOLEPIN_TEST_NODE";

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct NodeProcess {
    pub(crate) name: String,
    pub(crate) addresses: Vec<String>,
    pub(crate) bpffs_root: PathBuf,
    pub(crate) directory: PathBuf,
    pub(crate) clsact: bool,
    /// The program of the agent; an upgrade comes from another file.
    pub(crate) binary: PathBuf,
    pub(crate) redirect_peer: bool,
    #[serde(default)]
    pub(crate) xdp: String,
    #[serde(default)]
    pub(crate) socket_lb: String,
    #[serde(default)]
    pub(crate) cgroup: Option<PathBuf>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Input {
    pub(crate) nodes: Vec<InputNode>,
    pub(crate) services: Vec<(String, String, String, Vec<String>)>,
    #[serde(default)]
    /// Services of these names have `internalTrafficPolicy: Local`.
    pub(crate) local: Vec<String>,
    /// Ports of the nodes under which Services are reached, by the Services' names.
    #[serde(default)]
    pub(crate) node_ports: BTreeMap<String, u16>,
    /// Services of these names have `externalTrafficPolicy: Local`.
    #[serde(default)]
    pub(crate) external_local: Vec<String>,
    /// Services of these names hide their clients.
    #[serde(default)]
    pub(crate) masqueraded: Vec<String>,
    #[serde(default)]
    /// Pods that the agent itself attaches, without socket load balancing: name and namespace.
    pub(crate) opted_out: Vec<(String, PathBuf)>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct InputNode {
    pub(crate) name: String,
    pub(crate) ranges: Vec<String>,
    pub(crate) addresses: Vec<String>,
}

pub(crate) fn run_if_asked() {
    let Ok(text) = std::env::var(CONFIG_VARIABLE) else {
        return;
    };
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .init();
    let process: NodeProcess = serde_json::from_str(&text).unwrap();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let guard = runtime.enter();
    let addresses = process
        .addresses
        .iter()
        .map(|a| a.parse().unwrap())
        .collect();
    let mut config = NetworkConfig::new(
        process.name,
        addresses,
        process.bpffs_root,
        process.directory.join("state"),
        process.directory.join("run"),
    );
    if process.clsact {
        config.attach_mode = AttachMode::Clsact;
    }
    config.redirect_peer = process.redirect_peer;
    config.xdp = process.xdp.parse().unwrap_or(XdpFront::Off);
    config.socket_lb = process.socket_lb.parse().unwrap_or(SocketLb::Off);
    config.socket_lb_cgroup = process.cgroup;
    let name = config.node_name.clone();
    let (sender, desired) = tokio::sync::watch::channel(Desired::default());
    let changes = ServiceChanges::default();
    let handle = start_with(config, desired, changes.clone(), CancellationToken::new());
    for line in std::io::stdin().lock().lines() {
        let input: Input = serde_json::from_str(&line.unwrap()).unwrap();
        sender.send_replace(desired_of(&input));
        for (pod, netns) in input.opted_out.iter().filter(|_| name == "n0") {
            let request = opted_out(pod, netns);
            runtime
                .block_on(handle.pod_network.attach(&request))
                .unwrap();
        }
        changes.change(|changes| set_services(&input, changes));
    }
    drop((handle, guard));
}

fn opted_out(pod: &str, netns: &Path) -> AttachRequest {
    AttachRequest {
        key: AttachmentKey {
            container_id: pod.to_owned(),
            interface: "eth0".to_owned(),
        },
        netns: netns.to_owned(),
        pod_namespace: "default".to_owned(),
        pod_name: pod.to_owned(),
        pod_uid: String::new(),
        socket_lb: false,
    }
}

fn desired_of(input: &Input) -> Desired {
    let mut desired = Desired {
        sync: SyncState { nodes: true },
        ..Desired::default()
    };
    for node in &input.nodes {
        let pod_ranges = node
            .ranges
            .iter()
            .map(|range| range.parse().unwrap())
            .collect();
        let (name, addresses) = (node.name.clone(), parse(&node.addresses));
        let node = Node {
            name: name.clone(),
            created_at_secs: 0,
            pod_ranges,
            addresses,
            zone: None,
            is_leaving: false,
        };
        desired.nodes.insert(name, Arc::new(node));
    }
    desired
}

/// The node whose pod ranges have an address.
fn node_of(input: &Input, address: std::net::IpAddr) -> Option<String> {
    let has = |node: &&InputNode| {
        let ranges = node.ranges.iter();
        let mut ranges = ranges.map(|range| range.parse::<ipnet::IpNet>().unwrap());
        ranges.any(|range| range.contains(&address))
    };
    input.nodes.iter().find(has).map(|node| node.name.clone())
}

fn parse(list: &[String]) -> Vec<std::net::IpAddr> {
    list.iter().map(|text| text.parse().unwrap()).collect()
}

fn set_services(input: &Input, changes: &mut Changes) {
    let mut services = BTreeMap::new();
    let mut slices = BTreeMap::new();
    for (name, address, protocol, backends) in &input.services {
        let service = ServiceName {
            namespace: "default".to_owned(),
            name: name.clone(),
        };
        let protocol = if protocol == "TCP" {
            Protocol::Tcp
        } else {
            Protocol::Udp
        };
        let port = ServicePort {
            name: String::new(),
            protocol,
            port: 80,
            node_port: input.node_ports.get(name).copied(),
        };
        let object = Service {
            name: service.clone(),
            uid: String::new(),
            created_at_secs: 0,
            cluster_ips: vec![address.parse().unwrap()],
            external_ips: vec![],
            load_balancer_ips: vec![],
            source_ranges: vec![],
            ports: vec![port],
            internal_policy: match input.local.contains(name) {
                true => TrafficPolicy::Local,
                false => TrafficPolicy::Cluster,
            },
            external_policy: match input.external_local.contains(name) {
                true => TrafficPolicy::Local,
                false => TrafficPolicy::Cluster,
            },
            affinity_timeout_secs: None,
            selection: Selection::Random,
            forwarding: input
                .masqueraded
                .contains(name)
                .then_some(Forwarding::Masquerade),
            health_check_node_port: None,
            complaints: vec![],
        };
        services.insert(service.clone(), Arc::new(object));
        let slice = SliceName {
            namespace: "default".to_owned(),
            name: name.clone(),
        };
        let endpoint = |address: std::net::IpAddr| Endpoint {
            address,
            conditions: Conditions {
                ready: true,
                serving: true,
                terminating: false,
            },
            node_name: node_of(input, address),
            node_hints: vec![],
            zone_hints: vec![],
        };
        let object = EndpointSlice {
            name: slice.clone(),
            service,
            ports: vec![EndpointPort {
                name: String::new(),
                protocol,
                port: 8080,
            }],
            triggered_at: None,
            endpoints: parse(backends).into_iter().map(endpoint).collect(),
        };
        slices.insert(slice, Arc::new(object));
    }
    changes.services.replace(services);
    changes.slices.replace(slices);
    changes.sync.services = true;
    changes.sync.slices = true;
    changes.sync.host_ports = true;
}
