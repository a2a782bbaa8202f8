//! Entering network namespaces: for a child process, or for a thread of its own. The only unsafe code
//! of the harness together with `process`.
#![expect(
    unsafe_code,
    reason = "setns and what a child does before exec have no safe interface"
)]

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

/// Where `ip netns` keeps its namespaces.
pub const NETNS_DIR: &str = "/run/netns";

/// The file of a named namespace.
#[must_use]
pub fn path(name: &str) -> PathBuf {
    PathBuf::from(NETNS_DIR).join(name)
}

fn enter(namespace: &File) -> io::Result<()> {
    // SAFETY: the descriptor is open for the whole call, and `setns` touches no memory of ours. It
    // moves the calling thread only.
    match unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Makes `command` run inside the namespace. Unlike `ip netns exec` this leaves the mounts alone: a
/// remounted `/sys` would hide the cgroup mounts from runc.
pub fn run_inside(command: &mut Command, namespace: &str) -> Result<()> {
    let path = path(namespace);
    let file = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
    // SAFETY: between fork and exec the closure makes one system call and allocates nothing.
    unsafe {
        command.pre_exec(move || enter(&file));
    }
    Ok(())
}

/// Makes `command` the leader of a session of its own, so that a Ctrl-C meant for the test, or the end
/// of a terminal, does not reach it.
pub(crate) fn detach(command: &mut Command) {
    // SAFETY: `setsid` is async-signal-safe and touches no memory.
    unsafe {
        command.pre_exec(|| match libc::setsid() {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        });
    }
}

/// Gives `command` the file as descriptor 3, the first one of systemd's socket activation.
pub(crate) fn pass_as_fd_3(command: &mut Command, file: std::os::fd::OwnedFd) {
    // SAFETY: `dup2` and `fcntl` are async-signal-safe; the closure owns the descriptor it copies.
    unsafe {
        command.pre_exec(move || {
            let raw = file.as_raw_fd();
            // dup2 onto itself would keep close-on-exec, so that case only clears the flag.
            let outcome = if raw == 3 {
                libc::fcntl(3, libc::F_SETFD, 0)
            } else {
                libc::dup2(raw, 3)
            };
            if outcome == -1 {
                Err(io::Error::last_os_error())
            } else {
                Ok(())
            }
        });
    }
}

/// Runs `work` on a thread of its own inside the namespace. Every socket it opens, and every thread it
/// starts, belongs to the namespace; the thread ends with the work and is never reused.
pub fn inside<T: Send + 'static>(
    namespace: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T> {
    let path = path(namespace);
    let file = File::open(&path).with_context(|| format!("cannot open {}", path.display()))?;
    let thread = std::thread::Builder::new()
        .name(namespace.to_owned())
        .spawn(move || enter(&file).map(|()| work()))?;
    match thread.join() {
        Ok(outcome) => outcome.with_context(|| format!("cannot enter {}", path.display())),
        Err(panic) => std::panic::resume_unwind(panic),
    }
}
