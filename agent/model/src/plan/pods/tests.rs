//! Planner tables, and the proof that a finished plan plans nothing more.

use std::time::SystemTime;

use super::*;
use crate::pod::{Container, Exit, RestartPolicy};

const SECOND: Duration = Duration::from_secs(1);

fn pod(policy: RestartPolicy) -> Pod {
    Pod {
        uid: "u".to_owned(),
        restart_policy: policy,
        containers: ["a", "b"]
            .iter()
            .map(|name| Container {
                name: (*name).to_owned(),
                image: "img".to_owned(),
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
        image: "img".to_owned(),
        image_id: String::new(),
        state,
    }
}

fn running_state() -> RecordState {
    RecordState::Running {
        started_at: SystemTime::UNIX_EPOCH,
    }
}

fn exited(code: i32) -> RecordState {
    RecordState::Exited(Exit {
        exit_code: code,
        signal: 0,
        oom_killed: false,
        started_at: SystemTime::UNIX_EPOCH,
        finished_at: SystemTime::UNIX_EPOCH,
        message: String::new(),
        kind: crate::pod::ExitKind::Process,
    })
}

fn ready(containers: Vec<ContainerRecord>) -> RealizedPod {
    RealizedPod {
        volumes_mounted: true,
        sandbox: true,
        sandbox_broken: false,
        network_attached: true,
        containers,
    }
}

fn plan_at(
    pod: &Pod,
    goal: Goal,
    realized: &RealizedPod,
    backoff: &Backoff,
    now: Duration,
) -> PodPlan {
    plan(Some(pod), goal, realized, backoff, &|_| SECOND * 100, now)
}

fn start(name: &str, attempt: u32) -> PodOp {
    PodOp::StartContainer {
        name: name.to_owned(),
        attempt,
        pull: PullGate::Open,
    }
}

/// Applies a plan to the realized state the way a perfect runtime would.
fn applied(mut realized: RealizedPod, ops: &[PodOp]) -> RealizedPod {
    for op in ops {
        match op {
            PodOp::MountVolumes => realized.volumes_mounted = true,
            PodOp::EnsureSandbox => realized.sandbox = true,
            PodOp::AttachNetwork => realized.network_attached = true,
            PodOp::StartContainer { name, attempt, .. } => {
                realized
                    .containers
                    .retain(|r| !(r.name == *name && r.attempt == *attempt));
                realized
                    .containers
                    .push(record(name, *attempt, running_state()));
            }
            PodOp::RemoveContainer { id, .. } => realized.containers.retain(|r| r.id != *id),
            PodOp::StopContainers { containers, .. } => {
                for (id, _) in containers {
                    for r in realized.containers.iter_mut().filter(|r| r.id == *id) {
                        r.state = exited(137);
                    }
                }
            }
            PodOp::DetachNetwork => realized.network_attached = false,
            PodOp::RemoveSandbox => {
                realized.sandbox = false;
                realized.sandbox_broken = false;
                realized.containers.clear();
            }
            PodOp::UnmountVolumes => realized.volumes_mounted = false,
        }
    }
    realized
}

#[test]
fn a_new_pod_is_built_in_kubernetes_order() {
    let plan = plan_at(
        &pod(RestartPolicy::Always),
        Goal::Run,
        &RealizedPod::default(),
        &Backoff::default(),
        SECOND,
    );
    assert_eq!(
        plan.ops,
        [
            PodOp::MountVolumes,
            PodOp::EnsureSandbox,
            PodOp::AttachNetwork,
            start("a", 0),
            start("b", 0)
        ]
    );
}

#[test]
fn a_plan_that_was_applied_plans_nothing_more() {
    for goal in [Goal::Run, Goal::Terminate { grace: SECOND }] {
        let pod = pod(RestartPolicy::Always);
        let mut realized = RealizedPod::default();
        if goal != Goal::Run {
            realized = ready(vec![
                record("a", 0, running_state()),
                record("b", 3, exited(1)),
            ]);
        }
        for _ in 0..2 {
            let plan = plan_at(&pod, goal, &realized, &Backoff::default(), SECOND);
            realized = applied(realized, &plan.ops);
        }
        assert_eq!(
            plan_at(&pod, goal, &realized, &Backoff::default(), SECOND).ops,
            []
        );
    }
}

#[test]
fn a_pod_on_the_host_network_gets_no_interface() {
    let mut pod = pod(RestartPolicy::Always);
    pod.host_network = true;
    let plan = plan_at(
        &pod,
        Goal::Run,
        &RealizedPod::default(),
        &Backoff::default(),
        SECOND,
    );
    assert!(!plan.ops.contains(&PodOp::AttachNetwork));
}

#[test]
fn an_exit_is_restarted_only_as_the_policy_says() {
    for (policy, code, restarts) in [
        (RestartPolicy::Always, 0, true),
        (RestartPolicy::Always, 1, true),
        (RestartPolicy::OnFailure, 0, false),
        (RestartPolicy::OnFailure, 1, true),
        (RestartPolicy::Never, 1, false),
    ] {
        let realized = ready(vec![
            record("a", 4, exited(code)),
            record("b", 0, running_state()),
        ]);
        let plan = plan_at(
            &pod(policy),
            Goal::Run,
            &realized,
            &Backoff::default(),
            SECOND * 100,
        );
        let expected = if restarts {
            vec![start("a", 5)]
        } else {
            vec![]
        };
        assert_eq!(plan.ops, expected, "{policy:?} {code}");
    }
}

#[test]
fn a_crash_waits_for_its_back_off_and_says_until_when() {
    let mut backoff = Backoff::default();
    backoff.advance(&restart_key("a"), SECOND * 98);
    let realized = ready(vec![
        record("a", 1, exited(1)),
        record("b", 0, running_state()),
    ]);
    let pod = pod(RestartPolicy::Always);
    let waiting = plan_at(&pod, Goal::Run, &realized, &backoff, SECOND * 105);
    assert_eq!(waiting.ops, []);
    assert_eq!(waiting.look_again_at, Some(SECOND * 110));
    assert_eq!(waiting.crash_waits[0].delay, SECOND * 10);
    let due = plan_at(&pod, Goal::Run, &realized, &backoff, SECOND * 110);
    assert_eq!(due.ops, [start("a", 2)]);
}

#[test]
fn a_failing_image_is_not_pulled_before_its_back_off_is_over() {
    let mut backoff = Backoff::default();
    backoff.advance(&pull_key("img"), SECOND * 100);
    let realized = ready(vec![]);
    let plan = plan_at(
        &pod(RestartPolicy::Always),
        Goal::Run,
        &realized,
        &backoff,
        SECOND * 101,
    );
    assert!(plan.ops.iter().all(
        |op| matches!(op, PodOp::StartContainer { pull, .. } if *pull == PullGate::BackingOff)
    ));
    assert_eq!(plan.look_again_at, Some(SECOND * 110));
}

#[test]
fn only_the_last_exited_attempt_is_kept() {
    let realized = ready(vec![
        record("a", 0, exited(1)),
        record("a", 1, exited(1)),
        record("a", 2, running_state()),
        record("b", 0, running_state()),
    ]);
    let plan = plan_at(
        &pod(RestartPolicy::Always),
        Goal::Run,
        &realized,
        &Backoff::default(),
        SECOND,
    );
    let removed = PodOp::RemoveContainer {
        id: "a0".to_owned(),
        name: "a".to_owned(),
        attempt: 0,
    };
    assert_eq!(plan.ops, [removed]);
}

#[test]
fn termination_stops_everything_at_once_and_then_takes_down_backwards() {
    let realized = ready(vec![
        record("a", 0, running_state()),
        record("b", 0, running_state()),
    ]);
    let goal = Goal::Terminate { grace: SECOND * 30 };
    let pod = pod(RestartPolicy::Always);
    let first = plan_at(&pod, goal, &realized, &Backoff::default(), SECOND);
    assert_eq!(
        first.ops,
        [PodOp::StopContainers {
            containers: vec![
                ("a0".to_owned(), "a".to_owned()),
                ("b0".to_owned(), "b".to_owned())
            ],
            grace: SECOND * 30
        }]
    );
    let realized = applied(realized, &first.ops);
    let second = plan_at(&pod, goal, &realized, &Backoff::default(), SECOND);
    assert_eq!(
        second.ops,
        [
            PodOp::DetachNetwork,
            PodOp::RemoveSandbox,
            PodOp::UnmountVolumes
        ]
    );
}

#[test]
fn a_finished_pod_gives_back_its_address_but_keeps_its_records() {
    let pod = pod(RestartPolicy::Never);
    let realized = ready(vec![record("a", 0, exited(0)), record("b", 0, exited(1))]);
    assert!(is_finished(&pod, &realized.containers));
    let plan = plan_at(&pod, Goal::Release, &realized, &Backoff::default(), SECOND);
    assert_eq!(plan.ops, [PodOp::DetachNetwork, PodOp::UnmountVolumes]);
}

#[test]
fn remains_of_an_unknown_pod_can_be_terminated_without_a_spec() {
    let realized = ready(vec![record("x", 0, running_state())]);
    let goal = Goal::Terminate { grace: SECOND };
    let first = plan(
        None,
        goal,
        &realized,
        &Backoff::default(),
        &|_| SECOND,
        SECOND,
    );
    assert!(matches!(first.ops[0], PodOp::StopContainers { .. }));
}

#[test]
fn a_sandbox_that_a_reboot_killed_is_removed_before_anything_starts() {
    let mut realized = ready(vec![
        record("a", 0, exited(137)),
        record("b", 0, exited(137)),
    ]);
    realized.sandbox_broken = true;
    let pod = pod(RestartPolicy::Always);
    let first = plan_at(&pod, Goal::Run, &realized, &Backoff::default(), SECOND);
    assert_eq!(first.ops, [PodOp::DetachNetwork, PodOp::RemoveSandbox]);
}
