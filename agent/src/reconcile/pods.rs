//! All pods of the node: one worker per pod UID, from its first sight until nothing of it is left.
//!
//! The dispatcher compares three lists: what the API wants, what the runtime has, what the journal
//! remembers. It gives every pod one worker and ends pods nobody wants; that only after the API was
//! read whole, and in two passes, so that a half-seen cluster deletes nothing.

mod apply;
mod container_logs;
mod container_spec;
mod finish;
mod image;
mod records;
mod report;
pub mod runtime_view;
mod sources;
mod worker;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use tholepin_model::plan::admission::{self, Room};
use tholepin_model::pod::backoff::Backoff;
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::runtime_view::{RuntimeView, Snapshot};
use self::worker::{Worker, WorkerInput};
use crate::config::Config;
use crate::errors::chain;
use crate::events::{Recorder, Severity, Subject};
use crate::journal::{self, PodJournal};
use crate::network::PodNetwork;
use crate::observe::metrics::Metrics;
use crate::runtime::{PodIdentity, Runtime};
use crate::status::PodApi;
use crate::time::Clock;
use crate::volumes::pod_files::DnsSettings;
use crate::watch::objects::Objects;
use crate::watch::pods::{PodObject, PodsView, parse};
use crate::watch::service_links::ServiceLinks;

/// What workers share.
pub struct Context {
    pub config: Arc<Config>,
    pub runtime: Arc<dyn Runtime>,
    pub network: Arc<dyn PodNetwork>,
    pub objects: Arc<dyn Objects>,
    pub pod_api: Arc<dyn PodApi>,
    pub recorder: Recorder,
    pub metrics: Metrics,
    pub clock: Clock,
    pub view: RuntimeView,
    pub links: watch::Receiver<ServiceLinks>,
    /// Starts at the same time: about twice the cores, more only makes all of them slower.
    pub permits: Arc<Semaphore>,
    pub host_addresses: Vec<IpAddr>,
    pub dns: DnsSettings,
    pub node_memory_bytes: i64,
    pub node_cpu_milli: i64,
    /// What the node's pods may request together.
    pub capacity: Room,
}

impl Context {
    /// Runs one slow step of a start under a permit. A step that hangs gives the permit back and goes
    /// on without: one stuck pod delays itself only.
    async fn limited<T>(&self, step: impl Future<Output = T>) -> T {
        let permit = Arc::clone(&self.permits)
            .acquire_owned()
            .await
            .expect("the semaphore of the agent is never closed");
        tokio::pin!(step);
        if let Ok(value) = tokio::time::timeout(PERMIT_HELD, &mut step).await {
            return value;
        }
        drop(permit);
        step.await
    }
}

impl std::fmt::Debug for Context {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Context").finish_non_exhaustive()
    }
}

/// How long the API may be silent at start before pods run from the journal.
const OFFLINE_AFTER: Duration = Duration::from_secs(5);
const HOUSEKEEPING: Duration = Duration::from_secs(10);
const PERMIT_HELD: Duration = Duration::from_secs(5);
/// Delay before a pod whose worker panicked gets a new one, doubled to the second value.
const PANIC_BACKOFF: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(300));

struct Entry {
    identity: PodIdentity,
    input: watch::Sender<WorkerInput>,
}

/// How a worker ended.
#[derive(Debug)]
struct Ended {
    uid: String,
    panicked: bool,
}

struct Dispatcher {
    context: Arc<Context>,
    workers: BTreeMap<String, Entry>,
    tasks: JoinSet<Ended>,
    /// Finished pods that the API still shows: not to be started again.
    finished: BTreeSet<String>,
    /// Passes in which nobody wanted a pod.
    unwanted: BTreeMap<String, u8>,
    /// Pods whose worker panicked, until they get the next one.
    panicked: BTreeSet<String>,
    panics: Backoff,
}

/// Runs until cancelled; then leaves everything running.
pub async fn run(
    context: Arc<Context>,
    mut view: watch::Receiver<PodsView>,
    heartbeat: watch::Sender<Instant>,
    cancel: CancellationToken,
) {
    // Nothing is done before the runtime was read: a worker must not start what is running.
    let first = tokio::select! {
        () = cancel.cancelled() => return,
        first = beating(context.view.fresh(1), &heartbeat) => first,
    };
    tracing::info!(sandboxes = first.sandboxes.len(), "runtime read");
    let mut dispatcher = Dispatcher {
        context,
        workers: BTreeMap::new(),
        tasks: JoinSet::new(),
        finished: BTreeSet::new(),
        unwanted: BTreeMap::new(),
        panicked: BTreeSet::new(),
        panics: Backoff::new(PANIC_BACKOFF.0, PANIC_BACKOFF.1),
    };
    let synced = async {
        let synced = tokio::time::timeout(OFFLINE_AFTER, view.wait_for(|view| view.synced)).await;
        matches!(synced, Ok(Ok(_)))
    };
    let offline = tokio::select! {
        () = cancel.cancelled() => return,
        synced = synced => !synced,
    };
    if offline {
        tracing::warn!("the API server does not answer: running pods from the journal");
        dispatcher.start_from_journal().await;
    }
    let mut snapshots = dispatcher.context.view.subscribe();
    let mut housekeeping = tokio::time::interval(HOUSEKEEPING);
    housekeeping.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let pods = view.borrow_and_update().clone();
        dispatcher.dispatch(&pods).await;
        let revival = dispatcher.next_revival();
        tokio::select! {
            () = cancel.cancelled() => break,
            changed = view.changed() => {
                if changed.is_err() {
                    break;
                }
            }
            () = sleep_until(revival) => {}
            Some(ended) = dispatcher.tasks.join_next(), if !dispatcher.tasks.is_empty() => {
                dispatcher.ended(ended);
            }
            _ = housekeeping.tick() => {
                heartbeat.send_replace(Instant::now());
                let snapshot = Arc::clone(&snapshots.borrow_and_update());
                let pods = view.borrow().clone();
                dispatcher.housekeeping(&pods, &snapshot).await;
            }
        }
    }
    // Aborting a worker between two steps is what a crash does too; the next agent goes on.
    dispatcher.tasks.shutdown().await;
}

async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

/// Awaits something slow that is not a stand-still of ours.
async fn beating<T>(future: impl Future<Output = T>, heartbeat: &watch::Sender<Instant>) -> T {
    tokio::pin!(future);
    loop {
        match tokio::time::timeout(HOUSEKEEPING, &mut future).await {
            Ok(value) => return value,
            Err(_) => drop(heartbeat.send_replace(Instant::now())),
        }
    }
}

impl Dispatcher {
    async fn dispatch(&mut self, view: &PodsView) {
        if !view.synced {
            return;
        }
        self.finished.retain(|uid| view.pods.contains_key(uid));
        let mut fresh = Vec::new();
        for (uid, object) in &view.pods {
            self.unwanted.remove(uid);
            if self.finished.contains(uid) || self.backs_off(uid) {
                continue;
            }
            let Some(entry) = self.workers.get(uid) else {
                fresh.push(Arc::clone(object));
                continue;
            };
            let mut is_news = false;
            entry.input.send_if_modified(|input| {
                let old = input.object.replace(Arc::clone(object));
                is_news = old.as_ref().is_none_or(|old| is_worth_a_write(old, object));
                old.is_none_or(|old| !Arc::ptr_eq(&old, object))
            });
            if is_news {
                self.journal(object).await;
            }
        }
        self.start(fresh).await;
        // What the API said it deleted, at once; what is only missing waits for housekeeping.
        let gone: Vec<(String, Option<u64>)> = self
            .workers
            .keys()
            .filter(|uid| !view.pods.contains_key(*uid))
            .filter_map(|uid| Some((uid.clone(), view.deletion(uid)?)))
            .collect();
        for (uid, grace) in gone {
            self.remove(&uid, grace.map(Duration::from_secs));
        }
    }

    /// Gives pods their worker: first those that were let in before, then new ones, oldest first.
    async fn start(&mut self, objects: Vec<Arc<PodObject>>) {
        let snapshots = self.context.view.subscribe();
        let mut new = Vec::new();
        for object in objects {
            let remembered = self.journal(&object).await;
            let pod = &object.pod;
            let is_known = remembered
                || pod.deletion.is_some()
                || pod.observed.terminal
                || pod.observed.start_time.is_some()
                || snapshots.borrow().sandboxes.contains_key(&pod.uid);
            if is_known {
                self.spawn(identity(&object), WorkerInput::of(object));
            } else {
                new.push(object);
            }
        }
        new.sort_by(|one, other| {
            let created = |object: &PodObject| {
                let metadata = &object.object.metadata;
                metadata
                    .creation_timestamp
                    .as_ref()
                    .map(crate::time::system_time)
            };
            created(one).cmp(&created(other))
        });
        for object in new {
            let rejected = admission::admit(&object.pod, self.used(), self.context.capacity).err();
            let input = WorkerInput {
                rejected,
                ..WorkerInput::of(Arc::clone(&object))
            };
            self.spawn(identity(&object), input);
        }
    }

    /// What the pods that may still run have requested.
    fn used(&self) -> Room {
        self.workers.values().fold(Room::default(), |sum, entry| {
            let input = entry.input.borrow();
            match &input.object {
                Some(object) if !object.pod.observed.terminal && input.rejected.is_none() => {
                    sum.plus(Room::of(&object.pod))
                }
                _ => sum,
            }
        })
    }

    /// Journals the spec before anything is made for it. Returns whether the node has begun with this
    /// pod before.
    async fn journal(&self, object: &Arc<PodObject>) -> bool {
        let journal = PodJournal::new(self.context.config.pod_dir(&object.pod.uid));
        let api_object = Arc::clone(&object.object);
        let written = tokio::task::spawn_blocking(move || {
            let written = journal.write_pod(&api_object);
            // An unreadable state is a state: the worker says what is wrong with it.
            (written, !matches!(journal.read_memory(), Ok(None)))
        });
        match written.await {
            Ok((Ok(()), remembered)) => remembered,
            Ok((Err(error), remembered)) => {
                tracing::error!(pod = %object.pod.name, error = %chain(&error), "journal not written");
                remembered
            }
            Err(panic) => {
                tracing::error!(pod = %object.pod.name, error = %panic, "journal not written");
                true
            }
        }
    }

    fn spawn(&mut self, identity: PodIdentity, input: WorkerInput) {
        let uid = identity.uid.clone();
        let (sender, receiver) = watch::channel(input);
        let worker = Worker::new(Arc::clone(&self.context), identity.clone(), receiver);
        let entry = Entry {
            identity,
            input: sender,
        };
        self.workers.insert(uid.clone(), entry);
        self.tasks.spawn(async move {
            let run = AssertUnwindSafe(worker.run()).catch_unwind();
            let panicked = run.await.is_err();
            Ended { uid, panicked }
        });
    }

    fn remove(&mut self, uid: &str, grace: Option<Duration>) {
        if let Some(entry) = self.workers.get(uid) {
            entry.input.send_if_modified(|input| {
                let news = input.removed.is_none();
                input.removed = input.removed.or(Some(grace));
                news
            });
        }
    }

    fn ended(&mut self, ended: Result<Ended, tokio::task::JoinError>) {
        let Ok(Ended { uid, panicked }) = ended else {
            // Cancelled: the agent stops. Panics are caught inside the task.
            return;
        };
        let entry = self.workers.remove(&uid);
        if !panicked {
            self.finished.insert(uid);
            return;
        }
        // One bad pod degrades itself only; what it has goes on running meanwhile.
        self.panics.advance(&uid, self.context.clock.now());
        let delay = self
            .panics
            .entry(&uid)
            .map_or(PANIC_BACKOFF.0, |entry| entry.delay);
        self.panicked.insert(uid.clone());
        tracing::error!(
            uid,
            ?delay,
            "a pod worker panicked, starting it again later"
        );
        if let Some(entry) = entry {
            let message = format!(
                "error syncing pod: internal error of the agent, trying again in {}s",
                delay.as_secs()
            );
            self.context.recorder.record(
                Subject::pod(&entry.identity),
                Severity::Warning,
                "FailedSync",
                message,
            );
        }
    }

    /// Whether the pod waits after a panic of its worker.
    fn backs_off(&mut self, uid: &str) -> bool {
        if !self.panicked.contains(uid) {
            return false;
        }
        let waits = self
            .panics
            .waits_since_update(uid, self.context.clock.now())
            .is_some();
        if !waits {
            self.panicked.remove(uid);
        }
        waits
    }

    /// When the next pod whose worker panicked is due.
    fn next_revival(&self) -> Option<Instant> {
        let now = self.context.clock.now();
        let due = |uid: &String| self.panics.waits_since_update(uid, now);
        let at = self.panicked.iter().filter_map(due).min()?;
        Some(self.context.clock.instant(at))
    }

    async fn journaled(&self) -> Vec<(String, Option<Arc<PodObject>>)> {
        let pods_dir = self.context.config.pods_dir();
        let config = Arc::clone(&self.context.config);
        let read = tokio::task::spawn_blocking(move || {
            let uids = journal::known_pods(&pods_dir).unwrap_or_else(|error| {
                tracing::error!(error = %chain(&error), "the journal cannot be listed");
                Vec::new()
            });
            uids.into_iter()
                .map(|uid| {
                    let object = PodJournal::new(config.pod_dir(&uid))
                        .read_pod()
                        .unwrap_or_else(|error| {
                            tracing::error!(error = %chain(&error), "journal not readable");
                            None
                        })
                        .and_then(|object| {
                            let pod = parse::pod(&object).ok()?;
                            Some(Arc::new(PodObject {
                                pod,
                                object: Arc::new(object),
                            }))
                        });
                    (uid, object)
                })
                .collect()
        });
        read.await.unwrap_or_default()
    }

    async fn start_from_journal(&mut self) {
        for (uid, object) in self.journaled().await {
            if let Some(object) = object
                && !self.workers.contains_key(&uid)
            {
                self.spawn(identity(&object), WorkerInput::of(object));
            }
        }
    }

    /// Ends what nobody wants, after two passes.
    async fn housekeeping(&mut self, view: &PodsView, snapshot: &Snapshot) {
        let containers = snapshot
            .sandboxes
            .values()
            .flat_map(|sandbox| &sandbox.containers);
        let running = containers.filter(|container| {
            matches!(
                container.state,
                crate::runtime::ContainerState::Running { .. }
            )
        });
        let running = u64::try_from(running.count()).unwrap_or(u64::MAX);
        let pods = u64::try_from(snapshot.sandboxes.len()).unwrap_or(u64::MAX);
        self.context.metrics.set_running(pods, running);
        if !view.synced || snapshot.error.is_some() {
            return;
        }
        let mut candidates: BTreeMap<String, Option<PodIdentity>> = BTreeMap::new();
        for uid in self.workers.keys() {
            candidates.insert(uid.clone(), None);
        }
        for sandbox in snapshot.sandboxes.values() {
            candidates.insert(sandbox.pod.uid.clone(), Some(sandbox.pod.clone()));
        }
        let journaled: BTreeMap<String, Option<Arc<PodObject>>> =
            self.journaled().await.into_iter().collect();
        for uid in journaled.keys() {
            candidates.entry(uid.clone()).or_insert(None);
        }
        candidates.retain(|uid, _| !view.pods.contains_key(uid));
        self.unwanted.retain(|uid, _| candidates.contains_key(uid));
        for (uid, known) in candidates {
            let passes = self.unwanted.entry(uid.clone()).or_insert(0);
            *passes = passes.saturating_add(1);
            if *passes < 2 || self.backs_off(&uid) {
                continue;
            }
            if self.workers.contains_key(&uid) {
                self.remove(&uid, None);
                continue;
            }
            let object = journaled.get(&uid).cloned().flatten();
            let name = object.as_ref().map(identity).or(known);
            let pod = name.unwrap_or_else(|| PodIdentity {
                uid: uid.clone(),
                namespace: String::new(),
                name: String::new(),
            });
            tracing::info!(uid, pod = %pod.name, "removing a pod the API server does not know");
            self.spawn(
                pod,
                WorkerInput {
                    object,
                    removed: Some(None),
                    rejected: None,
                },
            );
        }
    }
}

/// Our own status comes back with every watch event; what the journal needs of it is the end only.
fn is_worth_a_write(old: &PodObject, new: &PodObject) -> bool {
    let essence = |object: &PodObject| {
        let mut pod = object.pod.clone();
        pod.observed = tholepin_model::pod::ObservedStatus {
            terminal: pod.observed.terminal,
            ..Default::default()
        };
        pod
    };
    essence(old) != essence(new)
}

fn identity(object: &Arc<PodObject>) -> PodIdentity {
    PodIdentity {
        uid: object.pod.uid.clone(),
        namespace: object.pod.namespace.clone(),
        name: object.pod.name.clone(),
    }
}

#[cfg(test)]
mod tests;
