//! Asking the kernel how a process ended that is not our child.
//!
//! containerd 2.x forgets a container that ended while it was away. Since Linux 6.15 a pidfd that was
//! opened before the end still tells the exit code; on older kernels it stays unknown.
#![expect(
    unsafe_code,
    reason = "two system calls that neither std nor nix wraps"
)]

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

/// `PIDFD_GET_INFO`: `_IOWR(0xff, 11, struct pidfd_info)` with the structure's first, 64-byte version.
const GET_INFO: libc::c_ulong = 0xc040_ff0b;
/// `PIDFD_INFO_EXIT`.
const INFO_EXIT: u64 = 1 << 3;

/// `struct pidfd_info` of linux/pidfd.h, first version.
#[repr(C)]
#[derive(Default)]
struct Info {
    mask: u64,
    cgroup_id: u64,
    ids: [u32; 11],
    exit_code: i32,
}

const _: () = assert!(size_of::<Info>() == 64);

/// A process, also after its end.
#[derive(Debug)]
pub(super) struct PidFd(OwnedFd);

impl PidFd {
    pub(super) fn open(pid: u32) -> io::Result<Self> {
        // SAFETY: takes two integers and touches no memory of ours.
        let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        let fd = i32::try_from(fd).map_err(io::Error::other)?;
        // SAFETY: the kernel has just made this descriptor for us; nobody else owns it.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd) }))
    }

    /// The exit code as a shell has it. `None` while it runs, or on a kernel that cannot tell.
    pub(super) fn exit_code(&self) -> Option<u32> {
        let mut info = Info {
            mask: INFO_EXIT,
            ..Info::default()
        };
        // SAFETY: `info` is as large as the request's number says, and lives past the call.
        let outcome = unsafe { libc::ioctl(self.0.as_raw_fd(), GET_INFO, &raw mut info) };
        if outcome != 0 || info.mask & INFO_EXIT == 0 {
            return None;
        }
        let status = info.exit_code;
        let code = if libc::WIFSIGNALED(status) {
            128 + libc::WTERMSIG(status)
        } else {
            libc::WEXITSTATUS(status)
        };
        u32::try_from(code).ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_runs_has_no_exit_code_and_an_ended_one_has_it_where_the_kernel_tells() {
        let own = PidFd::open(std::process::id()).expect("pidfd_open");
        assert_eq!(own.exit_code(), None);
        let mut child = std::process::Command::new("sh")
            .args(["-c", "read x; exit 9"])
            .stdin(std::process::Stdio::piped())
            .spawn()
            .expect("a shell");
        let watched = PidFd::open(child.id()).expect("pidfd_open");
        drop(child.stdin.take());
        child.wait().expect("ends");
        assert!(
            matches!(watched.exit_code(), Some(9) | None),
            "{:?}",
            watched.exit_code()
        );
    }
}
