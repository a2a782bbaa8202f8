//! What a worker tells others: status for the API, events, and its journal.

use std::collections::BTreeMap;
use std::time::Duration;

use tholepin_model::plan::pods::{Goal, PodPlan, pull_key, restart_key};
use tholepin_model::pod::status::{Phase, StatusInputs, Waiting, compute};
use tholepin_model::pod::{Pod, RecordState};

use super::worker::{MIN_RETRY, Worker};
use crate::errors::chain;
use crate::events::{Severity, Subject};
use crate::journal::ContainerMemory;
use crate::watch::pods::PodObject;

/// How long a start error stays before the wait for the restart is shown.
const ERROR_SHOWN: Duration = Duration::from_secs(3);

impl Worker {
    pub(super) fn report_waits(&mut self, planned: &mut PodPlan) {
        let Some(object) = self.object() else { return };
        let display = object.pod.display();
        for wait in &planned.crash_waits {
            // Why it could not be started is worth more than that it waits: it is shown first.
            let shown = wait.until.saturating_sub(wait.delay) + ERROR_SHOWN;
            let error = self.waiting.get(&wait.name);
            if error.is_some_and(|error| error.reason == "RunContainerError")
                && self.context.clock.now() < shown
            {
                let at = planned.look_again_at.unwrap_or(shown);
                planned.look_again_at = Some(at.min(shown));
                continue;
            }
            let seconds = wait.delay.as_secs();
            let delay = match (seconds / 60, seconds % 60) {
                (0, seconds) => format!("{seconds}s"),
                (minutes, seconds) => format!("{minutes}m{seconds}s"),
            };
            let name = &wait.name;
            let message =
                format!("back-off {delay} restarting failed container={name} pod={display}");
            self.waiting
                .insert(name.clone(), Waiting::new("CrashLoopBackOff", message));
            // The same wait seen again differs by parts of a millisecond: two clocks are compared.
            let known = self.reported_waits.insert(name.clone(), wait.until);
            if known.is_none_or(|known| known.abs_diff(wait.until) > MIN_RETRY) {
                let message =
                    format!("Back-off restarting failed container {name} in pod {display}");
                let subject = Subject::container(&self.identity, name);
                self.context
                    .recorder
                    .record(subject, Severity::Warning, "BackOff", message);
            }
        }
    }

    pub(super) fn publish(&mut self, goal: Goal) {
        let Some(object) = self.object() else { return };
        if self.latest.removed.is_some() {
            return;
        }
        let attached = object.pod.host_network || !self.memory.addresses.is_empty();
        let failure = self
            .memory
            .failure
            .as_ref()
            .map(|(reason, message)| Waiting::new(reason, message.as_str()));
        let terminating = matches!(goal, Goal::Terminate { .. })
            && !self
                .records
                .iter()
                .any(|record| !matches!(record.state, RecordState::Exited(_)));
        let status = compute(&StatusInputs {
            pod: &object.pod,
            records: &self.records,
            waiting: &self.waiting,
            sandbox_ready: self.sandbox && !self.sandbox_broken && attached,
            pod_addresses: &self.memory.addresses,
            host_addresses: &self.context.host_addresses,
            start_time: self
                .memory
                .start_time
                .unwrap_or_else(|| self.context.clock.wall_now()),
            failure: failure.as_ref(),
            terminating,
            previous: &self.conditions,
            now: self.context.clock.wall_now(),
        });
        let mut status = status;
        if status.phase == Phase::Pending && !object.pod.refused.is_empty() {
            status.reason = "UnsupportedFeature".to_owned();
            status.message = refusal(&object.pod);
        }
        self.conditions.clone_from(&status.conditions);
        self.status.set(&status);
        self.status.correct(&object.object);
    }

    /// Writes the journal if something changed.
    pub(super) async fn remember(&mut self) {
        let wall = |at| self.context.clock.wall(at);
        self.memory.containers = self.records.iter().map(ContainerMemory::from).collect();
        let mut keys: Vec<String> = Vec::new();
        if let Some(pod) = self.pod() {
            for container in &pod.containers {
                keys.push(restart_key(&container.name));
                keys.push(pull_key(&container.image));
            }
        }
        let mut backoff = BTreeMap::new();
        for key in keys {
            if let Some(entry) = self.backoff.entry(&key) {
                // Unchanged entries keep their first translation: the two clocks drift apart by parts
                // of a millisecond, which must not look like news.
                let before = self.memory.backoff.get(&key).filter(|(delay, updated)| {
                    *delay == entry.delay
                        && self.context.clock.of(*updated).abs_diff(entry.updated) < MIN_RETRY
                });
                let value = before
                    .copied()
                    .unwrap_or((entry.delay, wall(entry.updated)));
                backoff.insert(key, value);
            }
        }
        self.memory.backoff = backoff;
        let memory = (self.written.as_ref() != Some(&self.memory)).then(|| self.memory.clone());
        let sources = if self.memory.terminating.is_some() {
            None
        } else {
            self.sources.unremembered()
        };
        if memory.is_none() && sources.is_none() {
            return;
        }
        let journal = self.journal.clone();
        self.written.clone_from(&memory);
        let written = tokio::task::spawn_blocking(move || {
            memory.map_or(Ok(()), |memory| journal.write_memory(&memory))?;
            sources.map_or(Ok(()), |sources| journal.write_sources(&sources))
        });
        if let Ok(Err(error)) = written.await {
            self.written = None;
            tracing::error!(pod = %self.identity.name, error = %chain(&error), "journal not written");
        }
    }

    /// One event per feature the pod asks for and does not get, over all agents that run it.
    pub(super) fn warn_of_features(&mut self, object: &PodObject) {
        let pod = &object.pod;
        for feature in &pod.ignored {
            if self.memory.warned.insert(feature.clone()) {
                let message = format!("{feature} is not supported by this node yet and is ignored");
                self.pod_event(Severity::Warning, "UnsupportedFeature", message);
            }
        }
        if !pod.refused.is_empty() && self.memory.warned.insert(refusal(pod)) {
            self.pod_event(Severity::Warning, "UnsupportedFeature", refusal(pod));
        }
    }

    pub(super) fn pod_event(&self, severity: Severity, reason: &'static str, message: String) {
        self.context
            .recorder
            .record(Subject::pod(&self.identity), severity, reason, message);
    }
}

/// Why a pod that needs what this node lacks is not run.
pub(super) fn refusal(pod: &Pod) -> String {
    format!(
        "this node cannot run the pod, it does not support: {}",
        pod.refused.join(", ")
    )
}
