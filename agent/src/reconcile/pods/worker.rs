//! One pod's worker: looks, plans, applies, reports; until the pod is gone for good.
//!
//! State moves one way, running to terminating to gone. Everything it knows beyond the runtime is in
//! its journal, so that a new agent goes on where a killed one stopped.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tholepin_model::plan::pods::{Goal, PodPlan, RealizedPod, is_finished, plan};
use tholepin_model::pod::backoff::{Backoff, Entry};
use tholepin_model::pod::status::{Condition, Phase, StatusInputs, Waiting, compute};
use tholepin_model::pod::{ContainerRecord, Pod, RecordState};
use tokio::sync::watch;
use tokio::time::Instant;

use super::Context;
use super::records;
use super::sources::PodSources;
use crate::errors::chain;
use crate::events::{Severity, Subject};
use crate::journal::{ContainerMemory, PodJournal, PodMemory};
use crate::runtime::PodIdentity;
use crate::status::{StatusWriter, Written};
use crate::volumes;
use crate::volumes::render::Facts;
use crate::watch::pods::PodObject;

/// What the dispatcher tells a worker; the latest counts.
#[derive(Clone, Debug, Default)]
pub(super) struct WorkerInput {
    /// The API's (or the journal's) pod. `None` for remains nobody knows a spec of.
    pub(super) object: Option<Arc<PodObject>>,
    /// The API has no such pod any more: end it, with this grace period if one is known.
    pub(super) removed: Option<Option<Duration>>,
}

impl WorkerInput {
    /// How the pod is to be ended, if it is.
    fn termination(&self) -> Option<Duration> {
        let pod = self.object.as_ref().map(|object| &object.pod);
        let spec_grace = pod.map_or(30, |pod| pod.termination_grace_secs);
        let deletion = pod
            .and_then(|pod| pod.deletion)
            .map(|deletion| deletion.grace_secs);
        let grace = match self.removed {
            Some(Some(grace)) => grace,
            Some(None) => Duration::from_secs(deletion.unwrap_or(spec_grace)),
            None => Duration::from_secs(deletion?),
        };
        // As the kubelet: never less than one second, so that a SIGTERM is at least seen.
        Some(grace.max(Duration::from_secs(1)))
    }
}

const MIN_RETRY: Duration = Duration::from_secs(1);
const MAX_RETRY: Duration = Duration::from_secs(10);

pub(super) struct Worker {
    pub(super) context: Arc<Context>,
    pub(super) identity: PodIdentity,
    pub(super) sources: PodSources,
    pub(super) backoff: Backoff,
    pub(super) pull_errors: BTreeMap<String, String>,
    pub(super) records: Vec<ContainerRecord>,
    pub(super) waiting: BTreeMap<String, Waiting>,
    pub(super) memory: PodMemory,
    pub(super) netns: Option<PathBuf>,
    pub(super) sandbox: bool,
    pub(super) sandbox_broken: bool,
    pub(super) volumes_mounted: bool,
    pub(super) killed: BTreeSet<String>,
    pub(super) pod_dir: PathBuf,
    input: watch::Receiver<WorkerInput>,
    latest: WorkerInput,
    journal: PodJournal,
    written: Option<PodMemory>,
    status: StatusWriter,
    conditions: Vec<Condition>,
    ticket: u64,
    reported_waits: BTreeSet<(String, Duration)>,
    first_seen: Instant,
    start_observed: bool,
}

impl Worker {
    pub(super) fn new(
        context: Arc<Context>,
        identity: PodIdentity,
        input: watch::Receiver<WorkerInput>,
    ) -> Self {
        let pod_dir = context.config.pod_dir(&identity.uid);
        let journal = PodJournal::new(pod_dir.clone());
        let or_default = |error: crate::journal::JournalError| {
            // The runtime's records are the fallback; restarts lose their count, nothing else.
            tracing::error!(pod = %identity.name, error = %chain(&error), "journal not readable");
            None
        };
        let memory = journal
            .read_memory()
            .unwrap_or_else(or_default)
            .unwrap_or_default();
        let sources = journal.read_sources().ok().flatten().unwrap_or_default();
        let mut backoff = Backoff::default();
        for (key, (delay, updated)) in &memory.backoff {
            let updated = context.clock.of(*updated);
            backoff.restore(
                key,
                Entry {
                    delay: *delay,
                    updated,
                },
            );
        }
        let ticket = context.view.request();
        let status = StatusWriter::spawn(Arc::clone(&context.pod_api), identity.clone());
        let latest = input.borrow().clone();
        Self {
            records: memory
                .containers
                .iter()
                .map(ContainerRecord::from)
                .collect(),
            sources: PodSources::new(sources),
            start_observed: !memory.containers.is_empty(),
            written: Some(memory.clone()),
            volumes_mounted: false,
            context,
            identity,
            backoff,
            pull_errors: BTreeMap::new(),
            waiting: BTreeMap::new(),
            memory,
            netns: None,
            sandbox: false,
            sandbox_broken: false,
            killed: BTreeSet::new(),
            pod_dir,
            input,
            latest,
            journal,
            status,
            conditions: Vec::new(),
            ticket,
            reported_waits: BTreeSet::new(),
            first_seen: Instant::now(),
        }
    }

    pub(super) fn object(&self) -> Option<Arc<PodObject>> {
        self.latest.object.clone()
    }

    pub(super) fn pod(&self) -> Option<&Pod> {
        self.latest.object.as_ref().map(|object| &object.pod)
    }

    pub(super) fn facts(&self) -> Facts {
        let text = |addresses: &[IpAddr]| addresses.iter().map(ToString::to_string).collect();
        let host_ips: Vec<String> = text(&self.context.host_addresses);
        let host_network = self.pod().is_some_and(|pod| pod.host_network);
        Facts {
            pod_ips: if host_network {
                host_ips.clone()
            } else {
                text(&self.memory.addresses)
            },
            host_ips,
            node_cpu_milli: self.context.node_cpu_milli,
            node_memory_bytes: self.context.node_memory_bytes,
        }
    }

    /// Runs until nothing of the pod is left, neither here nor in the API.
    pub(super) async fn run(mut self) {
        let mut retry = MIN_RETRY;
        let mut snapshots = self.context.view.subscribe();
        loop {
            self.take_input();
            let snapshot = self.context.view.fresh(self.ticket).await;
            self.absorb(&snapshot);
            let goal = self.goal();
            let planned = self.plan(goal);
            self.report_waits(&planned);
            self.publish(goal);
            self.remember().await;
            if planned.ops.is_empty()
                && let Goal::Terminate { .. } = goal
            {
                self.finish().await;
                return;
            }
            let look_again = planned
                .look_again_at
                .map(|at| self.context.clock.instant(at));
            if planned.ops.is_empty() {
                retry = MIN_RETRY;
                self.wait(&mut snapshots, look_again.or_else(|| self.deadline()))
                    .await;
                continue;
            }
            let urgency = self.latest.termination();
            let mut interrupt = self.input.clone();
            let failed = tokio::select! {
                result = self.apply_all(planned.ops) => result.is_err(),
                () = more_urgent(&mut interrupt, urgency) => false,
            };
            self.ticket = self.context.view.request();
            if failed {
                self.publish(goal);
                self.remember().await;
                let at = Instant::now() + retry;
                retry = (retry * 2).min(MAX_RETRY);
                let at = look_again.map_or(at, |again| again.min(at));
                self.wait(&mut snapshots, Some(at)).await;
            } else {
                retry = MIN_RETRY;
            }
        }
    }

    fn take_input(&mut self) {
        let first = self.memory.start_time.is_none();
        self.latest = self.input.borrow_and_update().clone();
        let Some(object) = self.latest.object.clone() else {
            return;
        };
        let pod = &object.pod;
        if first {
            self.memory.start_time = Some(pod.observed.start_time.unwrap_or_else(SystemTime::now));
        }
        if self.conditions.is_empty() {
            self.conditions.clone_from(&pod.observed.conditions);
        }
        if let Some(grace) = self.latest.termination() {
            let shorter = self
                .memory
                .terminating
                .map_or(grace, |before| before.min(grace));
            self.memory.terminating = Some(shorter);
            self.sources.release();
        } else {
            self.sources.follow(pod, self.context.objects.as_ref());
        }
        if !self.memory.warned && !(pod.ignored.is_empty() && pod.refused.is_empty()) {
            self.memory.warned = true;
            for feature in &pod.ignored {
                let message = format!("{feature} is not supported by this node yet and is ignored");
                self.pod_event(Severity::Warning, "UnsupportedFeature", message);
            }
            if !pod.refused.is_empty() {
                let message = refusal(pod);
                self.pod_event(Severity::Warning, "UnsupportedFeature", message);
            }
        }
    }

    fn absorb(&mut self, snapshot: &super::runtime_view::Snapshot) {
        let sandbox = snapshot.sandboxes.get(&self.identity.uid);
        self.sandbox = sandbox.is_some();
        self.sandbox_broken = sandbox.is_some_and(|sandbox| !sandbox.ready);
        self.netns = sandbox.and_then(|sandbox| sandbox.netns.clone());
        let found = sandbox
            .map(|sandbox| sandbox.containers.as_slice())
            .unwrap_or_default();
        let object = self.latest.object.clone();
        records::merge(&mut self.records, found, |name, attempt, failed| {
            let container = object.as_ref()?.pod.container(name)?;
            let log = self.context.config.log_path(&self.identity, name, attempt);
            let file = super::container_spec::termination_file(&self.pod_dir, name, attempt);
            let from_logs = container.termination_message_from_logs && failed;
            records::termination_message(&file, from_logs.then_some(log.as_path()))
        });
        // Reasons of former rounds do not outlive what they were about.
        let running: Vec<String> = self
            .records
            .iter()
            .filter(|record| matches!(record.state, RecordState::Running { .. }))
            .map(|record| record.name.clone())
            .collect();
        for name in running {
            self.waiting.remove(&name);
        }
        self.observe_start();
    }

    fn observe_start(&mut self) {
        let Some(object) = &self.latest.object else {
            return;
        };
        let all_running = object.pod.containers.iter().all(|container| {
            tholepin_model::pod::current(&self.records, &container.name)
                .is_some_and(|record| matches!(record.state, RecordState::Running { .. }))
        });
        if all_running && !self.start_observed {
            self.start_observed = true;
            self.context.metrics.pod_started(self.first_seen.elapsed());
        }
    }

    fn deadline(&self) -> Option<Instant> {
        let seconds = self.pod()?.active_deadline_secs?;
        let end = self.memory.start_time? + Duration::from_secs(seconds);
        let left = end.duration_since(SystemTime::now()).unwrap_or_default();
        (self.memory.failure.is_none()).then(|| Instant::now() + left)
    }

    fn goal(&mut self) -> Goal {
        if let Some(grace) = self.memory.terminating {
            return Goal::Terminate { grace };
        }
        if let Some(removed) = self.latest.removed {
            let grace = removed
                .unwrap_or(Duration::from_secs(30))
                .max(Duration::from_secs(1));
            self.memory.terminating = Some(grace);
            return Goal::Terminate { grace };
        }
        if self.deadline().is_some_and(|at| at <= Instant::now()) {
            let message = "Pod was active on the node longer than the specified deadline";
            self.memory.failure = Some(("DeadlineExceeded".to_owned(), message.to_owned()));
            self.pod_event(Severity::Normal, "DeadlineExceeded", message.to_owned());
        }
        let Some(pod) = self.pod() else {
            return Goal::Run;
        };
        if self.memory.failure.is_some() || is_finished(pod, &self.records) {
            Goal::Release
        } else {
            Goal::Run
        }
    }

    fn plan(&mut self, goal: Goal) -> PodPlan {
        if let (Goal::Run, Some(pod)) = (goal, self.pod())
            && !pod.refused.is_empty()
        {
            let waiting = Waiting::new("UnsupportedFeature", refusal(pod));
            let names: Vec<String> = pod
                .containers
                .iter()
                .map(|container| container.name.clone())
                .collect();
            self.waiting
                .extend(names.into_iter().map(|name| (name, waiting.clone())));
            return PodPlan::default();
        }
        let ends = goal != Goal::Run;
        let realized = RealizedPod {
            // What may exist is taken down; what surely exists is built upon.
            volumes_mounted: if ends {
                volumes::exists(&self.pod_dir)
            } else {
                self.volumes_mounted
            },
            sandbox: self.sandbox,
            sandbox_broken: self.sandbox_broken,
            network_attached: if ends {
                self.memory.attached
            } else {
                self.memory.attached && !self.memory.addresses.is_empty()
            },
            containers: self.records.clone(),
        };
        let clock = self.context.clock;
        let exited = |record: &ContainerRecord| match &record.state {
            RecordState::Exited(exit) => clock.of(exit.finished_at),
            _ => clock.now(),
        };
        plan(
            self.pod(),
            goal,
            &realized,
            &self.backoff,
            &exited,
            clock.now(),
        )
    }

    fn report_waits(&mut self, planned: &PodPlan) {
        let Some(object) = self.object() else { return };
        let display = object.pod.display();
        for wait in &planned.crash_waits {
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
            if self.reported_waits.insert((name.clone(), wait.until)) {
                self.reported_waits
                    .retain(|(other, until)| other != name || *until == wait.until);
                let message =
                    format!("Back-off restarting failed container {name} in pod {display}");
                let subject = Subject::container(&self.identity, name);
                self.context
                    .recorder
                    .record(subject, Severity::Warning, "BackOff", message);
            }
        }
    }

    fn publish(&mut self, goal: Goal) {
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
            start_time: self.memory.start_time.unwrap_or_else(SystemTime::now),
            failure: failure.as_ref(),
            terminating,
            previous: &self.conditions,
            now: SystemTime::now(),
        });
        let mut status = status;
        if status.phase == Phase::Pending && !object.pod.refused.is_empty() {
            status.reason = "UnsupportedFeature".to_owned();
            status.message = refusal(&object.pod);
        }
        self.conditions.clone_from(&status.conditions);
        self.status.set(&status);
    }

    /// Writes the journal if something changed.
    pub(super) async fn remember(&mut self) {
        let wall = |at| self.context.clock.wall(at);
        self.memory.containers = self.records.iter().map(ContainerMemory::from).collect();
        let mut keys: Vec<String> = Vec::new();
        if let Some(pod) = self.pod() {
            for container in &pod.containers {
                keys.push(tholepin_model::plan::pods::restart_key(&container.name));
                keys.push(tholepin_model::plan::pods::pull_key(&container.image));
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
            self.sources.to_remember()
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

    async fn wait(
        &mut self,
        snapshots: &mut watch::Receiver<Arc<super::runtime_view::Snapshot>>,
        until: Option<Instant>,
    ) {
        let timer = async {
            match until {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        let sources_changed = tokio::select! {
            changed = self.input.changed() => {
                if changed.is_err() {
                    // The dispatcher is gone: the agent stops, and leaves everything as it is.
                    std::future::pending::<()>().await;
                }
                true
            }
            _ = snapshots.changed() => false,
            () = self.sources.changed() => true,
            () = timer => false,
        };
        if sources_changed && self.volumes_mounted && self.memory.terminating.is_none() {
            self.take_input();
            self.update_volumes().await;
        }
    }

    /// Everything here is gone; says so to the API and forgets the pod.
    async fn finish(&mut self) {
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
                super::apply::remove_logs(&logs, &links);
            }
            volumes::remove_pod_dir(&pod_dir)
        });
        if let Ok(Err(error)) = removed.await {
            // Housekeeping finds the directory again.
            tracing::error!(pod = %self.identity.name, error = %chain(&error), "pod directory not removed");
        }
        tracing::info!(pod = %self.identity.name, namespace = %self.identity.namespace, "pod removed");
    }

    pub(super) fn pod_event(&self, severity: Severity, reason: &'static str, message: String) {
        self.context
            .recorder
            .record(Subject::pod(&self.identity), severity, reason, message);
    }
}

fn refusal(pod: &Pod) -> String {
    format!(
        "this node cannot run the pod, it does not support: {}",
        pod.refused.join(", ")
    )
}

/// Completes when the input asks for a (faster) end than `present` does.
async fn more_urgent(input: &mut watch::Receiver<WorkerInput>, present: Option<Duration>) {
    let is_urgent = |input: &WorkerInput| match (input.termination(), present) {
        (Some(_), None) => true,
        (Some(new), Some(old)) => new < old,
        (None, _) => false,
    };
    if input.wait_for(is_urgent).await.is_err() {
        std::future::pending::<()>().await;
    }
}
