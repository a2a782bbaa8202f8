//! Keeps NetworkPolicies in force: folds what the watches say, compiles, programs, reports.
//!
//! Nothing is touched before everything is known: pods that are there stay under what a former agent
//! has programmed. A pod that comes meanwhile waits a little, and is then wired denying everything.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use tholepin_ebpf_abi::conntrack::TICK_SHIFT;
use tholepin_model::policy::table::{Changes, PolicyTable};
use tholepin_model::policy::{Direction, Labels, NetworkPolicy, ObjectName, Pod};
use tokio::sync::{mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::events::{Recorder, Severity, Subject};
use crate::network::AttachmentKey;
use crate::watch::Change;

pub mod program;
use program::{PolicyMaps, Programmer};

/// How long a round that failed waits before the next.
const RETRY: Duration = Duration::from_secs(5);
/// How long a new pod waits for its labels and for what selects it.
const PATIENCE: Duration = Duration::from_secs(2);

/// What the task is told.
#[derive(Debug)]
pub enum Input {
    Policy(Change<ObjectName, NetworkPolicy>),
    Namespace(Change<Arc<str>, Labels>),
    Pod(Change<ObjectName, Pod>),
    /// A pod is about to be wired, or was found wired.
    Wired(Wired),
    /// Its interface is gone.
    Unwired(ObjectName, AttachmentKey),
}

/// A pod of this node.
#[derive(Debug)]
pub struct Wired {
    pub pod: ObjectName,
    /// `metadata.uid`, for events.
    pub uid: String,
    pub key: AttachmentKey,
    pub addresses: Vec<IpAddr>,
    /// Answered when the pod's packets may pass. `None` for one that is wired already.
    pub done: Option<oneshot::Sender<()>>,
}

/// Where the pod network asks for a pod's policies. Without a task behind it there are none.
#[derive(Clone, Debug, Default)]
pub struct PolicyGate(Option<mpsc::UnboundedSender<Input>>);

impl PolicyGate {
    /// A gate and what comes through it. Unbounded, because watches and the pod network must not wait
    /// for each other, and each round takes everything.
    #[must_use]
    pub fn new() -> (Self, mpsc::UnboundedReceiver<Input>) {
        let (sender, receiver) = mpsc::unbounded_channel();
        (Self(Some(sender)), receiver)
    }

    /// Hands something to the task.
    pub fn send(&self, input: Input) {
        if let Some(sender) = &self.0 {
            // Without a receiver the agent is stopping.
            sender.send(input).ok();
        }
    }

    /// Returns when what a new pod allows is in the maps, and is in force once it is wired. No means
    /// that nobody knows what it allows.
    pub async fn admit(&self, mut wired: Wired) -> bool {
        if self.0.is_none() {
            return true;
        }
        let (done, answer) = oneshot::channel();
        wired.done = Some(done);
        self.send(Input::Wired(wired));
        answer.await.is_ok()
    }
}

/// What the policies of this node are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PoliciesStatus {
    /// Everything was listed, and a round has ended since.
    pub synced: bool,
    pub policy_count: usize,
    /// What is in the maps, by id.
    pub programmed: BTreeMap<u32, Programmed>,
    /// Policies that deny more than they say, and why.
    pub problems: BTreeMap<ObjectName, String>,
}

/// What one id in the maps stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Programmed {
    pub direction: Direction,
    pub policies: BTreeSet<ObjectName>,
    pub pods: BTreeSet<ObjectName>,
}

/// The clock that generations and flows are stamped with.
#[must_use]
pub fn ticks() -> u32 {
    let now = nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC_COARSE);
    let now = now.map(Duration::from).unwrap_or_default().as_nanos();
    u32::try_from(now >> TICK_SHIFT).unwrap_or(u32::MAX >> 1)
}

/// Which sources have been listed.
#[derive(Clone, Copy, Debug, Default)]
struct Listed {
    policies: bool,
    namespaces: bool,
    pods: bool,
}

/// A pod of this node by its attachments: more than one while a new sandbox replaces an old one.
#[derive(Default)]
struct Local {
    uid: String,
    attachments: BTreeMap<(String, String), Vec<IpAddr>>,
}

/// The reconciler.
pub struct PoliciesTask<M> {
    pub programmer: Programmer<M>,
    pub inputs: mpsc::UnboundedReceiver<Input>,
    /// Whether there are policies, so that the cluster's pods must be watched.
    pub wanted: watch::Sender<bool>,
    pub events: Option<Recorder>,
    pub status: watch::Sender<PoliciesStatus>,
}

struct State<M> {
    task: PoliciesTask<M>,
    table: PolicyTable,
    listed: Listed,
    locals: BTreeMap<ObjectName, Local>,
    /// Pods that wait to be wired, until when.
    waiting: Vec<(ObjectName, tokio::time::Instant, oneshot::Sender<()>)>,
    pruned: bool,
    /// Changes that were not programmed yet.
    changes: Changes,
    reported: BTreeMap<ObjectName, String>,
    warned: BTreeSet<(ObjectName, String)>,
}

impl<M> std::fmt::Debug for PoliciesTask<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PoliciesTask").finish_non_exhaustive()
    }
}

impl<M: PolicyMaps> PoliciesTask<M> {
    /// Runs until cancelled. Blocks its thread while it changes maps: give it one of its own.
    pub async fn run(self, cancel: CancellationToken) {
        let mut state = State {
            task: self,
            table: PolicyTable::default(),
            listed: Listed::default(),
            locals: BTreeMap::new(),
            waiting: Vec::new(),
            pruned: false,
            changes: Changes::default(),
            reported: BTreeMap::new(),
            warned: BTreeSet::new(),
        };
        loop {
            let retry = (!state.task.programmer.failed().is_empty())
                .then(|| tokio::time::Instant::now() + RETRY);
            let deadline = state.waiting.iter().map(|(_, until, _)| *until).min();
            let next = [retry, deadline].into_iter().flatten().min();
            tokio::select! {
                () = cancel.cancelled() => return,
                input = state.task.inputs.recv() => match input {
                    Some(input) => state.take(input),
                    None => return cancel.cancelled().await,
                },
                () = sleep_until(next) => {}
            }
            while let Ok(input) = state.task.inputs.try_recv() {
                state.take(input);
            }
            state.round();
        }
    }
}

async fn sleep_until(instant: Option<tokio::time::Instant>) {
    match instant {
        Some(instant) => tokio::time::sleep_until(instant).await,
        None => std::future::pending().await,
    }
}

impl<M: PolicyMaps> State<M> {
    fn take(&mut self, input: Input) {
        match input {
            Input::Policy(change) => {
                self.listed.policies |= matches!(change, Change::Replace(_));
                let known = self.table.policies().keys().cloned().collect();
                each(change, known, |name, policy| {
                    self.table.set_policy(name, policy)
                });
                if !self.table.policies().is_empty() {
                    self.task
                        .wanted
                        .send_if_modified(|wanted| !std::mem::replace(wanted, true));
                }
            }
            Input::Namespace(change) => {
                self.listed.namespaces |= matches!(change, Change::Replace(_));
                let known = self.table.namespace_names().cloned().collect();
                each(change, known, |name, labels| {
                    self.table
                        .set_namespace(name, labels.map(|labels| (*labels).clone()));
                });
            }
            Input::Pod(change) => {
                self.listed.pods |= matches!(change, Change::Replace(_));
                // Only a list needs to know which pods there were.
                let known = match change {
                    Change::Replace(_) => self.table.pod_names().cloned().collect(),
                    _ => BTreeSet::new(),
                };
                each(change, known, |name, pod| self.table.set_pod(name, pod));
            }
            Input::Wired(wired) => {
                let local = self.locals.entry(wired.pod.clone()).or_default();
                local.uid = wired.uid;
                let key = (wired.key.container_id, wired.key.interface);
                local.attachments.insert(key, wired.addresses);
                self.set_subject(&wired.pod);
                if let Some(done) = wired.done {
                    let until = tokio::time::Instant::now() + PATIENCE;
                    self.waiting.push((wired.pod, until, done));
                }
            }
            Input::Unwired(pod, key) => {
                if let Some(local) = self.locals.get_mut(&pod) {
                    local.attachments.remove(&(key.container_id, key.interface));
                    if local.attachments.is_empty() {
                        self.locals.remove(&pod);
                    }
                }
                self.set_subject(&pod);
            }
        }
    }

    fn set_subject(&mut self, pod: &ObjectName) {
        let local = self.locals.get(pod);
        let addresses = local.map(|local| local.attachments.values().flatten().copied().collect());
        self.table.set_subject(pod, addresses);
    }

    /// Whether what is compiled is what the cluster says. Who the peers are matters to policies only.
    fn is_synced(&self) -> bool {
        let peers = self.listed.namespaces && self.listed.pods;
        self.listed.policies && (peers || self.table.policies().is_empty())
    }

    fn round(&mut self) {
        let now = tokio::time::Instant::now();
        let changes = self.table.take_changes();
        for (content, prefixes) in changes.contents {
            self.changes
                .contents
                .entry(content)
                .or_default()
                .extend(prefixes);
        }
        self.changes.subjects.extend(changes.subjects);
        let synced = self.is_synced();
        if synced {
            let changes = std::mem::take(&mut self.changes);
            self.task.programmer.program(&self.table, &changes);
            if !self.pruned {
                self.task.programmer.prune();
                self.pruned = true;
            }
        }
        let waiting = std::mem::take(&mut self.waiting);
        for (pod, until, done) in waiting {
            let subject = self.table.subjects().get(&pod);
            let is_known = synced && subject.is_none_or(|subject| subject.isolation.is_some());
            if !is_known && now < until {
                self.waiting.push((pod, until, done));
                continue;
            }
            if !synced && let Some(subject) = subject {
                self.task.programmer.deny(&pod, &subject.addresses);
            }
            if !is_known {
                let reason = "what NetworkPolicies allow this pod is not known yet";
                self.warn(&pod, reason);
            }
            // One that gave up is wired by nobody.
            done.send(()).ok();
        }
        self.report(synced);
    }

    /// Says to everybody concerned what is denied that the policies do not deny.
    fn report(&mut self, synced: bool) {
        let mut problems: BTreeMap<ObjectName, String> = BTreeMap::new();
        for (name, policy) in self.table.policies() {
            if !policy.problems.is_empty() {
                problems.insert(name.clone(), policy.problems.join("; "));
            }
        }
        let mut programmed = BTreeMap::new();
        let mut concerned: BTreeMap<ObjectName, Vec<String>> = BTreeMap::new();
        for content in self.table.content_ids() {
            let Some((direction, policies)) = self.table.origin(content) else {
                continue;
            };
            let pods: BTreeSet<ObjectName> = self.table.users(content).cloned().collect();
            let failure = self.task.programmer.failed().get(&content);
            if let Some(failure) = failure {
                let reason = format!("cannot be programmed, everything is denied: {failure}");
                for policy in policies {
                    problems.insert(policy.clone(), reason.clone());
                }
            }
            for policy in policies
                .iter()
                .filter(|policy| problems.contains_key(*policy))
            {
                let text = format!("NetworkPolicy {policy}: {}", problems[policy]);
                for pod in &pods {
                    concerned.entry(pod.clone()).or_default().push(text.clone());
                }
            }
            if let Some(id) = self.task.programmer.id(content) {
                let policies = policies.clone();
                programmed.insert(
                    id,
                    Programmed {
                        direction,
                        policies,
                        pods,
                    },
                );
            }
        }
        for (pod, texts) in concerned {
            for text in texts {
                self.warn(&pod, &text);
            }
        }
        for (name, reason) in &problems {
            if self.reported.get(name) != Some(reason) {
                tracing::warn!(policy = %name, reason, "a NetworkPolicy denies more than it says");
                self.event_on_policy(name, reason);
            }
        }
        self.reported.clone_from(&problems);
        let status = PoliciesStatus {
            synced,
            policy_count: self.table.policies().len(),
            programmed,
            problems,
        };
        self.task.status.send_if_modified(|old| {
            let changed = *old != status;
            *old = status;
            changed
        });
    }

    fn event_on_policy(&self, name: &ObjectName, reason: &str) {
        let (Some(events), Some(policy)) = (&self.task.events, self.table.policies().get(name))
        else {
            return;
        };
        let subject = Subject {
            kind: "NetworkPolicy",
            namespace: name.namespace.to_string(),
            name: name.name.to_string(),
            uid: policy.uid.clone(),
            field_path: None,
        };
        events.record(subject, Severity::Warning, "NetworkPolicyDegraded", reason);
    }

    /// An event on a pod of this node, once for each reason.
    fn warn(&mut self, pod: &ObjectName, reason: &str) {
        let Some(local) = self.locals.get(pod) else {
            return;
        };
        if !self.warned.insert((pod.clone(), reason.to_owned())) {
            return;
        }
        tracing::warn!(%pod, reason, "a pod is denied more than its policies say");
        let Some(events) = &self.task.events else {
            return;
        };
        let subject = Subject {
            kind: "Pod",
            namespace: pod.namespace.to_string(),
            name: pod.name.to_string(),
            uid: local.uid.clone(),
            field_path: None,
        };
        events.record(subject, Severity::Warning, "NetworkPolicyDegraded", reason);
    }
}

/// Takes a change apart. `known` is what a list that lacks it removes.
fn each<K: Ord, T>(
    change: Change<K, T>,
    known: BTreeSet<K>,
    mut set: impl FnMut(&K, Option<Arc<T>>),
) {
    match change {
        Change::Apply(key, value) => set(&key, Some(value)),
        Change::Remove(key) => set(&key, None),
        Change::Replace(whole) => {
            for gone in known.iter().filter(|key| !whole.contains_key(key)) {
                set(gone, None);
            }
            for (key, value) in whole {
                set(&key, Some(value));
            }
        }
    }
}

#[cfg(test)]
mod tests;
