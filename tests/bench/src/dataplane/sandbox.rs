//! Namespaces, processes and pins of one run, and their removal: at the end, on a failure, and, after a
//! kill, by the next run or by `cargo xtask test`, because they carry a cluster's names.

use std::io::{BufRead, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail};
use tholepin_harness::layout::workspace_root;
use tholepin_harness::state::ClusterState;
use tholepin_harness::{ClusterId, Layout, ProcessRef, cleanup, command, netns};

/// Everything a run has made.
#[derive(Debug)]
pub(crate) struct Sandbox {
    id: ClusterId,
    toolbox: PathBuf,
    directory: tempfile::TempDir,
    children: Vec<Child>,
}

impl Sandbox {
    /// An empty one, after what a killed run left has been removed.
    pub(crate) fn new(toolbox: &Path) -> Result<Self> {
        cleanup::sweep().context("removing what an earlier run left")?;
        let id = ClusterId::random();
        let layout = Layout::new(&id);
        let state = ClusterState {
            owner: Some(ProcessRef::current()),
            workspace: workspace_root().to_owned(),
            state_dir: layout.state_dir.clone(),
            api_port: 0,
            nodes: 0,
            complete: false,
            mounted_bpffs: cleanup::ensure_bpffs()?,
            processes: Vec::new(),
        };
        state.write(&layout)?;
        Ok(Self {
            id,
            toolbox: toolbox.to_owned(),
            directory: tempfile::tempdir()?,
            children: Vec::new(),
        })
    }

    /// The full name of a namespace of this run.
    pub(crate) fn name(&self, short: &str) -> String {
        format!("{}{short}", self.id.prefix())
    }

    /// A directory for pins, below the bpffs; made by who uses it.
    pub(crate) fn pins(&self, short: &str) -> PathBuf {
        Path::new("/sys/fs/bpf").join(self.name(short))
    }

    /// A directory for files.
    pub(crate) fn directory(&self, short: &str) -> Result<PathBuf> {
        let path = self.directory.path().join(short);
        std::fs::create_dir_all(&path)?;
        Ok(path)
    }

    /// Makes a namespace with its loopback up; its full name.
    pub(crate) fn namespace(&self, short: &str) -> Result<String> {
        let name = self.name(short);
        command::run(Command::new("ip").args(["netns", "add", &name]))?;
        ip(&name, "link set lo up\n")?;
        Ok(name)
    }

    /// Starts the load's server in a namespace and waits until it listens.
    pub(crate) fn serve(&mut self, namespace: &str, cpu: usize) -> Result<()> {
        let mut command = Command::new(&self.toolbox);
        command
            .args(["load-serve", "--address", "0.0.0.0", "--ports"])
            .arg(super::spec::PORTS_PER_KIND.to_string())
            .args(["--port", &super::spec::FIRST_PORT.to_string()])
            .args(["--cpu", &cpu.to_string(), "--realtime"]);
        netns::run_inside(&mut command, namespace)?;
        let mut child = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start the toolbox")?;
        let output = child.stdout.take().expect("stdout is piped");
        self.children.push(child);
        let mut line = String::new();
        BufReader::new(output).read_line(&mut line)?;
        if !line.contains("port") {
            bail!("the load's server in {namespace} does not start");
        }
        Ok(())
    }

    /// One run of the load's client, in a cgroup if one is given; its report.
    pub(crate) fn load(
        &self,
        namespace: &str,
        cgroup: Option<&Path>,
        cpu: usize,
        arguments: &[String],
    ) -> Result<serde_json::Value> {
        let mut command = match cgroup {
            None => Command::new(&self.toolbox),
            Some(cgroup) => {
                // The shell joins the cgroup and then becomes the toolbox.
                let mut shell = Command::new("sh");
                shell
                    .args(["-c", "echo $$ > \"$0/cgroup.procs\" && exec \"$@\""])
                    .arg(cgroup)
                    .arg(&self.toolbox);
                shell
            }
        };
        command
            .arg("load")
            .args(["--cpu", &cpu.to_string(), "--realtime"])
            .args(arguments);
        netns::run_inside(&mut command, namespace)?;
        let report = command::run(&mut command)?;
        serde_json::from_str(&report).with_context(|| format!("unexpected report `{report}`"))
    }

    /// Starts a node's process, which reads orders from its standard input and answers on its output.
    pub(crate) fn node(&mut self, namespace: &str, config: &str) -> Result<NodeIo> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["node", config]);
        netns::run_inside(&mut command, namespace)?;
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("cannot start a node")?;
        let io = NodeIo {
            pid: child.id().cast_signed(),
            input: child.stdin.take().expect("stdin is piped"),
            output: BufReader::new(child.stdout.take().expect("stdout is piped")),
        };
        self.children.push(child);
        Ok(io)
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        for child in &mut self.children {
            // It may have ended already; `remove` finds what has not.
            child.kill().ok();
            child.wait().ok();
        }
        if let Err(error) = cleanup::remove(&self.id) {
            eprintln!("warning: cleaning up: {error:#}");
        }
    }
}

/// A node's process from outside.
#[derive(Debug)]
pub(crate) struct NodeIo {
    pub(crate) pid: i32,
    input: std::process::ChildStdin,
    output: BufReader<std::process::ChildStdout>,
}

impl NodeIo {
    /// Sends an order and waits for the answer.
    pub(crate) fn ask(&mut self, order: &str) -> Result<serde_json::Value> {
        writeln!(self.input, "{order}").context("the node has ended")?;
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        serde_json::from_str(&line).with_context(|| format!("the node answers `{}`", line.trim()))
    }
}

/// Runs a batch of `ip` commands in a namespace.
pub(crate) fn ip(namespace: &str, batch: &str) -> Result<()> {
    let mut ip = Command::new("ip");
    ip.args(["-n", namespace, "-batch", "-"]);
    command::run_with_input(&mut ip, batch).with_context(|| format!("in {namespace}:\n{batch}"))?;
    Ok(())
}

/// Sets sysctls below `/proc/sys/net` in a namespace.
pub(crate) fn sysctl(namespace: &str, settings: &'static [(&str, &str)]) -> Result<()> {
    netns::inside(namespace, move || -> Result<()> {
        for (path, value) in settings {
            std::fs::write(Path::new("/proc/sys/net").join(path), value)
                .with_context(|| format!("sysctl {path}"))?;
        }
        Ok(())
    })?
}
