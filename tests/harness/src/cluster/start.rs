//! Starting a cluster: what must exist before what, and what can go on at the same time.

use std::fs;
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};

use super::{Cluster, Node, Options};
use crate::binaries::{Binaries, Profile};
use crate::command::{self, pause};
use crate::image;
use crate::kubectl::Kubectl;
use crate::layout::{API_PORT, FABRIC_IPV4, Layout, NodeLayout, workspace_root};
use crate::process::{Process, ProcessRef};
use crate::state::ClusterState;
use crate::tools::{self, Versioned};
use crate::{cleanup, containerd, netns, registry, topology};

/// How long an unloaded machine may take for one step; generous, for loaded ones.
const LIMIT: Duration = Duration::from_secs(60);

impl Cluster {
    /// Starts a cluster and returns when every node is Ready. On an error nothing is left behind.
    pub fn start_blocking(options: Options) -> Result<Self> {
        crate::skip::root()?;
        for removed in cleanup::sweep()? {
            (options.progress)(&format!("removed what cluster {removed} had left"));
        }
        let id = options.id.clone();
        if !cleanup::leftovers(&id)?.is_empty() {
            (options.progress)(&format!("removing what cluster {id} had left"));
            cleanup::remove(&id)?;
        }
        let leave = options.leave_running;
        start(options).inspect_err(|_| {
            if leave || std::env::var_os("THOLEPIN_KEEP").is_none() {
                cleanup::remove(&id).unwrap_or_else(|error| eprintln!("{error:#}"));
            }
        })
    }
}

fn start(options: Options) -> Result<Cluster> {
    let progress = options.progress;
    let containerd = tools::containerd(options.containerd.as_deref())?;
    let kubectl = tools::kubectl(options.kubectl.as_deref())?;
    let binaries = match &options.binaries {
        Some(binaries) => binaries.clone(),
        None => Binaries::build(Profile::Debug)?,
    };
    let layout = Layout::new(&options.id);
    fs::create_dir_all(layout.log_dir())
        .with_context(|| format!("cannot create {}", layout.log_dir().display()))?;
    // In the machine's own namespace and on loopback: the only way into the fabric.
    let listener = TcpListener::bind(("127.0.0.1", 0)).context("cannot listen on 127.0.0.1")?;
    let mut state = ClusterState {
        owner: (!options.leave_running).then(ProcessRef::current),
        workspace: workspace_root(),
        state_dir: layout.state_dir.clone(),
        api_port: listener.local_addr()?.port(),
        nodes: options.nodes,
        complete: false,
        mounted_bpffs: false,
        processes: Vec::new(),
    };
    state.write(&layout)?;
    state.mounted_bpffs = cleanup::ensure_bpffs()?;
    state.write(&layout)?;

    progress("network namespaces, containerd and images");
    topology::create_fabric(&layout)?;
    let layouts: Vec<NodeLayout> = (1..=options.nodes)
        .map(|number| layout.node(number))
        .collect();
    for node in &layouts {
        topology::create_node(&layout, node)?;
    }
    let archives = image::archives(&binaries.toolbox)?;
    let daemons = start_containerds(&layouts, &containerd, &archives)?;
    state
        .processes
        .extend(daemons.iter().map(|process| process.reference().clone()));
    state.write(&layout)?;

    let kubectl = Kubectl::new(&kubectl.path, &layout.kubeconfig());
    let mut cluster = Cluster {
        nodes: layouts
            .into_iter()
            .zip(daemons)
            .map(|(layout, containerd)| Node {
                layout,
                containerd,
                agent: None,
            })
            .collect(),
        layout,
        kubectl,
        control: None,
        registry: None,
        binaries,
        options,
        containerd,
        state,
        listener,
    };
    if let Err(error) = cluster.start_our_programs() {
        let tails = cluster.log_tails(10);
        // Removed by the caller; dropping it here would do that twice.
        cluster.options.leave_running = true;
        return Err(anyhow!("{tails}")).context(format!("{error:#}"));
    }
    Ok(cluster)
}

impl Cluster {
    fn start_our_programs(&mut self) -> Result<()> {
        let progress = self.options.progress;
        progress("control plane");
        self.start_control()?;
        if self.options.registry {
            let registry = registry::start(&self.layout)?;
            self.record(registry.reference())?;
            self.registry = Some(registry);
        }
        progress("agents");
        for node in 0..self.nodes.len() {
            write_credentials(&self.layout, &self.nodes[node].layout, &self.binaries)?;
            self.start_agent(node)?;
        }
        progress("waiting until every node is Ready");
        self.wait_for_nodes(LIMIT)?;
        self.state.complete = true;
        self.state.write(&self.layout)
    }

    /// Waits until every node is Ready, or says which process ended.
    pub fn wait_for_nodes(&mut self, limit: Duration) -> Result<()> {
        let end = Instant::now() + limit;
        let names: Vec<String> = self
            .nodes
            .iter()
            .map(|node| format!("node/{}", node.layout.name))
            .collect();
        // A control plane without nodes has nothing to wait for.
        while !names.is_empty() {
            // kubectl watches; it ends at once with NotFound as long as a node has not registered.
            let mut arguments = vec!["wait", "--for=condition=Ready", "--timeout=2s"];
            arguments.extend(names.iter().map(String::as_str));
            let outcome = self.kubectl.outcome(&arguments)?;
            if outcome.code == Some(0) {
                return Ok(());
            }
            self.ensure_alive()?;
            if Instant::now() > end {
                let nodes = self.kubectl.outcome(&["describe", "nodes"])?.stdout;
                bail!(
                    "not all nodes are Ready after {limit:?}: {}\n{nodes}",
                    outcome.stderr.trim()
                );
            }
            pause(Duration::from_millis(100));
        }
        Ok(())
    }
}

/// All nodes' containerds at the same time, each loading its images when it is up.
fn start_containerds(
    nodes: &[NodeLayout],
    version: &Versioned,
    archives: &[PathBuf],
) -> Result<Vec<Process>> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = nodes
            .iter()
            .map(|node| {
                scope.spawn(move || -> Result<Process> {
                    let process = containerd::start(node, version)?;
                    for archive in archives {
                        containerd::import(node, version, archive)?;
                    }
                    Ok(process)
                })
            })
            .collect();
        let joined = threads.into_iter().map(|thread| match thread.join() {
            Ok(outcome) => outcome,
            Err(panic) => std::panic::resume_unwind(panic),
        });
        joined.collect()
    })
}

/// Starts control-lite in the fabric, listening there and on the loopback socket it is given.
pub(super) fn control(
    layout: &Layout,
    binaries: &Binaries,
    options: &Options,
    listener: &TcpListener,
) -> Result<Process> {
    let port = listener.local_addr()?.port();
    // LISTEN_PID must be the pid of the program that is executed, so a shell sets it and becomes it.
    let mut command = Command::new("/bin/sh");
    command
        .args(["-c", "LISTEN_PID=$$ exec \"$0\" \"$@\""])
        .arg(&binaries.control)
        .arg("serve")
        .arg("--data-dir")
        .arg(layout.control_dir())
        .args(["--bind-address", &FABRIC_IPV4.to_string()])
        .args(["--secure-port", &API_PORT.to_string()])
        .args(["--advertise-address", &FABRIC_IPV4.to_string()])
        .args(["--tls-san", "127.0.0.1", "--tls-san", "localhost"])
        .arg("--write-kubeconfig")
        .arg(layout.kubeconfig())
        .args(["--kubeconfig-server", &format!("https://127.0.0.1:{port}")])
        .args(&options.control_arguments)
        .env("LISTEN_FDS", "1");
    netns::pass_as_fd_3(&mut command, OwnedFd::from(listener.try_clone()?));
    let log = layout.log_dir().join("control.log");
    Process::start("control", command, Some(&layout.id.fabric()), &log)
}

/// Waits until the API server says that it is ready.
pub(super) fn wait_for_control(control: &mut Process, kubectl: &Kubectl) -> Result<()> {
    let mut answer = String::new();
    control
        .wait_until("the API server", LIMIT, || {
            let asked = ["get", "--raw", "/readyz", "--request-timeout=2s"];
            match kubectl.outcome(&asked) {
                Ok(outcome) => {
                    answer = outcome.stderr;
                    outcome.code == Some(0)
                }
                Err(_) => false,
            }
        })
        .with_context(|| format!("the last answer of /readyz: {}", answer.trim()))
}

fn write_credentials(layout: &Layout, node: &NodeLayout, binaries: &Binaries) -> Result<()> {
    command::run(
        Command::new(&binaries.control)
            .arg("node-credentials")
            .arg("--data-dir")
            .arg(layout.control_dir())
            .args(["--node", &node.name])
            .args(["--address", &node.ipv4().to_string()])
            .args(["--address", &node.ipv6().to_string()])
            .args(["--server", &format!("https://{FABRIC_IPV4}:{API_PORT}")])
            .arg("--out")
            .arg(node.credentials_dir()),
    )
    .with_context(|| format!("cannot make credentials for {}", node.name))?;
    Ok(())
}

/// Starts a node's agent.
pub(super) fn agent(node: &NodeLayout, binaries: &Binaries, options: &Options) -> Result<Process> {
    for dir in [node.agent_dir(), node.agent_run_dir()] {
        fs::create_dir_all(&dir).with_context(|| format!("cannot create {}", dir.display()))?;
    }
    let credentials = node.credentials_dir();
    let mut command = Command::new(&binaries.agent);
    command
        .args(["--node-name", &node.name])
        .arg("--kubeconfig")
        .arg(credentials.join("kubeconfig"))
        .args(["--node-ip", &format!("{},{}", node.ipv4(), node.ipv6())])
        .arg("--containerd-socket")
        .arg(node.containerd_socket())
        .arg("--bpffs-root")
        .arg(node.bpffs_root())
        .arg("--state-dir")
        .arg(node.agent_dir())
        // A developer's disk is often fuller than a server's; that must not keep pods from running.
        .args([
            "--eviction-hard",
            "memory.available<100Mi,nodefs.available<1%",
        ])
        .arg("--run-dir")
        .arg(node.agent_run_dir())
        .arg("--log-dir")
        .arg(node.state_dir.join("pod-logs"))
        .arg("--container-log-dir")
        .arg(node.state_dir.join("container-logs"))
        .args(["--cgroup-parent", &node.cgroup_parent()])
        .arg("--tls-cert-file")
        .arg(credentials.join("kubelet.crt"))
        .arg("--tls-private-key-file")
        .arg(credentials.join("kubelet.key"))
        .arg("--client-ca-file")
        .arg(credentials.join("ca.crt"))
        .args(["--plain-http-registry", &registry::authority()])
        .args(&options.agent_arguments);
    let name = format!("{}-agent", node.name);
    Process::start(&name, command, Some(&node.namespace), &node.log("agent"))
}
