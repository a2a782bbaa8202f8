//! The end of a pod: its final delete in the API, then its logs and its directory.

use std::time::Duration;

use super::worker::{MAX_RETRY, Worker};
use crate::errors::chain;
use crate::status::Written;
use crate::volumes;

impl Worker {
    /// Everything here is gone; says so to the API and forgets the pod.
    pub(super) async fn finish(&mut self) {
        let mut delay = Duration::from_millis(200);
        let mut flushed = false;
        while self.latest.removed.is_none() && self.latest.object.is_some() {
            let step = async {
                if !flushed {
                    self.status.flushed().await;
                    flushed = true;
                }
                self.context.pod_api.delete_now(&self.identity).await
            };
            let mut input = self.input.clone();
            let removed = async {
                // The sender only goes away with the agent; then nothing is left to do here.
                if input
                    .wait_for(|input| input.removed.is_some())
                    .await
                    .is_err()
                {
                    std::future::pending::<()>().await;
                }
            };
            tokio::select! {
                result = step => match result {
                    Ok(Written::Done | Written::Gone) => break,
                    Err(error) => {
                        tracing::warn!(pod = %self.identity.name, error = %chain(&error), "trying again");
                        tokio::time::sleep(delay).await;
                        delay = (delay * 2).min(MAX_RETRY);
                    }
                },
                () = removed => break,
            }
        }
        let pod_dir = self.pod_dir.clone();
        let logs = self.context.config.log_path(&self.identity, "c", 0);
        let logs = logs.ancestors().nth(2).map(std::path::Path::to_path_buf);
        let links = self.context.config.container_log_dir.clone();
        let removed = tokio::task::spawn_blocking(move || {
            if let Some(logs) = logs {
                super::container_logs::remove_logs(&logs, &links);
            }
            volumes::remove_pod_dir(&pod_dir)
        });
        if let Ok(Err(error)) = removed.await {
            // Housekeeping finds the directory again.
            tracing::error!(pod = %self.identity.name, error = %chain(&error), "pod directory not removed");
        }
        tracing::info!(pod = %self.identity.name, namespace = %self.identity.namespace, "pod removed");
    }
}
