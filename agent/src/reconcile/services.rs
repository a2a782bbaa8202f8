//! Keeps the service maps as the cluster says: take changes, plan, apply, report, wait.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant, SystemTime};

use tholepin_model::desired::Desired;
use tholepin_model::plan::services::Release;
use tholepin_model::service::{NodeView, Owner, ServiceName};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::dataplane::chain;
use crate::dataplane::readers::wait_for_readers;
use crate::events::{Recorder, Severity, Subject};
use crate::observe::proxy_metrics::ProxyMetrics;
use crate::watch::changes::ServiceChanges;

mod generations;
mod maps;
mod programmer;

pub use generations::Generations;
pub use maps::{PinnedServiceMaps, ServiceMaps};
pub use programmer::{Applied, Facts, ProgramError, Programmer};

/// How often the maps are read back.
const RESYNC: Duration = Duration::from_secs(60);
/// How long a round that failed waits before the next.
const RETRY: Duration = Duration::from_secs(2);

/// What is not as it should be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServicesStatus {
    /// All sources have been listed and a round has ended since.
    pub synced: bool,
    pub frontend_count: usize,
    /// (Owner, port name) to the reason.
    pub problems: BTreeMap<(Owner, String), String>,
    /// Why the last round failed.
    pub failure: Option<String>,
    /// Since when rounds fail.
    pub failing_since: Option<SystemTime>,
    /// When something was programmed last. Its change alone is not announced.
    pub updated_at: Option<SystemTime>,
    /// Ports of health checks, and how many ready endpoints are here.
    pub health_checks: BTreeMap<ServiceName, (u16, usize)>,
    /// Services with a Local policy for internal and external traffic and no endpoint here.
    pub no_local: [BTreeSet<Owner>; 2],
}

/// The reconciler; owns the maps.
pub struct ServicesTask<M> {
    /// This node, but for what its `Node` object says.
    pub node: NodeView,
    pub programmer: Programmer<M>,
    pub changes: ServiceChanges,
    pub metrics: ProxyMetrics,
    /// Where problems are told to the authors of objects.
    pub recorder: Option<Recorder>,
    pub desired: watch::Receiver<Desired>,
    pub status: watch::Sender<ServicesStatus>,
}

impl<M> std::fmt::Debug for ServicesTask<M> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServicesTask")
            .field("node", &self.node)
            .finish_non_exhaustive()
    }
}

/// What waits for packets under way, and what will when that wait is over.
#[derive(Default)]
struct Grace {
    waiting: Option<(Release, JoinHandle<()>)>,
    next: Release,
}

impl Grace {
    fn add(&mut self, release: Release) {
        self.next.merge(release);
        if self.waiting.is_none() && !self.next.is_empty() {
            let release = std::mem::take(&mut self.next);
            self.waiting = Some((release, tokio::task::spawn_blocking(wait_for_readers)));
        }
    }

    /// What no packet uses any more. Never returns while nothing waits.
    async fn ended(&mut self) -> Release {
        let Some((_, wait)) = &mut self.waiting else {
            return std::future::pending().await;
        };
        if let Err(error) = wait.await {
            // Without the wait nothing may be given to others; the next read-back finds it free.
            tracing::error!(%error, "waiting for packets under way failed");
            self.waiting = None;
            return Release::default();
        }
        let released = self.waiting.take().map(|(release, _)| release);
        self.add(Release::default());
        released.unwrap_or_default()
    }
}

impl<M: ServiceMaps> ServicesTask<M> {
    /// Runs until cancelled. Blocks its thread while it changes maps: give it one of its own.
    pub async fn run(mut self, cancel: CancellationToken) {
        let mut grace = Grace::default();
        let mut audit = tokio::time::Instant::now() + RESYNC;
        self.look_at_node();
        loop {
            if let Some(release) = self.round() {
                grace.add(release);
            } else {
                // The planner starts anew, and what the former one was to be given is free to it.
                grace = Grace::default();
                audit = tokio::time::Instant::now() + RETRY;
            }
            tokio::select! {
                () = cancel.cancelled() => return,
                () = self.changes.changed() => (),
                changed = self.desired.changed() => match changed {
                    Ok(()) => self.look_at_node(),
                    Err(_) => return cancel.cancelled().await,
                },
                release = grace.ended() => self.programmer.release(release),
                () = tokio::time::sleep_until(audit) => {
                    audit = tokio::time::Instant::now() + RESYNC;
                    if self.programmer.audit() {
                        grace = Grace::default();
                    }
                }
            }
        }
    }

    /// Tells the table what the `Node` object says of this node.
    fn look_at_node(&mut self) {
        let desired = self.desired.borrow_and_update();
        if let Some(node) = desired.nodes.get(&self.node.name) {
            self.node.zone.clone_from(&node.zone);
            let view = self.node.clone();
            self.changes.change(|changes| {
                changes.node = Some(view);
                changes.sync.node = true;
            });
        }
    }

    /// One round; `None` if it failed.
    fn round(&mut self) -> Option<Release> {
        let changes = self.changes.take();
        let (services, slices) = (changes.services.changed.len(), changes.slices.changed.len());
        self.metrics.taken(services, slices);
        let triggers = changes.triggers.clone();
        let started = Instant::now();
        match self.programmer.apply(changes) {
            Ok(None) => Some(Release::default()),
            Ok(Some(applied)) => {
                self.metrics.programmed(started.elapsed(), &triggers);
                self.report(&applied);
                Some(applied.release)
            }
            Err(error) => {
                let reason = chain(&error);
                tracing::error!(error = reason, "failed to change the service maps");
                self.status.send_modify(|status| {
                    status.failure = Some(reason);
                    status.failing_since.get_or_insert_with(SystemTime::now);
                });
                None
            }
        }
    }

    /// An event on the object.
    fn tell(&self, owner: &Owner, port: &str, reason: &str) {
        let Some(recorder) = &self.recorder else {
            return;
        };
        let uid = self.programmer.table().uid(owner).unwrap_or_default();
        let (kind, namespace, name) = match owner {
            Owner::Service(service) => ("Service", &service.namespace, &service.name),
            Owner::Pod { namespace, name } => ("Pod", namespace, name),
        };
        let subject = Subject {
            kind,
            namespace: namespace.clone(),
            name: name.clone(),
            uid: uid.to_owned(),
            field_path: None,
        };
        let message = match port {
            "" => format!("node {}: {reason}", self.node.name),
            port => format!("node {}, port {port}: {reason}", self.node.name),
        };
        recorder.record(subject, Severity::Warning, "NotProgrammed", message);
    }

    /// Publishes, and logs each problem once when it appears.
    fn report(&self, applied: &Applied) {
        let all = self.programmer.problems();
        self.status.send_if_modified(|status| {
            let mut changed = !status.synced || status.failure.take().is_some();
            status.synced = true;
            status.failing_since = None;
            status.updated_at = Some(SystemTime::now());
            changed |= take_facts(status, &applied.facts);
            let count = self.programmer.frontend_count();
            changed |= std::mem::replace(&mut status.frontend_count, count) != count;
            for owner in &applied.judged {
                let of_owner = |key: &&(Owner, String)| key.0 == *owner;
                let from = (owner.clone(), String::new());
                let known = status.problems.range(from.clone()..).map(|(key, _)| key);
                let before: Vec<_> = known.take_while(of_owner).cloned().collect();
                let now = all.range(from..).take_while(|(key, _)| of_owner(key));
                let mut former: BTreeMap<_, _> = before
                    .into_iter()
                    .filter_map(|key| status.problems.remove_entry(&key))
                    .collect();
                for (key, problem) in now {
                    let reason = problem.to_string();
                    if former.remove(key).as_ref() != Some(&reason) {
                        tracing::warn!(%owner, port = key.1, reason, "not programmed as desired");
                        self.tell(owner, &key.1, &reason);
                        changed = true;
                    }
                    status.problems.insert(key.clone(), reason);
                }
                changed |= !former.is_empty();
            }
            changed
        });
        let status = self.status.borrow();
        let [internal, external] = &status.no_local;
        self.metrics.set_no_local(internal.len(), external.len());
    }
}

/// Takes over what is known of changed owners; whether something is to be announced.
fn take_facts(status: &mut ServicesStatus, facts: &[(Owner, Facts)]) -> bool {
    let mut changed = false;
    for (owner, facts) in facts {
        let absent = [facts.no_local_internal, facts.no_local_external];
        for (owners, is_absent) in status.no_local.iter_mut().zip(absent) {
            if !is_absent {
                owners.remove(owner);
            } else if !owners.contains(owner) {
                owners.insert(owner.clone());
            }
        }
        let Owner::Service(name) = owner else {
            continue;
        };
        let before = match facts.health_check {
            Some(check) => status.health_checks.insert(name.clone(), check),
            None => status.health_checks.remove(name),
        };
        changed |= before != facts.health_check;
    }
    changed
}

#[cfg(test)]
mod tests;
