//! Our dataplane: two nodes with real agents, a client and a server pod on the first and a server pod on
//! the second, and a number of Services.

use std::net::Ipv4Addr;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use tholepin_agent::dataplane::socket_lb::ensure_pods_cgroup;
use tholepin_harness::netns;

use super::kernel::join_nodes;
use super::node::{NodeConfig, Order};
use super::sandbox::{NodeIo, Sandbox};

/// Two nodes with agents.
#[derive(Debug)]
pub(crate) struct TholepinNodes {
    /// Asks Services.
    pub(crate) client: String,
    /// Asks pods. Not the same as `client`: a server keeps closed connections for a minute, and one that
    /// came through a Service and one that came directly look alike to it, but their clocks differ, for
    /// the client derives them from the address it asked; such a connection is refused at first.
    pub(crate) direct_client: String,
    /// Asks Services with sockets that are balanced when they connect, from this cgroup.
    pub(crate) socket_client: Option<(String, PathBuf)>,
    pub(crate) near: Ipv4Addr,
    pub(crate) far: Ipv4Addr,
    /// Seconds from objects to programmed on the client's node, in the agent itself.
    pub(crate) programmed_in: f64,
    /// The processes, the client's node first.
    pub(crate) nodes: Vec<NodeIo>,
    /// The pins of the client's node.
    pub(crate) pins: PathBuf,
}

/// Starts the nodes, attaches the pods and waits until the Services are programmed.
pub(crate) fn start(
    sandbox: &mut Sandbox,
    tag: &str,
    services: u32,
    server_cpu: usize,
) -> Result<TholepinNodes> {
    let namespaces = join_nodes(sandbox, tag)?;
    let mut nodes = Vec::new();
    let mut cgroup = None;
    for (number, namespace) in (1..).zip(&namespaces) {
        let short = format!("{tag}-n{number}");
        let of_node = ensure_pods_cgroup(&sandbox.name(&short))?;
        let config = NodeConfig {
            number,
            cgroup: of_node.clone(),
            bpffs_root: sandbox.pins(&short),
            directory: sandbox.directory(&short)?,
        };
        nodes.push(sandbox.node(namespace, &serde_json::to_string(&config)?)?);
        cgroup = cgroup.or(of_node);
    }
    let mut attach = |name: &str, node: usize| -> Result<(String, Ipv4Addr)> {
        let pod = sandbox.namespace(&format!("{tag}-{name}"))?;
        let order = Order::Attach {
            pod: name.to_owned(),
            netns: netns::path(&pod),
            socket_lb: name == "socket",
        };
        let answer = ask(&mut nodes[node], &order)?;
        let address = answer["address"].as_str().context("no address")?;
        Ok((pod, address.parse()?))
    };
    let (client, _) = attach("client", 0)?;
    let (direct_client, _) = attach("direct", 0)?;
    let (socket_client, _) = attach("socket", 0)?;
    let (near_pod, near) = attach("near", 0)?;
    let (far_pod, far) = attach("far", 1)?;
    sandbox.serve(&near_pod, server_cpu)?;
    sandbox.serve(&far_pod, server_cpu)?;
    let mut programmed_in = 0.0;
    // The other node first, so that the figure that is kept is of a quiet machine.
    for node in nodes.iter_mut().rev() {
        let order = Order::Publish {
            near,
            far,
            count: services,
        };
        let answer = ask(node, &order)?;
        programmed_in = answer["seconds"].as_f64().context("no duration")?;
    }
    Ok(TholepinNodes {
        client,
        direct_client,
        socket_client: cgroup.map(|cgroup| (socket_client, cgroup)),
        near,
        far,
        programmed_in,
        pins: sandbox.pins(&format!("{tag}-n1")),
        nodes,
    })
}

fn ask(node: &mut NodeIo, order: &Order) -> Result<serde_json::Value> {
    let answer = node.ask(&serde_json::to_string(order)?)?;
    if let Some(error) = answer["error"].as_str() {
        bail!("{order:?}: {error}");
    }
    Ok(answer)
}
