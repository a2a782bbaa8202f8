//! Long-running processes: started detached with a log file, known by pid and start time so that a
//! reused pid is never mistaken for them, ended by pid only.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

use crate::command::{describe, pause};
use crate::netns;

/// A process that may have been started by another program than this one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProcessRef {
    /// What it is to the cluster: `control`, `n1-agent`.
    pub name: String,
    /// Its pid.
    pub pid: i32,
    /// When it started, in clock ticks since boot: tells it from a later process with the same pid.
    pub start_time: u64,
    /// Where its output goes.
    pub log: PathBuf,
}

impl ProcessRef {
    /// This very process.
    #[must_use]
    pub fn current() -> Self {
        let pid = std::process::id().cast_signed();
        let start_time = start_time(pid).unwrap_or_default();
        Self {
            name: "owner".to_owned(),
            pid,
            start_time,
            log: PathBuf::new(),
        }
    }

    /// Whether it still runs (a zombie does not).
    #[must_use]
    pub fn is_alive(&self) -> bool {
        start_time(self.pid) == Some(self.start_time)
    }

    /// Sends a signal, unless it has ended.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        if !self.is_alive() {
            return Ok(());
        }
        match kill(Pid::from_raw(self.pid), signal) {
            Ok(()) | Err(nix::errno::Errno::ESRCH) => Ok(()),
            Err(error) => Err(error)
                .with_context(|| format!("cannot send {signal} to {} ({})", self.name, self.pid)),
        }
    }

    /// Resident memory in bytes.
    pub fn resident_bytes(&self) -> Result<u64> {
        if !self.is_alive() {
            bail!("{} has ended", self.name);
        }
        resident_bytes(self.pid)
    }

    /// The last lines of its log.
    #[must_use]
    pub fn last_log_lines(&self, count: usize) -> String {
        tail(&self.log, count).unwrap_or_else(|error| format!("(no log: {error})"))
    }
}

/// Resident memory of a process in bytes.
pub fn resident_bytes(pid: i32) -> Result<u64> {
    let path = format!("/proc/{pid}/status");
    let status = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok());
    Ok(kib.with_context(|| format!("no VmRSS in {path}"))? * 1024)
}

/// When a process started, in clock ticks since boot; `None` when it has ended.
#[must_use]
pub fn start_time(pid: i32) -> Option<u64> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// The start time in a `/proc/PID/stat` line; `None` for a zombie. The command in parentheses may
/// itself hold parentheses and spaces.
fn parse_stat(stat: &str) -> Option<u64> {
    let (_, rest) = stat.rsplit_once(") ")?;
    let fields: Vec<&str> = rest.split(' ').collect();
    // Field 3 (state) is the first after the command, field 22 the start time.
    match *fields.first()? {
        "Z" | "X" => None,
        _ => fields.get(19)?.parse().ok(),
    }
}

/// The last `count` lines of a file, reading no more than its last 64 KiB.
fn tail(path: &Path, count: usize) -> Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(64 * 1024)))?;
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let text = String::from_utf8_lossy(&bytes);
    let lines: Vec<&str> = text.lines().collect();
    Ok(lines[lines.len().saturating_sub(count)..].join("\n"))
}

/// A process this program started.
#[derive(Debug)]
pub struct Process {
    reference: ProcessRef,
    child: Child,
}

impl Process {
    /// Starts `command` in a session of its own, inside `namespace` if given, with its output
    /// appended to `log`.
    pub fn start(
        name: &str,
        mut command: Command,
        namespace: Option<&str>,
        log: &Path,
    ) -> Result<Self> {
        if let Some(parent) = log.parent() {
            fs::create_dir_all(parent)?;
        }
        let output = File::options()
            .create(true)
            .append(true)
            .open(log)
            .with_context(|| format!("cannot open {}", log.display()))?;
        command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        netns::detach(&mut command);
        if let Some(namespace) = namespace {
            netns::run_inside(&mut command, namespace)?;
        }
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {name}: `{}`", describe(&command)))?;
        let pid = child.id().cast_signed();
        let start_time = start_time(pid).unwrap_or_default();
        let reference = ProcessRef {
            name: name.to_owned(),
            pid,
            start_time,
            log: log.to_owned(),
        };
        Ok(Self { reference, child })
    }

    /// What others need to know to end it.
    #[must_use]
    pub fn reference(&self) -> &ProcessRef {
        &self.reference
    }

    /// Its pid.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.reference.pid
    }

    /// An error with the last log lines when the process has ended.
    pub fn ensure_alive(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!(
                "{} ended ({status}); the end of {}:\n{}",
                self.reference.name,
                self.reference.log.display(),
                self.reference.last_log_lines(20)
            ),
        }
    }

    /// kill -9, and wait until it is gone.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// SIGTERM, and wait; an error when it takes longer than `limit` (it is then killed).
    pub fn terminate(&mut self, limit: Duration) -> Result<std::process::ExitStatus> {
        self.reference.signal(Signal::SIGTERM)?;
        let end = Instant::now() + limit;
        // A child's end has no event that can be waited for with a limit in plain std.
        while Instant::now() < end {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            pause(Duration::from_millis(5));
        }
        self.kill()?;
        bail!(
            "{} was still there {limit:?} after SIGTERM",
            self.reference.name
        )
    }

    /// Resident memory in bytes.
    pub fn resident_bytes(&self) -> Result<u64> {
        self.reference.resident_bytes()
    }

    /// Waits until `ready`, an error if the process ends or `limit` passes before.
    pub fn wait_until(
        &mut self,
        what: &str,
        limit: Duration,
        mut ready: impl FnMut() -> bool,
    ) -> Result<()> {
        let end = Instant::now() + limit;
        // Other programs' readiness (a socket that answers) has no event.
        while !ready() {
            self.ensure_alive()?;
            if Instant::now() > end {
                bail!(
                    "{}: {what} is not there after {limit:?}; the end of {}:\n{}",
                    self.reference.name,
                    self.reference.log.display(),
                    self.reference.last_log_lines(20)
                );
            }
            pause(Duration::from_millis(10));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_start_time_is_found_behind_a_command_with_parentheses() {
        let mut fields = vec!["S"; 19];
        fields.push("4711");
        let line = format!("12 (a (b) c) {} 0 0", fields.join(" "));
        assert_eq!(parse_stat(&line), Some(4711));
        assert_eq!(parse_stat(&line.replacen(") S", ") Z", 1)), None);
    }

    #[test]
    fn a_reference_does_not_match_a_later_process_with_the_same_pid() {
        let me = ProcessRef::current();
        assert!(me.is_alive());
        assert!(
            !ProcessRef {
                start_time: me.start_time + 1,
                ..me
            }
            .is_alive()
        );
    }

    #[test]
    fn a_process_that_ends_is_reported_with_its_last_words() {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new("sh");
        command.args(["-c", "echo last words; exit 4"]);
        let mut process = Process::start("x", command, None, &dir.path().join("log")).unwrap();
        let error = process
            .wait_until("nothing", Duration::from_secs(5), || false)
            .unwrap_err();
        assert!(error.to_string().contains("last words"), "{error}");
    }

    #[test]
    fn a_killed_process_is_not_alive_and_signals_to_it_are_no_error() {
        let dir = tempfile::tempdir().unwrap();
        let mut command = Command::new("sleep");
        command.arg("60");
        let mut process = Process::start("x", command, None, &dir.path().join("log")).unwrap();
        assert!(process.resident_bytes().unwrap() > 0);
        process.kill().unwrap();
        assert!(!process.reference().is_alive());
        process.reference().signal(Signal::SIGTERM).unwrap();
    }
}
