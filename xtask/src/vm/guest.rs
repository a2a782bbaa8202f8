//! One guest: starts QEMU, reads its serial line, and ends it when its time is over.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

pub(super) const QEMU: &str = "qemu-system-x86_64";

/// What to boot.
#[derive(Debug)]
pub(super) struct Run<'a> {
    pub(super) kernel: &'a Path,
    pub(super) initramfs: &'a Path,
    /// Where the kernel's own messages go.
    pub(super) console: PathBuf,
    pub(super) limit: Duration,
    pub(super) verbose: bool,
}

/// How a guest ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// It switched itself off, or its kernel panicked: the report knows which.
    Off,
    TimedOut(Duration),
}

impl Run<'_> {
    /// Boots, passes on every line of the second serial line, and waits for the end.
    pub(super) fn boot(&self, mut line: impl FnMut(&str)) -> Result<Ended> {
        // Emulated in threads: /dev/kvm may be there and not work. A panic ends the guest.
        let mut child = Command::new(QEMU)
            .args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2"])
            .args([
                "-m",
                "2048",
                "-nodefaults",
                "-display",
                "none",
                "-no-reboot",
            ])
            .arg("-kernel")
            .arg(self.kernel)
            .arg("-initrd")
            .arg(self.initramfs)
            .args([
                "-append",
                "console=ttyS0 loglevel=4 panic=-1 mitigations=off",
            ])
            .arg("-serial")
            .arg(format!("file:{}", self.console.display()))
            .args(["-serial", "stdio"])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {QEMU}"))?;
        let output = child.stdout.take().expect("stdout is piped");
        let (done, ended) = mpsc::channel::<()>();
        let pid = Pid::from_raw(child.id().cast_signed());
        let limit = self.limit;
        let watchdog = thread::spawn(move || {
            // The guest is waited for only after this thread has ended, so the pid is still its own.
            let late = ended.recv_timeout(limit) == Err(RecvTimeoutError::Timeout);
            if late {
                kill(pid, Signal::SIGKILL).ok();
            }
            late
        });
        for text in BufReader::new(output).split(b'\n') {
            let Ok(text) = text else { break };
            let text = String::from_utf8_lossy(&text);
            let text = text.trim_end_matches('\r');
            if self.verbose {
                println!("    | {text}");
            }
            line(text);
        }
        drop(done);
        let late = watchdog.join().expect("the watchdog does not panic");
        child.wait().context("cannot wait for the guest")?;
        if late {
            return Ok(Ended::TimedOut(self.limit));
        }
        self.panic_message().iter().for_each(|text| line(text));
        Ok(Ended::Off)
    }

    /// What the kernel said last, if it panicked.
    fn panic_message(&self) -> Vec<String> {
        let Ok(file) = File::open(&self.console) else {
            return Vec::new();
        };
        let lines = BufReader::new(file).lines().map_while(Result::ok);
        lines
            .skip_while(|text| !text.contains("Kernel panic"))
            .take(20)
            .collect()
    }
}
