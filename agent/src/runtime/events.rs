//! containerd's events: each is a nudge to look again, and after every (re)subscription everything is
//! looked at, because events are not kept for those who were away.

use std::sync::Arc;
use std::time::Duration;

use containerd_client::events::TaskExit;
use containerd_client::services::v1::SubscribeRequest;
use containerd_client::types::Envelope;
use prost::Message;
use tracing::{debug, info, warn};

use super::connect::CallError;
use super::containerd::Driver;

const FIRST_RETRY: Duration = Duration::from_millis(50);
const LAST_RETRY: Duration = Duration::from_secs(2);

/// Subscribes for as long as the driver lives.
pub(super) async fn run(driver: Arc<Driver>) {
    let mut retry = FIRST_RETRY;
    let mut was_lost = false;
    loop {
        match subscribed(&driver, was_lost).await {
            // It worked for a while: the next attempt may come at once.
            Ok(()) => retry = FIRST_RETRY,
            Err(error) => {
                if !was_lost {
                    warn!(%error, "containerd is not reachable; waiting for it");
                }
                retry = (retry * 2).min(LAST_RETRY);
            }
        }
        was_lost = true;
        driver.changed();
        tokio::time::sleep(retry).await;
    }
}

/// One subscription until it breaks. `Err` if it never began.
async fn subscribed(driver: &Arc<Driver>, was_lost: bool) -> Result<(), CallError> {
    let namespace = &driver.config.namespace;
    let filters = vec![format!("namespace=={namespace},topic~=\"^/tasks/\"")];
    let mut client = driver.connection.events();
    let request = driver.connection.request(SubscribeRequest { filters });
    // No deadline: containerd sends the headers with the first event only.
    let opening = client.subscribe(request);
    tokio::pin!(opening);
    let looked = look_again(driver, was_lost);
    let mut stream = tokio::select! {
        biased;
        opened = &mut opening => {
            let stream = opened?.into_inner();
            look_again(driver, was_lost).await?;
            stream
        }
        looked = looked => {
            looked?;
            opening.await?.into_inner()
        }
    };
    loop {
        match stream.message().await {
            Ok(Some(envelope)) => note(driver, &envelope),
            Ok(None) => return Ok(()),
            Err(error) => {
                debug!(%error, "event stream ended");
                return Ok(());
            }
        }
    }
}

/// Resumes waits and logs of everything that runs.
async fn look_again(driver: &Arc<Driver>, was_lost: bool) -> Result<(), CallError> {
    driver.resume().await?;
    if was_lost {
        info!("containerd is reachable again");
    }
    driver.changed();
    Ok(())
}

fn note(driver: &Driver, envelope: &Envelope) {
    if envelope.topic == "/tasks/exit"
        && let Some(event) = &envelope.event
        && let Ok(exit) = TaskExit::decode(event.value.as_slice())
        && exit.id == exit.container_id
    {
        driver.saw_exit(&exit.container_id, exit.exit_status, exit.exited_at);
    }
    driver.changed();
}
