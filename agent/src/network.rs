//! The pod network as the pod workers and the CNI server see it: one trait and its inputs.
//!
//! Owns the vocabulary between `reconcile/pods`, `cni_server` and the dataplane. The implementation
//! journals an address before it answers, so a retried attach gets the same address.

use std::net::IpAddr;
use std::path::PathBuf;

use async_trait::async_trait;

pub mod names;
pub mod node;
pub mod owner;
mod pod;
mod socket_lb;
mod underlay;

/// One interface of one sandbox. `(container_id, interface)` is the idempotency key, as in CNI.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AttachmentKey {
    /// Sandbox id; for pods of this agent, the pod's UID.
    pub container_id: String,
    /// Name inside the sandbox, `eth0`.
    pub interface: String,
}

/// Annotation of pods: "false" keeps Service load balancing away from their sockets.
pub const SOCKET_LB_ANNOTATION: &str = "tholepin.io/socket-lb";

/// A request to give a network namespace its interface and addresses.
#[derive(Clone, Debug)]
pub struct AttachRequest {
    pub key: AttachmentKey,
    pub netns: PathBuf,
    pub pod_namespace: String,
    pub pod_name: String,
    pub pod_uid: String,
    /// Whether the pod's sockets may be balanced when they connect ([`SOCKET_LB_ANNOTATION`]).
    pub socket_lb: bool,
}

/// What a sandbox has after an attach.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attachment {
    pub key: AttachmentKey,
    /// Primary address first; one per family the node has a pod range for.
    pub addresses: Vec<IpAddr>,
    pub host_interface: String,
    pub mac: [u8; 6],
    pub mtu: u32,
}

/// Why an attach or detach failed.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// No pod range yet, or the dataplane is still loading: try again later (CNI code 11).
    #[error("the pod network of this node is not ready: {reason}")]
    NotReady { reason: String },
    /// Nobody attached this (CNI code 3).
    #[error("attachment {subject} is unknown")]
    Unknown { subject: String },
    #[error("no free {family} address in the node's pod range {range}")]
    Exhausted { family: &'static str, range: String },
    #[error("failed to {operation} for {subject}")]
    Operation {
        operation: &'static str,
        subject: String,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Wires sandboxes to the dataplane.
#[async_trait]
pub trait PodNetwork: Send + Sync + 'static {
    /// Idempotent by [`AttachmentKey`].
    async fn attach(&self, request: &AttachRequest) -> Result<Attachment, NetworkError>;
    /// Idempotent; succeeds when there is nothing left to remove.
    async fn detach(&self, key: &AttachmentKey) -> Result<(), NetworkError>;
    async fn check(&self, key: &AttachmentKey) -> Result<Attachment, NetworkError>;
    /// All attachments in the journal, for garbage collection against the pods that exist.
    async fn attachments(&self) -> Result<Vec<Attachment>, NetworkError>;
    /// Whether `attach` can be served now; the Ready condition and CNI STATUS show the error.
    async fn ready(&self) -> Result<(), NetworkError>;
}
