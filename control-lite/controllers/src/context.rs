//! What every controller is given: caches, recorder, settings.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use tholepin_informer::{Caches, ClientError, Recorder};

/// Shared by all controllers.
#[derive(Clone, Debug)]
pub struct Context {
    /// The caches.
    pub caches: Arc<Caches>,
    /// Writes Events.
    pub recorder: Recorder,
}

/// What an operator can set.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Ranges pod addresses come from: at most one per address family.
    pub cluster_cidrs: Vec<IpNet>,
    /// Prefix length of a node's IPv4 range.
    pub node_mask_v4: u8,
    /// Prefix length of a node's IPv6 range.
    pub node_mask_v6: u8,
    /// How often node health is judged.
    pub node_monitor_period: Duration,
    /// How long a node may be silent.
    pub node_monitor_grace: Duration,
    /// Address of the API server that the `kubernetes` Service leads to.
    pub advertise_address: IpAddr,
    /// Its port.
    pub secure_port: u16,
    /// The `kubernetes` Service's address: the first one of the first Service range.
    pub kubernetes_service_ip: IpAddr,
}

/// A reconciliation that has to be tried again.
#[derive(Debug, thiserror::Error)]
#[error("failed to {operation} {subject}")]
pub struct ReconcileError {
    /// What was tried.
    pub operation: &'static str,
    /// On which object.
    pub subject: String,
    /// Why it failed.
    pub source: ClientError,
}

impl ReconcileError {
    /// For `map_err`: adds operation and subject.
    pub fn of(operation: &'static str, subject: impl ToString) -> impl FnOnce(ClientError) -> Self {
        move |source| Self {
            operation,
            subject: subject.to_string(),
            source,
        }
    }

    /// Somebody else was faster, or the object is gone: nothing to report, only to look again.
    #[must_use]
    pub fn is_expected(&self) -> bool {
        self.source.is_conflict() || self.source.is_not_found() || self.source.namespace_terminating
    }
}
