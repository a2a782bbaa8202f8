//! GC: removes attachments the runtime does not know. Without an agent there is nothing to do now: the
//! next GC, or the DEL of each, does it.

use std::time::Duration;

use tholepin_api::proto;

use crate::agent::{connect, refusal, request};
use crate::config::Config;
use crate::error::CniError;

pub(crate) async fn run(config: &Config) -> Result<String, CniError> {
    if config.cni_version != "1.1.0" {
        let version = config.cni_version.clone();
        return Err(CniError::IncompatibleVersion { version });
    }
    let Some(valid) = &config.valid_attachments else {
        // Taking absence for "none" would remove every pod's network.
        let problem = "GC needs cni.dev/valid-attachments".to_owned();
        return Err(CniError::InvalidConfig { problem });
    };
    let Ok(mut agent) = connect(&config.socket(), Duration::ZERO).await else {
        return Ok(String::new());
    };
    let valid = valid
        .iter()
        .map(|attachment| proto::AttachmentKey::new(&attachment.container_id, &attachment.ifname))
        .collect();
    let message = proto::GcRequest { valid };
    agent
        .gc(request(message))
        .await
        .map_err(|status| refusal(&status))?;
    Ok(String::new())
}
