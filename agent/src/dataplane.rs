//! The eBPF dataplane and the node's pod network: configuration, start-up and status.
//!
//! Owns the entry point the supervisor calls. `start` returns at once; until this node's pod ranges are
//! known and the programs are attached, the returned `PodNetwork` answers `NetworkError::NotReady`.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use ipnet::IpNet;
use tholepin_model::desired::Desired;
use tholepin_model::service::{Forwarding, NodeView};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::cni_server::AgentServer;
use crate::events::Recorder;
use crate::network::PodNetwork;
use crate::network::owner::NetworkTask;
use crate::observe::proxy_metrics::ProxyMetrics;
use crate::observe::service_health::{self, Health};
use crate::reconcile::policies::program::{PinnedPolicyMaps, Programmer as PolicyProgrammer};
use crate::reconcile::policies::{Input, PoliciesStatus, PoliciesTask, PolicyGate};
use crate::reconcile::routes::RoutesTask;
use crate::reconcile::services::{
    Generations, PinnedServiceMaps, Programmer, ServicesStatus, ServicesTask,
};
use crate::watch::changes::ServiceChanges;
use crate::watch::{endpoint_slices, namespaces, network_policies, nodes, policy_pods, services};

pub mod attach;
mod bpf_link;
pub mod cleaner;
pub mod features;
pub mod loader;
pub mod maps;
pub mod pin;
pub mod readers;
pub mod socket_lb;
pub mod xdp;

use cleaner::FlowTable;
use maps::pod_routes::PodRoutes;
use maps::policies::Policies;
use maps::workloads::Workloads;
use pin::PinDirectory;
use socket_lb::SocketLb;
use xdp::XdpFront;

/// How programs are attached to interfaces.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AttachMode {
    /// TCX where the kernel has it, clsact otherwise.
    #[default]
    Auto,
    /// Always clsact, for tests and for kernels whose TCX is not trusted.
    Clsact,
}

/// What the network half of the agent needs to know. Build it with [`NetworkConfig::new`] and change
/// fields: new ones come with defaults.
#[derive(Clone, Debug)]
pub struct NetworkConfig {
    /// Name of this node's `Node` object.
    pub node_name: String,
    /// Underlay addresses of this node (`--node-ip`): the first IPv4 and the first IPv6 are used.
    pub node_addresses: Vec<IpAddr>,
    /// Directory on a bpffs; pins go under `<bpffs_root>/v<ABI>/`.
    pub bpffs_root: PathBuf,
    /// Leases and this node's pod ranges survive here.
    pub state_dir: PathBuf,
    /// `agent.sock` and the CNI deletion queue live here.
    pub run_dir: PathBuf,
    pub vxlan_port: u16,
    /// Capacity of `CONNTRACK`: two entries per flow.
    pub conntrack_entries: u32,
    /// Pod ranges of the whole cluster; the node's own processes reach them through `thp_host`.
    pub cluster_ranges: Vec<IpNet>,
    /// Service ranges; the node's own processes reach them through `thp_host`.
    pub service_ranges: Vec<IpNet>,
    pub attach_mode: AttachMode,
    /// Hand packets straight into local pods where the kernel can (`bpf_redirect_peer`).
    pub redirect_peer: bool,
    /// Where packets are sent on before there are socket buffers.
    pub xdp: XdpFront,
    /// Which sockets are balanced when they connect or send.
    pub socket_lb: SocketLb,
    /// The cgroup whose sockets that is for; `None` where there is no cgroup v2 tree.
    pub socket_lb_cgroup: Option<PathBuf>,
    /// Addresses at which NodePorts are served; those of the node (`--node-ip`) if there are none.
    pub node_port_addresses: Vec<IpAddr>,
    /// What becomes of clients from outside whose backend is on another node.
    pub external_forwarding: Forwarding,
    pub proxy_metrics: ProxyMetrics,
    /// Where problems with Services are told to their authors.
    pub recorder: Option<Recorder>,
    /// Port of the Services' `/healthz`; none without one.
    pub proxy_healthz_port: Option<u16>,
}

impl NetworkConfig {
    /// A configuration with the project's defaults for everything that is not a parameter.
    #[must_use]
    pub fn new(
        node_name: String,
        node_addresses: Vec<IpAddr>,
        bpffs_root: PathBuf,
        state_dir: PathBuf,
        run_dir: PathBuf,
    ) -> Self {
        let range = |text: &str| text.parse::<IpNet>().expect("a constant range parses");
        Self {
            node_name,
            node_addresses,
            bpffs_root,
            state_dir,
            run_dir,
            vxlan_port: 8472,
            conntrack_entries: tholepin_ebpf_abi::names::CONNTRACK_CAPACITY as u32,
            cluster_ranges: vec![range("10.244.0.0/16"), range("fd00:10:244::/56")],
            service_ranges: vec![range("10.96.0.0/16"), range("fd00:10:96::/112")],
            attach_mode: AttachMode::Auto,
            redirect_peer: true,
            xdp: XdpFront::Off,
            socket_lb: SocketLb::Off,
            socket_lb_cgroup: None,
            node_port_addresses: Vec::new(),
            external_forwarding: Forwarding::Direct,
            proxy_metrics: ProxyMetrics::default(),
            recorder: None,
            proxy_healthz_port: None,
        }
    }
}

impl NetworkConfig {
    fn served_node_port_addresses(&self) -> Vec<IpAddr> {
        match self.node_port_addresses.is_empty() {
            true => self.node_addresses.clone(),
            false => self.node_port_addresses.clone(),
        }
    }
}

/// What the network half is doing; the node's Ready condition and CNI STATUS show it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetworkStatus {
    /// Not serving yet, with what it waits for or what failed last.
    Starting {
        reason: String,
    },
    Ready {
        pod_ranges: Vec<IpNet>,
    },
}

/// The running network half. Dropping it stops nothing; cancel the token and await the tasks.
pub struct NetworkHandle {
    pub pod_network: Arc<dyn PodNetwork>,
    pub status: watch::Receiver<NetworkStatus>,
    /// Services that are not programmed as desired, and why.
    pub services: watch::Receiver<ServicesStatus>,
    /// What the table of tracked flows holds, as of the last walk through it.
    pub flows: watch::Receiver<FlowTable>,
    /// Where the host ports of this node's pods go. Nothing is programmed before they are told.
    pub service_changes: ServiceChanges,
    /// What NetworkPolicies are in the maps, and which deny more than they say.
    pub policies: watch::Receiver<PoliciesStatus>,
    /// Ends when the token is cancelled. Traffic and pods stay as they are.
    pub tasks: JoinSet<()>,
}

impl std::fmt::Debug for NetworkHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NetworkHandle")
            .field("status", &*self.status.borrow())
            .finish_non_exhaustive()
    }
}

/// Starts the network half: watches, reconcilers, the owner of the pod network and the agent's socket.
///
/// Also serves `<run_dir>/agent.sock`. Must be called inside a tokio runtime.
#[must_use]
pub fn start(
    config: NetworkConfig,
    client: kube::Client,
    cancel: CancellationToken,
) -> NetworkHandle {
    let (sender, desired) = watch::channel(Desired::default());
    let changes = ServiceChanges::default();
    let (node_name, port) = (config.node_name.clone(), config.proxy_healthz_port);
    let health_check_addresses = config.served_node_port_addresses();
    let (gate, inputs) = PolicyGate::new();
    let (wanted_sender, wanted) = watch::channel(false);
    let policies = (gate.clone(), Some((inputs, wanted_sender)));
    let mut handle = launch(
        config,
        desired.clone(),
        changes.clone(),
        policies,
        cancel.clone(),
    );
    let health = Health {
        node_name,
        services: handle.services.clone(),
        desired,
    };
    if let Some(port) = port {
        let serving = service_health::serve_proxy(health.clone(), port, cancel.clone());
        handle.tasks.spawn(serving);
    }
    handle.tasks.spawn(service_health::serve_services(
        health,
        health_check_addresses,
        cancel.clone(),
    ));
    let tasks = &mut handle.tasks;
    tasks.spawn(network_policies::watch(
        client.clone(),
        gate.clone(),
        cancel.clone(),
    ));
    tasks.spawn(namespaces::watch(
        client.clone(),
        gate.clone(),
        wanted.clone(),
        cancel.clone(),
    ));
    tasks.spawn(policy_pods::watch(
        client.clone(),
        gate,
        wanted,
        cancel.clone(),
    ));
    tasks.spawn(services::watch(
        client.clone(),
        changes.clone(),
        cancel.clone(),
    ));
    tasks.spawn(endpoint_slices::watch(
        client.clone(),
        changes,
        cancel.clone(),
    ));
    tasks.spawn(nodes::watch(client, sender, cancel));
    handle
}

/// Like [`start`], with desired state from anywhere and without NetworkPolicies.
#[must_use]
pub fn start_with(
    config: NetworkConfig,
    desired: watch::Receiver<Desired>,
    changes: ServiceChanges,
    cancel: CancellationToken,
) -> NetworkHandle {
    let none = (PolicyGate::default(), None);
    launch(config, desired, changes, none, cancel)
}

/// What comes through the gate, and where the reconciler says that there are policies.
type PolicyInputs = (mpsc::UnboundedReceiver<Input>, watch::Sender<bool>);

fn launch(
    config: NetworkConfig,
    desired: watch::Receiver<Desired>,
    changes: ServiceChanges,
    (gate, policy_inputs): (PolicyGate, Option<PolicyInputs>),
    cancel: CancellationToken,
) -> NetworkHandle {
    let mut tasks = JoinSet::new();
    let runtime = tokio::runtime::Handle::current();
    let names = changes.clone();
    let workloads = Workloads::default();
    let (flows_sender, flows) = watch::channel(FlowTable::default());
    let (owner, pod_network, status) = NetworkTask::new(
        config.clone(),
        desired.clone(),
        workloads.clone(),
        gate,
        flows_sender,
    );
    // Owner and reconcilers make blocking system calls, so each has a thread of its own.
    tasks.spawn_blocking({
        let (runtime, cancel) = (runtime.clone(), cancel.clone());
        move || runtime.block_on(owner.run(cancel))
    });
    let (services_status, services) = watch::channel(ServicesStatus::default());
    let reconcilers = Reconcilers {
        config: config.clone(),
        workloads,
        desired,
        changes: changes.clone(),
        services_status,
        status: status.clone(),
        cancel: cancel.clone(),
    };
    tasks.spawn_blocking({
        let (runtime, reconcilers) = (runtime.clone(), reconcilers.clone());
        move || runtime.block_on(reconcilers.run_services())
    });
    let (policies_status, policies) = watch::channel(PoliciesStatus::default());
    if let Some(inputs) = policy_inputs {
        let (runtime, reconcilers) = (runtime.clone(), reconcilers.clone());
        tasks.spawn_blocking(move || {
            runtime.block_on(reconcilers.run_policies(inputs, policies_status))
        });
    }
    tasks.spawn_blocking(move || runtime.block_on(reconcilers.run_routes()));
    let server = AgentServer {
        pod_network: pod_network.for_cni(),
        bpffs_root: config.bpffs_root,
        run_dir: config.run_dir,
        status: status.clone(),
        services: services.clone(),
        names,
    };
    tasks.spawn(server.run(cancel));
    NetworkHandle {
        pod_network: Arc::new(pod_network),
        status,
        services,
        flows,
        service_changes: changes,
        policies,
        tasks,
    }
}

/// Starts the reconcilers once the maps are there.
#[derive(Clone)]
struct Reconcilers {
    config: NetworkConfig,
    workloads: Workloads,
    desired: watch::Receiver<Desired>,
    changes: ServiceChanges,
    services_status: watch::Sender<ServicesStatus>,
    status: watch::Receiver<NetworkStatus>,
    cancel: CancellationToken,
}

impl Reconcilers {
    /// Whether the pod network is up now; no means that the agent is stopping.
    async fn ready(&self) -> bool {
        let mut status = self.status.clone();
        tokio::select! {
            () = self.cancel.cancelled() => false,
            ready = status.wait_for(|status| matches!(status, NetworkStatus::Ready { .. })) => ready.is_ok(),
        }
    }

    async fn run_services(self) {
        if !self.ready().await {
            return;
        }
        let maps = PinnedServiceMaps::open(
            &PinDirectory::at(&self.config.bpffs_root),
            self.workloads.clone(),
        );
        let generations = Generations::open(&self.config.state_dir);
        let (maps, generations) = match (maps, generations) {
            (Ok(maps), Ok(generations)) => (maps, generations),
            (Err(error), _) => return tracing::error!(error = chain(&error), "Services are off"),
            (_, Err(error)) => return tracing::error!(error = chain(&error), "Services are off"),
        };
        let config = self.config;
        let node_port_addresses = config.served_node_port_addresses();
        let task = ServicesTask {
            node: NodeView {
                name: config.node_name,
                zone: None,
                node_port_addresses,
                addresses: config.node_addresses,
                forwarding: config.external_forwarding,
            },
            programmer: Programmer::new(maps, generations, config.service_ranges),
            changes: self.changes,
            metrics: config.proxy_metrics,
            recorder: config.recorder,
            desired: self.desired,
            status: self.services_status,
        };
        task.run(self.cancel).await;
    }

    async fn run_policies(
        self,
        (inputs, wanted): PolicyInputs,
        status: watch::Sender<PoliciesStatus>,
    ) {
        if !self.ready().await {
            return;
        }
        let opened = Policies::open(&PinDirectory::at(&self.config.bpffs_root));
        let programmer = opened.and_then(|policies| {
            PolicyProgrammer::open(PinnedPolicyMaps {
                policies,
                workloads: self.workloads,
            })
        });
        let programmer = match programmer {
            Ok(programmer) => programmer,
            Err(error) => {
                // Nobody answers at the gate then, and new pods are denied everything.
                return tracing::error!(error = chain(&error), "NetworkPolicies cannot change");
            }
        };
        let task = PoliciesTask {
            programmer,
            inputs,
            wanted,
            events: self.config.recorder,
            status,
        };
        task.run(self.cancel).await;
    }

    async fn run_routes(self) {
        if !self.ready().await {
            return;
        }
        let routes = match PodRoutes::open(&PinDirectory::at(&self.config.bpffs_root)) {
            Ok(routes) => routes,
            Err(error) => return tracing::error!(error = chain(&error), "pod routes are off"),
        };
        let task = RoutesTask {
            node_name: self.config.node_name,
            node_addresses: self.config.node_addresses,
            routes,
            desired: self.desired,
        };
        task.run(self.cancel).await;
    }
}

/// An error with everything behind it, on one line.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let next = error.to_string();
        // Transparent wrappers repeat what they wrap.
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        source = error.source();
    }
    text
}
