//! Errors with the codes of the CNI specification.

use std::path::PathBuf;

use serde_json::json;

/// Why a verb failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CniError {
    #[error("unsupported cniVersion {version:?}; supported are {}", crate::config::SUPPORTED.join(", "))]
    IncompatibleVersion { version: String },
    #[error("{variable}: {problem}")]
    InvalidEnvironment {
        variable: &'static str,
        problem: String,
    },
    #[error("failed to read the network configuration from standard input")]
    ReadInput { source: std::io::Error },
    #[error("failed to decode the network configuration")]
    Decode { source: serde_json::Error },
    #[error("network configuration: {problem}")]
    InvalidConfig { problem: String },
    #[error("failed to start")]
    Runtime { source: std::io::Error },
    #[error("the agent does not answer")]
    AgentDown { source: tholepin_api::ConnectError },
    #[error("the agent cannot do that now: {message}")]
    TryAgain { message: String },
    #[error("the agent knows no such attachment: {message}")]
    Unknown { message: String },
    #[error("the agent failed: {message}")]
    Agent { message: String },
    #[error("the container does not have what prevResult says: {problem}")]
    Mismatch { problem: String },
    #[error("failed to queue the deletion in {}", path.display())]
    Queue {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("the pod network is not available: {reason}")]
    NotAvailable { reason: String },
    #[error("the pod network is not available and existing pods may be cut off: {reason}")]
    Impaired { reason: String },
}

impl CniError {
    /// Code of the specification; 100 and above are the plugin's own.
    pub(crate) fn code(&self) -> u32 {
        match self {
            Self::IncompatibleVersion { .. } => 1,
            Self::Unknown { .. } => 3,
            Self::InvalidEnvironment { .. } => 4,
            Self::ReadInput { .. } | Self::Queue { .. } | Self::Runtime { .. } => 5,
            Self::Decode { .. } => 6,
            Self::InvalidConfig { .. } => 7,
            Self::AgentDown { .. } | Self::TryAgain { .. } => 11,
            Self::NotAvailable { .. } => 50,
            Self::Impaired { .. } => 51,
            Self::Agent { .. } => 100,
            Self::Mismatch { .. } => 101,
        }
    }

    /// The error document.
    pub(crate) fn to_json(&self, version: &str) -> String {
        let mut details = Vec::new();
        let mut source = std::error::Error::source(self);
        while let Some(error) = source {
            details.push(error.to_string());
            source = error.source();
        }
        let document = json!({
            "cniVersion": version,
            "code": self.code(),
            "msg": self.to_string(),
            "details": details.join(": "),
        });
        document.to_string()
    }
}
