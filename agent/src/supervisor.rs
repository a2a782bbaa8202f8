//! Spawns every task of the agent and decides what an ended one means.
//!
//! Fatal: a listener that cannot be bound, a client that cannot be configured. Everything that depends
//! on others (API server, containerd, dataplane) waits and retries in its own task. A task that panics
//! ends the agent: its supervisor (systemd) restarts it, and a restart disturbs nothing.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use tholepin_model::plan::admission::Room;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::config::Config;
use crate::dataplane::socket_lb::{self, SocketLb};
use crate::dataplane::{self, NetworkConfig};
use crate::events::{self, Recorder};
use crate::kubelet_api::{self, ApiContext};
use crate::node::facts::MachineFacts;
use crate::node::{self, NodeContext};
use crate::observe::healthz;
use crate::observe::metrics::Metrics;
use crate::reconcile::pods::runtime_view::RuntimeView;
use crate::reconcile::pods::{self, Context};
use crate::runtime::Runtime;
use crate::runtime::containerd::{ContainerdRuntime, RuntimeConfig};
use crate::status::KubePodApi;
use crate::time::Clock;
use crate::volumes::pod_files::DnsSettings;
use crate::watch::objects::ApiObjects;
use crate::watch::pods::PodsView;
use crate::watch::service_links::ServiceLinks;

/// Why the agent cannot run.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error("failed to read the kubeconfig {path}")]
    Kubeconfig {
        path: std::path::PathBuf,
        source: kube::config::KubeconfigError,
    },
    #[error("failed to set up the API client")]
    Client { source: Box<kube::Error> },
    #[error("no address of this node leads to the API server {server}; set --node-ip")]
    NoAddress { server: String },
    #[error("failed to set up the containerd driver")]
    Runtime {
        source: crate::runtime::RuntimeError,
    },
    #[error("failed to listen on 127.0.0.1:{port} for /healthz")]
    Healthz { port: u16, source: std::io::Error },
    #[error("failed to start the kubelet API")]
    KubeletApi {
        source: kubelet_api::KubeletApiError,
    },
    #[error("failed to install a signal handler")]
    Signal { source: std::io::Error },
    #[error("a task of the agent has failed")]
    Task { source: tokio::task::JoinError },
}

/// Starts everything, waits for a signal, stops the tasks and nothing else.
pub async fn run(config: Config) -> Result<(), AgentError> {
    // Another crate of the process may have been first; then the provider is ring all the same.
    rustls::crypto::ring::default_provider()
        .install_default()
        .ok();
    let config = Arc::new(config);
    let cancel = CancellationToken::new();
    let mut terminate =
        signal(SignalKind::terminate()).map_err(|source| AgentError::Signal { source })?;
    let mut interrupt =
        signal(SignalKind::interrupt()).map_err(|source| AgentError::Signal { source })?;
    let mut tasks = start(config, &cancel).await?;
    let result = loop {
        tokio::select! {
            _ = terminate.recv() => break Ok(()),
            _ = interrupt.recv() => break Ok(()),
            Some(ended) = tasks.join_next() => match ended {
                Ok(()) => {}
                Err(source) => break Err(AgentError::Task { source }),
            },
        }
    };
    tracing::info!("stopping; pods and traffic go on");
    cancel.cancel();
    let ended = tokio::time::timeout(Duration::from_secs(5), async {
        while tasks.join_next().await.is_some() {}
    });
    if ended.await.is_err() {
        tracing::warn!("some tasks did not stop in time");
    }
    result
}

async fn start(config: Arc<Config>, cancel: &CancellationToken) -> Result<JoinSet<()>, AgentError> {
    let (client, server) = client(&config).await?;
    let host_addresses = if config.node_addresses.is_empty() {
        vec![own_address(&server).ok_or(AgentError::NoAddress { server })?]
    } else {
        config.node_addresses.clone()
    };
    let metrics = Metrics::default();
    let clock = Clock::default();
    let facts = MachineFacts::read(&config.state_dir, config.eviction_hard);
    let (heartbeat, beats) = watch::channel(Instant::now());
    let mut tasks = JoinSet::new();

    if config.healthz_port != 0 {
        let port = config.healthz_port;
        let listener = healthz::bind(port)
            .await
            .map_err(|source| AgentError::Healthz { port, source })?;
        tasks.spawn(healthz::serve(listener, beats.clone(), cancel.clone()));
    }

    let runtime: Arc<dyn Runtime> = Arc::new(
        ContainerdRuntime::new(runtime_config(&config))
            .map_err(|source| AgentError::Runtime { source })?,
    );
    let view = RuntimeView::spawn(Arc::clone(&runtime), cancel.clone());
    let (recorder, queue) = Recorder::new(metrics.clone());
    let mut network_config = network_config(&config, &host_addresses);
    network_config.proxy_metrics = metrics.proxy();
    network_config.recorder = Some(recorder.clone());
    let network = dataplane::start(network_config, client.clone(), cancel.clone());
    let pod_network = network.pod_network;
    let service_changes = network.service_changes;
    let mut network_tasks = network.tasks;
    tasks.spawn(async move {
        while let Some(ended) = network_tasks.join_next().await {
            if let Err(error) = ended
                && let Ok(panic) = error.try_into_panic()
            {
                std::panic::resume_unwind(panic);
            }
        }
    });

    tasks.spawn(events::run(
        client.clone(),
        config.node_name.clone(),
        queue,
        cancel.clone(),
    ));
    let (view_sender, pods_view) = watch::channel(PodsView::default());
    tasks.spawn(crate::watch::pods::run(
        client.clone(),
        config.node_name.clone(),
        view_sender,
        cancel.clone(),
    ));
    tasks.spawn(crate::watch::host_ports::run(
        pods_view.clone(),
        service_changes,
        cancel.clone(),
    ));
    let (links_sender, links) = watch::channel(ServiceLinks::default());
    tasks.spawn(crate::watch::service_links::run(
        client.clone(),
        links_sender,
        cancel.clone(),
    ));

    tasks.spawn(node::run_lease(
        client.clone(),
        config.node_name.clone(),
        cancel.clone(),
    ));
    let node_context = NodeContext {
        client: client.clone(),
        name: config.node_name.clone(),
        addresses: host_addresses.clone(),
        port: config.port,
        max_pods: config.max_pods,
        runtime: Arc::clone(&runtime),
        network: Arc::clone(&pod_network),
        view: view.clone(),
        recorder: recorder.clone(),
        facts: facts.clone(),
        heartbeat: beats.clone(),
    };
    tasks.spawn(node::run(Arc::new(node_context), cancel.clone()));

    match &config.kubelet_api {
        Some(api) => {
            let context = ApiContext {
                config: Arc::clone(&config),
                runtime: Arc::clone(&runtime),
                pods: pods_view.clone(),
                view: view.clone(),
                metrics: metrics.clone(),
                heartbeat: beats,
            };
            let server = kubelet_api::bind(api, context)
                .await
                .map_err(|source| AgentError::KubeletApi { source })?;
            tasks.spawn(server.serve(cancel.clone()));
        }
        None => tracing::warn!(
            "no --tls-cert-file, --tls-private-key-file and --client-ca-file: kubectl logs and exec will not work"
        ),
    }

    let context = Context {
        runtime,
        network: pod_network,
        objects: Arc::new(ApiObjects::new(client.clone(), cancel.clone())),
        pod_api: Arc::new(KubePodApi::new(client)),
        recorder,
        metrics,
        clock,
        view,
        links,
        permits: Arc::new(Semaphore::new(facts.cpu_count.max(1) * 2)),
        host_addresses,
        dns: DnsSettings {
            cluster_dns: config.cluster_dns.clone(),
            cluster_domain: config.cluster_domain.clone(),
            node_resolv_conf: config.resolv_conf.clone(),
        },
        node_memory_bytes: i64::try_from(facts.memory_bytes).unwrap_or(i64::MAX),
        node_cpu_milli: i64::try_from(facts.cpu_count * 1000).unwrap_or(i64::MAX),
        capacity: Room {
            pods: i64::from(config.max_pods),
            cpu_milli: i64::try_from(facts.cpu_count * 1000).unwrap_or(i64::MAX),
            memory_bytes: i64::try_from(facts.allocatable_memory()).unwrap_or(i64::MAX),
        },
        config,
    };
    tasks.spawn(pods::run(
        Arc::new(context),
        pods_view,
        heartbeat,
        cancel.clone(),
    ));
    Ok(tasks)
}

async fn client(config: &Config) -> Result<(kube::Client, String), AgentError> {
    let failed = |source| AgentError::Kubeconfig {
        path: config.kubeconfig.clone(),
        source,
    };
    let kubeconfig = Kubeconfig::read_from(&config.kubeconfig).map_err(failed)?;
    let mut settings =
        kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default())
            .await
            .map_err(failed)?;
    settings.connect_timeout = Some(Duration::from_secs(10));
    let server = settings.cluster_url.to_string();
    let client = kube::Client::try_from(settings).map_err(|source| AgentError::Client {
        source: Box::new(source),
    })?;
    Ok((client, server))
}

/// The address this machine would use towards the API server. Sends nothing.
fn own_address(server: &str) -> Option<IpAddr> {
    let url = url::Url::parse(server).ok()?;
    let target: SocketAddr = url.socket_addrs(|| Some(443)).ok()?.into_iter().next()?;
    let any: SocketAddr = if target.is_ipv4() {
        (std::net::Ipv4Addr::UNSPECIFIED, 0).into()
    } else {
        (std::net::Ipv6Addr::UNSPECIFIED, 0).into()
    };
    let socket = UdpSocket::bind(any).ok()?;
    socket.connect(target).ok()?;
    socket.local_addr().ok().map(|address| address.ip())
}

fn runtime_config(config: &Config) -> RuntimeConfig {
    RuntimeConfig {
        socket: config.containerd_socket.clone(),
        run_dir: config.run_dir.clone(),
        state_dir: config.state_dir.clone(),
        cgroup_parent: config.cgroup_parent.clone(),
        plain_http_registries: config.plain_http_registries.clone(),
        holder: Some(holder_program()),
        log_limits: config.container_logs,
        ..RuntimeConfig::default()
    }
}

/// The small program beside this one, or else this one.
fn holder_program() -> std::path::PathBuf {
    std::env::current_exe()
        .map(|own| own.with_file_name("tholepin-holder"))
        .ok()
        .filter(|program| program.is_file())
        // The link, not what it points to: that one is gone once the binary was replaced.
        .unwrap_or_else(|| "/proc/self/exe".into())
}

fn network_config(config: &Config, addresses: &[IpAddr]) -> NetworkConfig {
    let mut network = NetworkConfig::new(
        config.node_name.clone(),
        addresses.to_vec(),
        config.bpffs_root.clone(),
        config.state_dir.clone(),
        config.run_dir.clone(),
    );
    network.vxlan_port = config.vxlan_port;
    network.conntrack_entries = config.conntrack_entries;
    network.cluster_ranges.clone_from(&config.cluster_ranges);
    network.service_ranges.clone_from(&config.service_ranges);
    network.xdp = config.xdp;
    if !config.node_port_ranges.is_empty() {
        network.node_port_addresses =
            crate::config::services::node_port_addresses(&config.node_port_ranges);
    }
    network.external_forwarding = config.external_forwarding;
    network.proxy_healthz_port = Some(config.proxy_healthz_port).filter(|port| *port != 0);
    network.socket_lb = config.socket_lb;
    network.socket_lb_cgroup = match &config.socket_lb_cgroup {
        Some(cgroup) => Some(cgroup.clone()),
        None => pods_cgroup(config),
    };
    network
}

/// Where the sockets of pods are balanced. Pods work without.
fn pods_cgroup(config: &Config) -> Option<std::path::PathBuf> {
    let cgroup = match config.socket_lb {
        SocketLb::Off => return None,
        SocketLb::Tcp | SocketLb::All => socket_lb::ensure_pods_cgroup(&config.cgroup_parent),
    };
    cgroup.unwrap_or_else(|error| {
        tracing::error!(%error, parent = config.cgroup_parent, "no cgroup to balance sockets in");
        None
    })
}

/// Keeps the allocator from holding what a burst has left: two arenas, and big blocks given back.
pub fn keep_memory_small() {
    crate::allocator::limit();
}
