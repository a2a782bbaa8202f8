//! What the agent says about itself: traces on standard error, health on loopback, metrics.

pub mod healthz;
pub mod metrics;
pub mod proxy_metrics;
pub mod service_health;

use tracing_subscriber::EnvFilter;

/// The log filter does not parse.
#[derive(Debug, thiserror::Error)]
#[error("--log {filter:?} is not a valid filter")]
pub struct InvalidFilter {
    pub filter: String,
    pub source: tracing_subscriber::filter::ParseError,
}

/// Sends traces of this process to standard error.
pub fn init_tracing(filter: &str) -> Result<(), InvalidFilter> {
    let parsed = EnvFilter::try_new(filter).map_err(|source| InvalidFilter {
        filter: filter.to_owned(),
        source,
    })?;
    tracing_subscriber::fmt()
        .with_env_filter(parsed)
        .with_writer(std::io::stderr)
        .init();
    Ok(())
}
