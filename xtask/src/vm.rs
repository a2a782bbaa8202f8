//! `vm`: the privileged tests on stock Debian kernels in QEMU. Fetches a kernel, packs it with the test
//! programs into an initramfs, boots it and reads the results from the guest's serial line.

mod guest;
mod initramfs;
mod kernels;
mod modules;
mod report;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use clap::Args;
use tholepin_harness::layout::target_dir;
use tholepin_harness::tools;

use self::kernels::Kernel;
use self::report::Report;
use crate::setup::apt;
use crate::shell::step;
use crate::test::programs::{self, Program};

/// Run the tests that need the kernel on stock Debian kernels in QEMU
///
/// Loads every variant of every eBPF program, runs the packet tests and the two-node tests with real
/// sockets, and says what each kernel lacks. Kernels are fetched from Debian with an apt configuration of
/// their own and unpacked below `target/tools`; nothing is installed except QEMU, if it is missing. The
/// guest is emulated (no /dev/kvm) and has no network. A run takes a few minutes for each kernel.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Only this kernel: 6.1, 6.12 or latest; also 5.10, as far as it goes
    #[arg(long, value_name = "VERSION")]
    kernel: Option<String>,
    /// Only tests whose name contains this
    filter: Option<String>,
    /// Only this test program: features, programs, scenarios, differential or network
    #[arg(long, value_name = "NAME")]
    program: Option<String>,
    /// Print everything the guest prints
    #[arg(long)]
    verbose: bool,
    /// End the guest after this many minutes
    #[arg(long, default_value_t = 30)]
    minutes: u64,
}

/// What runs in a guest: package, test target, and whether its ignored tests are meant.
const PROGRAMS: &[(&str, &str, bool)] = &[
    ("tholepin-tests-kernels", "features", true),
    ("tholepin-tests-kernels", "programs", true),
    ("tholepin-tests-dataplane", "scenarios", false),
    ("tholepin-tests-dataplane", "differential", false),
    ("tholepin-agent", "network", true),
];

/// A test program with the arguments it gets in the guest.
#[derive(Debug)]
struct Job<'a> {
    program: &'a Program,
    arguments: Vec<String>,
}

impl Job<'_> {
    fn name(&self) -> String {
        format!("{} {}", self.program.package, self.program.target)
    }
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let kernels = match &options.kernel {
        Some(name) => vec![kernels::named(name)?],
        None => kernels::SUPPORTED.to_vec(),
    };
    ensure!(
        chosen(options).next().is_some(),
        "there is no such test program"
    );
    ensure_tools()?;
    let (built, _) = step("build the tests", || {
        programs::build_targets(&targets(options))
    })?;
    let jobs = jobs(&built.tests, options)?;
    let mut reports = Vec::new();
    for kernel in kernels {
        let (report, _) = step(&format!("kernel {}", kernel.name), || {
            run_kernel(kernel, &jobs, options)
        })?;
        reports.push(report);
    }
    Ok(report::summary(&reports))
}

fn ensure_tools() -> Result<()> {
    let missing: Vec<&str> = [
        (guest::QEMU, "qemu-system-x86"),
        ("busybox", "busybox-static"),
        ("ip", "iproute2"),
        ("bpftool", "bpftool"),
        ("xz", "xz-utils"),
    ]
    .into_iter()
    .filter(|(program, _)| tools::find(program).is_none())
    .map(|(_, package)| package)
    .collect();
    if missing.is_empty() {
        return Ok(());
    }
    ensure!(
        apt::is_available(),
        "these are missing, and this system has no apt to install them: {}",
        missing.join(", ")
    );
    apt::install(&missing)
}

fn jobs<'a>(tests: &'a [Program], options: &Options) -> Result<Vec<Job<'a>>> {
    let mut jobs = Vec::new();
    for (package, target, ignored) in chosen(options) {
        let program = tests
            .iter()
            .find(|one| one.package == *package && one.target == *target)
            .with_context(|| format!("{package} has no test program {target}"))?;
        let mut arguments: Vec<String> = options.filter.iter().cloned().collect();
        if *ignored {
            arguments.push("--include-ignored".to_owned());
        }
        jobs.push(Job { program, arguments });
    }
    Ok(jobs)
}

fn chosen(options: &Options) -> impl Iterator<Item = &'static (&'static str, &'static str, bool)> {
    let wanted = options.program.clone();
    PROGRAMS
        .iter()
        .filter(move |(_, target, _)| wanted.as_ref().is_none_or(|wanted| wanted == target))
}

/// What cargo is to build. Only these targets: the rest of their packages takes far longer.
fn targets(options: &Options) -> Vec<&'static str> {
    chosen(options)
        .flat_map(|(package, target, _)| ["-p", package, "--test", target])
        .collect()
}

fn run_kernel(kernel: &'static Kernel, jobs: &[Job<'_>], options: &Options) -> Result<Report> {
    let files = kernels::fetch(kernel)?;
    let directory: PathBuf = target_dir().join("vm").join(kernel.name);
    std::fs::create_dir_all(&directory)?;
    let modules = modules::resolve(&files.modules, kernels::MODULES)
        .with_context(|| format!("modules of {}", files.version))?;
    let image = directory.join("initramfs.cpio");
    initramfs::write(&image, &modules, jobs)?;
    let limit = Duration::from_secs(options.minutes * 60);
    let run = guest::Run {
        kernel: &files.image,
        initramfs: &image,
        console: directory.join("console.log"),
        limit,
        verbose: options.verbose,
    };
    let mut report = Report::new(kernel.name, &files.version, jobs.iter().map(Job::name));
    let ended = run.boot(|line| report.line(line))?;
    report.ended(&ended);
    std::fs::remove_file(&image)?;
    Ok(report)
}
