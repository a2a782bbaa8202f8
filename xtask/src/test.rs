//! `test`: the four layers of tests, with counts. Knows nothing about single tests: cargo builds and
//! runs them, this file says what belongs to a layer and cleans up after it.

mod count;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use nix::sys::signal::{SigSet, Signal};
use tholepin_harness::{cleanup, skip};

use self::count::Count;
use crate::setup::{self, Needs};
use crate::shell::{cargo, human};

/// Run the tests: all layers, or one, or those whose name contains a text
///
/// Layers, from the quickest: `unit` needs nothing; `dataplane` runs the eBPF programs in the kernel
/// (BPF_PROG_TEST_RUN); `node` runs agents and containerd in network namespaces; `cluster` adds the
/// control plane and kubectl. The last three need root. A test that lacks something says so and is
/// counted as skipped; under CI=1 it fails. Whatever happens, namespaces, mounts, cgroups, pins and
/// processes of the tests are removed at the end.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Only this layer
    layer: Option<Layer>,
    /// Only tests whose name contains this
    filter: Option<String>,
    /// Print what tests print, also when they pass
    #[arg(long)]
    nocapture: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Layer {
    Unit,
    Dataplane,
    Node,
    Cluster,
}

impl Layer {
    const ALL: [Self; 4] = [Self::Unit, Self::Dataplane, Self::Node, Self::Cluster];

    fn name(self) -> &'static str {
        match self {
            Self::Unit => "unit",
            Self::Dataplane => "dataplane",
            Self::Node => "node",
            Self::Cluster => "cluster",
        }
    }

    fn about(self) -> &'static str {
        match self {
            Self::Unit => "pure logic and single crates",
            Self::Dataplane => "eBPF programs in the kernel, packet by packet",
            Self::Node => "agents and containerd in network namespaces",
            Self::Cluster => "control plane, agents and kubectl end to end",
        }
    }

    /// Packages of the privileged layers; every other package's tests are unit tests.
    fn packages(self) -> &'static [&'static str] {
        match self {
            Self::Unit => &[],
            Self::Dataplane => &["tholepin-tests-dataplane"],
            Self::Node => &["tholepin-harness", "tholepin-tests-node"],
            Self::Cluster => &["tholepin-tests-cluster"],
        }
    }
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    // A Ctrl-C ends cargo and the tests; this process stays for cleaning up.
    let mut held = SigSet::empty();
    held.add(Signal::SIGINT);
    held.add(Signal::SIGTERM);
    held.thread_block().context("cannot hold back SIGINT")?;
    setup::ensure(if is_ci() { Needs::Ci } else { Needs::Run })?;
    let layers = match options.layer {
        Some(layer) => vec![layer],
        None => Layer::ALL.to_vec(),
    };
    let mut results = Vec::new();
    for layer in layers {
        let result = run_layer(layer, options)?;
        let interrupted = result.interrupted;
        results.push(result);
        if interrupted {
            break;
        }
    }
    Ok(summary(&results, options.filter.as_deref()))
}

/// Whether this is a CI machine, where nothing may be missing.
pub(crate) fn is_ci() -> bool {
    std::env::var("CI").is_ok_and(|value| !value.is_empty() && value != "0")
}

struct LayerResult {
    layer: Layer,
    count: Count,
    skipped: Vec<String>,
    /// Cargo's own failure (a test program that did not build or crashed) without a failed test.
    broken: bool,
    interrupted: bool,
    time: Duration,
}

fn run_layer(layer: Layer, options: &Options) -> Result<LayerResult> {
    println!("==> {} tests: {}", layer.name(), layer.about());
    let started = Instant::now();
    let packages = match layer {
        Layer::Unit => unit_packages()?,
        other => other
            .packages()
            .iter()
            .map(|name| (*name).to_owned())
            .collect(),
    };
    let report = tempfile::NamedTempFile::new()?;
    let mut command = cargo();
    command.args(["test", "--no-fail-fast"]);
    for package in &packages {
        command.args(["--package", package]);
    }
    command.arg("--");
    command.args(options.filter.as_deref());
    if options.nocapture {
        command.arg("--nocapture");
    }
    if matches!(layer, Layer::Node | Layer::Cluster)
        && std::env::var_os("RUST_TEST_THREADS").is_none()
    {
        // Each of these tests starts daemons; more at a time only makes them wait for each other.
        command.args(["--test-threads", "2"]);
    }
    command.env(skip::REPORT_VARIABLE, report.path());
    let (count, status) = run_counting(&mut command)?;
    clean_up();
    Ok(LayerResult {
        layer,
        broken: !status.success() && count.failed == 0,
        interrupted: status.code().is_none(),
        count,
        skipped: skipped(report.path()),
        time: started.elapsed(),
    })
}

/// Every default member that is not a privileged layer.
fn unit_packages() -> Result<Vec<String>> {
    let output = cargo()
        .args(["metadata", "--no-deps", "--format-version", "1"])
        .output()?;
    let metadata: serde_json::Value =
        serde_json::from_slice(&output.stdout).context("cargo metadata printed no JSON")?;
    let defaults = metadata["workspace_default_members"]
        .as_array()
        .context("no default members")?;
    let packages = metadata["packages"].as_array().context("no packages")?;
    let privileged: Vec<&str> = Layer::ALL
        .iter()
        .flat_map(|layer| layer.packages())
        .copied()
        .collect();
    Ok(packages
        .iter()
        .filter(|package| defaults.contains(&package["id"]))
        .filter_map(|package| package["name"].as_str())
        .filter(|name| !privileged.contains(name))
        .map(str::to_owned)
        .collect())
}

/// Runs cargo, passes on what it prints and counts the tests in it.
fn run_counting(command: &mut Command) -> Result<(Count, std::process::ExitStatus)> {
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start cargo")?;
    let output = child.stdout.take().expect("stdout is piped");
    let mut count = Count::default();
    for line in BufReader::new(output).split(b'\n') {
        let line = line?;
        let line = String::from_utf8_lossy(&line);
        count.line(&line);
        // A hundred "ok" lines hide the one that matters.
        if !count::is_noise(&line) {
            println!("{line}");
        }
    }
    Ok((count, child.wait()?))
}

/// What crashed or interrupted tests left.
fn clean_up() {
    if skip::root().is_err() {
        return;
    }
    match cleanup::sweep() {
        Ok(removed) if removed.is_empty() => {}
        Ok(removed) => {
            let names: Vec<String> = removed.iter().map(ToString::to_string).collect();
            println!(
                "    removed clusters that tests had left: {}",
                names.join(", ")
            );
        }
        Err(error) => eprintln!("warning: cleaning up: {error:#}"),
    }
}

fn skipped(report: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(report).unwrap_or_default();
    text.lines().map(str::to_owned).collect()
}

/// Prints the closing lines and decides the exit code.
fn summary(results: &[LayerResult], filter: Option<&str>) -> ExitCode {
    let mut total = Count::default();
    println!();
    for result in results {
        // A test that reported a skip has "passed" as far as libtest knows.
        let skipped = result.skipped.len() as u64 + result.count.ignored;
        let passed = result
            .count
            .passed
            .saturating_sub(result.skipped.len() as u64);
        let broken = if result.broken {
            ", DID NOT BUILD OR RUN"
        } else {
            ""
        };
        println!(
            "{:<10} {passed:>5} passed {:>4} failed {skipped:>4} skipped   {}{broken}",
            result.layer.name(),
            result.count.failed,
            human(result.time)
        );
        total.passed += passed;
        total.failed += result.count.failed + u64::from(result.broken);
        total.ignored += skipped;
    }
    for result in results {
        for line in &result.skipped {
            println!("skipped    {line}");
        }
        for name in &result.count.failures {
            println!("FAILED     {} {name}", result.layer.name());
        }
    }
    let time: Duration = results.iter().map(|result| result.time).sum();
    println!(
        "{} passed, {} failed, {} skipped in {}",
        total.passed,
        total.failed,
        total.ignored,
        human(time)
    );
    let nothing = total.passed + total.failed + total.ignored == 0;
    if nothing && let Some(filter) = filter {
        eprintln!("no test has `{filter}` in its name");
    }
    if total.failed > 0 || nothing {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

/// All layers, for `ci`: in a process of its own, so that `CI` is set for it and all it starts.
pub(crate) fn run_all_in_ci() -> Result<ExitCode> {
    let program = std::env::current_exe().context("this program has no path")?;
    let status = Command::new(program)
        .arg("test")
        .env("CI", "true")
        .status()?;
    Ok(if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}
