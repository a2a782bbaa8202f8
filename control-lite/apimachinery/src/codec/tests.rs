//! Bodies as clients send them: kubectl's protobuf against its JSON, strictness, types, normal forms.

use super::*;
use crate::kinds::{
    CONFIG_MAP, DEPLOYMENT, NAMESPACE, NODE, POD, SECRET, SERVICE, SERVICE_ACCOUNT,
};
use proptest::prelude::*;
use serde_json::json;

macro_rules! body {
    ($name:literal) => {
        include_bytes!(concat!("../../tests/fixtures/kubectl-1.32/", $name))
    };
}

fn json_of(kind: &Kind, body: &str, validation: FieldValidation) -> Result<Decoded, ApiError> {
    decode(kind, Format::Json, body.as_bytes(), validation)
}

/// Defaulted, and without the empty objects that gogo writes and JSON may leave out.
fn settled(kind: &Kind, format: Format, body: &[u8]) -> Value {
    let mut object = decode(kind, format, body, FieldValidation::Strict)
        .expect("valid")
        .object;
    kind.apply_defaults(&mut object);
    object
}

#[test]
fn kubectls_protobuf_and_its_json_are_the_same_object() {
    let table: [(&Kind, &[u8], &[u8]); 9] = [
        (
            &DEPLOYMENT,
            body!("deployment.pb"),
            body!("deployment.json"),
        ),
        (&CONFIG_MAP, body!("configmap.pb"), body!("configmap.json")),
        (&SECRET, body!("secret.pb"), body!("secret.json")),
        (&NAMESPACE, body!("namespace.pb"), body!("namespace.json")),
        (
            &SERVICE,
            body!("service-clusterip.pb"),
            body!("service-clusterip.json"),
        ),
        (
            &SERVICE,
            body!("service-headless.pb"),
            body!("service-headless.json"),
        ),
        (
            &SERVICE,
            body!("service-nodeport.pb"),
            body!("service-nodeport.json"),
        ),
        (
            &SERVICE,
            body!("service-externalname.pb"),
            body!("service-externalname.json"),
        ),
        (
            &SERVICE_ACCOUNT,
            body!("serviceaccount.pb"),
            body!("serviceaccount.json"),
        ),
    ];
    for (kind, protobuf, json) in table {
        let (a, b) = (
            settled(kind, Format::Protobuf, protobuf),
            settled(kind, Format::Json, json),
        );
        assert!(
            crate::value::semantically_equal(Some(&a), Some(&b)),
            "{}\n{a:#}\n{b:#}",
            kind.kind
        );
        let mut new = a;
        if kind.is_namespaced {
            crate::meta::set_namespace(&mut new, "default");
        }
        kind.prepare_create(&mut new);
        assert_eq!(kind.validate_create(&new), Ok(()), "{}", kind.kind);
    }
}

#[test]
fn a_deployment_from_kubectl_has_its_exact_fields() {
    let object = decode(
        &DEPLOYMENT,
        Format::Protobuf,
        body!("deployment.pb"),
        FieldValidation::Strict,
    )
    .expect("valid")
    .object;
    assert_eq!(
        object,
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "labels": {"app": "web"}},
            "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "web"}}, "template": {"metadata": {"labels": {"app": "web"}},
            "spec": {"containers": [{"name": "web", "image": "tholepin.test/web:1", "ports": [{"containerPort": 8080}],
            "resources": {}}]}}, "strategy": {}}, "status": {}})
    );
}

#[test]
fn a_registry_secret_decodes_from_protobuf_with_its_type() {
    let body = body!("secret-dockerconfigjson.pb");
    let object = decode(&SECRET, Format::Protobuf, body, FieldValidation::Strict)
        .expect("valid")
        .object;
    assert_eq!(object["type"], "kubernetes.io/dockerconfigjson");
    assert!(
        SECRET
            .validate_create(&{
                let mut o = object;
                crate::meta::set_namespace(&mut o, "d");
                o
            })
            .is_ok()
    );
}

#[test]
fn strict_validation_names_every_unknown_and_duplicate_field() {
    let body = r#"{"kind":"Pod","apiVersion":"v1","metadata":{"name":"a","name":"b"},"spec":{"foo":1,"containers":[{"name":"c","bar":{}}]}}"#;
    let error = json_of(&POD, body, FieldValidation::Strict).expect_err("strict");
    assert_eq!(
        (error.code(), error.message.as_str()),
        (
            400,
            "Pod in version \"v1\" cannot be handled as a Pod: strict decoding error: duplicate field \"metadata.name\", \
            unknown field \"spec.foo\", unknown field \"spec.containers[0].bar\""
        )
    );
    let warned = json_of(&POD, body, FieldValidation::Warn).expect("warn");
    assert_eq!(warned.warnings.len(), 3);
    assert_eq!(warned.object["metadata"]["name"], "b");
    assert!(warned.object["spec"].get("foo").is_none());
    assert!(
        json_of(&POD, body, FieldValidation::Ignore)
            .expect("ignore")
            .warnings
            .is_empty()
    );
}

#[test]
fn wrong_types_are_refused_in_gos_words() {
    let table = [
        (
            &DEPLOYMENT,
            r#"{"spec":{"replicas":"3"}}"#,
            "json: cannot unmarshal string into Go struct field DeploymentSpec.spec.replicas of type int32",
        ),
        (
            &DEPLOYMENT,
            r#"{"spec":{"replicas":1.5}}"#,
            "json: cannot unmarshal number 1.5 into Go struct field DeploymentSpec.spec.replicas of type int32",
        ),
        (
            &POD,
            r#"{"spec":{"containers":[{"env":[{"name":"a","value":1}]}]}}"#,
            "json: cannot unmarshal number into Go struct field EnvVar.spec.containers.env.value of type string",
        ),
        (
            &POD,
            r#"{"spec":{"containers":{}}}"#,
            "json: cannot unmarshal object into Go struct field PodSpec.spec.containers of type []v1.Container",
        ),
        (
            &POD,
            r#"{"metadata":{"labels":{"a":true}}}"#,
            "json: cannot unmarshal bool into Go struct field ObjectMeta.metadata.labels.a of type string",
        ),
        (
            &POD,
            r#"{"spec":"x"}"#,
            "json: cannot unmarshal string into Go struct field Pod.spec of type v1.PodSpec",
        ),
        (
            &POD,
            r#"{"spec":{"containers":[{"resources":{"limits":{"cpu":"lots"}}}]}}"#,
            "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'",
        ),
        (
            &SECRET,
            r#"{"data":{"a":"%%"}}"#,
            "illegal base64 data at input byte 0",
        ),
    ];
    for (kind, body, cause) in table {
        let version = kind.version;
        let error = json_of(kind, body, FieldValidation::Warn).expect_err(body);
        let expected = format!(
            "{0} in version \"{version}\" cannot be handled as a {0}: {cause}",
            kind.kind
        );
        assert_eq!((error.code(), error.message), (400, expected));
    }
}

#[test]
fn a_body_of_another_type_is_refused() {
    let error = json_of(
        &POD,
        r#"{"apiVersion":"apps/v1","kind":"Pod"}"#,
        FieldValidation::Warn,
    )
    .expect_err("version");
    assert_eq!(
        error.message,
        "the API version in the data (apps/v1) does not match the expected API version (v1)"
    );
    assert!(
        json_of(
            &POD,
            r#"{"apiVersion":"v1","kind":"Service"}"#,
            FieldValidation::Warn
        )
        .is_err()
    );
    assert!(json_of(&POD, "[]", FieldValidation::Warn).is_err());
    assert!(json_of(&POD, "{", FieldValidation::Warn).is_err());
    assert!(
        decode(
            &POD,
            Format::Protobuf,
            body!("deployment.pb"),
            FieldValidation::Warn
        )
        .is_err()
    );
    assert_eq!(
        Format::from_content_type("text/html")
            .expect_err("type")
            .code(),
        415
    );
}

#[test]
fn values_take_their_normal_form() {
    let body = r#"{"metadata":{"name":"n","creationTimestamp":null,"labels":{},"annotations":{"a":null}},
        "spec":{"unschedulable":false,"podCIDRs":[],"providerID":""},
        "status":{"capacity":{"cpu":2,"memory":"1024Mi","x":"0.0001"},"conditions":[{"type":"Ready","status":"True",
        "lastHeartbeatTime":"2026-01-01T00:00:00.5+01:00"}]}}"#;
    let object = json_of(&NODE, body, FieldValidation::Strict)
        .expect("valid")
        .object;
    assert_eq!(
        object,
        json!({"apiVersion":"v1","kind":"Node","metadata":{"name":"n","annotations":{"a":""}},"spec":{},
            "status":{"capacity":{"cpu":"2","memory":"1Gi","x":"1m"},"conditions":[{"type":"Ready","status":"True",
            "lastHeartbeatTime":"2025-12-31T23:00:00Z"}]}})
    );
}

#[test]
fn yaml_reads_like_json() {
    let yaml = b"kind: ConfigMap\nmetadata:\n  name: a\n  name: b\ndata:\n  k: 'v'\n  1: x\n";
    let decoded = decode(&CONFIG_MAP, Format::Yaml, yaml, FieldValidation::Warn).expect("valid");
    assert_eq!(decoded.object["data"], json!({"k": "v", "1": "x"}));
    assert_eq!(decoded.warnings, ["duplicate field \"metadata.name\""]);
    assert!(decode(&CONFIG_MAP, Format::Yaml, b"a: [", FieldValidation::Warn).is_err());
}

#[test]
fn delete_options_come_in_any_version_and_are_checked() {
    let options = decode_delete_options(Format::Json, br#"{"kind":"DeleteOptions","apiVersion":"apps/v1","propagationPolicy":"Background","gracePeriodSeconds":0}"#).expect("valid");
    assert_eq!(
        (
            &options["propagationPolicy"],
            &options["gracePeriodSeconds"]
        ),
        (&json!("Background"), &json!(0))
    );
    assert_eq!(decode_delete_options(Format::Json, b" "), Ok(json!({})));
    let error = decode_delete_options(Format::Json, br#"{"propagationPolicy":"Never"}"#)
        .expect_err("policy");
    assert!(error.message.contains(
        "propagationPolicy: Unsupported value: \"Never\": supported values: \"Foreground\""
    ));
}

proptest! {
    #[test]
    fn damaged_protobuf_is_refused_or_read_but_never_panics(at in 4_usize..231, byte in any::<u8>(), cut in 4_usize..231) {
        let mut body = body!("deployment.pb").to_vec();
        body[at] = byte;
        drop(decode(&DEPLOYMENT, Format::Protobuf, &body, FieldValidation::Strict));
        drop(decode(&DEPLOYMENT, Format::Protobuf, &body[..cut], FieldValidation::Strict));
    }

    #[test]
    fn any_bytes_are_refused_or_read_but_never_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
        let body = [b"k8s\0\x12".as_slice(), &[bytes.len() as u8], &bytes].concat();
        drop(decode(&POD, Format::Protobuf, &body, FieldValidation::Strict));
        drop(decode(&POD, Format::Json, &bytes, FieldValidation::Strict));
        drop(decode(&POD, Format::Yaml, &bytes, FieldValidation::Strict));
    }
}
