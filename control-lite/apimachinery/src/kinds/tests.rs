//! Every kind: defaults, rules, strategy and rows, compared with upstream's documented behaviour.

use super::*;
use crate::meta;
use proptest::prelude::{Just, any, prop_oneof, proptest};
use proptest::strategy::Strategy as _;
use serde_json::json;

mod rows;
mod workloads;

fn now() -> Timestamp {
    crate::time::parse("2026-01-01T00:10:00Z").expect("valid")
}

/// The object as it is after create's defaulting and strategy.
fn created(kind: &Kind, mut object: Value) -> Value {
    kind.apply_defaults(&mut object);
    meta::stamp_created(&mut object, now());
    meta::set_resource_version(&mut object, 1);
    kind.prepare_create(&mut object);
    object
}

fn create_error(kind: &Kind, object: Value) -> String {
    kind.validate_create(&created(kind, object))
        .expect_err("invalid")
        .message
}

/// What an update of `old` by `change` says; empty when it is allowed.
fn update_error(kind: &Kind, old: &Value, change: impl Fn(&mut Value)) -> String {
    let mut new = old.clone();
    change(&mut new);
    kind.apply_defaults(&mut new);
    kind.prepare_update(&mut new, old);
    kind.validate_update(&new, old)
        .err()
        .map(|e| e.message)
        .unwrap_or_default()
}

fn pod() -> Value {
    json!({"metadata": {"name": "p", "namespace": "d"}, "spec": {"containers": [{"name": "a", "image": "a:1"}]}})
}

fn service() -> Value {
    json!({"metadata": {"name": "s", "namespace": "d"}, "spec": {"selector": {"a": "b"}, "ports": [{"port": 80}]}})
}

#[test]
fn names_find_their_kind_and_no_two_share_a_path() {
    for kind in all() {
        assert!(std::ptr::eq(
            by_resource(kind.group, kind.version, kind.plural).expect("listed"),
            *kind
        ));
        assert!(std::ptr::eq(
            by_kind(&kind.api_version(), kind.kind).expect("listed"),
            *kind
        ));
    }
    assert!(by_resource("", "v1", "deployments").is_none());
    assert_eq!(group_versions()[0], ("", "v1"));
}

#[test]
fn a_row_has_a_cell_for_each_column_even_of_an_empty_object() {
    for kind in all() {
        assert_eq!(
            kind.row_cells(&json!({}), now()).len(),
            kind.columns.len(),
            "{}",
            kind.kind
        );
    }
}

#[test]
fn defaults_applied_twice_are_defaults_applied_once() {
    for kind in all() {
        let mut once = json!({"metadata": {"name": "n"}, "spec": {"ports": [{"port": 1}], "template": {"metadata": {"labels": {"a": "b"}},
            "spec": {"containers": [{"name": "c", "image": "i"}]}}, "containers": [{"name": "c", "image": "i"}]}});
        kind.apply_defaults(&mut once);
        let mut twice = once.clone();
        kind.apply_defaults(&mut twice);
        assert_eq!(once, twice, "{}", kind.kind);
    }
}

#[test]
fn only_the_kinds_own_fields_can_be_selected() {
    let selector = |text: &str| FieldSelector::parse(text).expect("valid");
    assert!(
        POD.check_field_selector(&selector(
            "spec.nodeName=n,metadata.name!=x,metadata.namespace=d"
        ))
        .is_ok()
    );
    assert_eq!(
        POD.check_field_selector(&selector("spec.image=x"))
            .expect_err("unknown")
            .to_string(),
        "field label not supported: spec.image"
    );
    assert_eq!(
        CONFIG_MAP
            .check_field_selector(&selector("data.x=y"))
            .expect_err("unknown")
            .to_string(),
        "\"data.x\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\""
    );
    assert!(NODE.matches_fields(&json!({}), &selector("spec.unschedulable=false")));
    assert!(POD.matches_fields(
        &json!({"status": {"phase": "Running"}}),
        &selector("status.phase!=Failed")
    ));
    let event = json!({"reportingComponent": "agent", "involvedObject": {"kind": "Pod"}});
    assert!(EVENT.matches_fields(&event, &selector("source=agent,involvedObject.kind=Pod")));
}

#[test]
fn created_pods_get_what_upstreams_admission_sets() {
    let pod = created(&POD, pod());
    assert_eq!(
        pod["status"],
        json!({"phase": "Pending", "qosClass": "BestEffort"})
    );
    let spec = &pod["spec"];
    assert_eq!(
        (
            &spec["serviceAccountName"],
            &spec["priority"],
            &spec["preemptionPolicy"]
        ),
        (&json!("default"), &json!(0), &json!("PreemptLowerPriority"))
    );
    assert_eq!(
        spec["tolerations"],
        json!([
        {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300},
        {"key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 300}])
    );
    assert_eq!(meta::generation(&pod), 1);
    assert_eq!(POD.validate_create(&pod), Ok(()));
}

#[test]
fn bad_pods_are_told_field_by_field() {
    let with = |spec: Value| json!({"metadata": {"name": "p", "namespace": "d"}, "spec": spec});
    let table = [
        (
            json!({}),
            "Pod \"p\" is invalid: spec.containers: Required value",
        ),
        (
            json!({"containers": [{"name": "A", "image": ""}]}),
            "Pod \"p\" is invalid: [spec.containers[0].name: Invalid value: \"A\": a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?'), spec.containers[0].image: Required value]",
        ),
        (
            json!({"containers": [{"name": "a", "image": "i"}, {"name": "a", "image": "i"}]}),
            "Pod \"p\" is invalid: spec.containers[1].name: Duplicate value: \"a\"",
        ),
        (
            json!({"containers": [{"name": "a", "image": "i", "volumeMounts": [{"name": "v", "mountPath": "/v"}]}]}),
            "Pod \"p\" is invalid: spec.containers[0].volumeMounts[0].name: Not found: \"v\"",
        ),
        (
            json!({"restartPolicy": "Sometimes", "containers": [{"name": "a", "image": "i"}]}),
            "Pod \"p\" is invalid: spec.restartPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"OnFailure\", \"Never\"",
        ),
        (
            json!({"containers": [{"name": "a", "image": "i", "imagePullPolicy": "x"}]}),
            "Pod \"p\" is invalid: spec.containers[0].imagePullPolicy: Unsupported value: \"x\": supported values: \"Always\", \"IfNotPresent\", \"Never\"",
        ),
        (
            json!({"containers": [{"name": "a", "image": "i", "resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}}]}),
            "Pod \"p\" is invalid: spec.containers[0].resources.requests: Invalid value: \"2\": must be less than or equal to cpu limit of 1",
        ),
        (
            json!({"containers": [{"name": "a", "image": "i", "ports": [{"containerPort": 70000}]}]}),
            "Pod \"p\" is invalid: spec.containers[0].ports[0].containerPort: Invalid value: 70000: must be between 1 and 65535, inclusive",
        ),
        (
            json!({"containers": [{"name": "a", "image": "i"}], "volumes": [{"name": "v", "emptyDir": {}, "secret": {"secretName": "s"}}]}),
            "Pod \"p\" is invalid: spec.volumes[0].secret: Forbidden: may not specify more than 1 volume type",
        ),
        (
            json!({"containers": [{"name": "a", "image": "i", "livenessProbe": {}}]}),
            "Pod \"p\" is invalid: spec.containers[0].livenessProbe: Required value: must specify a handler type",
        ),
    ];
    for (spec, message) in table {
        assert_eq!(create_error(&POD, with(spec)), message);
    }
    let error = create_error(
        &POD,
        json!({"metadata": {"generateName": "P-"}, "spec": pod()["spec"]}),
    );
    assert!(
        error.contains("metadata.name: Required value: name or generateName is required"),
        "{error}"
    );
    assert!(
        error.contains("metadata.namespace: Required value"),
        "{error}"
    );
}

#[test]
fn a_pod_update_may_change_the_image_and_little_else() {
    let old = created(&POD, pod());
    assert_eq!(
        update_error(&POD, &old, |p| p["spec"]["containers"][0]["image"] =
            "a:2".into()),
        ""
    );
    let toleration = json!({"key": "k", "operator": "Exists"});
    assert_eq!(
        update_error(&POD, &old, |p| p["spec"]["tolerations"]
            .as_array_mut()
            .expect("list")
            .push(toleration.clone())),
        ""
    );
    let error = update_error(&POD, &old, |p| p["spec"]["hostNetwork"] = true.into());
    assert!(error.starts_with("Pod \"p\" is invalid: spec: Forbidden: pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)\n"), "{error}");
    let error = update_error(&POD, &old, |p| {
        p["spec"]["containers"]
            .as_array_mut()
            .expect("list")
            .push(json!({"name": "b", "image": "b"}))
    });
    assert_eq!(
        error,
        "Pod \"p\" is invalid: spec.containers: Forbidden: pod updates may not add or remove containers"
    );
    let error = update_error(&POD, &old, |p| {
        drop(p["spec"]["tolerations"].as_array_mut().expect("list").pop())
    });
    assert!(error.contains("spec.tolerations: Forbidden: existing toleration can not be modified except its tolerationSeconds"));
}

#[test]
fn a_main_update_keeps_the_status_and_a_status_update_keeps_the_spec() {
    let old = created(&POD, pod());
    let mut new = old.clone();
    new["spec"]["containers"][0]["image"] = "a:2".into();
    new["status"] = json!({"phase": "Failed"});
    POD.prepare_update(&mut new, &old);
    assert_eq!(
        (&new["status"], meta::generation(&new)),
        (&old["status"], 2)
    );
    let mut new = old.clone();
    new["spec"]["containers"][0]["image"] = "a:2".into();
    new["status"] = json!({"phase": "Running"});
    POD.prepare_status_update(&mut new, &old);
    assert_eq!(
        (
            &new["spec"],
            &new["status"]["phase"],
            meta::generation(&new)
        ),
        (&old["spec"], &json!("Running"), 1)
    );
    assert_eq!(new["status"]["qosClass"], "BestEffort");
}

#[test]
fn metadata_that_is_the_servers_cannot_change() {
    let old = created(&POD, pod());
    let error = update_error(&POD, &old, |p| p["metadata"]["uid"] = "other".into());
    assert_eq!(
        error,
        "Pod \"p\" is invalid: metadata.uid: Invalid value: \"other\": field is immutable"
    );
    assert_eq!(
        update_error(&POD, &old, |p| p["metadata"]["creationTimestamp"] =
            Value::Null),
        ""
    );
    let mut deleting = old.clone();
    meta::mark_deleted(&mut deleting, now(), 30);
    assert_eq!(
        meta::deletion_timestamp(&deleting),
        Some("2026-01-01T00:10:30Z")
    );
    let error = update_error(&POD, &deleting, |p| meta::add_finalizer(p, "example.com/x"));
    assert!(error.contains("no new finalizers can be added if the object is being deleted, found new finalizers []string{\"example.com/x\"}"), "{error}");
}

#[test]
fn services_get_defaults_and_keep_their_address() {
    let mut old = created(&SERVICE, service());
    assert_eq!(
        old["spec"],
        json!({"selector": {"a": "b"}, "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}],
        "sessionAffinity": "None", "type": "ClusterIP", "internalTrafficPolicy": "Cluster", "ipFamilyPolicy": "SingleStack"})
    );
    assert_eq!(SERVICE.validate_create(&old), Ok(()));
    old["spec"]["clusterIP"] = "10.96.0.5".into();
    old["spec"]["clusterIPs"] = json!(["10.96.0.5"]);
    old["spec"]["ipFamilies"] = json!(["IPv4"]);
    let mut new = service();
    new["metadata"] = old["metadata"].clone();
    SERVICE.apply_defaults(&mut new);
    SERVICE.prepare_update(&mut new, &old);
    assert_eq!(
        (&new["spec"]["clusterIP"], &new["spec"]["ipFamilies"]),
        (&json!("10.96.0.5"), &json!(["IPv4"]))
    );
    let error = update_error(&SERVICE, &old, |s| {
        s["spec"]["clusterIP"] = "10.96.0.6".into()
    });
    assert_eq!(
        error,
        "Service \"s\" is invalid: spec.clusterIPs[0]: Invalid value: [\"10.96.0.6\"]: may not change once set"
    );
}

#[test]
fn bad_services_are_told_field_by_field() {
    let with = |spec: Value| json!({"metadata": {"name": "s", "namespace": "d"}, "spec": spec});
    let table = [
        (json!({}), "spec.ports: Required value"),
        (
            json!({"ports": [{"port": 80}, {"port": 81}]}),
            "[spec.ports[0].name: Required value, spec.ports[1].name: Required value]",
        ),
        (
            json!({"ports": [{"port": 0}]}),
            "[spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive, spec.ports[0].targetPort: Invalid value: 0: must be between 1 and 65535, inclusive]",
        ),
        (
            json!({"type": "Magic", "ports": [{"port": 80}]}),
            "spec.type: Unsupported value: \"Magic\": supported values: \"ClusterIP\", \"ExternalName\", \"LoadBalancer\", \"NodePort\"",
        ),
        (
            json!({"ports": [{"port": 80, "nodePort": 30000}]}),
            "spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'",
        ),
        (
            json!({"clusterIP": "x", "ports": [{"port": 80}]}),
            "spec.clusterIPs[0]: Invalid value: \"x\": must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)",
        ),
        (
            json!({"ports": [{"port": 80, "protocol": "ICMP"}]}),
            "spec.ports[0].protocol: Unsupported value: \"ICMP\": supported values: \"SCTP\", \"TCP\", \"UDP\"",
        ),
    ];
    for (spec, body) in table {
        assert_eq!(
            create_error(&SERVICE, with(spec)),
            format!("Service \"s\" is invalid: {body}")
        );
    }
    let headless = with(json!({"clusterIP": "None", "selector": {"a": "b"}}));
    assert_eq!(
        SERVICE.validate_create(&created(&SERVICE, headless)),
        Ok(())
    );
    assert!(
        create_error(
            &SERVICE,
            json!({"metadata": {"name": "1s", "namespace": "d"}, "spec": service()["spec"]})
        )
        .contains("a DNS-1035 label must consist")
    );
}

#[test]
fn single_and_plural_addresses_follow_each_other() {
    let mut pod = json!({"spec": {}, "status": {"podIP": "10.0.0.1"}});
    POD.apply_defaults(&mut pod);
    assert_eq!(pod["status"]["podIPs"], json!([{"ip": "10.0.0.1"}]));
    let mut pod = json!({"spec": {}, "status": {"podIPs": [{"ip": "10.0.0.1"}, {"ip": "fd00::1"}], "hostIPs": [{"ip": "172.30.0.11"}]}});
    POD.apply_defaults(&mut pod);
    assert_eq!(
        (&pod["status"]["podIP"], &pod["status"]["hostIP"]),
        (&json!("10.0.0.1"), &json!("172.30.0.11"))
    );
    assert_eq!(pod["status"]["podIPs"].as_array().map(Vec::len), Some(2));
    let mut node = json!({"spec": {"podCIDR": "10.244.0.0/24"}});
    NODE.apply_defaults(&mut node);
    assert_eq!(node["spec"]["podCIDRs"], json!(["10.244.0.0/24"]));
}

#[test]
fn immutable_settings_and_secret_types_stay() {
    let map = created(
        &CONFIG_MAP,
        json!({"metadata": {"name": "c", "namespace": "d"}, "data": {"a": "1"}, "immutable": true}),
    );
    assert_eq!(
        update_error(&CONFIG_MAP, &map, |m| m["data"]["a"] = "2".into()),
        "ConfigMap \"c\" is invalid: data: Forbidden: field is immutable when `immutable` is set"
    );
    assert!(
        update_error(&CONFIG_MAP, &map, |m| m["immutable"] = false.into())
            .contains("immutable: Forbidden")
    );
    let secret = created(
        &SECRET,
        json!({"metadata": {"name": "s", "namespace": "d"}, "stringData": {"k": "v"}}),
    );
    assert_eq!(
        (&secret["type"], &secret["data"], secret.get("stringData")),
        (&json!("Opaque"), &json!({"k": "dg=="}), None)
    );
    assert_eq!(
        update_error(&SECRET, &secret, |s| s["type"] = "x".into()),
        "Secret \"s\" is invalid: type: Invalid value: \"x\": field is immutable"
    );
    let error = create_error(
        &CONFIG_MAP,
        json!({"metadata": {"name": "c", "namespace": "d"}, "data": {"a b": "1"}}),
    );
    assert!(
        error.contains("data[a b]: Invalid value: \"a b\": a valid config key must consist of"),
        "{error}"
    );
    let docker = json!({"metadata": {"name": "s", "namespace": "d"}, "type": "kubernetes.io/dockerconfigjson", "stringData": {".dockerconfigjson": "hunter2"}});
    let error = create_error(&SECRET, docker);
    assert!(
        error.contains("<secret contents redacted>") && !error.contains("hunter2"),
        "{error}"
    );
}

#[test]
fn namespaces_start_active_with_a_finalizer_and_their_name_as_a_label() {
    let namespace = created(
        &NAMESPACE,
        json!({"metadata": {"name": "team"}, "status": {"phase": "Terminating"}}),
    );
    assert_eq!(
        (&namespace["status"], &namespace["spec"]),
        (
            &json!({"phase": "Active"}),
            &json!({"finalizers": ["kubernetes"]})
        )
    );
    assert_eq!(
        meta::label(&namespace, "kubernetes.io/metadata.name"),
        Some("team")
    );
    assert_eq!(NAMESPACE.validate_create(&namespace), Ok(()));
    assert!(
        create_error(&NAMESPACE, json!({"metadata": {"name": "a.b"}}))
            .contains("must not contain dots")
    );
    let mut update = namespace.clone();
    update["spec"] = json!({});
    NAMESPACE.prepare_update(&mut update, &namespace);
    assert_eq!(update["spec"], namespace["spec"]);
}

#[test]
fn slices_count_their_generation_by_content() {
    let old = created(
        &ENDPOINT_SLICE,
        json!({"metadata": {"name": "e", "namespace": "d"}, "addressType": "IPv4", "ports": [{"port": 80}],
        "endpoints": [{"addresses": ["10.244.0.2"]}]}),
    );
    assert_eq!(ENDPOINT_SLICE.validate_create(&old), Ok(()));
    let bumped = |change: &dyn Fn(&mut Value)| {
        let mut new = old.clone();
        change(&mut new);
        ENDPOINT_SLICE.prepare_update(&mut new, &old);
        meta::generation(&new)
    };
    assert_eq!(
        (bumped(&|_| {}), bumped(&|s| s["endpoints"] = json!([]))),
        (1, 2)
    );
    let error = create_error(
        &ENDPOINT_SLICE,
        json!({"metadata": {"name": "e", "namespace": "d"}, "addressType": "IPv4", "endpoints": [{"addresses": ["::2", "127.0.0.1"]}]}),
    );
    assert!(
        error.contains("must be an IPv4 address")
            && error.contains("may not be in the loopback range"),
        "{error}"
    );
}

fn any_json() -> impl proptest::strategy::Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "[a-z.]{0,4}".prop_map(Value::from)
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..3).prop_map(Value::from),
            proptest::collection::hash_map("(metadata|spec|status|containers|template|name|ports|selector|strategy|data|volumes|env|resources|endpoints|subsets|ingress|egress|from|to|ipBlock|podSelector)", inner, 0..4)
                .prop_map(|m| Value::Object(m.into_iter().collect())),
        ]
    })
}

proptest! {
    #[test]
    fn no_shape_of_object_makes_a_kind_panic(object in any_json(), other in any_json()) {
        for kind in all() {
            let mut object = object.clone();
            if object.is_object() {
                kind.apply_defaults(&mut object);
                kind.prepare_create(&mut object);
                drop(kind.validate_create(&object));
                kind.prepare_update(&mut object, &other);
                drop(kind.validate_update(&object, &other));
                drop(kind.row_cells(&object, now()));
            }
        }
    }
}
