//! `setup`: finds what building, running and testing need, and installs what is missing. Looks first
//! and changes nothing that is there.

pub(crate) mod apt;
mod requirements;
pub(crate) mod suites;
#[expect(
    dead_code,
    reason = "shared with ebpf/object's build script, which also uses the paths"
)]
#[path = "../../ebpf/object/build/toolchain.rs"]
mod toolchain;

use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;

use self::requirements::{Requirement, Scope, Source};
use crate::shell::{cargo, human, show};

/// Find and install what building, running and testing Tholepin need
///
/// On Debian and Ubuntu missing packages are installed with apt-get (as root, or through sudo). On
/// other systems the command prints what is missing and how to get it. A second run only looks, which
/// takes under two seconds.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Only look: say what is there and what is missing, and fail if something is
    #[arg(long)]
    pub(crate) check: bool,
    /// Also what the whole test matrix needs: other versions of containerd and kubectl, a registry,
    /// bpftool, cargo-deny
    #[arg(long)]
    pub(crate) ci: bool,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    let scope = if options.ci { Scope::Ci } else { Scope::Run };
    let started = Instant::now();
    let missing = look(scope, true);
    if missing.is_empty() {
        println!("everything is here ({})", human(started.elapsed()));
        return Ok(());
    }
    if options.check {
        if !apt::is_available() {
            return Err(instructions(&missing));
        }
        println!("setup would do this:");
        for one in &missing {
            println!("  {:<18} {}", one.name, one.source.plan());
        }
        bail!("{} missing: {}", missing.len(), names(&missing));
    }
    install(scope, &missing)?;
    println!("setup is done ({})", human(started.elapsed()));
    Ok(())
}

/// For other commands: installs what is missing, silent when nothing is.
pub(crate) fn ensure(scope: Scope) -> Result<()> {
    let missing = look(scope, false);
    if missing.is_empty() {
        return Ok(());
    }
    println!("==> setup: missing {}", names(&missing));
    install(scope, &missing)
}

/// The same for single requirements, whatever their scope.
pub(crate) fn ensure_named(wanted: &[&str]) -> Result<()> {
    let all = requirements::all().iter();
    let missing: Vec<_> = all
        .filter(|one| wanted.contains(&one.name) && (one.find)().is_none())
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    println!("==> setup: missing {}", names(&missing));
    install(Scope::Bench, &missing)
}

pub(crate) use self::requirements::Scope as Needs;

fn names(missing: &[&Requirement]) -> String {
    missing
        .iter()
        .map(|one| one.name)
        .collect::<Vec<_>>()
        .join(", ")
}

/// What is not there; prints each finding when `print`.
fn look(scope: Scope, print: bool) -> Vec<&'static Requirement> {
    let mut missing = Vec::new();
    for requirement in requirements::all().iter().filter(|one| one.scope <= scope) {
        let found = (requirement.find)();
        if print {
            let shown = found.as_deref().unwrap_or("MISSING");
            println!("  {:<18} {shown:<46} {}", requirement.name, requirement.why);
        }
        if found.is_none() {
            missing.push(requirement);
        }
    }
    missing
}

/// Installs in an order in which later steps can use earlier ones: packages, then what is fetched,
/// then what is built.
fn install(scope: Scope, missing: &[&Requirement]) -> Result<()> {
    let packages: Vec<&str> = missing
        .iter()
        .filter_map(|one| match one.source {
            Source::Packages(packages) => Some(packages),
            _ => None,
        })
        .flatten()
        .copied()
        .collect();
    if !apt::is_available() {
        return Err(instructions(missing));
    }
    if !packages.is_empty() {
        apt::install(&packages)?;
    }
    let mut problems = Vec::new();
    for requirement in missing {
        let outcome = match &requirement.source {
            Source::Packages(_) => Ok(()),
            Source::Suite {
                suite,
                package,
                folder,
            } => {
                println!(
                    "==> {}: fetching {package} of Debian {suite}",
                    requirement.name
                );
                suites::fetch(suite, package, folder)
            }
            Source::Own { package, folder } => {
                println!("==> {}: fetching {package}", requirement.name);
                suites::fetch_own(package, folder)
            }
            Source::EbpfCompiler => install_ebpf_compiler(),
            Source::BpfLinker => install_bpf_linker(),
            Source::Cargo(name) => {
                println!("==> {name}: building (takes a few minutes)");
                show(cargo().args(["install", "--quiet", "--locked", name]))
            }
        };
        if let Err(error) = outcome {
            problems.push(format!("{}: {error:#}", requirement.name));
        }
    }
    let still: Vec<_> = look(scope, false);
    if still.is_empty() && problems.is_empty() {
        return Ok(());
    }
    for problem in &problems {
        eprintln!("setup: {problem}");
    }
    if still.is_empty() {
        Ok(())
    } else {
        Err(instructions(&still))
    }
}

/// What to do where setup cannot install.
fn instructions(missing: &[&Requirement]) -> anyhow::Error {
    let lines: Vec<String> = missing
        .iter()
        .map(|one| {
            format!(
                "  {:<18} {}\n                     {}",
                one.name, one.why, one.hint
            )
        })
        .collect();
    anyhow::anyhow!(
        "these are missing and could not be installed:\n{}",
        lines.join("\n")
    )
}

/// Debian's compiler where there is one that fits (it was tried with this project and stays as it is),
/// else rustup's nightly, which is a different one every day.
fn install_ebpf_compiler() -> Result<()> {
    const DEBIAN: [&str; 2] = ["rustc-web", "rust-web-src"];
    // Without package lists, as in a new container, apt would know no candidate.
    apt::update()?;
    if apt::has_candidate("rustc-web") && apt::has_candidate("llvm-22-dev") {
        println!("==> eBPF compiler: Debian's rustc-web with the source of core");
        return apt::install(&DEBIAN);
    }
    println!("==> eBPF compiler: rustup's nightly with rust-src");
    show(Command::new("rustup").args([
        "toolchain",
        "install",
        "nightly",
        "--profile",
        "minimal",
        "--component",
        "rust-src",
    ]))
}

/// bpf-linker's LLVM must not be older than the compiler's.
fn install_bpf_linker() -> Result<()> {
    const LLVM: [&str; 4] = [
        "llvm-22-dev",
        "libpolly-22-dev",
        "zlib1g-dev",
        "libzstd-dev",
    ];
    let mut command = cargo();
    command.args([
        "install",
        "--quiet",
        "--locked",
        "bpf-linker",
        "--version",
        "0.13.0",
    ]);
    if requirements::ebpf_compiler_is_debians() {
        apt::install(&LLVM)?;
        command.args(["--no-default-features", "--features", "llvm-22"]);
        command.env("LLVM_PREFIX", "/usr/lib/llvm-22");
    }
    println!("==> bpf-linker: building (takes about a minute)");
    show(&mut command).context("cannot build bpf-linker")
}
