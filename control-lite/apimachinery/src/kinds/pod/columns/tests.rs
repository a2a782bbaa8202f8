//! Rows of pods in the states that kubectl users know.

use super::*;
use serde_json::json;

fn cells(spec: Value, status: Value) -> Vec<String> {
    let pod = json!({"metadata": {"name": "p", "creationTimestamp": "2026-01-01T00:00:00Z"}, "spec": spec, "status": status});
    texts(&pod)
}

fn texts(pod: &Value) -> Vec<String> {
    let now = crate::time::parse("2026-01-01T01:00:00Z").expect("valid");
    row(pod, now)
        .into_iter()
        .map(|c| c.as_str().expect("text").to_owned())
        .collect()
}

fn ready_status_restarts(spec: Value, status: Value) -> [String; 3] {
    let cells = cells(spec, status);
    [cells[1].clone(), cells[2].clone(), cells[3].clone()]
}

#[test]
fn a_row_has_a_cell_for_every_column() {
    let running = json!({"phase": "Running", "podIPs": [{"ip": "10.244.1.2"}],
        "containerStatuses": [{"name": "a", "ready": true, "restartCount": 0, "state": {"running": {}}}]});
    let cells = cells(
        json!({"containers": [{"name": "a"}], "nodeName": "n1"}),
        running,
    );
    assert_eq!(
        cells,
        [
            "p",
            "1/1",
            "Running",
            "0",
            "60m",
            "10.244.1.2",
            "n1",
            "<none>",
            "<none>"
        ]
    );
    assert_eq!(cells.len(), COLUMNS.len());
}

#[test]
fn container_states_show_through() {
    let one = json!({"containers": [{"name": "a"}]});
    let state = |state: Value| json!({"phase": "Running", "containerStatuses": [{"name": "a", "restartCount": 0, "state": state}]});
    let table = [
        (
            json!({"waiting": {"reason": "CrashLoopBackOff"}}),
            "CrashLoopBackOff",
        ),
        (
            json!({"waiting": {"reason": "ImagePullBackOff"}}),
            "ImagePullBackOff",
        ),
        (
            json!({"terminated": {"reason": "OOMKilled", "exitCode": 137}}),
            "OOMKilled",
        ),
        (json!({"terminated": {"exitCode": 3}}), "ExitCode:3"),
        (
            json!({"terminated": {"exitCode": 137, "signal": 9}}),
            "Signal:9",
        ),
        (
            json!({"terminated": {"reason": "Completed", "exitCode": 0}}),
            "Completed",
        ),
        (json!({"running": {}}), "Running"),
    ];
    for (state_json, status) in table {
        assert_eq!(
            ready_status_restarts(one.clone(), state(state_json))[1],
            status
        );
    }
}

#[test]
fn restarts_show_how_long_ago_the_last_was() {
    let status = json!({"phase": "Running", "containerStatuses": [{"name": "a", "ready": true, "restartCount": 4,
        "state": {"running": {}}, "lastState": {"terminated": {"finishedAt": "2026-01-01T00:55:00Z"}}}]});
    assert_eq!(
        ready_status_restarts(json!({"containers": [{"name": "a"}]}), status),
        ["1/1", "Running", "4 (5m ago)"]
    );
}

#[test]
fn init_containers_count_and_fail_by_name() {
    let spec =
        json!({"containers": [{"name": "a"}], "initContainers": [{"name": "i"}, {"name": "j"}]});
    let status = |states: Value| json!({"phase": "Pending", "initContainerStatuses": states});
    let done = json!({"name": "i", "restartCount": 0, "state": {"terminated": {"exitCode": 0}}});
    let table = [
        (
            json!([{"name": "i", "restartCount": 0, "state": {"running": {}}}]),
            "Init:0/2",
        ),
        (
            json!([done, {"name": "j", "restartCount": 0, "state": {"waiting": {"reason": "PodInitializing"}}}]),
            "Init:1/2",
        ),
        (
            json!([done, {"name": "j", "restartCount": 2, "state": {"terminated": {"exitCode": 1, "reason": "Error"}}}]),
            "Init:Error",
        ),
        (
            json!([done, {"name": "j", "restartCount": 2, "state": {"waiting": {"reason": "CrashLoopBackOff"}}}]),
            "Init:CrashLoopBackOff",
        ),
        (
            json!([done, {"name": "j", "restartCount": 0, "state": {"terminated": {"exitCode": 2}}}]),
            "Init:ExitCode:2",
        ),
    ];
    for (states, text) in table {
        assert_eq!(ready_status_restarts(spec.clone(), status(states))[1], text);
    }
}

#[test]
fn a_started_sidecar_counts_as_a_container() {
    let spec = json!({"containers": [{"name": "a"}], "initContainers": [{"name": "s", "restartPolicy": "Always"}]});
    let status = json!({"phase": "Running",
        "initContainerStatuses": [{"name": "s", "started": true, "ready": true, "restartCount": 1, "state": {"running": {}}}],
        "containerStatuses": [{"name": "a", "ready": true, "restartCount": 2, "state": {"running": {}}}]});
    assert_eq!(ready_status_restarts(spec, status), ["2/2", "Running", "3"]);
}

#[test]
fn one_completed_and_one_running_container_make_running_or_not_ready() {
    let spec = json!({"containers": [{"name": "a"}, {"name": "b"}]});
    let status = |conditions: Value| {
        json!({"phase": "Running", "conditions": conditions, "containerStatuses": [
        {"name": "a", "restartCount": 0, "state": {"terminated": {"reason": "Completed", "exitCode": 0}}},
        {"name": "b", "ready": true, "restartCount": 0, "state": {"running": {}}}]})
    };
    assert_eq!(
        ready_status_restarts(spec.clone(), status(json!([]))),
        ["1/2", "NotReady", "0"]
    );
    assert_eq!(
        ready_status_restarts(spec, status(json!([{"type": "Ready", "status": "True"}])))[1],
        "Running"
    );
}

#[test]
fn deletion_gating_and_reasons_override_the_phase() {
    let mut pod = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}, "status": {"phase": "Running"}});
    assert_eq!(texts(&pod)[2], "Terminating");
    pod["status"]["reason"] = "NodeLost".into();
    assert_eq!(texts(&pod)[2], "Unknown");
    pod["status"] = json!({"phase": "Succeeded"});
    assert_eq!(texts(&pod)[2], "Succeeded");
    assert_eq!(
        texts(&json!({"status": {"phase": "Failed", "reason": "Evicted"}}))[2],
        "Evicted"
    );
    let gated = json!({"status": {"phase": "Pending", "conditions": [{"type": "PodScheduled", "reason": "SchedulingGated"}]}});
    assert_eq!(texts(&gated)[2], "SchedulingGated");
}
