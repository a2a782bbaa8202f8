//! Patch tables: upstream's documented behaviour, and what kubectl apply, edit, taint and set image send.

use super::*;
use crate::kinds::{CONFIG_MAP, DEPLOYMENT, NODE, POD, SERVICE, SERVICE_ACCOUNT};
use proptest::prelude::*;
use serde_json::json;

fn strategic(kind: &crate::Kind, current: Value, patch: Value) -> Result<Value, ApiError> {
    let mut current = current;
    current["apiVersion"] = kind.api_version().into();
    current["kind"] = kind.kind.into();
    apply(
        kind,
        PatchType::Strategic,
        &current,
        patch.to_string().as_bytes(),
        FieldValidation::Strict,
    )
    .map(|d| d.object)
}

fn pod_spec(current: Value, patch: Value) -> Result<Value, ApiError> {
    strategic(&POD, json!({"spec": current}), json!({"spec": patch})).map(|mut o| o["spec"].take())
}

#[test]
fn containers_merge_by_name_and_keep_what_is_not_named() {
    let spec = pod_spec(
        json!({"containers": [{"name": "a", "image": "a:1", "env": [{"name": "X", "value": "1"}]}, {"name": "b", "image": "b:1"}]}),
        json!({"containers": [{"name": "b", "image": "b:2"}, {"name": "c", "image": "c:1"}]}),
    );
    assert_eq!(
        spec.expect("valid")["containers"],
        json!([{"name": "a", "image": "a:1", "env": [{"name": "X", "value": "1"}]}, {"name": "b", "image": "b:2"}, {"name": "c", "image": "c:1"}])
    );
}

#[test]
fn set_element_order_puts_a_new_container_first() {
    let spec = pod_spec(
        json!({"containers": [{"name": "a", "image": "1"}, {"name": "b", "image": "1"}]}),
        json!({"$setElementOrder/containers": [{"name": "c"}, {"name": "b"}, {"name": "a"}], "containers": [{"name": "c", "image": "1"}]}),
    );
    let names: Vec<Value> = spec.expect("valid")["containers"]
        .as_array()
        .expect("list")
        .iter()
        .map(|c| c["name"].clone())
        .collect();
    assert_eq!(names, ["c", "b", "a"]);
}

#[test]
fn elements_only_the_server_has_keep_their_place() {
    let env = |names: &[&str]| {
        Value::Array(
            names
                .iter()
                .map(|n| json!({"name": n, "value": "v"}))
                .collect(),
        )
    };
    let keys = |names: &[&str]| Value::Array(names.iter().map(|n| json!({"name": n})).collect());
    let spec = pod_spec(
        json!({"containers": [{"name": "a", "env": env(&["S1", "A", "S2", "B"])}]}),
        json!({"containers": [{"name": "a", "$setElementOrder/env": keys(&["B", "A", "N"]), "env": env(&["N"])}]}),
    );
    let list = spec.expect("valid")["containers"][0]["env"].clone();
    let names: Vec<&str> = list
        .as_array()
        .expect("list")
        .iter()
        .map(|e| e["name"].as_str().expect("text"))
        .collect();
    assert_eq!(names, ["S1", "S2", "B", "A", "N"]);
}

#[test]
fn a_replaced_list_keeps_elements_with_the_same_merge_key() {
    let spec = pod_spec(
        json!({"containers": [{"name": "a"}]}),
        json!({"containers": [{"name": "z", "image": "1"}, {"name": "z", "image": "2"}, {"$patch": "replace"}]}),
    );
    let containers = &spec.expect("valid")["containers"];
    assert_eq!(
        containers,
        &json!([{"name": "z", "image": "1"}, {"name": "z", "image": "2"}])
    );
}

#[test]
fn delete_and_replace_directives_work_in_maps_and_lists() {
    let two = json!({"containers": [{"name": "a"}, {"name": "b"}], "nodeSelector": {"x": "1"}, "securityContext": {"runAsUser": 1}});
    let spec = pod_spec(
        two.clone(),
        json!({"containers": [{"$patch": "delete", "name": "a"}], "nodeSelector": null}),
    )
    .expect("valid");
    assert_eq!(
        spec,
        json!({"containers": [{"name": "b"}], "securityContext": {"runAsUser": 1}})
    );
    let spec = pod_spec(
        two.clone(),
        json!({"containers": [{"$patch": "replace"}, {"name": "z"}], "securityContext": {"$patch": "replace", "fsGroup": 2}}),
    );
    assert_eq!(
        spec.expect("valid"),
        json!({"containers": [{"name": "z"}], "nodeSelector": {"x": "1"}, "securityContext": {"fsGroup": 2}})
    );
    let spec = pod_spec(two, json!({"securityContext": {"$patch": "delete"}})).expect("valid");
    assert_eq!(spec["securityContext"], json!({}));
}

#[test]
fn retain_keys_switches_a_union() {
    let deployment =
        json!({"spec": {"strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 1}}}});
    let patch = json!({"spec": {"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}});
    assert_eq!(
        strategic(&DEPLOYMENT, deployment.clone(), patch).expect("valid")["spec"]["strategy"],
        json!({"type": "Recreate"})
    );
    let patch =
        json!({"spec": {"strategy": {"$retainKeys": ["rollingUpdate"], "type": "Recreate"}}});
    assert_eq!(
        strategic(&DEPLOYMENT, deployment, patch)
            .expect_err("not retained")
            .code(),
        422
    );
    let spec = pod_spec(
        json!({"volumes": [{"name": "v", "emptyDir": {}}]}),
        json!({"volumes": [{"name": "v", "$retainKeys": ["name", "configMap"], "configMap": {"name": "c"}}]}),
    );
    assert_eq!(
        spec.expect("valid")["volumes"],
        json!([{"name": "v", "configMap": {"name": "c"}}])
    );
}

#[test]
fn primitive_lists_merge_delete_and_order() {
    let patch = json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["a"], "$setElementOrder/finalizers": ["c", "b"], "finalizers": ["c"]}});
    let object = strategic(
        &CONFIG_MAP,
        json!({"metadata": {"name": "n", "finalizers": ["a", "b"]}}),
        patch,
    )
    .expect("valid");
    assert_eq!(object["metadata"]["finalizers"], json!(["c", "b"]));
}

#[test]
fn lists_without_a_strategy_are_replaced() {
    let spec = pod_spec(
        json!({"containers": [{"name": "a", "args": ["1", "2"]}]}),
        json!({"containers": [{"name": "a", "args": ["3"]}]}),
    );
    assert_eq!(spec.expect("valid")["containers"][0]["args"], json!(["3"]));
    let node = strategic(
        &NODE,
        json!({"spec": {"taints": [{"key": "a", "effect": "NoSchedule"}]}}),
        json!({"spec": {"taints": [{"key": "b", "effect": "NoExecute"}]}}),
    );
    assert_eq!(
        node.expect("valid")["spec"]["taints"],
        json!([{"key": "b", "effect": "NoExecute"}])
    );
}

#[test]
fn service_ports_merge_by_port_and_secrets_by_name() {
    let patch = json!({"spec": {"ports": [{"port": 80, "targetPort": 8080}]}});
    let service = strategic(
        &SERVICE,
        json!({"spec": {"ports": [{"port": 80, "name": "http"}, {"port": 81, "name": "x"}]}}),
        patch,
    )
    .expect("valid");
    assert_eq!(
        service["spec"]["ports"],
        json!([{"port": 80, "name": "http", "targetPort": 8080}, {"port": 81, "name": "x"}])
    );
    let account = strategic(
        &SERVICE_ACCOUNT,
        json!({"secrets": [{"name": "a"}]}),
        json!({"secrets": [{"name": "b"}]}),
    )
    .expect("valid");
    assert_eq!(account["secrets"].as_array().map(Vec::len), Some(2));
}

#[test]
fn added_values_lose_their_directives_and_nulls() {
    let spec = pod_spec(
        json!({}),
        json!({"containers": [{"name": "a", "image": null, "$setElementOrder/env": [{"name": "X"}], "env": [{"name": "X", "value": "1"}]}],
            "$setElementOrder/containers": [{"name": "a"}]}),
    );
    assert_eq!(
        spec.expect("valid"),
        json!({"containers": [{"name": "a", "env": [{"name": "X", "value": "1"}]}]})
    );
}

#[test]
fn patches_that_do_not_fit_are_named() {
    let cause = |error: ApiError| error.details.expect("details").causes[0].message.clone();
    let spec = json!({"containers": [{"name": "a"}]});
    let error =
        pod_spec(spec.clone(), json!({"containers": [{"image": "x"}]})).expect_err("no key");
    assert_eq!(
        (error.code(), error.message.as_str()),
        (
            422,
            "the server rejected our request due to an error in our request"
        )
    );
    assert_eq!(
        cause(error),
        "map: [\"image\"] does not contain declared merge key: name"
    );
    let error = pod_spec(
        spec.clone(),
        json!({"containers": [{"$patch": "explode", "name": "a"}]}),
    )
    .expect_err("directive");
    assert!(cause(error).starts_with("unknown patch type: \"explode\""));
    let error = pod_spec(
        spec.clone(),
        json!({"$setElementOrder/containers": [{"name": "a"}], "containers": [{"name": "b"}]}),
    )
    .expect_err("order");
    assert_eq!(
        cause(error),
        "The order in patch list:\n[\"b\"]\n doesn't match $setElementOrder list:\n[\"a\"]\n"
    );
    let error = pod_spec(spec, json!({"foo": 1})).expect_err("unknown field");
    assert_eq!(
        error.message,
        "Pod in version \"v1\" cannot be handled as a Pod: strict decoding error: unknown field \"spec.foo\""
    );
}

#[test]
fn json_patches_apply_in_order_and_fail_as_a_whole() {
    let current = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"a": "1"}});
    let run = |patch: Value| {
        apply(
            &CONFIG_MAP,
            PatchType::Json,
            &current,
            patch.to_string().as_bytes(),
            FieldValidation::Strict,
        )
    };
    let patched = run(json!([{"op": "test", "path": "/data/a", "value": "1"}, {"op": "move", "from": "/data/a", "path": "/data/b"},
        {"op": "add", "path": "/metadata/labels", "value": {"x~1y": "z"}}])).expect("valid");
    assert_eq!(
        (
            &patched.object["data"],
            &patched.object["metadata"]["labels"]
        ),
        (&json!({"b": "1"}), &json!({"x~1y": "z"}))
    );
    assert_eq!(
        run(json!([{"op": "test", "path": "/data/a", "value": "2"}]))
            .expect_err("test fails")
            .code(),
        422
    );
    assert_eq!(
        run(json!([{"op": "remove", "path": "/data/zz"}]))
            .expect_err("no such path")
            .code(),
        422
    );
    assert_eq!(run(json!({"data": {}})).expect_err("no list").code(), 400);
    let many = Value::Array(vec![
        json!({"op": "test", "path": "/data/a", "value": "1"});
        10_001
    ]);
    let error = run(many).expect_err("too many");
    assert_eq!(
        (error.code(), error.message.as_str()),
        (
            413,
            "Request entity too large: The allowed maximum operations in a JSON patch is 10000, got 10001"
        )
    );
}

#[test]
fn copies_that_double_the_document_are_stopped() {
    let current = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c"}, "data": {"a": "x".repeat(1000)}});
    let operations: Vec<Value> = (0..40)
        .map(|i| json!({"op": "copy", "from": "/data", "path": format!("/data/k{i}")}))
        .collect();
    let body = Value::Array(operations).to_string();
    let error = apply(
        &CONFIG_MAP,
        PatchType::Json,
        &current,
        body.as_bytes(),
        FieldValidation::Ignore,
    )
    .expect_err("bomb");
    assert_eq!(error.code(), 413);
}

#[test]
fn merge_patches_replace_lists_and_remove_nulls() {
    let current = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "labels": {"a": "1", "b": "2"}}, "data": {"x": "1"}});
    let patch = br#"{"metadata":{"labels":{"a":null,"c":"3"}},"data":null}"#;
    let object = apply(
        &CONFIG_MAP,
        PatchType::Merge,
        &current,
        patch,
        FieldValidation::Strict,
    )
    .expect("valid")
    .object;
    assert_eq!(
        object,
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "c", "labels": {"b": "2", "c": "3"}}})
    );
    assert_eq!(
        apply(
            &CONFIG_MAP,
            PatchType::Merge,
            &current,
            b"[]",
            FieldValidation::Warn
        )
        .expect_err("list")
        .code(),
        400
    );
    assert!(PatchType::from_content_type("application/apply-patch+yaml").is_err());
}

proptest! {
    #[test]
    fn a_patch_with_the_object_itself_changes_nothing(names in proptest::collection::hash_set("[a-c]{1,3}", 0..5), image in "[a-z]{1,5}") {
        let containers: Vec<Value> = names.iter().map(|n| json!({"name": n, "image": image, "env": [{"name": "E", "value": n}]})).collect();
        let spec = json!({"containers": containers, "nodeSelector": {"k": image}});
        let current = json!({"apiVersion": "v1", "kind": "Pod", "spec": spec});
        let patched = strategic(&POD, current.clone(), current.clone()).expect("valid");
        prop_assert!(crate::value::semantically_equal(Some(&patched), Some(&current)));
    }

    #[test]
    fn odd_patches_are_refused_or_applied_but_never_panic(directive in "(replace|delete|merge|x)", key in "(\\$patch|\\$retainKeys|\\$setElementOrder/containers|\\$deleteFromPrimitiveList/containers|containers|volumes)", kind in 0..5) {
        let value = match kind {
            0 => json!(directive),
            1 => json!([directive]),
            2 => json!([{"$patch": directive}]),
            3 => json!([{"name": "a", "$patch": directive}]),
            _ => json!({"$patch": directive}),
        };
        drop(pod_spec(json!({"containers": [{"name": "a"}]}), json!({key: value})));
    }
}
