//! The rtnetlink driver: devices, addresses, routes, neighbours and sysctls of this node and its pods.
//!
//! Every `ensure_` call is idempotent. A [`Netlink`] belongs to the network namespace of the thread that
//! opened it, whichever thread uses it later.

use std::path::PathBuf;

pub mod filter;
pub mod link;
pub mod neigh;
pub mod netns;
pub mod route;
pub mod sysctl;

/// Why a change of the node's network state failed.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    #[error("failed to open a netlink socket")]
    Socket { source: std::io::Error },
    #[error("failed to {operation} {subject}")]
    Request {
        operation: &'static str,
        subject: String,
        source: rtnetlink::Error,
    },
    #[error("interface {name} does not exist")]
    MissingLink { name: String },
    #[error("interface {name} exists but is not a {expected} device; remove or rename it")]
    WrongKind {
        name: String,
        expected: &'static str,
    },
    #[error("no interface of this node has the address {address}")]
    NoUnderlay { address: std::net::IpAddr },
    #[error("failed to {operation} the network namespace {}", path.display())]
    Namespace {
        operation: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("failed to set {} to {value}", path.display())]
    Sysctl {
        path: PathBuf,
        value: String,
        source: std::io::Error,
    },
}

/// A netlink socket and the task that serves it.
#[derive(Debug)]
pub struct Netlink {
    handle: rtnetlink::Handle,
    connection: tokio::task::JoinHandle<()>,
}

impl Netlink {
    /// Opens a socket in the network namespace of the calling thread. Needs a tokio runtime.
    pub fn open() -> Result<Self, NetlinkError> {
        let (connection, handle, _) =
            rtnetlink::new_connection().map_err(|source| NetlinkError::Socket { source })?;
        Ok(Self {
            handle,
            connection: tokio::spawn(connection),
        })
    }
}

impl Drop for Netlink {
    fn drop(&mut self) {
        self.connection.abort();
    }
}

/// Names an operation and its subject on a netlink result.
trait Context<T> {
    fn context(
        self,
        operation: &'static str,
        subject: impl std::fmt::Display,
    ) -> Result<T, NetlinkError>;
}

impl<T> Context<T> for Result<T, rtnetlink::Error> {
    fn context(
        self,
        operation: &'static str,
        subject: impl std::fmt::Display,
    ) -> Result<T, NetlinkError> {
        self.map_err(|source| NetlinkError::Request {
            operation,
            subject: subject.to_string(),
            source,
        })
    }
}

/// The errno of a refused request.
fn errno(error: &rtnetlink::Error) -> Option<i32> {
    match error {
        rtnetlink::Error::NetlinkError(message) => Some(-message.raw_code()),
        _ => None,
    }
}
