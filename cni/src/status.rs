//! STATUS: whether ADD would be served now.

use std::time::Duration;

use tholepin_api::proto;

use crate::agent::{connect, request};
use crate::config::Config;
use crate::error::CniError;

pub(crate) async fn run(config: &Config) -> Result<String, CniError> {
    if config.cni_version != "1.1.0" {
        let version = config.cni_version.clone();
        return Err(CniError::IncompatibleVersion { version });
    }
    let not_available = |reason: String| CniError::NotAvailable { reason };
    let mut agent = connect(&config.socket(), Duration::ZERO)
        .await
        .map_err(|_| not_available("the agent does not answer".to_owned()))?;
    let status = agent.status(request(proto::StatusRequest {})).await;
    let status = status
        .map_err(|status| not_available(status.message().to_owned()))?
        .into_inner();
    match (status.ready, status.impaired) {
        (true, _) => Ok(String::new()),
        (false, true) => Err(CniError::Impaired {
            reason: status.reason,
        }),
        (false, false) => Err(not_available(status.reason)),
    }
}
