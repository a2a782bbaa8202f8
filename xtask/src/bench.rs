//! `bench`: builds what is measured, as users run it, and starts a suite. What a suite does is its own
//! program's business; this file cleans up after it.

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use nix::sys::signal::{SigSet, Signal};
use tholepin_harness::layout::target_dir;
use tholepin_harness::{binaries, cleanup};

use crate::setup::{self, Needs};
use crate::shell::{cargo, show, step};

/// Measure, and compare with what others do
///
/// Everything a suite compares is measured interleaved in one run. `cargo xtask bench SUITE --help` lists
/// a suite's own options; docs/design/bench.md says how to read the results.
#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(subcommand)]
    suite: Suite,
}

#[derive(Debug, Subcommand)]
enum Suite {
    /// The dataplane: traffic, programming, programs, memory
    #[command(disable_help_flag = true)]
    Dataplane {
        /// The suite's own options; --help lists them
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<String>,
    },
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    // A Ctrl-C ends cargo and the suite; this process stays for cleaning up.
    let mut held = SigSet::empty();
    held.add(Signal::SIGINT);
    held.add(Signal::SIGTERM);
    held.thread_block().context("cannot hold back SIGINT")?;
    let Suite::Dataplane { options } = &options.suite;
    setup::ensure(Needs::Build)?;
    setup::ensure_named(&["ip", "nft", "iptables"])?;
    let (toolbox, _) = step("build", || {
        show(cargo().args(["build", "--quiet", "--release", "-p", "tholepin-bench"]))?;
        binaries::toolbox()
    })?;
    let mut command = Command::new(target_dir().join("release/tholepin-bench"));
    command
        .arg("dataplane")
        .arg("--toolbox")
        .arg(toolbox)
        .arg("--out")
        .arg(target_dir().join("bench"))
        .args(options);
    let status = command.status().context("cannot start the suite")?;
    if status.signal().is_some() {
        cleanup::sweep()?;
    }
    Ok(match status.code() {
        Some(0) => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    })
}
