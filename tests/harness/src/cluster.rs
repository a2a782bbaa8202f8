//! A whole cluster: topology, containerd, control plane and agents, started in order and in parallel
//! where it can be, removed when dropped.

mod start;

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Command, Output};

use anyhow::{Context, Result};

use crate::binaries::Binaries;
use crate::cleanup;
use crate::image;
use crate::kubectl::Kubectl;
use crate::layout::{ClusterId, Layout, NodeLayout};
use crate::process::{Process, ProcessRef};
use crate::state::ClusterState;
use crate::tools::Versioned;
use crate::{command, containerd, netns, topology};

/// What cluster to start.
#[derive(Debug, Clone)]
pub struct Options {
    /// Its id; random by default.
    pub id: ClusterId,
    /// How many nodes.
    pub nodes: u8,
    /// The containerd version, `1.6` or `2.1`; by default what `THOLEPIN_CONTAINERD` says, else the
    /// first found.
    pub containerd: Option<String>,
    /// The kubectl version, `1.32` or `1.36`; by default what `THOLEPIN_KUBECTL` says, else the first
    /// found.
    pub kubectl: Option<String>,
    /// The programs; built (debug) by default.
    pub binaries: Option<Binaries>,
    /// Whether it stays when this process ends.
    pub leave_running: bool,
    /// Whether the fabric gets an image registry.
    pub registry: bool,
    /// More arguments for every agent.
    pub agent_arguments: Vec<String>,
    /// More arguments for the control plane.
    pub control_arguments: Vec<String>,
    /// Called with each step.
    pub progress: fn(&str),
}

impl Default for Options {
    fn default() -> Self {
        Self {
            id: ClusterId::random(),
            nodes: 2,
            containerd: std::env::var("THOLEPIN_CONTAINERD").ok(),
            kubectl: std::env::var("THOLEPIN_KUBECTL").ok(),
            binaries: None,
            leave_running: false,
            registry: false,
            agent_arguments: Vec::new(),
            control_arguments: Vec::new(),
            progress: |_| {},
        }
    }
}

/// A node of a running cluster.
#[derive(Debug)]
pub struct Node {
    /// Names, addresses, paths.
    pub layout: NodeLayout,
    /// Its containerd.
    pub containerd: Process,
    /// Its agent.
    pub agent: Option<Process>,
}

/// A running cluster.
#[derive(Debug)]
pub struct Cluster {
    /// Names, addresses, paths.
    pub layout: Layout,
    /// kubectl, as administrator.
    pub kubectl: Kubectl,
    /// The control plane.
    pub control: Option<Process>,
    /// The nodes, the first is `n1`.
    pub nodes: Vec<Node>,
    /// The registry, if one was asked for.
    pub registry: Option<Process>,
    /// The programs that run.
    pub binaries: Binaries,
    options: Options,
    containerd: Versioned,
    state: ClusterState,
    /// Held as long as the cluster: a restarted control plane is given the same socket, and clients
    /// that call in between wait instead of being refused, as with systemd's socket activation.
    listener: TcpListener,
}

impl Cluster {
    /// The loopback URL of the API server.
    #[must_use]
    pub fn server_url(&self) -> String {
        format!("https://127.0.0.1:{}", self.state.api_port)
    }

    /// Which containerd the nodes run.
    #[must_use]
    pub fn containerd_version(&self) -> &str {
        &self.containerd.version
    }

    /// `ctr` against a node's containerd.
    #[must_use]
    pub fn ctr(&self, node: usize) -> Command {
        containerd::ctr(&self.nodes[node].layout, &self.containerd)
    }

    /// Runs a program inside a node's network namespace; its standard output, or an error.
    pub fn run_on_node(&self, node: usize, mut program: Command) -> Result<String> {
        netns::run_inside(&mut program, &self.nodes[node].layout.namespace)?;
        command::run(&mut program)
    }

    /// Runs the toolbox inside a node's network namespace, whatever its exit code.
    pub fn toolbox_on_node(&self, node: usize, arguments: &[&str]) -> Result<Output> {
        let mut program = self.toolbox_command(node, arguments)?;
        command::output(&mut program)
    }

    /// The toolbox inside a node's network namespace, for the caller to start.
    pub fn toolbox_command(&self, node: usize, arguments: &[&str]) -> Result<Command> {
        let mut program = Command::new(&self.binaries.toolbox);
        program.args(arguments);
        netns::run_inside(&mut program, &self.nodes[node].layout.namespace)?;
        Ok(program)
    }

    /// kill -9 of a node's agent. Containers and traffic must not notice.
    pub fn kill_agent(&mut self, node: usize) -> Result<()> {
        match self.nodes[node].agent.take() {
            Some(mut agent) => agent.kill(),
            None => Ok(()),
        }
    }

    /// Starts a node's agent (again).
    pub fn start_agent(&mut self, node: usize) -> Result<()> {
        self.kill_agent(node)?;
        let layout = self.nodes[node].layout.clone();
        let agent = start::agent(&layout, &self.binaries, &self.options)?;
        self.record(agent.reference())?;
        self.nodes[node].agent = Some(agent);
        Ok(())
    }

    /// kill -9 of the control plane.
    pub fn kill_control(&mut self) -> Result<()> {
        match self.control.take() {
            Some(mut control) => control.kill(),
            None => Ok(()),
        }
    }

    /// Starts the control plane (again) and waits until it is ready.
    pub fn start_control(&mut self) -> Result<()> {
        self.kill_control()?;
        let mut control =
            start::control(&self.layout, &self.binaries, &self.options, &self.listener)?;
        self.record(control.reference())?;
        start::wait_for_control(&mut control, &self.kubectl)?;
        self.control = Some(control);
        Ok(())
    }

    /// kill -9 of a node's containerd. Containers must live on.
    pub fn kill_containerd(&mut self, node: usize) -> Result<()> {
        self.nodes[node].containerd.kill()
    }

    /// Starts a node's containerd again, after it was killed.
    pub fn start_containerd(&mut self, node: usize) -> Result<()> {
        let process = containerd::start(&self.nodes[node].layout, &self.containerd)?;
        self.record(process.reference())?;
        self.nodes[node].containerd = process;
        Ok(())
    }

    /// Pulls a node's network cable, or plugs it in again.
    pub fn set_node_link(&self, node: usize, up: bool) -> Result<()> {
        topology::set_node_link(&self.layout, &self.nodes[node].layout, up)
    }

    /// Loads an image into every node's containerd.
    pub fn load_image(&self, image: &image::Image) -> Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(&self.layout.state_dir)?;
        std::io::Write::write_all(&mut file, &image.archive()?)?;
        for node in &self.nodes {
            containerd::import(&node.layout, &self.containerd, file.path())?;
        }
        Ok(())
    }

    #[cfg(feature = "client")]
    /// Pushes an image to the fabric's registry; its name for a pod's spec.
    pub fn push_image(&self, image: &image::Image, path_and_tag: &str) -> Result<String> {
        crate::registry::push(&self.layout, image, path_and_tag)
    }

    /// The last log lines of every process, for a failed test.
    #[must_use]
    pub fn log_tails(&self, lines: usize) -> String {
        let parts = self.state.processes.iter().map(|process| {
            format!(
                "--- {} ({})\n{}\n",
                process.name,
                process.pid,
                process.last_log_lines(lines)
            )
        });
        parts.collect()
    }

    /// An error with its last log lines if a process of the cluster has ended.
    pub fn ensure_alive(&mut self) -> Result<()> {
        for process in self.control.iter_mut().chain(self.registry.iter_mut()) {
            process.ensure_alive()?;
        }
        for node in &mut self.nodes {
            node.containerd.ensure_alive()?;
            if let Some(agent) = &mut node.agent {
                agent.ensure_alive()?;
            }
        }
        Ok(())
    }

    /// Removes the cluster and says what could not be removed. Dropping it does the same, but can only
    /// print.
    pub fn remove(mut self) -> Result<()> {
        self.options.leave_running = true;
        cleanup::remove(&self.layout.id)
    }

    fn record(&mut self, process: &ProcessRef) -> Result<()> {
        self.state.processes.push(process.clone());
        self.state.write(&self.layout)
    }

    /// Copies the logs to where they outlive the cluster.
    fn keep_logs(&self) -> Result<PathBuf> {
        let name = std::thread::current()
            .name()
            .unwrap_or("test")
            .replace("::", "-");
        let kept = crate::layout::target_dir()
            .join("tholepin-failed")
            .join(name);
        std::fs::create_dir_all(&kept)?;
        for entry in std::fs::read_dir(self.layout.log_dir())?.flatten() {
            if entry.path().is_file() {
                std::fs::copy(entry.path(), kept.join(entry.file_name()))
                    .context("cannot copy a log")?;
            }
        }
        Ok(kept)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.options.leave_running {
            return;
        }
        if std::thread::panicking() {
            eprintln!("the cluster's last words:\n{}", self.log_tails(15));
            match self.keep_logs() {
                Ok(kept) => eprintln!("whole logs: {}", kept.display()),
                Err(error) => eprintln!("cannot keep the logs: {error:#}"),
            }
        }
        if std::env::var_os("THOLEPIN_KEEP").is_some() {
            eprintln!(
                "THOLEPIN_KEEP is set: remove cluster {0} with `cargo xtask down --id {0}`",
                self.layout.id
            );
            return;
        }
        if let Err(error) = cleanup::remove(&self.layout.id) {
            eprintln!("{error:#}");
            assert!(
                std::thread::panicking(),
                "the cluster could not be removed: {error:#}"
            );
        }
    }
}
