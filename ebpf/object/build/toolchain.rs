//! Finds a compiler with the standard library's source, and bpf-linker.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

/// A compiler to use instead of the ones looked for; it needs the standard library's source.
const RUSTC_VARIABLE: &str = "THOLEPIN_EBPF_RUSTC";
/// A bpf-linker to use instead of the first one on PATH.
const LINKER_VARIABLE: &str = "THOLEPIN_BPF_LINKER";

/// Everything of the environment that decides what [`find`] returns.
pub(crate) const VARIABLES: [&str; 3] = [RUSTC_VARIABLE, LINKER_VARIABLE, "PATH"];

/// Where distributions install their compiler; rustup's proxies come first on PATH.
const SYSTEM_RUSTC: &str = "/usr/bin/rustc";

pub(crate) struct Toolchain {
    pub(crate) rustc: PathBuf,
    pub(crate) cargo: PathBuf,
    pub(crate) linker: PathBuf,
    pub(crate) origin: &'static str,
}

/// The first that is complete: the one named by the environment, rustup's nightly, the system's.
pub(crate) fn find() -> Result<Toolchain> {
    let linker = linker()?;
    let cargo = PathBuf::from(env::var_os("CARGO").context("cargo did not say where it is")?);
    if let Some(rustc) = env::var_os(RUSTC_VARIABLE).map(PathBuf::from) {
        if !has_source(&rustc) {
            bail!(
                "{RUSTC_VARIABLE} is {}, which does not run or lacks the standard library's source",
                rustc.display()
            );
        }
        return Ok(Toolchain {
            rustc,
            cargo,
            linker,
            origin: RUSTC_VARIABLE,
        });
    }
    if let Some((rustc, nightly_cargo, origin)) = compiler() {
        return Ok(Toolchain {
            rustc,
            cargo: nightly_cargo.unwrap_or(cargo),
            linker,
            origin,
        });
    }
    bail!(
        "no compiler for the eBPF programs: neither rustup's nightly nor {SYSTEM_RUSTC} has the \
         standard library's source. Run `cargo xtask setup`, which installs one"
    )
}

/// A compiler with the standard library's source, its own cargo if it has one, and where it is from.
/// `cargo xtask setup` asks this too, so that it agrees with the build.
pub(super) fn compiler() -> Option<(PathBuf, Option<PathBuf>, &'static str)> {
    if let Some((rustc, cargo)) = nightly().filter(|(rustc, _)| has_source(rustc)) {
        return Some((rustc, Some(cargo), "rustup nightly"));
    }
    let rustc = PathBuf::from(SYSTEM_RUSTC);
    has_source(&rustc).then_some((rustc, None, "system compiler"))
}

fn nightly() -> Option<(PathBuf, PathBuf)> {
    Some((rustup_which("rustc")?, rustup_which("cargo")?))
}

fn rustup_which(program: &str) -> Option<PathBuf> {
    let mut rustup = Command::new("rustup");
    // Never start a download from inside a build.
    rustup
        .env("RUSTUP_AUTO_INSTALL", "0")
        .args(["which", "--toolchain", "nightly", program]);
    stdout(&mut rustup).map(PathBuf::from)
}

fn has_source(rustc: &Path) -> bool {
    let mut command = Command::new(rustc);
    command
        .env_remove("RUSTUP_TOOLCHAIN")
        .args(["--print", "sysroot"]);
    stdout(&mut command).is_some_and(|sysroot| {
        Path::new(&sysroot)
            .join("lib/rustlib/src/rust/library/core/Cargo.toml")
            .exists()
    })
}

fn linker() -> Result<PathBuf> {
    if let Some(linker) = env::var_os(LINKER_VARIABLE) {
        return Ok(linker.into());
    }
    let on_path = env::var_os("PATH")
        .iter()
        .flat_map(env::split_paths)
        .map(|directory| directory.join("bpf-linker"))
        .find(|candidate| candidate.is_file());
    on_path.context("bpf-linker is not on PATH. Run `cargo xtask setup`, which builds it")
}

fn stdout(command: &mut Command) -> Option<String> {
    let output = command.output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    output.status.success().then(|| text.trim().to_owned())
}
