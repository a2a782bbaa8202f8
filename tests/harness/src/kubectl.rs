//! Running kubectl against a cluster. It runs in the machine's own network namespace and talks to
//! 127.0.0.1; its cache stays in the cluster's folder.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use crate::command;

/// A kubectl and the cluster it talks to.
#[derive(Debug, Clone)]
pub struct Kubectl {
    program: PathBuf,
    kubeconfig: PathBuf,
    cache: PathBuf,
}

/// What a kubectl printed and how it ended.
#[derive(Debug, Clone)]
pub struct Outcome {
    /// Standard output.
    pub stdout: String,
    /// Standard error.
    pub stderr: String,
    /// The exit code; `None` after a signal.
    pub code: Option<i32>,
}

impl Kubectl {
    /// The kubectl `program` with the administrator's kubeconfig.
    #[must_use]
    pub fn new(program: &Path, kubeconfig: &Path) -> Self {
        let cache = kubeconfig.with_file_name("kubectl-cache");
        Self {
            program: program.to_owned(),
            kubeconfig: kubeconfig.to_owned(),
            cache,
        }
    }

    /// The same cluster with another kubectl.
    #[must_use]
    pub fn with_program(&self, program: &Path) -> Self {
        Self {
            program: program.to_owned(),
            ..self.clone()
        }
    }

    /// A kubectl command for the caller to run.
    #[must_use]
    pub fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(arguments);
        self.prepare(&mut command);
        command
    }

    /// Points a kubectl command at the cluster.
    pub fn prepare(&self, command: &mut Command) {
        command
            .env("KUBECONFIG", &self.kubeconfig)
            .env("KUBECACHEDIR", &self.cache);
        // A proxy has no business between kubectl and 127.0.0.1.
        command
            .env("NO_PROXY", "127.0.0.1")
            .env("no_proxy", "127.0.0.1");
    }

    /// Runs kubectl; its standard output, or an error with what it said.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        command::run(&mut self.command(arguments))
    }

    /// Runs kubectl with `manifest` on its standard input (`-f -`).
    pub fn run_with_input(&self, arguments: &[&str], manifest: &str) -> Result<String> {
        command::run_with_input(&mut self.command(arguments), manifest)
    }

    /// Runs kubectl whatever its exit code, for tests of what it says when something is wrong.
    pub fn outcome(&self, arguments: &[&str]) -> Result<Outcome> {
        let output = command::output(&mut self.command(arguments))?;
        Ok(Outcome {
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
            code: output.status.code(),
        })
    }

    /// Runs kubectl with `-o json` and parses what it prints.
    pub fn json(&self, arguments: &[&str]) -> Result<serde_json::Value> {
        let text = self.run(&[arguments, &["-o", "json"]].concat())?;
        serde_json::from_str(&text)
            .with_context(|| format!("kubectl {} printed no JSON", arguments.join(" ")))
    }
}
