//! ADD: gives a sandbox its interface and addresses.

use tholepin_api::proto;

use crate::agent::{PATIENCE, connect, refusal, request};
use crate::config::{Arguments, Config};
use crate::error::CniError;
use crate::result;

pub(crate) async fn run(arguments: &Arguments, config: &Config) -> Result<String, CniError> {
    let mut agent = connect(&config.socket(), PATIENCE).await?;
    let message = proto::AddRequest {
        key: Some(proto::AttachmentKey::new(
            &arguments.container_id,
            &arguments.interface,
        )),
        netns: arguments.netns.clone(),
        pod_namespace: arguments.pod_namespace.clone(),
        pod_name: arguments.pod_name.clone(),
        pod_uid: arguments.pod_uid.clone(),
    };
    let attachment = agent
        .add(request(message))
        .await
        .map_err(|status| refusal(&status))?;
    result::render(&attachment.into_inner(), arguments, config)
}
