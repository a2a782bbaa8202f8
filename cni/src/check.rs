//! CHECK: whether an attachment is still as ADD made it. Needs the agent: without it there is no network.

use std::time::Duration;

use tholepin_api::proto;

use crate::agent::{connect, refusal, request};
use crate::config::{Arguments, Config};
use crate::error::CniError;
use crate::result;

pub(crate) async fn run(arguments: &Arguments, config: &Config) -> Result<String, CniError> {
    if config.cni_version == "0.3.1" {
        let version = config.cni_version.clone();
        return Err(CniError::IncompatibleVersion { version });
    }
    let Some(previous) = &config.prev_result else {
        let problem = "CHECK needs prevResult".to_owned();
        return Err(CniError::InvalidConfig { problem });
    };
    let mut agent = connect(&config.socket(), Duration::ZERO).await?;
    let key = proto::AttachmentKey::new(&arguments.container_id, &arguments.interface);
    let attachment = agent
        .check(request(key))
        .await
        .map_err(|status| refusal(&status))?;
    match result::difference(previous, attachment.get_ref()) {
        None => Ok(String::new()),
        Some(problem) => Err(CniError::Mismatch { problem }),
    }
}
