//! Work inside another network namespace, always on a thread of its own.
//!
//! `setns` changes the calling thread; such a thread must never go back to a pool.

#![expect(
    unsafe_code,
    reason = "setns has no safe wrapper that borrows its descriptor"
)]

use std::fs::File;
use std::future::Future;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;

use super::NetlinkError;

/// Opens the namespace; `Ok(None)` when it does not exist any more.
pub fn open(path: &Path) -> Result<Option<File>, NetlinkError> {
    match File::open(path) {
        Ok(file) => Ok(Some(file)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(NetlinkError::Namespace {
            operation: "open",
            path: path.to_owned(),
            source,
        }),
    }
}

/// Runs `work` on a new thread inside the namespace, with a runtime of its own, and awaits the outcome.
///
/// Sockets the work opens belong to the namespace. `path` only names it in errors.
pub async fn run_inside<F, W, T>(netns: File, path: &Path, work: F) -> Result<T, NetlinkError>
where
    F: FnOnce() -> W + Send + 'static,
    W: Future<Output = Result<T, NetlinkError>>,
    T: Send + 'static,
{
    let (sender, receiver) = tokio::sync::oneshot::channel();
    let error_path = path.to_owned();
    let failed = move |operation: &'static str, source: io::Error| NetlinkError::Namespace {
        operation,
        path: error_path,
        source,
    };
    let spawned = std::thread::Builder::new().name("netns".to_owned()).spawn({
        let failed = failed.clone();
        move || {
            let outcome = enter(netns.as_fd())
                .map_err(|source| failed.clone()("enter", source))
                .and_then(|()| {
                    tokio::runtime::Builder::new_current_thread()
                        .enable_all()
                        .build()
                        .map_err(|source| failed("start work in", source))
                })
                .and_then(|runtime| runtime.block_on(work()));
            // The receiver is gone only when the caller was cancelled.
            drop(sender.send(outcome));
        }
    });
    spawned.map_err(|source| failed.clone()("start work in", source))?;
    receiver.await.unwrap_or_else(|_| {
        let died = io::Error::other("the worker thread died");
        Err(failed("work in", died))
    })
}

/// The cookie of the calling thread's namespace, by which socket programs know it; 0 where the kernel
/// does not tell.
#[must_use]
pub fn cookie() -> u64 {
    let socket = match std::net::UdpSocket::bind("127.0.0.1:0") {
        Ok(socket) => socket,
        Err(error) => {
            tracing::debug!(%error, "no socket to ask for the namespace's cookie with");
            return 0;
        }
    };
    let mut cookie = 0_u64;
    let mut len = size_of::<u64>() as libc::socklen_t;
    // SAFETY: `cookie` and `len` are live and of the sizes the call is told.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut len,
        )
    };
    if result == 0 { cookie } else { 0 }
}

/// The cookie of another namespace.
pub async fn cookie_of(path: &Path) -> Result<u64, NetlinkError> {
    let file = open(path)?.ok_or_else(|| NetlinkError::Namespace {
        operation: "open",
        path: path.to_owned(),
        source: io::ErrorKind::NotFound.into(),
    })?;
    run_inside(file, path, || async { Ok(cookie()) }).await
}

/// Moves the calling thread into `netns`.
fn enter(netns: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: `netns` is open for the whole call (borrowed), and `setns` touches no memory of ours.
    match unsafe { libc::setns(netns.as_raw_fd(), libc::CLONE_NEWNET) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
