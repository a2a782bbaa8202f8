//! A node's process: the agent's network half as it is, with desired state made here instead of watched.
//! Orders come as lines of JSON, each is answered with one.

use std::io::{BufRead, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tholepin_agent::dataplane::socket_lb::SocketLb;
use tholepin_agent::dataplane::{NetworkConfig, NetworkHandle, NetworkStatus, start_with};
use tholepin_agent::network::{AttachRequest, AttachmentKey};
use tholepin_agent::watch::changes::ServiceChanges;
use tholepin_agent::watch::endpoint_slices::slice_of;
use tholepin_agent::watch::nodes::node_of;
use tholepin_agent::watch::services::service_of;
use tholepin_model::desired::Desired;
use tholepin_model::service::table::Changes;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::kernel;
use super::spec::{self, ServiceSpec};

/// What a node's process is started with.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct NodeConfig {
    /// 1 or 2.
    pub(crate) number: u8,
    pub(crate) bpffs_root: PathBuf,
    pub(crate) directory: PathBuf,
    /// Whose sockets are balanced; none without a cgroup v2 tree.
    pub(crate) cgroup: Option<PathBuf>,
}

/// What a node's process is told to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) enum Order {
    /// Gives the namespace a pod's interface; answers with its address.
    Attach {
        pod: String,
        netns: PathBuf,
        /// Its sockets are balanced when they connect.
        socket_lb: bool,
    },
    /// Programs that many Services, two of which lead to these pods; answers with the seconds it took.
    Publish {
        near: Ipv4Addr,
        far: Ipv4Addr,
        count: u32,
    },
}

/// How long anything may take before the run gives up.
const LIMIT: Duration = Duration::from_secs(120);

/// Runs until the input ends.
pub(crate) fn run(config: &str) -> Result<()> {
    tracing_subscriber::fmt()
        .with_writer(std::io::stderr)
        .with_max_level(tracing_subscriber::filter::LevelFilter::WARN)
        .init();
    let config: NodeConfig = serde_json::from_str(config)?;
    let runtime = tokio::runtime::Runtime::new()?;
    let (_sender, desired) = watch::channel(base(&config)?);
    let changes = ServiceChanges::default();
    // No pod here has host ports.
    changes.change(|changes| changes.sync.host_ports = true);
    let cancel = CancellationToken::new();
    let mut handle = {
        let _inside = runtime.enter();
        let mut network = NetworkConfig::new(
            format!("n{}", config.number),
            vec![node_address(config.number)],
            config.bpffs_root,
            config.directory.join("state"),
            config.directory.join("run"),
        );
        if config.cgroup.is_some() {
            network.socket_lb = SocketLb::All;
            network.socket_lb_cgroup = config.cgroup;
        }
        start_with(network, desired, changes.clone(), cancel.clone())
    };
    for line in std::io::stdin().lock().lines() {
        let order: Order = serde_json::from_str(&line?)?;
        // The limit's timer must be made inside the runtime.
        let answer = runtime.block_on(async {
            tokio::time::timeout(LIMIT, carry_out(&order, &handle, &changes)).await
        });
        let answer = match answer {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => json!({"error": format!("{error:#}")}),
            Err(_) => json!({"error": format!("{order:?} takes more than {LIMIT:?}")}),
        };
        let mut out = std::io::stdout().lock();
        writeln!(out, "{answer}")?;
        out.flush()?;
    }
    // As the agent ends: its tasks first, then what they run on.
    cancel.cancel();
    runtime.block_on(async { while handle.tasks.join_next().await.is_some() {} });
    Ok(())
}

async fn carry_out(
    order: &Order,
    handle: &NetworkHandle,
    changes: &ServiceChanges,
) -> Result<Value> {
    match order {
        Order::Attach {
            pod,
            netns,
            socket_lb,
        } => {
            let mut status = handle.status.clone();
            status
                .wait_for(|status| matches!(status, NetworkStatus::Ready { .. }))
                .await?;
            let request = AttachRequest {
                key: AttachmentKey {
                    container_id: pod.clone(),
                    interface: "eth0".to_owned(),
                },
                netns: netns.clone(),
                pod_namespace: "bench".to_owned(),
                pod_name: pod.clone(),
                pod_uid: String::new(),
                socket_lb: *socket_lb,
            };
            let attachment = handle.pod_network.attach(&request).await?;
            let v4 = attachment.addresses.iter().find(|one| one.is_ipv4());
            Ok(json!({"address": v4.context("the pod has no IPv4 address")?}))
        }
        Order::Publish { near, far, count } => {
            let specs = kernel::services(*near, *far, *count);
            let frontends: usize = specs.iter().map(|spec| spec.ports.len()).sum();
            let objects = objects_of(&specs);
            drop(specs);
            let started = Instant::now();
            let mut problem = Ok(());
            changes.change(|changes| problem = fold(changes, &objects));
            problem?;
            drop(objects);
            let mut services = handle.services.clone();
            let done = services
                .wait_for(|status| status.synced && status.frontend_count >= frontends)
                .await?
                .clone();
            let elapsed = started.elapsed().as_secs_f64();
            if let Some(((owner, _), reason)) = done.problems.iter().next() {
                bail!("{owner}: {reason}");
            }
            Ok(json!({"seconds": elapsed, "frontends": done.frontend_count}))
        }
    }
}

fn node_address(number: u8) -> IpAddr {
    IpAddr::from([172, 30, 0, 10 + number])
}

/// Two nodes and no Service yet.
fn base(config: &NodeConfig) -> Result<Desired> {
    let mut desired = Desired::default();
    for number in [1, 2] {
        let object = json!({
            "apiVersion": "v1", "kind": "Node", "metadata": {"name": format!("n{number}")},
            "spec": {"podCIDR": format!("10.244.{number}.0/24"), "podCIDRs": [format!("10.244.{number}.0/24")]},
            "status": {"addresses": [{"type": "InternalIP", "address": node_address(number)}]},
        });
        let (node, problems) = node_of(&serde_json::from_value(object)?);
        ensure!(
            problems.is_empty(),
            "node {number} of {config:?} is refused"
        );
        desired.nodes.insert(node.name.clone(), Arc::new(node));
    }
    desired.sync.nodes = true;
    Ok(desired)
}

/// Kubernetes objects, as they come from the API.
#[derive(Debug, Default)]
pub(crate) struct Objects {
    pub(crate) services: Vec<k8s_openapi::api::core::v1::Service>,
    pub(crate) slices: Vec<k8s_openapi::api::discovery::v1::EndpointSlice>,
}

pub(crate) fn objects_of(specs: &[ServiceSpec]) -> Objects {
    Objects {
        services: specs.iter().map(spec::service_object).collect(),
        slices: specs.iter().flat_map(spec::slice_objects).collect(),
    }
}

/// Takes objects in as the agent's watches do after a list.
pub(crate) fn fold(changes: &mut Changes, objects: &Objects) -> Result<()> {
    for object in &objects.services {
        let service = service_of(object)?.context("the Service is not wanted")?;
        ensure!(
            service.complaints.is_empty(),
            "Service {} has problems",
            service.name
        );
        changes
            .services
            .insert(service.name.clone(), Arc::new(service));
    }
    for object in &objects.slices {
        fold_slice(changes, object)?;
    }
    changes.sync.services = true;
    changes.sync.slices = true;
    Ok(())
}

/// Takes one EndpointSlice, as the agent's watch does with an event.
pub(crate) fn fold_slice(
    changes: &mut Changes,
    object: &k8s_openapi::api::discovery::v1::EndpointSlice,
) -> Result<()> {
    let (slice, problems) = slice_of(object).context("the EndpointSlice is not wanted")?;
    ensure!(problems.is_empty(), "an EndpointSlice has problems");
    changes.slices.insert(slice.name.clone(), Arc::new(slice));
    Ok(())
}
