//! One pod's worker: looks, plans, applies, reports; until the pod is gone for good.
//!
//! State moves one way, running to terminating to gone. Everything it knows beyond the runtime is in
//! its journal, so that a new agent goes on where a killed one stopped.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use tholepin_model::plan::admission::Rejection;
use tholepin_model::plan::pods::{Goal, PodPlan, RealizedPod, is_finished, plan};
use tholepin_model::pod::backoff::{Backoff, Entry};
use tholepin_model::pod::status::{Condition, Waiting};
use tholepin_model::pod::{ContainerRecord, Pod, RecordState};
use tokio::sync::watch;
use tokio::time::Instant;

use super::Context;
use super::records;
use super::report::refusal;
use super::sources::PodSources;
use crate::errors::chain;
use crate::events::Severity;
use crate::journal::{PodJournal, PodMemory};
use crate::runtime::{PodIdentity, RealizedSandbox};
use crate::status::StatusWriter;
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
    /// The node has no room for the pod, which it had not begun with.
    pub(super) rejected: Option<Rejection>,
}

impl WorkerInput {
    pub(super) fn of(object: Arc<PodObject>) -> Self {
        Self {
            object: Some(object),
            ..Self::default()
        }
    }

    /// How the pod is to be ended, if it is.
    fn termination(&self) -> Option<Duration> {
        let pod = self.object.as_ref().map(|object| &object.pod);
        let spec_grace = pod.map_or(30, |pod| pod.termination_grace_secs);
        let deletion = pod
            .and_then(|pod| pod.deletion)
            .map(|deletion| deletion.grace_secs);
        Some(match self.removed {
            Some(Some(grace)) => grace,
            Some(None) => Duration::from_secs(deletion.unwrap_or(spec_grace)),
            None => Duration::from_secs(deletion?),
        })
    }
}

pub(super) const MIN_RETRY: Duration = Duration::from_secs(1);
pub(super) const MAX_RETRY: Duration = Duration::from_secs(10);

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
    pub(super) input: watch::Receiver<WorkerInput>,
    pub(super) latest: WorkerInput,
    pub(super) journal: PodJournal,
    pub(super) written: Option<PodMemory>,
    pub(super) status: StatusWriter,
    pub(super) conditions: Vec<Condition>,
    ticket: u64,
    /// What the last listing had of this pod.
    seen: Option<RealizedSandbox>,
    pub(super) reported_waits: BTreeMap<String, Duration>,
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
            seen: None,
            reported_waits: BTreeMap::new(),
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
            let mut planned = self.plan(goal);
            self.report_waits(&mut planned);
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
            self.memory.start_time = Some(
                pod.observed
                    .start_time
                    .unwrap_or_else(|| self.context.clock.wall_now()),
            );
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
        if let Some(rejection) = &self.latest.rejected
            && self.memory.failure.is_none()
        {
            let Rejection { reason, message } = rejection.clone();
            let full = format!("Pod was rejected: {message}");
            self.memory.failure = Some((reason.to_owned(), full));
            self.pod_event(Severity::Warning, reason, message);
        } else {
            self.warn_of_features(&object);
        }
    }

    fn absorb(&mut self, snapshot: &super::runtime_view::Snapshot) {
        let sandbox = snapshot.sandboxes.get(&self.identity.uid);
        self.seen = sandbox.cloned();
        self.sandbox = sandbox.is_some();
        self.sandbox_broken = sandbox.is_some_and(|sandbox| !sandbox.ready);
        self.netns = sandbox.and_then(|sandbox| sandbox.netns.clone());
        let found = sandbox
            .map(|sandbox| sandbox.containers.as_slice())
            .unwrap_or_default();
        let object = self.latest.object.clone();
        let now = self.context.clock.wall_now();
        records::merge(&mut self.records, found, now, |name, attempt, failed| {
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
        // Containers are started after all volumes were mounted, so an adopted one vouches for them:
        // they follow their sources from now on.
        if !running.is_empty() && !self.volumes_mounted {
            self.volumes_mounted = volumes::exists(&self.pod_dir);
        }
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
        let left = end
            .duration_since(self.context.clock.wall_now())
            .unwrap_or_default();
        (self.memory.failure.is_none()).then(|| Instant::now() + left)
    }

    fn goal(&mut self) -> Goal {
        if let Some(grace) = self.memory.terminating {
            return Goal::Terminate { grace };
        }
        if let Some(removed) = self.latest.removed {
            let grace = removed.unwrap_or(Duration::from_secs(30));
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
        // Other pods cause listings too, and so did our own last step: only news of this pod count.
        let (uid, seen) = (&self.identity.uid, &self.seen);
        let own_news = async {
            while snapshots.changed().await.is_ok() {
                if snapshots.borrow_and_update().sandboxes.get(uid) != seen.as_ref() {
                    return;
                }
            }
            // The reader is gone with the agent.
            std::future::pending().await
        };
        let sources_changed = tokio::select! {
            changed = self.input.changed() => {
                if changed.is_err() {
                    // The dispatcher is gone: the agent stops, and leaves everything as it is.
                    std::future::pending::<()>().await;
                }
                true
            }
            () = own_news => false,
            () = self.sources.changed() => true,
            () = timer => false,
        };
        if sources_changed && self.volumes_mounted && self.memory.terminating.is_none() {
            self.take_input();
            self.update_volumes().await;
        }
    }
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
