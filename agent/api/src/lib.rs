//! Protocol of the agent's own unix socket (CNI and debugging): generated types and how to connect.

#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

use hyper_util::rt::TokioIo;
use tonic::transport::{Channel, Endpoint, Uri};

/// Generated from `proto/agent.proto`.
#[allow(
    missing_debug_implementations,
    unreachable_pub,
    clippy::allow_attributes_without_reason,
    reason = "generated code"
)]
pub mod proto {
    tonic::include_proto!("tholepin.agent.v1");
}

/// The agent could not be reached.
#[derive(Debug, thiserror::Error)]
#[error("failed to connect to the agent at {}", socket.display())]
pub struct ConnectError {
    socket: PathBuf,
    source: tonic::transport::Error,
}

/// Connects to the agent's socket now; fails at once when nobody listens.
pub async fn connect(socket: &Path) -> Result<Channel, ConnectError> {
    let path = socket.to_owned();
    let connector = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move {
            tokio::net::UnixStream::connect(path)
                .await
                .map(TokioIo::new)
        }
    });
    // The URI only fills the :authority header; the connector ignores it.
    Endpoint::from_static("http://agent.invalid")
        .connect_with_connector(connector)
        .await
        .map_err(|source| ConnectError {
            socket: socket.to_owned(),
            source,
        })
}

impl proto::AttachmentKey {
    /// From its two halves.
    #[must_use]
    pub fn new(container_id: impl Into<String>, interface: impl Into<String>) -> Self {
        Self {
            container_id: container_id.into(),
            interface: interface.into(),
        }
    }
}
