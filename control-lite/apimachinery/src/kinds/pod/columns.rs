//! The row of a pod: how its many states become one word.

use crate::kinds::{Column, cells};
use crate::value::{at, bool_at, i64_at, list_at, str_at};
use jiff::Timestamp;
use serde_json::Value;

pub(super) const COLUMNS: &[Column] = &[
    cells::NAME,
    cells::text("Ready", 0, "Containers that are ready, of all."),
    cells::text(
        "Status",
        0,
        "State of the pod, summed up from its containers.",
    ),
    cells::text(
        "Restarts",
        0,
        "Restarts of its containers, and the last one's age.",
    ),
    cells::AGE,
    cells::text("IP", 1, "First address."),
    cells::text("Node", 1, "Where it runs."),
    cells::text("Nominated Node", 1, "Where room is being made for it."),
    cells::text(
        "Readiness Gates",
        1,
        "Readiness gates that are open, of all.",
    ),
];

/// What the containers' states add up to.
struct Summary {
    status: String,
    ready_count: usize,
    restart_count: i64,
    last_restart: Option<Timestamp>,
}

pub(super) fn row(pod: &Value, now: Timestamp) -> Vec<Value> {
    let summary = summarise(pod);
    let sidecars = list_at(pod, "spec.initContainers")
        .iter()
        .filter(|c| is_sidecar(c))
        .count();
    let total = list_at(pod, "spec.containers").len() + sidecars;
    let restarts = match summary.last_restart {
        Some(at) if summary.restart_count != 0 => {
            let ago = crate::duration::human((now.as_millisecond() - at.as_millisecond()) / 1000);
            format!("{} ({ago} ago)", summary.restart_count)
        }
        _ => summary.restart_count.to_string(),
    };
    let ip = match list_at(pod, "status.podIPs").first() {
        Some(first) => str_at(first, "ip"),
        None => str_at(pod, "status.podIP"),
    };
    vec![
        cells::name(pod),
        format!("{}/{total}", summary.ready_count).into(),
        summary.status.into(),
        restarts.into(),
        cells::age(pod, now),
        if ip.is_empty() { "<none>" } else { ip }.into(),
        cells::text_or(pod, "spec.nodeName", "<none>"),
        cells::text_or(pod, "status.nominatedNodeName", "<none>"),
        readiness_gates(pod).into(),
    ]
}

fn readiness_gates(pod: &Value) -> String {
    let gates = list_at(pod, "spec.readinessGates");
    if gates.is_empty() {
        return "<none>".to_owned();
    }
    let open = gates
        .iter()
        .filter(|g| has_condition(pod, str_at(g, "conditionType")))
        .count();
    format!("{open}/{}", gates.len())
}

fn has_condition(pod: &Value, kind: &str) -> bool {
    list_at(pod, "status.conditions")
        .iter()
        .any(|c| str_at(c, "type") == kind && str_at(c, "status") == "True")
}

fn is_sidecar(container: &Value) -> bool {
    str_at(container, "restartPolicy") == "Always"
}

fn last_finish(status: &Value) -> Option<Timestamp> {
    crate::time::parse(str_at(status, "lastState.terminated.finishedAt"))
}

fn exit_reason(terminated: &Value) -> String {
    match (
        str_at(terminated, "reason"),
        i64_at(terminated, "signal").unwrap_or_default(),
    ) {
        ("", 0) => format!(
            "ExitCode:{}",
            i64_at(terminated, "exitCode").unwrap_or_default()
        ),
        ("", signal) => format!("Signal:{signal}"),
        (reason, _) => reason.to_owned(),
    }
}

fn summarise(pod: &Value) -> Summary {
    let phase = str_at(pod, "status.phase");
    let reason = str_at(pod, "status.reason");
    let mut status = if reason.is_empty() { phase } else { reason }.to_owned();
    let is_gated =
        |c: &Value| str_at(c, "type") == "PodScheduled" && str_at(c, "reason") == "SchedulingGated";
    if list_at(pod, "status.conditions").iter().any(is_gated) {
        status = "SchedulingGated".to_owned();
    }
    let mut summary = Summary {
        status,
        ready_count: 0,
        restart_count: 0,
        last_restart: None,
    };
    let (sidecar_restarts, sidecar_last, is_initializing) = init_containers(pod, &mut summary);
    if !is_initializing || has_condition(pod, "Initialized") {
        summary.restart_count = sidecar_restarts;
        summary.last_restart = sidecar_last;
        containers(pod, &mut summary);
    }
    if crate::meta::is_deleting(pod) {
        if reason == "NodeLost" {
            summary.status = "Unknown".to_owned();
        } else if !matches!(phase, "Succeeded" | "Failed") {
            summary.status = "Terminating".to_owned();
        }
    }
    summary
}

/// Answers the sidecars' restarts, their last time, and whether the first unfinished container still holds the pod up.
fn init_containers(pod: &Value, summary: &mut Summary) -> (i64, Option<Timestamp>, bool) {
    let specs = list_at(pod, "spec.initContainers");
    let (mut sidecar_restarts, mut sidecar_last) = (0, None);
    for (i, status) in list_at(pod, "status.initContainerStatuses")
        .iter()
        .enumerate()
    {
        let restarts = i64_at(status, "restartCount").unwrap_or_default();
        let is_sidecar = specs
            .iter()
            .any(|s| str_at(s, "name") == str_at(status, "name") && is_sidecar(s));
        summary.restart_count += restarts;
        summary.last_restart = summary.last_restart.max(last_finish(status));
        if is_sidecar {
            sidecar_restarts += restarts;
            sidecar_last = sidecar_last.max(last_finish(status));
        }
        let (terminated, waiting) = (
            at(status, "state.terminated"),
            str_at(status, "state.waiting.reason"),
        );
        match terminated {
            Some(t) if i64_at(t, "exitCode").unwrap_or_default() == 0 => continue,
            _ if is_sidecar && bool_at(status, "started") => {
                summary.ready_count += usize::from(bool_at(status, "ready"));
                continue;
            }
            Some(t) => summary.status = format!("Init:{}", exit_reason(t)),
            None if !waiting.is_empty() && waiting != "PodInitializing" => {
                summary.status = format!("Init:{waiting}")
            }
            None => summary.status = format!("Init:{i}/{}", specs.len()),
        }
        return (sidecar_restarts, sidecar_last, true);
    }
    (sidecar_restarts, sidecar_last, false)
}

fn containers(pod: &Value, summary: &mut Summary) {
    let mut is_any_running = false;
    // From the last to the first, so that the first container with something to say has the last word.
    for status in list_at(pod, "status.containerStatuses").iter().rev() {
        summary.restart_count += i64_at(status, "restartCount").unwrap_or_default();
        summary.last_restart = summary.last_restart.max(last_finish(status));
        let waiting = str_at(status, "state.waiting.reason");
        if !waiting.is_empty() {
            summary.status = waiting.to_owned();
        } else if let Some(terminated) = at(status, "state.terminated") {
            summary.status = exit_reason(terminated);
        } else if bool_at(status, "ready") && at(status, "state.running").is_some() {
            is_any_running = true;
            summary.ready_count += 1;
        }
    }
    if summary.status == "Completed" && is_any_running {
        let is_ready = has_condition(pod, "Ready");
        summary.status = if is_ready { "Running" } else { "NotReady" }.to_owned();
    }
}

#[cfg(test)]
mod tests;
