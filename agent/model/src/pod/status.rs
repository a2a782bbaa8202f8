//! What a pod's status should say, computed from records. Pure; the kubelet's rules and words.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::SystemTime;

use super::{
    Addresses, ContainerRecord, Exit, Pod, RecordState, RestartPolicy, current, wants_restart,
};
use crate::pod::resources::{QosClass, qos_class};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Phase {
    #[default]
    Pending,
    Running,
    Succeeded,
    Failed,
}

impl Phase {
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "Pending",
            Self::Running => "Running",
            Self::Succeeded => "Succeeded",
            Self::Failed => "Failed",
        }
    }

    #[must_use]
    pub fn is_terminal(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed)
    }
}

/// A condition with its transition time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Condition {
    pub kind: String,
    pub status: bool,
    pub reason: String,
    pub message: String,
    pub transition: SystemTime,
}

/// Why a container is not running.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Waiting {
    pub reason: String,
    pub message: String,
}

impl Waiting {
    #[must_use]
    pub fn new(reason: &str, message: impl Into<String>) -> Self {
        Self {
            reason: reason.to_owned(),
            message: message.into(),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ContainerState {
    Waiting(Waiting),
    Running { started_at: SystemTime },
    Terminated { exit: Exit, container_id: String },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerStatus {
    pub name: String,
    pub state: ContainerState,
    /// Always `Terminated` when present.
    pub last_state: Option<ContainerState>,
    pub ready: bool,
    pub started: bool,
    pub restart_count: u32,
    pub image: String,
    pub image_id: String,
    pub container_id: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodStatus {
    pub phase: Phase,
    pub reason: String,
    pub message: String,
    pub start_time: SystemTime,
    pub conditions: Vec<Condition>,
    pub containers: Vec<ContainerStatus>,
    pub addresses: Addresses,
    pub qos_class: QosClass,
    pub observed_generation: Option<i64>,
}

/// Everything the status depends on.
#[derive(Debug)]
pub struct StatusInputs<'a> {
    pub pod: &'a Pod,
    pub records: &'a [ContainerRecord],
    /// Why a container that should run does not, from the last round's failures and back-offs.
    pub waiting: &'a BTreeMap<String, Waiting>,
    /// Namespaces and addresses are there.
    pub sandbox_ready: bool,
    pub pod_addresses: &'a [IpAddr],
    pub host_addresses: &'a [IpAddr],
    pub start_time: SystemTime,
    /// Set when the pod is ended by the node: reason and message of a Failed phase.
    pub failure: Option<&'a Waiting>,
    /// The pod is being taken down: nothing will be restarted.
    pub terminating: bool,
    pub previous: &'a [Condition],
    pub now: SystemTime,
}

/// The status of the pod as of `now`.
#[must_use]
pub fn compute(inputs: &StatusInputs<'_>) -> PodStatus {
    let pod = inputs.pod;
    let mut containers: Vec<ContainerStatus> = pod
        .containers
        .iter()
        .map(|container| container_status(inputs, &container.name))
        .collect();
    let mut phase = phase_of(pod.restart_policy, &containers);
    if inputs.terminating && !phase.is_terminal() {
        // Nothing is restarted any more: exits decide.
        let exits: Vec<&Exit> = containers.iter().filter_map(final_exit).collect();
        if !exits.is_empty() && exits.len() == containers.len() {
            let clean = exits.iter().all(|exit| exit.exit_code == 0);
            phase = if clean {
                Phase::Succeeded
            } else {
                Phase::Failed
            };
        }
    }
    let (mut reason, mut message) = (String::new(), String::new());
    if let Some(failure) = inputs.failure {
        phase = Phase::Failed;
        reason.clone_from(&failure.reason);
        message.clone_from(&failure.message);
        // A container that never was must not look as if it were being created.
        containers.retain(|container| current(inputs.records, &container.name).is_some());
    } else if pod.observed.terminal && !phase.is_terminal() {
        // A terminal phase is never taken back, whatever the runtime has forgotten.
        phase = if pod.observed.phase == "Succeeded" {
            Phase::Succeeded
        } else {
            Phase::Failed
        };
        reason.clone_from(&pod.observed.reason);
        message.clone_from(&pod.observed.message);
    }
    if phase.is_terminal() {
        for container in &mut containers {
            container.ready = false;
            container.started = false;
        }
    }
    let conditions = conditions_of(inputs, phase, &containers);
    let host = inputs.host_addresses.to_vec();
    let pod_addresses = if pod.host_network && inputs.sandbox_ready {
        host.clone()
    } else {
        inputs.pod_addresses.to_vec()
    };
    PodStatus {
        phase,
        reason,
        message,
        start_time: inputs.start_time,
        conditions,
        containers,
        addresses: Addresses {
            pod: pod_addresses,
            host,
        },
        qos_class: qos_class(&pod.containers),
        observed_generation: pod.generation,
    }
}

fn final_exit(status: &ContainerStatus) -> Option<&Exit> {
    match (&status.state, &status.last_state) {
        (ContainerState::Terminated { exit, .. }, _)
        | (ContainerState::Waiting(_), Some(ContainerState::Terminated { exit, .. })) => Some(exit),
        _ => None,
    }
}

fn terminated(record: &ContainerRecord) -> Option<ContainerState> {
    match &record.state {
        RecordState::Exited(exit) => Some(ContainerState::Terminated {
            exit: exit.clone(),
            container_id: record.id.clone(),
        }),
        _ => None,
    }
}

fn container_status(inputs: &StatusInputs<'_>, name: &str) -> ContainerStatus {
    let spec_image = inputs
        .pod
        .container(name)
        .map(|container| container.image.clone())
        .unwrap_or_default();
    let waiting = inputs.waiting.get(name);
    let Some(record) = current(inputs.records, name) else {
        return ContainerStatus {
            name: name.to_owned(),
            state: ContainerState::Waiting(
                waiting
                    .cloned()
                    .unwrap_or_else(|| Waiting::new("ContainerCreating", "")),
            ),
            last_state: None,
            ready: false,
            started: false,
            restart_count: 0,
            image: spec_image,
            image_id: String::new(),
            container_id: String::new(),
        };
    };
    let previous = inputs
        .records
        .iter()
        .filter(|other| other.name == name && other.attempt < record.attempt)
        .max_by_key(|other| other.attempt)
        .and_then(terminated);
    let (state, last_state) = match &record.state {
        RecordState::Created => (
            ContainerState::Waiting(
                waiting
                    .cloned()
                    .unwrap_or_else(|| Waiting::new("ContainerCreating", "")),
            ),
            previous,
        ),
        RecordState::Running { started_at } => (
            ContainerState::Running {
                started_at: *started_at,
            },
            previous,
        ),
        RecordState::Exited(exit) => {
            let restarts = !inputs.terminating
                && !inputs.pod.observed.terminal
                && wants_restart(inputs.pod.restart_policy, exit);
            match (waiting, restarts) {
                (Some(waiting), true) => {
                    (ContainerState::Waiting(waiting.clone()), terminated(record))
                }
                _ => (
                    ContainerState::Terminated {
                        exit: exit.clone(),
                        container_id: record.id.clone(),
                    },
                    previous,
                ),
            }
        }
    };
    let running = matches!(state, ContainerState::Running { .. });
    ContainerStatus {
        name: name.to_owned(),
        state,
        last_state,
        ready: running,
        started: running,
        restart_count: record.attempt,
        image: if record.image.is_empty() {
            spec_image
        } else {
            record.image.clone()
        },
        image_id: record.image_id.clone(),
        container_id: if record.id.is_empty() {
            String::new()
        } else {
            format!("containerd://{}", record.id)
        },
    }
}

/// The kubelet's table: anything never started keeps the pod Pending, anything running makes it
/// Running, and when all have stopped the restart policy decides.
fn phase_of(policy: RestartPolicy, containers: &[ContainerStatus]) -> Phase {
    let (mut waiting, mut running, mut stopped, mut succeeded) = (0, 0, 0, 0);
    for container in containers {
        match (&container.state, &container.last_state) {
            (ContainerState::Running { .. }, _) => running += 1,
            (ContainerState::Terminated { exit, .. }, _) => {
                stopped += 1;
                succeeded += usize::from(exit.exit_code == 0);
            }
            (ContainerState::Waiting(_), Some(_)) => stopped += 1,
            (ContainerState::Waiting(_), None) => waiting += 1,
        }
    }
    if waiting > 0 || containers.is_empty() {
        Phase::Pending
    } else if running > 0 || policy == RestartPolicy::Always {
        Phase::Running
    } else if stopped == succeeded {
        Phase::Succeeded
    } else if policy == RestartPolicy::Never {
        Phase::Failed
    } else {
        Phase::Running
    }
}

fn conditions_of(
    inputs: &StatusInputs<'_>,
    phase: Phase,
    containers: &[ContainerStatus],
) -> Vec<Condition> {
    let unready: Vec<&str> = containers
        .iter()
        .filter(|container| !container.ready)
        .map(|container| container.name.as_str())
        .collect();
    let completed = |phase: Phase| match phase {
        Phase::Succeeded => Some("PodCompleted"),
        Phase::Failed => Some("PodFailed"),
        _ => None,
    };
    let (containers_ready, reason, message) = if let Some(reason) = completed(phase) {
        (false, reason, String::new())
    } else if unready.is_empty() {
        (true, "", String::new())
    } else {
        let message = format!("containers with unready status: [{}]", unready.join(" "));
        (false, "ContainersNotReady", message)
    };
    let (ready, ready_reason, ready_message) = match (containers_ready, gates_message(inputs)) {
        (true, Some(gates)) => (false, "ReadinessGatesNotReady", gates),
        _ => (containers_ready, reason, message.clone()),
    };
    let initialized_reason = if phase == Phase::Succeeded {
        "PodCompleted"
    } else {
        ""
    };
    let wanted = [
        (
            "PodReadyToStartContainers",
            inputs.sandbox_ready,
            "",
            String::new(),
        ),
        ("Initialized", true, initialized_reason, String::new()),
        ("Ready", ready, ready_reason, ready_message),
        ("ContainersReady", containers_ready, reason, message),
        ("PodScheduled", true, "", String::new()),
    ];
    let mut conditions: Vec<Condition> = wanted
        .into_iter()
        .map(|(kind, status, reason, message)| {
            let before = inputs
                .previous
                .iter()
                .find(|condition| condition.kind == kind);
            let transition = before
                .filter(|condition| condition.status == status)
                .map_or(inputs.now, |condition| condition.transition);
            Condition {
                kind: kind.to_owned(),
                status,
                reason: reason.to_owned(),
                message,
                transition,
            }
        })
        .collect();
    // Conditions of others (readiness gates) are carried through untouched.
    for foreign in &inputs.pod.observed.conditions {
        if !conditions
            .iter()
            .any(|condition| condition.kind == foreign.kind)
        {
            conditions.push(foreign.clone());
        }
    }
    conditions
}

fn gates_message(inputs: &StatusInputs<'_>) -> Option<String> {
    let mut messages = Vec::new();
    for gate in &inputs.pod.readiness_gates {
        match inputs
            .pod
            .observed
            .conditions
            .iter()
            .find(|condition| &condition.kind == gate)
        {
            None => messages.push(format!(
                "corresponding condition of pod readiness gate \"{gate}\" does not exist."
            )),
            Some(condition) if !condition.status => messages.push(format!(
                "the status of pod readiness gate \"{gate}\" is not \"True\", but False"
            )),
            Some(_) => {}
        }
    }
    (!messages.is_empty()).then(|| messages.join(", "))
}

#[cfg(test)]
mod tests;
