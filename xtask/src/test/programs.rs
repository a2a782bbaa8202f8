//! The test programs: built once for all layers by one cargo, then run one by one.
//!
//! `cargo test -p …` for each layer would resolve the features of the packages named, compile the crates
//! below them again for each such set, and then again for the programs that clusters run. One build of
//! everything has one set.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use super::count::{self, Count};
use crate::shell::cargo;

/// A test program that runs longer hangs: a loaded machine needs a third of this for the longest.
const LIMIT: Duration = Duration::from_secs(20 * 60);

/// One test program.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Program {
    pub(crate) package: String,
    /// The target's name: the crate, or a file of `tests/`.
    pub(crate) target: String,
    pub(crate) executable: PathBuf,
    /// The package's folder, in which cargo would run it as well.
    folder: PathBuf,
}

/// What one build made.
#[derive(Debug, Default)]
pub(crate) struct Built {
    pub(crate) tests: Vec<Program>,
    /// The folder of the programs that clusters run.
    pub(crate) binaries: Option<PathBuf>,
}

/// Builds the tests of all default members, and the programs that they need.
pub(crate) fn build() -> Result<Built> {
    build_targets(&["--lib", "--bins", "--tests"])
}

/// Builds the tests that cargo's options name.
pub(crate) fn build_targets(options: &[&str]) -> Result<Built> {
    let names = package_names()?;
    let mut child = cargo()
        .args(["test", "--no-run"])
        .args(options)
        .arg("--message-format=json-render-diagnostics")
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start cargo")?;
    let output = child.stdout.take().expect("stdout is piped");
    let mut built = Built::default();
    for line in BufReader::new(output).lines() {
        let line = line.context("cannot read cargo's messages")?;
        built.message(&line, &names);
    }
    let status = child.wait()?;
    if !status.success() {
        bail!("the tests do not build ({status})");
    }
    Ok(built)
}

impl Built {
    /// Takes one of cargo's messages into account.
    fn message(&mut self, line: &str, names: &BTreeMap<String, String>) {
        let Ok(message) = serde_json::from_str::<Value>(line) else {
            return;
        };
        let (Some(executable), Some(manifest), Some(name)) = (
            message["executable"].as_str().map(PathBuf::from),
            message["manifest_path"].as_str().map(Path::new),
            message["package_id"].as_str().and_then(|id| names.get(id)),
        ) else {
            return;
        };
        let target = message["target"]["name"].as_str().unwrap_or(name);
        if message["profile"]["test"] == true {
            self.tests.push(Program {
                package: name.clone(),
                target: target.to_owned(),
                executable,
                folder: manifest.parent().unwrap_or(manifest).to_owned(),
            });
        } else if target == "tholepin-agent" {
            self.binaries = executable.parent().map(Path::to_owned);
        }
    }
}

/// Names of the workspace's packages by id.
fn package_names() -> Result<BTreeMap<String, String>> {
    let output = cargo()
        .args(["metadata", "--no-deps", "--format-version", "1"])
        .stderr(Stdio::inherit())
        .output()?;
    let metadata: Value =
        serde_json::from_slice(&output.stdout).context("cargo metadata printed no JSON")?;
    let packages = metadata["packages"].as_array().context("no packages")?;
    Ok(packages
        .iter()
        .filter_map(|package| {
            let id = package["id"].as_str()?;
            Some((id.to_owned(), package["name"].as_str()?.to_owned()))
        })
        .collect())
}

impl Program {
    /// A command that runs it as cargo would.
    pub(crate) fn command(&self) -> Command {
        let mut command = Command::new(&self.executable);
        command
            .current_dir(&self.folder)
            .env("CARGO_MANIFEST_DIR", &self.folder)
            .env("CARGO_PKG_NAME", &self.package);
        command
    }
}

/// Runs a test program, passes on what it prints and counts the tests in it.
pub(crate) fn run_counting(command: &mut Command, count: &mut Count) -> Result<ExitStatus> {
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {}", command.get_program().display()))?;
    let output = child.stdout.take().expect("stdout is piped");
    let (done, ended) = mpsc::channel::<()>();
    let pid = Pid::from_raw(child.id().cast_signed());
    let watchdog = thread::spawn(move || {
        // The program is waited for only after this thread has ended, so the pid is still its own.
        if ended.recv_timeout(LIMIT) == Err(RecvTimeoutError::Timeout) {
            eprintln!("a test program still runs after {LIMIT:?}: ending it");
            kill(pid, Signal::SIGKILL).ok();
        }
    });
    let mut outcome = Ok(());
    for line in BufReader::new(output).split(b'\n') {
        let line = match line {
            Ok(line) => line,
            Err(error) => {
                outcome = Err(error).context("cannot read what a test program prints");
                break;
            }
        };
        let line = String::from_utf8_lossy(&line);
        count.line(&line);
        // A hundred "ok" lines hide the one that matters.
        if !count::is_noise(&line) {
            println!("{line}");
        }
    }
    drop(done);
    watchdog.join().ok();
    let status = child.wait()?;
    outcome.map(|()| status)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn built(messages: &[&str]) -> Built {
        let names = BTreeMap::from([("path+file:///w/a#x@0.1.0".to_owned(), "x".to_owned())]);
        let mut built = Built::default();
        for message in messages {
            built.message(message, &names);
        }
        built
    }

    #[test]
    fn test_programs_are_told_from_the_programs_that_they_start() {
        let built = built(&[
            r#"{"package_id":"path+file:///w/a#x@0.1.0","manifest_path":"/w/a/Cargo.toml","target":{"name":"kill"},"profile":{"test":true},"executable":"/t/deps/kill-1"}"#,
            r#"{"package_id":"path+file:///w/a#x@0.1.0","manifest_path":"/w/a/Cargo.toml","target":{"name":"tholepin-agent"},"profile":{"test":false},"executable":"/t/tholepin-agent"}"#,
            r#"{"package_id":"path+file:///w/a#x@0.1.0","manifest_path":"/w/a/Cargo.toml","target":{"name":"x"},"profile":{"test":false},"executable":null}"#,
            "not a message",
        ]);
        assert_eq!(built.binaries, Some(PathBuf::from("/t")));
        assert_eq!(
            built.tests,
            [Program {
                package: "x".to_owned(),
                target: "kill".to_owned(),
                executable: "/t/deps/kill-1".into(),
                folder: "/w/a".into(),
            }]
        );
    }

    #[test]
    fn what_a_program_prints_is_counted_and_its_end_is_reported() {
        let mut count = Count::default();
        let mut command = Command::new("sh");
        command.args([
            "-c",
            "echo 'test result: ok. 3 passed; 0 failed; 0 ignored'; exit 3",
        ]);
        let status = run_counting(&mut command, &mut count).unwrap();
        assert_eq!((count.passed, status.code()), (3, Some(3)));
    }
}
