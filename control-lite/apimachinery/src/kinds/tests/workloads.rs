//! Deployments, ReplicaSets and ReplicationControllers: defaults, rules, generation.

use super::*;

fn deployment() -> Value {
    json!({"metadata": {"name": "web", "namespace": "d"}, "spec": {"selector": {"matchLabels": {"app": "web"}},
        "template": {"metadata": {"labels": {"app": "web"}}, "spec": {"containers": [{"name": "a", "image": "a:1"}]}}}})
}

#[test]
fn a_deployment_gets_upstreams_defaults() {
    let object = created(&DEPLOYMENT, deployment());
    let spec = &object["spec"];
    assert_eq!(
        spec["strategy"],
        json!({"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": "25%", "maxSurge": "25%"}})
    );
    assert_eq!(
        (
            &spec["replicas"],
            &spec["revisionHistoryLimit"],
            &spec["progressDeadlineSeconds"]
        ),
        (&json!(1), &json!(10), &json!(600))
    );
    assert_eq!(spec["template"]["spec"]["dnsPolicy"], "ClusterFirst");
    // Only pods get these two.
    assert!(
        spec["template"]["spec"].get("enableServiceLinks").is_none()
            && spec["template"]["spec"].get("tolerations").is_none()
    );
    assert_eq!(DEPLOYMENT.validate_create(&object), Ok(()));
}

#[test]
fn a_selector_that_misses_the_template_is_refused() {
    let mut object = deployment();
    object["spec"]["template"]["metadata"]["labels"] = json!({"app": "x"});
    assert_eq!(
        create_error(&DEPLOYMENT, object.clone()),
        "Deployment.apps \"web\" is invalid: spec.template.metadata.labels: Invalid value: {\"app\":\"x\"}: `selector` does not match template `labels`"
    );
    object["spec"]["selector"] = Value::Null;
    assert_eq!(
        create_error(&DEPLOYMENT, object.clone()),
        "Deployment.apps \"web\" is invalid: [spec.selector: Required value, spec.template.metadata.labels: Invalid value: {\"app\":\"x\"}: `selector` does not match template `labels`]"
    );
    object["spec"]["selector"] = json!({});
    assert!(
        create_error(&DEPLOYMENT, object)
            .contains("spec.selector: Invalid value: {}: empty selector is invalid for deployment")
    );
}

#[test]
fn strategies_and_counts_are_checked() {
    let with = |key: &str, value: Value| {
        let mut object = deployment();
        crate::value::set(&mut object, &format!("spec.{key}"), value);
        create_error(&DEPLOYMENT, object)
    };
    let table = [
        (
            "replicas",
            json!(-1),
            "spec.replicas: Invalid value: -1: must be greater than or equal to 0",
        ),
        (
            "strategy",
            json!({"type": "Recreate", "rollingUpdate": {}}),
            "spec.strategy.rollingUpdate: Forbidden: may not be specified when strategy `type` is 'Recreate'",
        ),
        (
            "strategy",
            json!({"type": "x"}),
            "spec.strategy.type: Unsupported value: \"x\": supported values: \"Recreate\", \"RollingUpdate\"",
        ),
        (
            "strategy",
            json!({"rollingUpdate": {"maxSurge": 0, "maxUnavailable": 0}}),
            "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: 0: may not be 0 when `maxSurge` is 0",
        ),
        (
            "strategy",
            json!({"rollingUpdate": {"maxUnavailable": "101%"}}),
            "spec.strategy.rollingUpdate.maxUnavailable: Invalid value: \"101%\": must not be greater than 100%",
        ),
        (
            "strategy",
            json!({"rollingUpdate": {"maxSurge": "x"}}),
            "spec.strategy.rollingUpdate.maxSurge: Invalid value: \"x\": a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')",
        ),
        (
            "minReadySeconds",
            json!(600),
            "spec.progressDeadlineSeconds: Invalid value: 600: must be greater than minReadySeconds",
        ),
        (
            "template.spec.restartPolicy",
            json!("Never"),
            "spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\"",
        ),
    ];
    for (key, value, body) in table {
        assert_eq!(
            with(key, value),
            format!("Deployment.apps \"web\" is invalid: {body}")
        );
    }
}

#[test]
fn the_selector_cannot_change_and_the_spec_counts() {
    let old = created(&DEPLOYMENT, deployment());
    let error = update_error(&DEPLOYMENT, &old, |d| {
        d["spec"]["selector"]["matchLabels"]["app"] = "y".into();
        d["spec"]["template"]["metadata"]["labels"]["app"] = "y".into();
    });
    assert_eq!(
        error,
        "Deployment.apps \"web\" is invalid: spec.selector: Invalid value: {\"matchLabels\":{\"app\":\"y\"}}: field is immutable"
    );
    let generation = |change: &dyn Fn(&mut Value)| {
        let mut new = old.clone();
        change(&mut new);
        DEPLOYMENT.prepare_update(&mut new, &old);
        meta::generation(&new)
    };
    assert_eq!(generation(&|_| {}), 1);
    assert_eq!(generation(&|d| d["spec"]["replicas"] = 5.into()), 2);
    assert_eq!(generation(&|d| meta::set_annotation(d, "a", "b")), 2);
    assert_eq!(generation(&|d| meta::set_label(d, "a", "b")), 1);
    assert_eq!(generation(&|d| d["status"] = json!({"replicas": 3})), 1);
}

#[test]
fn statuses_must_add_up() {
    let old = created(&DEPLOYMENT, deployment());
    let mut new = old.clone();
    new["status"] = json!({"replicas": 1, "readyReplicas": 2});
    DEPLOYMENT.prepare_status_update(&mut new, &old);
    let error = DEPLOYMENT
        .validate_status_update(&new, &old)
        .expect_err("more ready than there are");
    assert_eq!(
        error.message,
        "Deployment.apps \"web\" is invalid: status.readyReplicas: Invalid value: 2: cannot be greater than status.replicas"
    );
}

#[test]
fn a_replication_controller_takes_selector_and_labels_from_its_template() {
    let mut object = deployment();
    drop(crate::value::remove(&mut object, "spec.selector"));
    let object = created(&REPLICATION_CONTROLLER, object);
    assert_eq!(
        (
            &object["spec"]["selector"],
            &object["metadata"]["labels"],
            &object["spec"]["replicas"]
        ),
        (&json!({"app": "web"}), &json!({"app": "web"}), &json!(1))
    );
    assert_eq!(REPLICATION_CONTROLLER.validate_create(&object), Ok(()));
    let bare = json!({"metadata": {"name": "r", "namespace": "d"}, "spec": {}});
    assert_eq!(
        create_error(&REPLICATION_CONTROLLER, bare),
        "ReplicationController \"r\" is invalid: [spec.selector: Required value, spec.template: Required value]"
    );
}
