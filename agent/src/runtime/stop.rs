//! Stopping: the image's signal, the grace period, then SIGKILL to everything in the container.

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use containerd_client::services::v1::KillRequest;
use containerd_client::types::v1::Status;
use nix::sys::signal::Signal;

use super::RuntimeError;
use super::connect::{CallError, Idempotent, QUICK, SLOW, call};
use super::containerd::Driver;
use super::exits::Tracked;
use super::labels;
use super::sandbox::operation_failed;

impl Driver {
    /// Returns once the container has exited and its exit is written down. Not running is fine.
    pub(super) async fn stop(
        self: &Arc<Self>,
        id: &str,
        grace: Duration,
    ) -> Result<(), RuntimeError> {
        let subject = || format!("container {id}");
        let Some(container) = self.container(id).await? else {
            return Ok(());
        };
        let task = self
            .task(id)
            .await
            .map_err(self.connection.failed("look at", subject()))?;
        let Some(task) = task else {
            return Ok(());
        };
        if task.status() == Status::Created {
            // Never started, so nothing to end gently.
            self.untrack(id);
            self.kill(id, Signal::SIGKILL, true).await?;
            return self
                .delete_task(id)
                .await
                .map_err(self.connection.failed("delete", subject()));
        }
        let parsed = labels::parse(id, &container.labels);
        let tracked = self
            .follow(parsed.follow)
            .map_err(operation_failed("follow", subject()))?;
        if !grace.is_zero() {
            self.kill(id, stop_signal(&parsed.stop_signal), false)
                .await?;
            if self.ends_within(id, &tracked, grace).await {
                return Ok(());
            }
        }
        self.kill(id, Signal::SIGKILL, true).await?;
        if self.ends_within(id, &tracked, SLOW).await {
            return Ok(());
        }
        Err(RuntimeError::Operation {
            operation: "await the end of",
            subject: subject(),
            source: Box::new(CallError::Deadline(SLOW)),
        })
    }

    async fn ends_within(&self, id: &str, tracked: &Tracked, limit: Duration) -> bool {
        tokio::time::timeout(limit, tracked.settled()).await.is_ok() || self.tracked(id).is_none()
    }

    pub(super) async fn kill(
        &self,
        id: &str,
        signal: Signal,
        all: bool,
    ) -> Result<(), RuntimeError> {
        let request = KillRequest {
            container_id: id.into(),
            exec_id: String::new(),
            signal: signal as u32,
            all,
        };
        let mut client = self.connection.tasks();
        match call(QUICK, client.kill(self.connection.request(request)))
            .await
            .or_gone()
        {
            // runc: the process ended in between.
            Err(CallError::Status(status))
                if status.message().contains("process already finished") =>
            {
                Ok(())
            }
            Err(error) if error.is_failed_precondition() => Ok(()),
            outcome => outcome.map_err(self.connection.failed("signal", format!("container {id}"))),
        }
    }
}

/// `SIGTERM`, `TERM` or `15`; anything else is what containerd falls back to as well.
fn stop_signal(text: &str) -> Signal {
    let by_number = text
        .parse::<i32>()
        .ok()
        .and_then(|number| Signal::try_from(number).ok());
    let by_name = || {
        Signal::from_str(text)
            .or_else(|_| Signal::from_str(&format!("SIG{text}")))
            .ok()
    };
    by_number.or_else(by_name).unwrap_or(Signal::SIGTERM)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stop_signals_are_read_by_name_and_number_and_default_to_term() {
        for (text, signal) in [
            ("SIGQUIT", Signal::SIGQUIT),
            ("INT", Signal::SIGINT),
            ("9", Signal::SIGKILL),
            ("", Signal::SIGTERM),
            ("nonsense", Signal::SIGTERM),
        ] {
            assert_eq!(stop_signal(text), signal, "{text:?}");
        }
    }
}
