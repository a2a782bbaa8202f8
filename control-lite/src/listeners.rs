//! Listening sockets: our own, and those systemd (or the test harness) passes by LISTEN_FDS.
#![expect(unsafe_code, reason = "inherited descriptors exist only as numbers")]

use std::net::SocketAddr;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::socket::{getsockopt, sockopt};
use tokio::net::TcpListener;

/// The first descriptor systemd passes.
const FIRST: RawFd = 3;

/// A socket that cannot be served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ListenError {
    #[error("failed to listen at {address}")]
    Bind {
        address: SocketAddr,
        source: std::io::Error,
    },
    #[error("LISTEN_FDS={value:?} is not a number of sockets")]
    Count { value: String },
    #[error("descriptor {fd} of LISTEN_FDS is not open")]
    NotOpen {
        fd: RawFd,
        source: nix::errno::Errno,
    },
    #[error("descriptor {fd} of LISTEN_FDS is not a listening TCP socket")]
    NotListening { fd: RawFd },
    #[error("failed to take over descriptor {fd} of LISTEN_FDS")]
    TakeOver { fd: RawFd, source: std::io::Error },
}

/// Binds `address`.
pub(crate) async fn bind(address: SocketAddr) -> Result<TcpListener, ListenError> {
    TcpListener::bind(address)
        .await
        .map_err(|source| ListenError::Bind { address, source })
}

/// Takes over the sockets that were passed to this very process.
///
/// Call it first of all: a socket that was announced but not passed would otherwise be mistaken for whatever
/// was opened under its number meanwhile.
pub(crate) fn inherited() -> Result<Vec<std::net::TcpListener>, ListenError> {
    let variable = |name| std::env::var(name).ok();
    let count = passed(
        variable("LISTEN_PID"),
        variable("LISTEN_FDS"),
        std::process::id(),
    )?;
    (FIRST..FIRST + count).map(take_over).collect()
}

/// How many sockets are ours. A LISTEN_PID of another process means that they were for a parent.
fn passed(pid: Option<String>, count: Option<String>, own_pid: u32) -> Result<RawFd, ListenError> {
    let (Some(pid), Some(count)) = (pid, count) else {
        return Ok(0);
    };
    if pid.parse() != Ok(own_pid) {
        return Ok(0);
    }
    match count.parse::<RawFd>() {
        Ok(number) if (0..=1024).contains(&number) => Ok(number),
        _ => Err(ListenError::Count { value: count }),
    }
}

fn take_over(fd: RawFd) -> Result<std::net::TcpListener, ListenError> {
    // SAFETY: the protocol gives descriptors from 3 on to this process (LISTEN_PID was checked), this runs
    // once and before anything else opens descriptors by number, so nobody else owns it.
    let owned = unsafe { OwnedFd::from_raw_fd(fd) };
    if let Err(source) = fcntl(&owned, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)) {
        // Dropping a descriptor that is not open would close whatever gets this number next.
        std::mem::forget(owned);
        return Err(ListenError::NotOpen { fd, source });
    }
    if getsockopt(&owned, sockopt::AcceptConn) != Ok(true) {
        // Not what was announced, so perhaps not ours to close.
        std::mem::forget(owned);
        return Err(ListenError::NotListening { fd });
    }
    let listener = std::net::TcpListener::from(owned);
    let ready = listener
        .set_nonblocking(true)
        .and_then(|()| listener.local_addr());
    match ready {
        Ok(_) => Ok(listener),
        Err(source) => Err(ListenError::TakeOver { fd, source }),
    }
}

/// Hands a socket to the running runtime.
pub(crate) fn register(listener: std::net::TcpListener) -> std::io::Result<TcpListener> {
    TcpListener::from_std(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_for_another_process_are_left_alone() {
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(passed(some("7"), some("2"), 7).expect("valid"), 2);
        assert_eq!(passed(some("8"), some("2"), 7).expect("valid"), 0);
        assert_eq!(passed(None, some("2"), 7).expect("valid"), 0);
        assert_eq!(passed(some("x"), some("2"), 7).expect("valid"), 0);
        assert!(passed(some("7"), some("-1"), 7).is_err());
        assert!(passed(some("7"), some("many"), 7).is_err());
    }
}
