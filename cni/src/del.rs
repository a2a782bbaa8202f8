//! DEL: removes an attachment. Best effort: it succeeds when things are gone already, and when no agent
//! answers it is queued on disk for the next one.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::Path;
use std::time::Duration;

use serde_json::json;
use tholepin_api::proto;
use tonic::Code;

use crate::agent::{connect, request};
use crate::config::{Arguments, Config};
use crate::error::CniError;

/// More queued deletions than pods a node can have: something else is wrong.
const QUEUE_LIMIT: usize = 1024;

pub(crate) async fn run(arguments: &Arguments, config: &Config) -> Result<String, CniError> {
    let key = proto::AttachmentKey::new(&arguments.container_id, &arguments.interface);
    if let Ok(mut agent) = connect(&config.socket(), Duration::ZERO).await {
        match agent.del(request(key)).await {
            Ok(_) => return Ok(String::new()),
            Err(status) if status.code() == Code::InvalidArgument => {
                return Err(crate::agent::refusal(&status));
            }
            // Starting, stopping or failing: the deletion must not be lost.
            Err(_) => (),
        }
    }
    let queue = config.run_dir.join("cni-del");
    enqueue(&queue, arguments).map_err(|source| CniError::Queue {
        path: queue,
        source,
    })?;
    Ok(String::new())
}

/// Durable on return. The interface itself goes with the sandbox's namespace, and what is left on the
/// node's side passes nothing without it.
fn enqueue(queue: &Path, arguments: &Arguments) -> io::Result<()> {
    fs::create_dir_all(queue)?;
    // Both halves are validated to be file names; the separator is in neither.
    let name = format!("{}@{}.json", arguments.container_id, arguments.interface);
    let path = queue.join(&name);
    if !path.exists() && fs::read_dir(queue)?.count() >= QUEUE_LIMIT {
        return Err(io::Error::other(format!(
            "{QUEUE_LIMIT} deletions are queued already"
        )));
    }
    let document = json!({
        "container_id": arguments.container_id,
        "interface": arguments.interface,
    });
    let aside = queue.join(format!("{name}.tmp"));
    let mut file = File::create(&aside)?;
    file.write_all(document.to_string().as_bytes())?;
    file.sync_all()?;
    fs::rename(&aside, &path)?;
    File::open(queue)?.sync_all()
}
