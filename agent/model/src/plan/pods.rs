//! Planning one pod: what to do next, from what is wanted and what exists. Pure.
//!
//! The order is Kubernetes' order: volumes, namespaces, network, then containers one after the other;
//! and backwards at the end. A pod moves one way: running, terminating, gone.

use std::time::Duration;

use crate::pod::backoff::Backoff;
use crate::pod::{ContainerRecord, Pod, RecordState, current, wants_restart};

/// What the pod is heading for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// Run its containers.
    Run,
    /// All containers are done for good: give back what running needs, keep records and logs.
    Release,
    /// Stop everything within the grace period, then remove all traces.
    Terminate { grace: Duration },
}

/// What exists of the pod on this node.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RealizedPod {
    pub volumes_mounted: bool,
    pub sandbox: bool,
    /// The sandbox's namespaces are gone (a reboot): it must be removed before it can be made anew.
    pub sandbox_broken: bool,
    pub network_attached: bool,
    pub containers: Vec<ContainerRecord>,
}

/// One step. The executor stops the round at the first failed step of the pod's frame; a failed
/// container step only ends that container's steps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PodOp {
    MountVolumes,
    EnsureSandbox,
    AttachNetwork,
    /// Makes sure of the image, creates and starts attempt `attempt`.
    StartContainer {
        name: String,
        attempt: u32,
        pull: PullGate,
    },
    /// Deletes an exited attempt that nothing shows any more.
    RemoveContainer {
        id: String,
        name: String,
        attempt: u32,
    },
    /// Stop all of these at the same time.
    StopContainers {
        containers: Vec<(String, String)>,
        grace: Duration,
    },
    DetachNetwork,
    RemoveSandbox,
    UnmountVolumes,
}

/// Whether a missing image may be pulled now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PullGate {
    Open,
    BackingOff,
}

/// A container that waits for its restart.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CrashWait {
    pub name: String,
    pub delay: Duration,
    pub until: Duration,
}

/// The plan of one round.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PodPlan {
    pub ops: Vec<PodOp>,
    pub crash_waits: Vec<CrashWait>,
    /// When to look again if nothing happens, in the clock of `now`.
    pub look_again_at: Option<Duration>,
}

/// Monotonic time at which a record's exit happened.
pub type ExitClock<'a> = &'a dyn Fn(&ContainerRecord) -> Duration;

/// Key of a container's restart back-off.
#[must_use]
pub fn restart_key(container: &str) -> String {
    format!("restart/{container}")
}

/// Key of an image's pull back-off.
#[must_use]
pub fn pull_key(image: &str) -> String {
    format!("pull/{image}")
}

/// Whether all containers are finished and none will be started again.
#[must_use]
pub fn is_finished(pod: &Pod, containers: &[ContainerRecord]) -> bool {
    pod.observed.terminal
        || (!pod.containers.is_empty()
            && pod.containers.iter().all(|container| {
                current(containers, &container.name).is_some_and(|record| match &record.state {
                    RecordState::Exited(exit) => !wants_restart(pod.restart_policy, exit),
                    _ => false,
                })
            }))
}

/// The next steps for `pod` (`None` for a pod of which only the runtime's remains are known).
#[must_use]
pub fn plan(
    pod: Option<&Pod>,
    goal: Goal,
    realized: &RealizedPod,
    backoff: &Backoff,
    exit_clock: ExitClock<'_>,
    now: Duration,
) -> PodPlan {
    match (goal, pod) {
        (Goal::Run, Some(pod)) => plan_run(pod, realized, backoff, exit_clock, now),
        (Goal::Release, Some(pod)) => PodPlan {
            ops: plan_release(pod, realized),
            ..PodPlan::default()
        },
        (Goal::Run | Goal::Release, None) => PodPlan::default(),
        (Goal::Terminate { grace }, _) => PodPlan {
            ops: plan_terminate(realized, grace),
            ..PodPlan::default()
        },
    }
}

fn plan_run(
    pod: &Pod,
    realized: &RealizedPod,
    backoff: &Backoff,
    exit_clock: ExitClock<'_>,
    now: Duration,
) -> PodPlan {
    let mut plan = PodPlan::default();
    let mut starts = Vec::new();
    for container in &pod.containers {
        let record = current(&realized.containers, &container.name);
        let attempt = match record.map(|record| (record, &record.state)) {
            None => 0,
            Some((record, RecordState::Created)) => record.attempt,
            Some((_, RecordState::Running { .. })) => continue,
            Some((record, RecordState::Exited(exit))) => {
                if !wants_restart(pod.restart_policy, exit) {
                    continue;
                }
                let key = restart_key(&container.name);
                if let Some((until, delay)) = backoff.waits_until(&key, exit_clock(record), now) {
                    plan.look_again_at = earliest(plan.look_again_at, until);
                    plan.crash_waits.push(CrashWait {
                        name: container.name.clone(),
                        delay,
                        until,
                    });
                    continue;
                }
                record.attempt + 1
            }
        };
        let pull = match backoff.waits_since_update(&pull_key(&container.image), now) {
            Some(until) => {
                plan.look_again_at = earliest(plan.look_again_at, until);
                PullGate::BackingOff
            }
            None => PullGate::Open,
        };
        starts.push(PodOp::StartContainer {
            name: container.name.clone(),
            attempt,
            pull,
        });
    }
    if realized.sandbox_broken {
        let detach = (!pod.host_network).then_some(PodOp::DetachNetwork);
        plan.ops.extend(detach);
        plan.ops.push(PodOp::RemoveSandbox);
        return plan;
    }
    if !starts.is_empty() {
        if !realized.volumes_mounted {
            plan.ops.push(PodOp::MountVolumes);
        }
        if !realized.sandbox {
            plan.ops.push(PodOp::EnsureSandbox);
        }
        if !pod.host_network && !realized.network_attached {
            plan.ops.push(PodOp::AttachNetwork);
        }
        plan.ops.extend(starts);
    }
    plan.ops.extend(superseded(&realized.containers));
    plan
}

/// Exited attempts older than the last two: `kubectl logs --previous` and `lastState` show one back.
fn superseded(containers: &[ContainerRecord]) -> impl Iterator<Item = PodOp> + '_ {
    containers.iter().filter_map(|record| {
        let newest = current(containers, &record.name).map_or(record.attempt, |new| new.attempt);
        let is_exited = matches!(record.state, RecordState::Exited(_));
        (is_exited && !record.id.is_empty() && record.attempt + 1 < newest).then(|| {
            PodOp::RemoveContainer {
                id: record.id.clone(),
                name: record.name.clone(),
                attempt: record.attempt,
            }
        })
    })
}

fn running(containers: &[ContainerRecord]) -> Vec<(String, String)> {
    containers
        .iter()
        .filter(|record| !record.id.is_empty() && !matches!(record.state, RecordState::Exited(_)))
        .map(|record| (record.id.clone(), record.name.clone()))
        .collect()
}

fn plan_release(pod: &Pod, realized: &RealizedPod) -> Vec<PodOp> {
    let left = running(&realized.containers);
    if !left.is_empty() {
        let grace = Duration::from_secs(pod.termination_grace_secs);
        return vec![PodOp::StopContainers {
            containers: left,
            grace,
        }];
    }
    let detach = (realized.network_attached && !pod.host_network).then_some(PodOp::DetachNetwork);
    let unmount = realized.volumes_mounted.then_some(PodOp::UnmountVolumes);
    detach.into_iter().chain(unmount).collect()
}

fn plan_terminate(realized: &RealizedPod, grace: Duration) -> Vec<PodOp> {
    let left = running(&realized.containers);
    if !left.is_empty() {
        return vec![PodOp::StopContainers {
            containers: left,
            grace,
        }];
    }
    let mut ops = Vec::new();
    // The address is given back while the namespace still exists; the sandbox goes before its volumes,
    // so that nothing has them mounted any more.
    if realized.network_attached {
        ops.push(PodOp::DetachNetwork);
    }
    if realized.sandbox {
        ops.push(PodOp::RemoveSandbox);
    }
    if realized.volumes_mounted {
        ops.push(PodOp::UnmountVolumes);
    }
    ops
}

fn earliest(before: Option<Duration>, other: Duration) -> Option<Duration> {
    Some(before.map_or(other, |before| before.min(other)))
}

#[cfg(test)]
mod tests;
