//! `up`: a cluster on this machine, from nothing to Ready nodes, left running.

use std::io::IsTerminal;
use std::sync::OnceLock;
use std::time::Instant;

use anyhow::{Result, bail};
use clap::Args;
use tholepin_harness::state::ClusterState;
use tholepin_harness::{Binaries, Cluster, ClusterId, Profile, cleanup, cluster, workspace_root};

use crate::setup::{self, Needs};
use crate::shell::{human, step};
use crate::{demo, kubectl};

/// Start a cluster on this machine and leave it running
///
/// Installs what is missing, builds everything, starts a control plane and nodes in network namespaces
/// of their own, each with its own containerd, loads the test images and returns when every node is
/// Ready. Nothing of it is reachable from outside this machine; kubectl talks to a port on 127.0.0.1.
/// `cargo xtask down` removes it all.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// How many nodes
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u8).range(1..=20))]
    nodes: u8,
    /// Afterwards, run the demo: a Deployment and a Service, 600 calls, a report
    #[arg(long)]
    demo: bool,
    /// Build without optimisation: quicker to build, larger and slower to run
    #[arg(long, conflicts_with = "release")]
    debug: bool,
    /// Build with optimisation (the default)
    #[arg(long)]
    release: bool,
    /// The cluster's id; another one starts a second cluster beside the first
    #[arg(long, default_value = "demo")]
    id: ClusterId,
    /// The containerd version, where there are several (`1.6`, `2.1`)
    #[arg(long)]
    containerd: Option<String>,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    tholepin_harness::skip::root()
        .map_err(|_| anyhow::anyhow!("a cluster needs root: namespaces, cgroups, eBPF"))?;
    setup::ensure(Needs::Run)?;
    if is_running(options)? {
        return if options.demo {
            demo::run(&options.id)
        } else {
            Ok(())
        };
    }
    let profile = if options.debug {
        Profile::Debug
    } else {
        Profile::Release
    };
    let (binaries, _) = step("build", || {
        if std::io::stderr().is_terminal() {
            println!("    the first build takes some minutes");
        }
        Binaries::build(profile)
    })?;
    let (cluster, _) = step(&format!("cluster `{}`", options.id), || {
        Cluster::start_blocking(cluster::Options {
            id: options.id.clone(),
            nodes: options.nodes,
            containerd: options.containerd.clone(),
            binaries: Some(binaries),
            leave_running: true,
            progress,
            ..cluster::Options::default()
        })
    })?;
    print!(
        "\n{}",
        cluster.kubectl.run(&["get", "nodes", "-o", "wide"])?
    );
    drop(cluster);
    if options.demo {
        demo::run(&options.id)?;
    }
    explain(&options.id);
    Ok(())
}

/// Says so when the cluster is already there and whole; what is left of a crashed one is cleaned away
/// by the start.
fn is_running(options: &Options) -> Result<bool> {
    let id = &options.id;
    let Some(state) = ClusterState::read(id)? else {
        return Ok(false);
    };
    if state.owner.as_ref().is_some_and(|owner| owner.is_alive()) {
        bail!("cluster {id} belongs to a test that is running");
    }
    let dead: Vec<&str> = state
        .dead_processes()
        .iter()
        .map(|process| process.name.as_str())
        .collect();
    if !state.complete || !dead.is_empty() {
        let why = if dead.is_empty() {
            "did not start wholly".to_owned()
        } else {
            format!("has lost {}", dead.join(", "))
        };
        println!("==> cluster {id} {why}: starting anew");
        cleanup::remove(id)?;
        return Ok(false);
    }
    if state.workspace != workspace_root() {
        bail!(
            "cluster {id} is running, started from {}: use another --id, or `cargo xtask down`",
            state.workspace.display()
        );
    }
    if state.nodes != options.nodes {
        bail!(
            "cluster {id} is running with {} nodes; `cargo xtask down` first to change that",
            state.nodes
        );
    }
    println!("cluster {id} is already running");
    if !options.demo {
        explain(id);
    }
    Ok(true)
}

fn progress(what: &str) {
    static STARTED: OnceLock<Instant> = OnceLock::new();
    let elapsed = STARTED.get_or_init(Instant::now).elapsed();
    println!("    {:>6}  {what}", human(elapsed));
}

/// The next commands to type.
fn explain(id: &ClusterId) {
    let layout = tholepin_harness::Layout::new(id);
    let option = if id.to_string() == "demo" {
        String::new()
    } else {
        format!(" --id {id}")
    };
    println!(
        "\nThe cluster is running. Next:\n\
         \x20 export KUBECONFIG={}\n\
         \x20 kubectl get nodes -o wide            (or: {}cargo xtask kubectl get nodes -o wide)\n\
         \x20 kubectl apply -f examples/           examples/README.md walks through them\n\
         \x20 kubectl get pods -o wide --watch\n\
         Logs: {}\n\
         Shell in a node: nsenter --net=/run/netns/{}\n\
         Remove everything: cargo xtask down{option}",
        layout.kubeconfig().display(),
        if option.is_empty() {
            String::new()
        } else {
            format!("{}={id} ", kubectl::ID_VARIABLE)
        },
        layout.log_dir().display(),
        layout.node(1).namespace,
    );
}
