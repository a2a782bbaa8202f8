//! Building the project's programs for a cluster. Cargo decides what is out of date; a second call
//! takes well under a second.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, bail, ensure};

use crate::layout::{target_dir, workspace_root};

/// Names a folder with the debug programs of this very source tree. `cargo xtask test` sets it: it has built
/// them together with the tests, while a build of the programs alone resolves other features for the crates
/// below them and compiles half the dependencies a second time.
pub const READY_VARIABLE: &str = "THOLEPIN_TEST_BINARIES";

/// How the programs are built.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// Quick to build; what tests use.
    Debug,
    /// What users run.
    Release,
}

/// Where the built programs are.
#[derive(Debug, Clone)]
pub struct Binaries {
    /// `tholepin-agent`.
    pub agent: PathBuf,
    /// `tholepin-control`.
    pub control: PathBuf,
    /// The static program of the test images.
    pub toolbox: PathBuf,
}

impl Binaries {
    /// Builds what a cluster runs, with cargo's own progress on standard error.
    pub fn build(profile: Profile) -> Result<Self> {
        if let (Profile::Debug, Some(dir)) = (profile, std::env::var_os(READY_VARIABLE)) {
            return Self::ready(Path::new(&dir));
        }
        let (flag, folder) = match profile {
            Profile::Debug => (None, "debug"),
            Profile::Release => (Some("--release"), "release"),
        };
        let mut command = cargo();
        command.args([
            "build",
            "--quiet",
            "-p",
            "tholepin-agent",
            "-p",
            "tholepin-control",
        ]);
        command.args(flag);
        if std::io::IsTerminal::is_terminal(&std::io::stderr()) {
            // `--quiet` hides the progress bar as well; on a terminal the bar is wanted.
            command = cargo();
            command
                .args(["build", "-p", "tholepin-agent", "-p", "tholepin-control"])
                .args(flag);
        }
        build(command)?;
        let dir = target_dir().join(folder);
        Ok(Self {
            agent: dir.join("tholepin-agent"),
            control: dir.join("tholepin-control"),
            toolbox: toolbox()?,
        })
    }

    /// The programs of a folder, which must be there.
    fn ready(dir: &Path) -> Result<Self> {
        let program = |name: &str| {
            let path = dir.join(name);
            ensure!(
                path.is_file(),
                "{READY_VARIABLE} names {}, which has no {name}",
                dir.display()
            );
            Ok(path)
        };
        Ok(Self {
            agent: program("tholepin-agent")?,
            control: program("tholepin-control")?,
            toolbox: toolbox()?,
        })
    }
}

/// Builds the toolbox: static, for the gnu target, in a target folder of its own because the flags
/// would otherwise rebuild everything else.
pub fn toolbox() -> Result<PathBuf> {
    let target = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let dir = target_dir().join("static");
    let mut command = cargo();
    command
        .args([
            "build",
            "--quiet",
            "--release",
            "-p",
            "tholepin-toolbox",
            "--target",
            &target,
        ])
        .arg("--target-dir")
        .arg(&dir)
        .env("RUSTFLAGS", "-Ctarget-feature=+crt-static");
    build(command)?;
    Ok(dir.join(target).join("release/toolbox"))
}

fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(workspace_root());
    // Set by the cargo that runs a test; they would make build scripts of other crates run again.
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") {
            command.env_remove(&name);
        }
    }
    command
}

fn build(mut command: Command) -> Result<()> {
    let status = command.status()?;
    if !status.success() {
        bail!("`{}` failed ({status})", crate::command::describe(&command));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_without_the_programs_is_refused_by_the_name_of_what_is_missing() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("tholepin-agent"), "").unwrap();
        let error = Binaries::ready(dir.path()).unwrap_err().to_string();
        assert!(
            error.contains("has no tholepin-control") && error.contains(READY_VARIABLE),
            "{error}"
        );
    }
}
