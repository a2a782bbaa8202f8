//! `test`: the four layers of tests, with counts. Knows nothing about single tests: cargo builds
//! them, this file says what belongs to a layer and cleans up after it.

pub(crate) mod count;
pub(crate) mod programs;

use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use nix::sys::signal::{SigSet, Signal};
use tholepin_harness::{binaries, cleanup, skip};

use self::count::Count;
use self::programs::Built;
use crate::setup::{self, Needs};
use crate::shell::{human, step};

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
    /// Replace that many agents under traffic (`replaced_agents`; 10 without this), and print what came of it
    #[arg(long, value_name = "N")]
    restarts: Option<u32>,
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
            Self::Dataplane => &["tholepin-tests-dataplane", "tholepin-tests-kernels"],
            Self::Node => &["tholepin-harness", "tholepin-tests-node"],
            Self::Cluster => &["tholepin-tests-cluster"],
        }
    }

    fn owns(self, package: &str) -> bool {
        match self {
            Self::Unit => !Self::ALL
                .iter()
                .any(|layer| layer.packages().contains(&package)),
            other => other.packages().contains(&package),
        }
    }

    /// How many tests run at a time where it is not as many as there are processors. Each test of these
    /// layers starts daemons: more at a time only makes them wait for each other, and whole clusters side
    /// by side make each other's time limits a matter of luck.
    fn threads(self) -> Option<&'static str> {
        match self {
            Self::Unit | Self::Dataplane => None,
            Self::Node => Some("2"),
            Self::Cluster => Some("1"),
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
    let (built, building) = step("build the tests", programs::build)?;
    let mut results = Vec::new();
    for layer in layers {
        let result = run_layer(layer, &built, options)?;
        let interrupted = result.interrupted;
        results.push(result);
        if interrupted {
            break;
        }
    }
    Ok(summary(&results, building, options.filter.as_deref()))
}

/// Whether this is a CI machine, where nothing may be missing.
pub(crate) fn is_ci() -> bool {
    std::env::var("CI").is_ok_and(|value| !value.is_empty() && value != "0")
}

struct LayerResult {
    layer: Layer,
    count: Count,
    skipped: Vec<String>,
    /// Test programs that failed without a failed test: they crashed, or were ended.
    broken: Vec<String>,
    interrupted: bool,
    time: Duration,
}

fn run_layer(layer: Layer, built: &Built, options: &Options) -> Result<LayerResult> {
    println!("==> {} tests: {}", layer.name(), layer.about());
    let started = Instant::now();
    let report = tempfile::NamedTempFile::new()?;
    let mut result = LayerResult {
        layer,
        count: Count::default(),
        skipped: Vec::new(),
        broken: Vec::new(),
        interrupted: false,
        time: Duration::ZERO,
    };
    for program in built.tests.iter().filter(|one| layer.owns(&one.package)) {
        let began = Instant::now();
        let mut command = program.command();
        command.args(options.filter.as_deref());
        if options.nocapture || options.restarts.is_some() {
            command.arg("--nocapture");
        }
        if let Some(restarts) = options.restarts {
            command.env("THOLEPIN_RESTARTS", restarts.to_string());
        }
        if std::env::var_os("RUST_TEST_THREADS").is_none()
            && let Some(threads) = layer.threads()
        {
            command.args(["--test-threads", threads]);
        }
        command.env(skip::REPORT_VARIABLE, report.path());
        if let Some(dir) = &built.binaries {
            command.env(binaries::READY_VARIABLE, dir);
        }
        let failed_before = result.count.failed;
        let status = programs::run_counting(&mut command, &mut result.count)?;
        if began.elapsed() > Duration::from_secs(10) {
            println!(
                "    {} {}: {}",
                program.package,
                program.target,
                human(began.elapsed())
            );
        }
        if !status.success() && result.count.failed == failed_before {
            let what = format!("{} {} ({status})", program.package, program.target);
            result.broken.push(what);
        }
        let signal = status.signal();
        result.interrupted =
            signal == Some(Signal::SIGINT as i32) || signal == Some(Signal::SIGTERM as i32);
        if result.interrupted {
            break;
        }
    }
    clean_up();
    result.skipped = skipped(report.path());
    result.time = started.elapsed();
    Ok(result)
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
fn summary(results: &[LayerResult], building: Duration, filter: Option<&str>) -> ExitCode {
    let mut total = Count::default();
    println!();
    for result in results {
        // A test that reported a skip has "passed" as far as libtest knows.
        let skipped = result.skipped.len() as u64 + result.count.ignored;
        let passed = result
            .count
            .passed
            .saturating_sub(result.skipped.len() as u64);
        println!(
            "{:<10} {passed:>5} passed {:>4} failed {skipped:>4} skipped   {}",
            result.layer.name(),
            result.count.failed,
            human(result.time)
        );
        total.passed += passed;
        total.failed += result.count.failed + result.broken.len() as u64;
        total.ignored += skipped;
    }
    for result in results {
        for line in &result.skipped {
            println!("skipped    {line}");
        }
        for name in &result.count.failures {
            println!("FAILED     {} {name}", result.layer.name());
        }
        for program in &result.broken {
            println!("FAILED     {} {program}", result.layer.name());
        }
    }
    let time: Duration = results.iter().map(|result| result.time).sum();
    println!(
        "{} passed, {} failed, {} skipped in {} after building for {}",
        total.passed,
        total.failed,
        total.ignored,
        human(time),
        human(building)
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
