//! Debian's package tools, as root or through sudo.

use std::process::Command;

use anyhow::{Context, Result};
use tholepin_harness::{command, tools};

use crate::shell::show;

/// Whether this is a system with apt.
pub(crate) fn is_available() -> bool {
    tools::find("apt-get").is_some() && tools::find("dpkg").is_some()
}

/// Whether the package can be installed from the machine's own sources.
pub(crate) fn has_candidate(package: &str) -> bool {
    let Ok(text) = command::run(Command::new("apt-cache").args(["policy", package])) else {
        return false;
    };
    text.lines()
        .filter_map(|line| line.trim().strip_prefix("Candidate: "))
        .any(|candidate| candidate != "(none)")
}

/// Reads the package lists.
pub(crate) fn update() -> Result<()> {
    show(as_root("apt-get")?.args(["-q", "update"])).context("cannot read the package lists")
}

/// Installs packages. Those that are there already cost nothing.
pub(crate) fn install(packages: &[&str]) -> Result<()> {
    println!("==> installing {}", packages.join(" "));
    update()?;
    let mut command = as_root("apt-get")?;
    command
        .args(["-q", "-y", "--no-install-recommends", "install"])
        .args(packages);
    show(&mut command).with_context(|| format!("cannot install {}", packages.join(" ")))
}

fn as_root(program: &str) -> Result<Command> {
    let mut command = if nix::unistd::geteuid().is_root() {
        Command::new("env")
    } else {
        let sudo = tools::find("sudo")
            .context("packages are missing, and this is neither root nor is there sudo")?;
        let mut command = Command::new(sudo);
        command.arg("env");
        command
    };
    command.args(["DEBIAN_FRONTEND=noninteractive", program]);
    Ok(command)
}
