//! Builds `ebpf/programs` for `bpfel-unknown-none` with the eBPF toolchain, not the workspace's.
//!
//! The eBPF target has no prebuilt `core`, so it wants a compiler with the standard library's
//! source, and a bpf-linker whose LLVM is not older than the compiler's. `toolchain` finds one.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use anyhow::{Context as _, Result, bail, ensure};

#[path = "build/toolchain.rs"]
mod toolchain;

const TARGET: &str = "bpfel-unknown-none";
const PROFILE: &str = "ebpf";

/// What the outer cargo, rustup or clippy put into the environment for their own compiler.
const FOREIGN_VARIABLES: [&str; 12] = [
    "CARGO_BUILD_RUSTC",
    "CARGO_BUILD_RUSTC_WRAPPER",
    "CARGO_BUILD_RUSTC_WORKSPACE_WRAPPER",
    "CARGO_BUILD_RUSTFLAGS",
    "CARGO_BUILD_TARGET",
    "CARGO_ENCODED_RUSTFLAGS",
    "CARGO_TARGET_DIR",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTC_WRAPPER",
    "RUSTDOC",
    "RUSTFLAGS",
    "RUSTUP_TOOLCHAIN",
];

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let manifest_dir = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").context("no manifest dir")?);
    let out_dir = PathBuf::from(env::var_os("OUT_DIR").context("OUT_DIR is not set")?);
    let workspace = manifest_dir
        .ancestors()
        .nth(2)
        .context("not in the workspace")?;
    for input in [
        "Cargo.lock",
        "Cargo.toml",
        "ebpf/abi/Cargo.toml",
        "ebpf/abi/src",
        "ebpf/core/Cargo.toml",
        "ebpf/core/src",
        "ebpf/object/build.rs",
        "ebpf/object/build",
        "ebpf/programs/Cargo.toml",
        "ebpf/programs/src",
    ] {
        println!(
            "cargo::rerun-if-changed={}",
            workspace.join(input).display()
        );
    }
    for variable in toolchain::VARIABLES {
        println!("cargo::rerun-if-env-changed={variable}");
    }

    let architecture = env::var("CARGO_CFG_TARGET_ARCH").context("no target architecture")?;
    ensure!(
        env::var("CARGO_CFG_TARGET_ENDIAN").as_deref() == Ok("little"),
        "the eBPF objects are built for little-endian machines only"
    );
    let object = build(workspace, &out_dir.join("ebpf"), &architecture)?;
    let embedded = out_dir.join("tholepin-ebpf.o");
    std::fs::copy(&object, &embedded)
        .with_context(|| format!("failed to copy {} into the crate", object.display()))?;
    Ok(())
}

/// Runs the nested cargo and returns the object's path. It has a target directory of its own:
/// the outer cargo holds the lock of the workspace's while this runs.
fn build(workspace: &Path, target_dir: &Path, architecture: &str) -> Result<PathBuf> {
    let toolchain = toolchain::find()?;
    println!("cargo::rerun-if-changed={}", toolchain.rustc.display());
    println!("cargo::rerun-if-changed={}", toolchain.linker.display());
    let flags = [
        "-Cdebuginfo=2".to_owned(),
        format!("-Clinker={}", toolchain.linker.display()),
        "-Clink-arg=--btf".to_owned(),
        // 32-bit instructions and jumps, known to every kernel since 5.1.
        "-Ctarget-cpu=v3".to_owned(),
        format!("--cfg=bpf_target_arch=\"{architecture}\""),
    ];

    let mut cargo = Command::new(&toolchain.cargo);
    cargo.current_dir(workspace);
    for variable in FOREIGN_VARIABLES {
        cargo.env_remove(variable);
    }
    cargo
        .env("RUSTC", &toolchain.rustc)
        // `-Z build-std` with a compiler that is not a nightly.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"))
        .args([
            "build",
            "--locked",
            "--package",
            "tholepin-ebpf",
            "--bin",
            "tholepin-ebpf",
        ])
        .args(["--target", TARGET, "--profile", PROFILE, "-Zbuild-std=core"])
        .arg("--target-dir")
        .arg(target_dir);
    let output = cargo
        .output()
        .with_context(|| format!("failed to run {}", toolchain.cargo.display()))?;
    if !output.status.success() {
        bail!(
            "failed to build the eBPF programs with {} ({}); if the toolchain is at fault, \
             `cargo xtask setup` repairs it\n{}",
            toolchain.rustc.display(),
            toolchain.origin,
            String::from_utf8_lossy(&output.stderr),
        );
    }
    Ok(target_dir.join(TARGET).join(PROFILE).join("tholepin-ebpf"))
}
