//! Expected numbers are those of upstream's deployment tests and documentation.

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::{Value, json};

use super::round::{Round, resolve_fenceposts, size};

fn deployment(replicas: i32, strategy: Value, status: Value) -> Deployment {
    serde_json::from_value(json!({
        "metadata": {"name": "web", "namespace": "ns", "uid": "d", "generation": 2},
        "spec": {
            "replicas": replicas, "strategy": strategy, "progressDeadlineSeconds": 600,
            "revisionHistoryLimit": 1,
            "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web"}},
                "spec": {"containers": [{"name": "c", "image": "new"}]}},
        },
        "status": status,
    }))
    .expect("a deployment")
}

fn rolling(surge: Value, unavailable: Value) -> Value {
    json!({"type": "RollingUpdate",
        "rollingUpdate": {"maxSurge": surge, "maxUnavailable": unavailable}})
}

/// `(name, image, size, available, desired, max)`; `status.replicas` equals the size.
fn set(name: &str, image: &str, size: i32, available: i32, desired: i32, max: i32) -> ReplicaSet {
    serde_json::from_value(json!({
        "metadata": {"name": name, "namespace": "ns", "uid": name, "generation": 1,
            "annotations": {
                "deployment.kubernetes.io/revision": name.trim_start_matches('r'),
                "deployment.kubernetes.io/desired-replicas": desired.to_string(),
                "deployment.kubernetes.io/max-replicas": max.to_string()}},
        "spec": {"replicas": size, "selector": {"matchLabels": {"app": "web"}},
            "template": {"metadata": {"labels": {"app": "web", "pod-template-hash": name}},
                "spec": {"containers": [{"name": "c", "image": image}]}}},
        "status": {"replicas": size, "availableReplicas": available, "readyReplicas": available,
            "observedGeneration": 1},
    }))
    .expect("a replica set")
}

fn decided(deployment: Deployment, sets: Vec<ReplicaSet>) -> Round {
    let mut round = Round::new(deployment, sets, Timestamp::UNIX_EPOCH);
    round.decide(false);
    round
}

fn sizes(round: &Round) -> Vec<(String, i32)> {
    let mut sizes: Vec<(String, i32)> = round
        .all()
        .map(|set| (set.metadata.name.clone().unwrap_or_default(), size(set)))
        .collect();
    sizes.sort();
    sizes
}

#[test]
fn surge_rounds_up_and_unavailable_down() {
    let text = |text: &str| IntOrString::String(text.to_owned());
    let number = IntOrString::Int;
    for (surge, unavailable, desired, expected) in [
        (text("25%"), text("25%"), 10, (3, 2)),
        (text("25%"), text("25%"), 3, (1, 0)),
        (text("0%"), text("1%"), 1, (0, 1)),
        (number(0), number(0), 10, (0, 1)),
        (number(5), text("39%"), 10, (5, 3)),
        (text("55%"), text("85%"), 2, (2, 1)),
    ] {
        assert_eq!(resolve_fenceposts(&surge, &unavailable, desired), expected);
    }
}

#[test]
fn a_new_deployment_makes_a_full_size_set_of_revision_one() {
    let round = decided(
        deployment(3, rolling(json!("25%"), json!("25%")), json!({})),
        vec![],
    );
    assert!(round.create_new);
    let new = round.new.as_ref().expect("a set is made");
    assert_eq!(size(new), 3);
    let annotations = new.metadata.annotations.as_ref().expect("annotated");
    assert_eq!(annotations["deployment.kubernetes.io/revision"], "1");
    assert_eq!(annotations["deployment.kubernetes.io/max-replicas"], "4");
    let hash = &new.metadata.labels.as_ref().expect("labelled")["pod-template-hash"];
    assert_eq!(
        new.metadata.name.as_deref(),
        Some(format!("web-{hash}").as_str())
    );
    let messages: Vec<&String> = round.events.iter().map(|(_, _, message)| message).collect();
    assert_eq!(
        messages,
        [&format!("Scaled up replica set web-{hash} from 0 to 3")]
    );
}

#[test]
fn a_rolling_update_moves_within_surge_and_unavailable() {
    let strategy = || rolling(json!(1), json!(1));
    let with = |old: (i32, i32), new: (i32, i32)| {
        let sets = vec![
            set("r1", "old", old.0, old.1, 10, 11),
            set("r2", "new", new.0, new.1, 10, 11),
        ];
        let round = decided(deployment(10, strategy(), json!({})), sets);
        (size(&round.old[0]), round.new.as_ref().map_or(0, size))
    };
    assert_eq!(with((10, 10), (0, 0)), (10, 1), "surge first");
    assert_eq!(with((10, 10), (1, 0)), (9, 1), "one may be unavailable");
    assert_eq!(
        with((9, 9), (1, 0)),
        (9, 2),
        "the place is taken by a new one"
    );
    assert_eq!(
        with((9, 9), (2, 2)),
        (7, 2),
        "available new ones let old ones go"
    );
    assert_eq!(with((1, 1), (10, 10)), (0, 10), "the end");
}

#[test]
fn unhealthy_old_pods_go_before_healthy_ones() {
    let sets = vec![
        set("r1", "older", 5, 5, 10, 11),
        set("r2", "old", 5, 0, 10, 11),
        set("r3", "new", 1, 1, 10, 11),
    ];
    let round = decided(deployment(10, rolling(json!(1), json!(5)), json!({})), sets);
    assert_eq!(sizes(&round)[1], ("r2".to_owned(), 0));
}

#[test]
fn scaling_during_a_rollout_is_shared_in_proportion() {
    // Upstream's documentation: 10 replicas, maxSurge 3, maxUnavailable 2, 8 old and 5 new, scaled to 15.
    let sets = vec![
        set("r1", "old", 8, 8, 10, 13),
        set("r2", "new", 5, 0, 10, 13),
    ];
    let round = decided(deployment(15, rolling(json!(3), json!(2)), json!({})), sets);
    assert_eq!(sizes(&round), [("r1".to_owned(), 11), ("r2".to_owned(), 7)]);
}

#[test]
fn a_paused_deployment_scales_but_does_not_roll() {
    let mut paused = deployment(5, rolling(json!(1), json!(1)), json!({}));
    paused.spec.as_mut().expect("spec").paused = Some(true);
    let round = decided(paused, vec![set("r1", "old", 3, 3, 3, 4)]);
    assert_eq!(sizes(&round), [("r1".to_owned(), 5)]);
    assert!(!round.create_new);
    let progressing = round.condition("Progressing").expect("noted");
    assert_eq!(progressing.reason.as_deref(), Some("DeploymentPaused"));
}

#[test]
fn an_undo_gives_the_old_set_a_new_revision_and_remembers_the_former() {
    let sets = vec![set("r1", "new", 0, 0, 3, 4), set("r2", "old", 3, 3, 3, 4)];
    let round = decided(deployment(3, rolling(json!(1), json!(0)), json!({})), sets);
    let annotations = round
        .new
        .as_ref()
        .and_then(|set| set.metadata.annotations.as_ref());
    let annotations = annotations.expect("annotated");
    assert_eq!(annotations["deployment.kubernetes.io/revision"], "3");
    assert_eq!(
        annotations["deployment.kubernetes.io/revision-history"],
        "1"
    );
    let own = round
        .deployment
        .metadata
        .annotations
        .as_ref()
        .expect("annotated");
    assert_eq!(own["deployment.kubernetes.io/revision"], "3");
}

#[test]
fn recreate_waits_until_no_old_pod_runs() {
    let strategy = || json!({"type": "Recreate"});
    let round = decided(
        deployment(3, strategy(), json!({})),
        vec![set("r1", "old", 3, 3, 3, 3)],
    );
    assert_eq!(
        (sizes(&round), round.create_new),
        (vec![("r1".to_owned(), 0)], false)
    );
    let stopped = vec![set("r1", "old", 0, 0, 3, 3)];
    let mut waiting = Round::new(
        deployment(3, strategy(), json!({})),
        stopped.clone(),
        Timestamp::UNIX_EPOCH,
    );
    waiting.decide(true);
    assert!(
        !waiting.create_new,
        "a pod that still stops holds the new ones back"
    );
    let round = decided(deployment(3, strategy(), json!({})), stopped);
    assert!(round.create_new);
    assert_eq!(round.new.as_ref().map_or(0, size), 3);
}

#[test]
fn a_finished_rollout_says_so_and_trims_its_history() {
    let sets = vec![
        set("r1", "older", 0, 0, 3, 4),
        set("r2", "old", 0, 0, 3, 4),
        set("r3", "new", 3, 3, 3, 4),
    ];
    let round = decided(deployment(3, rolling(json!(1), json!(0)), json!({})), sets);
    let reason = |type_| {
        round
            .condition(type_)
            .and_then(|condition| condition.reason.clone())
    };
    assert_eq!(
        reason("Progressing").as_deref(),
        Some("NewReplicaSetAvailable")
    );
    assert_eq!(
        reason("Available").as_deref(),
        Some("MinimumReplicasAvailable")
    );
    let expired: Vec<_> = round
        .expired
        .iter()
        .filter_map(|s| s.metadata.name.clone())
        .collect();
    assert_eq!(expired, ["r1"], "revisionHistoryLimit is 1");
}

#[test]
fn no_progress_before_the_deadline_is_reported_after_it() {
    let status = json!({"replicas": 3, "updatedReplicas": 3, "conditions": [
        {"type": "Progressing", "status": "True", "reason": "ReplicaSetUpdated",
         "lastUpdateTime": "1970-01-01T00:00:00Z", "lastTransitionTime": "1970-01-01T00:00:00Z"}]});
    let at = |secs| {
        let now = Timestamp::from_second(secs).expect("in range");
        let stuck = deployment(3, rolling(json!(1), json!(0)), status.clone());
        let mut round = Round::new(stuck, vec![set("r1", "new", 3, 0, 3, 4)], now);
        let again = round.decide(false);
        (
            round
                .condition("Progressing")
                .and_then(|c| c.reason.clone()),
            again.map(|d| d.as_secs()),
        )
    };
    assert_eq!(at(100), (Some("ReplicaSetUpdated".to_owned()), Some(501)));
    assert_eq!(at(601), (Some("ProgressDeadlineExceeded".to_owned()), None));
}
