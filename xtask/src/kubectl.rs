//! `kubectl`: runs kubectl against the running cluster, in the caller's folder and terminal.

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use clap::Args;
use tholepin_harness::state::ClusterState;
use tholepin_harness::{ClusterId, Kubectl, tools};

/// Names a cluster other than `demo`; every argument is kubectl's own.
pub(crate) const ID_VARIABLE: &str = "THOLEPIN_CLUSTER";

/// Run kubectl against the running cluster
///
/// Uses the kubectl on PATH, or the one that setup fetched: `cargo xtask kubectl get pods -o wide`.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// kubectl's own arguments
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) arguments: Vec<String>,
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let id: ClusterId = std::env::var(ID_VARIABLE)
        .as_deref()
        .unwrap_or("demo")
        .parse()?;
    let state = ClusterState::read(&id)?
        .with_context(|| format!("cluster {id} is not running: start it with `cargo xtask up`"))?;
    let tool = tools::kubectl(None)?;
    let kubectl = Kubectl::new(&tool.path, &state.state_dir.join("kubeconfig"));
    let mut command = Command::new(&tool.path);
    command.args(&options.arguments);
    kubectl.prepare(&mut command);
    // Becomes kubectl: signals, terminal and exit code are its own. Returns only on an error.
    Err(command.exec()).with_context(|| format!("cannot start {}", tool.path.display()))
}
