//! The eBPF dataplane and the node's pod network: configuration, start-up and status.
//!
//! Owns the entry point the supervisor calls. `start` returns at once; until this node's pod ranges are
//! known and the programs are attached, the returned `PodNetwork` answers `NetworkError::NotReady`.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use ipnet::IpNet;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::network::PodNetwork;

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
    /// Pod ranges of the whole cluster; the node's own processes reach them through `thp_host`.
    pub cluster_ranges: Vec<IpNet>,
    /// Service ranges; the node's own processes reach them through `thp_host`.
    pub service_ranges: Vec<IpNet>,
    pub attach_mode: AttachMode,
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
            cluster_ranges: vec![range("10.244.0.0/16"), range("fd00:10:244::/56")],
            service_ranges: vec![range("10.96.0.0/16"), range("fd00:10:96::/112")],
            attach_mode: AttachMode::Auto,
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

/// Starts the network half: watches, reconcilers, the owner of the pod network and the CNI socket.
///
/// Also serves `<run_dir>/agent.sock`. Must be called inside a tokio runtime.
#[must_use]
pub fn start(
    config: NetworkConfig,
    client: kube::Client,
    cancel: CancellationToken,
) -> NetworkHandle {
    drop((client, cancel));
    let starting = "the dataplane is not built into this agent yet".to_owned();
    let (status_sender, status) = watch::channel(NetworkStatus::Starting { reason: starting });
    let pod_network = Arc::new(crate::network::Unavailable::new(status.clone()));
    let mut tasks = JoinSet::new();
    tasks.spawn(async move {
        // Keeps the channel open for as long as somebody looks at it.
        status_sender.closed().await;
        drop(config);
    });
    NetworkHandle {
        pod_network,
        status,
        tasks,
    }
}
