//! This machine as a Node object: registration, status every 10 s (written on change or every 5 min),
//! and the Lease that says it is alive.

pub mod eviction;
pub mod facts;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::facts::{MachineFacts, Pressure};
use crate::errors::chain;
use crate::events::{Recorder, Severity, Subject};
use crate::network::PodNetwork;
use crate::reconcile::pods::runtime_view::RuntimeView;
use crate::runtime::Runtime;
use crate::time::{rfc3339, rfc3339_micro};

const STATUS_INTERVAL: Duration = Duration::from_secs(10);
const REPORT_INTERVAL: Duration = Duration::from_secs(300);
const LEASE_SECONDS: u32 = 40;
/// How long a Ready node stays Ready with a problem: the kubelet's limit for a runtime that is away.
const NOT_READY_DELAY: Duration = Duration::from_secs(30);
const LEASE_INTERVAL: Duration = Duration::from_secs(10);
const MIN_RETRY: Duration = Duration::from_millis(200);
const MAX_RETRY: Duration = Duration::from_secs(7);
const MAX_IMAGES: usize = 50;

/// What a Node is made of.
pub struct NodeContext {
    pub client: Client,
    pub name: String,
    pub addresses: Vec<IpAddr>,
    pub port: u16,
    pub max_pods: u32,
    pub runtime: Arc<dyn Runtime>,
    pub network: Arc<dyn PodNetwork>,
    pub view: RuntimeView,
    pub recorder: Recorder,
    pub facts: MachineFacts,
    pub heartbeat: watch::Receiver<Instant>,
}

impl std::fmt::Debug for NodeContext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NodeContext")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// One condition with its transition.
#[derive(Clone, Debug, PartialEq, Eq)]
struct NodeCondition {
    kind: &'static str,
    status: bool,
    reason: String,
    message: String,
    transition: SystemTime,
}

/// Registers, then reports status until cancelled. Waits for the API server as long as it takes.
pub async fn run(context: Arc<NodeContext>, cancel: CancellationToken) {
    cancel.run_until_cancelled(report(context)).await;
}

async fn report(context: Arc<NodeContext>) {
    let mut delay = MIN_RETRY;
    let node = loop {
        match register(&context).await {
            Ok(node) => break node,
            Err(error) => {
                tracing::warn!(error = %chain(&error), "the node is not registered yet, trying again");
                tokio::time::sleep(delay).await;
                delay = (delay * 2).min(MAX_RETRY);
            }
        }
    };
    // Upstream uses the node's name as UID in events about it; kubectl describe looks for that.
    let subject = Subject {
        kind: "Node",
        namespace: String::new(),
        name: context.name.clone(),
        uid: context.name.clone(),
        field_path: None,
    };
    context.recorder.record(
        subject.clone(),
        Severity::Normal,
        "Starting",
        "Starting kubelet.",
    );
    if let Some(message) = reboot_of(&node, &context.facts, &context.name) {
        let subject = subject.clone();
        context
            .recorder
            .record(subject, Severity::Warning, "Rebooted", message);
    }
    let mut conditions: Vec<NodeCondition> = previous_conditions(&node);
    let mut written: Option<(Value, Instant)> = None;
    let mut first = true;
    let mut problem_since = None;
    loop {
        let mut fresh = conditions_now(&context, &conditions).await;
        problem_since = stay_ready(&conditions, &mut fresh, problem_since, Instant::now());
        for reason in turned(&conditions, &fresh) {
            let message = format!("Node {} status is now: {reason}", context.name);
            context
                .recorder
                .record(subject.clone(), Severity::Normal, reason, message);
        }
        conditions = fresh;
        let status = status_of(&context, &conditions).await;
        let due = written
            .as_ref()
            .is_none_or(|(value, at)| *value != status || at.elapsed() >= REPORT_INTERVAL);
        let mut wait = STATUS_INTERVAL;
        if due {
            match write_status(&context, &status).await {
                Ok(()) => {
                    written = Some((status, Instant::now()));
                    if first {
                        first = false;
                        tracing::info!(node = %context.name, "node registered");
                    }
                }
                Err(kube::Error::Api(answer)) if answer.code == 404 => {
                    tracing::warn!(node = %context.name, "the Node object was deleted, registering again");
                    if let Err(error) = register(&context).await {
                        tracing::warn!(error = %chain(&error), "registration failed");
                    }
                    written = None;
                    wait = Duration::from_secs(1);
                }
                Err(error) => {
                    tracing::warn!(error = %chain(&error), "node status not written, trying again");
                    wait = Duration::from_secs(1);
                }
            }
        }
        // Readiness must not wait for the timer while the node is coming up.
        let ready = conditions
            .iter()
            .any(|condition| condition.kind == "Ready" && condition.status);
        tokio::time::sleep(if ready {
            wait
        } else {
            wait.min(Duration::from_secs(1))
        })
        .await;
    }
}

/// Keeps a Ready node Ready until a problem has lasted [`NOT_READY_DELAY`]; answers since when there
/// is one. A NotReady node loses its pods' endpoints, and a restart of the agent or of containerd must
/// not cost a request (the kubelet waits as long for a runtime that is away).
fn stay_ready(
    before: &[NodeCondition],
    fresh: &mut [NodeCondition],
    problem_since: Option<Instant>,
    now: Instant,
) -> Option<Instant> {
    let ready = fresh
        .iter_mut()
        .find(|condition| condition.kind == "Ready")?;
    if ready.status {
        return None;
    }
    let since = problem_since.unwrap_or(now);
    let was_ready = before
        .iter()
        .find(|condition| condition.kind == "Ready" && condition.status);
    if let Some(was_ready) = was_ready
        && now.duration_since(since) < NOT_READY_DELAY
    {
        ready.clone_from(was_ready);
    }
    Some(since)
}

/// Reasons of the events about conditions that are not what they were. At first sight a node that is not
/// ready yet is not worth an event, as in the kubelet.
fn turned(before: &[NodeCondition], now: &[NodeCondition]) -> Vec<&'static str> {
    let status = |conditions: &[NodeCondition], kind: &str| {
        let found = conditions.iter().find(|condition| condition.kind == kind);
        found.map(|condition| condition.status)
    };
    let names = [
        (
            "MemoryPressure",
            "NodeHasInsufficientMemory",
            "NodeHasSufficientMemory",
        ),
        (
            "DiskPressure",
            "NodeHasDiskPressure",
            "NodeHasNoDiskPressure",
        ),
        (
            "PIDPressure",
            "NodeHasInsufficientPID",
            "NodeHasSufficientPID",
        ),
        ("Ready", "NodeReady", "NodeNotReady"),
    ];
    names
        .into_iter()
        .filter_map(|(kind, when_true, when_false)| {
            let (was, is) = (status(before, kind), status(now, kind)?);
            let is_first_not_ready = kind == "Ready" && was.is_none() && !is;
            let reason = if is { when_true } else { when_false };
            (was != Some(is) && !is_first_not_ready).then_some(reason)
        })
        .collect()
}

/// The machine was started anew since the Node was last written: an event, as upstream's.
fn reboot_of(node: &Node, facts: &MachineFacts, name: &str) -> Option<String> {
    let info = node.status.as_ref()?.node_info.as_ref()?;
    let is_other = !info.boot_id.is_empty() && info.boot_id != facts.boot_id;
    is_other.then(|| format!("Node {name} has been rebooted, boot id: {}", facts.boot_id))
}

fn labels(context: &NodeContext) -> Value {
    let arch = context.facts.architecture;
    json!({
        "kubernetes.io/hostname": context.name,
        "kubernetes.io/os": "linux",
        "kubernetes.io/arch": arch,
        "beta.kubernetes.io/os": "linux",
        "beta.kubernetes.io/arch": arch,
    })
}

async fn register(context: &NodeContext) -> Result<Node, kube::Error> {
    let api: Api<Node> = Api::all(context.client.clone());
    let object: Node = serde_json::from_value(json!({
        "metadata": {"name": context.name, "labels": labels(context)},
        "spec": {},
    }))
    .expect("a node of our own making is valid");
    match api.create(&PostParams::default(), &object).await {
        Ok(node) => return Ok(node),
        Err(kube::Error::Api(status)) if status.code == 409 => {}
        Err(error) => return Err(error),
    }
    let patch = json!({"metadata": {"labels": labels(context)}});
    api.patch(
        &context.name,
        &PatchParams::default(),
        &Patch::Merge(&patch),
    )
    .await
}

fn previous_conditions(node: &Node) -> Vec<NodeCondition> {
    const KINDS: [&str; 4] = ["MemoryPressure", "DiskPressure", "PIDPressure", "Ready"];
    let conditions = node
        .status
        .as_ref()
        .and_then(|status| status.conditions.as_ref());
    conditions
        .into_iter()
        .flatten()
        .filter_map(|condition| {
            let kind = KINDS.into_iter().find(|kind| *kind == condition.type_)?;
            let transition = condition
                .last_transition_time
                .as_ref()
                .map(crate::time::system_time);
            Some(NodeCondition {
                kind,
                status: condition.status == "True",
                reason: condition.reason.clone().unwrap_or_default(),
                message: condition.message.clone().unwrap_or_default(),
                transition: transition.unwrap_or_else(SystemTime::now),
            })
        })
        .collect()
}

async fn conditions_now(context: &NodeContext, before: &[NodeCondition]) -> Vec<NodeCondition> {
    let Pressure { memory, disk, pid } = context.facts.pressure();
    let mut problems = Vec::new();
    let runtime_error = context.view.subscribe().borrow().error.clone();
    if let Some(error) = runtime_error {
        problems.push(format!("container runtime is down: {error}"));
    }
    if let Err(error) = context.network.ready().await {
        let error = chain(&error);
        problems.push(format!("container runtime network not ready: NetworkReady=false reason:NetworkPluginNotReady message:{error}"));
    }
    if let Some(problem) = crate::observe::healthz::problem(*context.heartbeat.borrow()) {
        problems.push(problem);
    }
    let ready = problems.is_empty();
    let ready_message = if ready {
        "kubelet is posting ready status".to_owned()
    } else {
        problems.join(", ")
    };
    let text = |bad: bool, when_bad: [&str; 2], else_: [&str; 2]| {
        let [reason, message] = if bad { when_bad } else { else_ };
        (reason.to_owned(), message.to_owned())
    };
    let memory_text = text(
        memory,
        [
            "KubeletHasInsufficientMemory",
            "kubelet has insufficient memory available",
        ],
        [
            "KubeletHasSufficientMemory",
            "kubelet has sufficient memory available",
        ],
    );
    let disk_text = text(
        disk,
        ["KubeletHasDiskPressure", "kubelet has disk pressure"],
        ["KubeletHasNoDiskPressure", "kubelet has no disk pressure"],
    );
    let pid_text = text(
        pid,
        [
            "KubeletHasInsufficientPID",
            "kubelet has insufficient PID available",
        ],
        [
            "KubeletHasSufficientPID",
            "kubelet has sufficient PID available",
        ],
    );
    let ready_reason = if ready {
        "KubeletReady"
    } else {
        "KubeletNotReady"
    };
    [
        ("MemoryPressure", memory, memory_text),
        ("DiskPressure", disk, disk_text),
        ("PIDPressure", pid, pid_text),
        ("Ready", ready, (ready_reason.to_owned(), ready_message)),
    ]
    .into_iter()
    .map(|(kind, status, (reason, message))| {
        let old = before.iter().find(|c| c.kind == kind && c.status == status);
        let transition = old.map_or_else(SystemTime::now, |old| old.transition);
        NodeCondition {
            kind,
            status,
            reason,
            message,
            transition,
        }
    })
    .collect()
}

async fn status_of(context: &NodeContext, conditions: &[NodeCondition]) -> Value {
    let facts = &context.facts;
    let resources = json!({
        "cpu": facts.cpu_count.to_string(),
        "memory": format!("{}Ki", facts.memory_bytes / 1024),
        "ephemeral-storage": format!("{}Ki", facts.disk_bytes / 1024),
        "pods": context.max_pods.to_string(),
        "hugepages-1Gi": "0",
        "hugepages-2Mi": "0",
    });
    let mut allocatable = resources.clone();
    allocatable["memory"] = json!(format!("{}Ki", facts.allocatable_memory() / 1024));
    allocatable["ephemeral-storage"] = json!(facts.allocatable_disk().to_string());
    let mut addresses: Vec<Value> = context
        .addresses
        .iter()
        .map(|address| json!({"type": "InternalIP", "address": address.to_string()}))
        .collect();
    addresses.push(json!({"type": "Hostname", "address": context.name}));
    let runtime_version = match context.runtime.version().await {
        Ok(version) => version,
        Err(error) => {
            tracing::debug!(error = %chain(&error), "no runtime version");
            "containerd://unknown".to_owned()
        }
    };
    json!({
        "capacity": resources,
        "allocatable": allocatable,
        "addresses": addresses,
        "daemonEndpoints": {"kubeletEndpoint": {"Port": context.port}},
        "nodeInfo": {
            "machineID": facts.machine_id,
            "systemUUID": facts.system_uuid,
            "bootID": facts.boot_id,
            "kernelVersion": facts.kernel_version,
            "osImage": facts.os_image,
            "containerRuntimeVersion": runtime_version,
            "kubeletVersion": format!("v1.35.0-tholepin.{}", env!("CARGO_PKG_VERSION")),
            "kubeProxyVersion": "",
            "operatingSystem": "linux",
            "architecture": facts.architecture,
        },
        "images": images(context).await,
        "conditions": conditions.iter().map(|condition| json!({
            "type": condition.kind,
            "status": if condition.status { "True" } else { "False" },
            "reason": condition.reason,
            "message": condition.message,
            "lastTransitionTime": rfc3339(condition.transition),
        })).collect::<Vec<_>>(),
    })
}

async fn images(context: &NodeContext) -> Value {
    let mut images = context.runtime.images().await.unwrap_or_default();
    images.sort_by(|a, b| (b.size_bytes, &a.reference).cmp(&(a.size_bytes, &b.reference)));
    images.truncate(MAX_IMAGES);
    images
        .into_iter()
        .map(|image| {
            let mut names = vec![image.reference];
            if image.id.contains('@') {
                names.insert(0, image.id);
            }
            json!({"names": names, "sizeBytes": image.size_bytes})
        })
        .collect()
}

async fn write_status(context: &NodeContext, status: &Value) -> Result<(), kube::Error> {
    let mut status = status.clone();
    // The heartbeat is added last: it alone is no change.
    let now = rfc3339(SystemTime::now());
    for condition in status["conditions"].as_array_mut().into_iter().flatten() {
        condition["lastHeartbeatTime"] = json!(now);
    }
    // A strategic patch merges addresses by `type`, and a node has two of type InternalIP: the list is
    // replaced as a whole, as the kubelet does.
    if let Some(addresses) = status["addresses"].as_array_mut() {
        addresses.push(json!({"$patch": "replace"}));
    }
    let api: Api<Node> = Api::all(context.client.clone());
    let patch = json!({"status": status});
    let parameters = PatchParams::default();
    // Strategic: conditions of others (a cloud provider's NetworkUnavailable) stay.
    api.patch_status(&context.name, &parameters, &Patch::Strategic(&patch))
        .await
        .map(drop)
}

/// Renews the node's Lease until cancelled.
pub async fn run_lease(client: Client, name: String, cancel: CancellationToken) {
    let renew_for_ever = async {
        let api: Api<Lease> = Api::namespaced(client, "kube-node-lease");
        let mut delay = MIN_RETRY;
        loop {
            match renew(&api, &name).await {
                Ok(()) => {
                    delay = MIN_RETRY;
                    tokio::time::sleep(LEASE_INTERVAL).await;
                }
                Err(error) => {
                    tracing::warn!(error = %chain(&error), "lease not renewed, trying again");
                    tokio::time::sleep(delay).await;
                    delay = (delay * 2).min(MAX_RETRY);
                }
            }
        }
    };
    cancel.run_until_cancelled(renew_for_ever).await;
}

async fn renew(api: &Api<Lease>, name: &str) -> Result<(), kube::Error> {
    let now = rfc3339_micro(SystemTime::now());
    let spec = json!({
        "holderIdentity": name,
        "leaseDurationSeconds": LEASE_SECONDS,
        "renewTime": now,
    });
    let patch = json!({"spec": spec});
    match api
        .patch(name, &PatchParams::default(), &Patch::Merge(&patch))
        .await
    {
        Ok(_) => return Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => {}
        Err(error) => return Err(error),
    }
    let lease: Lease = serde_json::from_value(json!({
        "metadata": {"name": name, "namespace": "kube-node-lease"},
        "spec": spec,
    }))
    .expect("a lease of our own making is valid");
    match api.create(&PostParams::default(), &lease).await {
        // 409: somebody was faster; the next renewal patches it.
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(()),
        other => other.map(drop),
    }
}

#[cfg(test)]
mod tests;
