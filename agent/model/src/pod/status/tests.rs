//! Tables of upstream's documented behaviour.

use std::time::Duration;

use super::*;
use crate::pod::Container;

fn at(seconds: u64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
}

fn pod(policy: RestartPolicy, names: &[&str]) -> Pod {
    Pod {
        uid: "u".to_owned(),
        name: "p".to_owned(),
        namespace: "default".to_owned(),
        restart_policy: policy,
        containers: names
            .iter()
            .map(|name| Container {
                name: (*name).to_owned(),
                image: "img:1".to_owned(),
                ..Container::default()
            })
            .collect(),
        ..Pod::default()
    }
}

fn record(name: &str, attempt: u32, state: RecordState) -> ContainerRecord {
    ContainerRecord {
        name: name.to_owned(),
        id: format!("{name}{attempt}"),
        attempt,
        image: "img:1".to_owned(),
        image_id: "img@sha256:1".to_owned(),
        state,
    }
}

fn running() -> RecordState {
    RecordState::Running { started_at: at(10) }
}

fn exited(code: i32) -> RecordState {
    RecordState::Exited(Exit {
        exit_code: code,
        signal: 0,
        oom_killed: false,
        started_at: at(10),
        finished_at: at(20),
        message: String::new(),
        kind: crate::pod::ExitKind::Process,
    })
}

fn status(pod: &Pod, records: &[ContainerRecord], waiting: &[(&str, Waiting)]) -> PodStatus {
    let waiting = waiting
        .iter()
        .map(|(name, waiting)| ((*name).to_owned(), waiting.clone()))
        .collect();
    compute(&StatusInputs {
        pod,
        records,
        waiting: &waiting,
        sandbox_ready: !records.is_empty(),
        pod_addresses: &["10.244.0.5".parse().unwrap()],
        host_addresses: &["172.30.0.11".parse().unwrap()],
        start_time: at(1),
        failure: None,
        terminating: false,
        previous: &[],
        now: at(30),
    })
}

fn condition<'a>(status: &'a PodStatus, kind: &str) -> &'a Condition {
    status
        .conditions
        .iter()
        .find(|condition| condition.kind == kind)
        .unwrap()
}

#[test]
fn the_phase_follows_upstreams_table() {
    use Phase::{Failed, Pending, Running, Succeeded};
    use RestartPolicy::{Always, Never, OnFailure};
    for (policy, states, phase) in [
        (Always, vec![], Pending),
        (Always, vec![running()], Pending),
        (Always, vec![running(), running()], Running),
        (Always, vec![running(), exited(0)], Running),
        (Always, vec![exited(0), exited(0)], Running),
        (OnFailure, vec![exited(0), exited(0)], Succeeded),
        (OnFailure, vec![exited(0), exited(1)], Running),
        (Never, vec![exited(0), exited(0)], Succeeded),
        (Never, vec![exited(0), exited(1)], Failed),
        (Never, vec![running(), exited(1)], Running),
    ] {
        let records: Vec<_> = ["a", "b"]
            .iter()
            .zip(states.clone())
            .map(|(name, state)| record(name, 0, state))
            .collect();
        let got = status(&pod(policy, &["a", "b"]), &records, &[]);
        assert_eq!(got.phase, phase, "{policy:?} {states:?}");
    }
}

#[test]
fn a_new_pod_waits_with_container_creating() {
    let got = status(&pod(RestartPolicy::Always, &["a"]), &[], &[]);
    assert_eq!(
        got.containers[0].state,
        ContainerState::Waiting(Waiting::new("ContainerCreating", ""))
    );
    let ready = condition(&got, "Ready");
    assert_eq!(
        (ready.status, ready.reason.as_str(), ready.message.as_str()),
        (
            false,
            "ContainersNotReady",
            "containers with unready status: [a]"
        )
    );
    assert!(!condition(&got, "PodReadyToStartContainers").status);
    assert!(condition(&got, "PodScheduled").status);
}

#[test]
fn a_crash_loop_shows_waiting_with_the_last_exit() {
    let waiting = Waiting::new(
        "CrashLoopBackOff",
        "back-off 10s restarting failed container=a",
    );
    let records = [record("a", 1, exited(3)), record("a", 0, exited(2))];
    let got = status(
        &pod(RestartPolicy::Always, &["a"]),
        &records,
        &[("a", waiting.clone())],
    );
    let container = &got.containers[0];
    assert_eq!(container.state, ContainerState::Waiting(waiting));
    let Some(ContainerState::Terminated { exit, container_id }) = &container.last_state else {
        panic!("no last state");
    };
    assert_eq!((exit.exit_code, container_id.as_str()), (3, "a1"));
    assert_eq!(container.restart_count, 1);
    assert_eq!(got.phase, Phase::Running);
}

#[test]
fn a_restarted_container_remembers_its_former_exit() {
    let records = [record("a", 0, exited(2)), record("a", 1, running())];
    let got = status(&pod(RestartPolicy::Always, &["a"]), &records, &[]);
    let container = &got.containers[0];
    assert!(container.ready && container.started);
    assert!(
        matches!(&container.last_state, Some(ContainerState::Terminated { exit, .. }) if exit.exit_code == 2)
    );
    assert!(condition(&got, "Ready").status);
}

#[test]
fn completion_sets_the_reasons_of_upstream() {
    let got = status(
        &pod(RestartPolicy::Never, &["a"]),
        &[record("a", 0, exited(0))],
        &[],
    );
    assert_eq!(condition(&got, "Ready").reason, "PodCompleted");
    assert_eq!(condition(&got, "ContainersReady").reason, "PodCompleted");
    assert_eq!(condition(&got, "Initialized").reason, "PodCompleted");
    let failed = status(
        &pod(RestartPolicy::Never, &["a"]),
        &[record("a", 0, exited(9))],
        &[],
    );
    assert_eq!(condition(&failed, "Ready").reason, "PodFailed");
}

#[test]
fn transition_times_move_only_with_the_status() {
    let pod = pod(RestartPolicy::Always, &["a"]);
    let first = status(&pod, &[], &[]);
    let records = [record("a", 0, running())];
    let second = compute(&StatusInputs {
        pod: &pod,
        records: &records,
        waiting: &BTreeMap::new(),
        sandbox_ready: true,
        pod_addresses: &[],
        host_addresses: &[],
        start_time: at(1),
        failure: None,
        terminating: false,
        previous: &first.conditions,
        now: at(99),
    });
    assert_eq!(condition(&second, "PodScheduled").transition, at(30));
    assert_eq!(condition(&second, "Ready").transition, at(99));
}

#[test]
fn a_terminating_pod_ends_succeeded_or_failed_whatever_its_policy() {
    for (code, phase) in [(0, Phase::Succeeded), (137, Phase::Failed)] {
        let pod = pod(RestartPolicy::Always, &["a"]);
        let records = [record("a", 0, exited(code))];
        let got = compute(&StatusInputs {
            pod: &pod,
            records: &records,
            waiting: &BTreeMap::new(),
            sandbox_ready: true,
            pod_addresses: &[],
            host_addresses: &[],
            start_time: at(1),
            failure: None,
            terminating: true,
            previous: &[],
            now: at(30),
        });
        assert_eq!(got.phase, phase);
        assert!(matches!(
            got.containers[0].state,
            ContainerState::Terminated { .. }
        ));
    }
}

#[test]
fn a_missing_readiness_gate_keeps_the_pod_unready() {
    let mut pod = pod(RestartPolicy::Always, &["a"]);
    pod.readiness_gates.push("example.com/ok".to_owned());
    let got = status(&pod, &[record("a", 0, running())], &[]);
    assert!(condition(&got, "ContainersReady").status);
    let ready = condition(&got, "Ready");
    assert_eq!(
        (ready.status, ready.reason.as_str()),
        (false, "ReadinessGatesNotReady")
    );
}

#[test]
fn reasons_of_exits_are_what_kubectl_prints() {
    let RecordState::Exited(exit) = exited(0) else {
        unreachable!()
    };
    assert_eq!(exit.reason(), "Completed");
    assert_eq!(
        Exit {
            exit_code: 137,
            oom_killed: true,
            ..exit.clone()
        }
        .reason(),
        "OOMKilled"
    );
    assert_eq!(
        Exit {
            exit_code: 1,
            ..exit.clone()
        }
        .reason(),
        "Error"
    );
    assert_eq!(
        Exit {
            kind: crate::pod::ExitKind::Unknown,
            ..exit
        }
        .reason(),
        "ContainerStatusUnknown"
    );
}
