//! What API objects become, and that nothing unsupported is lost on the way.

use serde_json::json;
use tholepin_model::pod::{FilesKind, VolumeSource};

use super::*;

fn parse(spec: serde_json::Value) -> Pod {
    let object: api::Pod = serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "p", "namespace": "default", "uid": "u1"},
        "spec": spec,
    }))
    .unwrap();
    pod(&object).unwrap()
}

#[test]
fn defaults_are_those_of_the_api() {
    let pod = parse(json!({"containers": [{"name": "a", "image": "busybox"}]}));
    assert_eq!(pod.restart_policy, RestartPolicy::Always);
    assert_eq!(pod.termination_grace_secs, 30);
    assert!(pod.enable_service_links && pod.refused.is_empty() && pod.ignored.is_empty());
    assert_eq!(
        pod.containers[0].termination_message_path,
        "/dev/termination-log"
    );
    assert!(pod.containers[0].security.allow_privilege_escalation);
}

#[test]
fn what_cannot_be_done_is_refused_or_warned_about_by_name() {
    let pod = parse(json!({
        "initContainers": [{"name": "i", "image": "x"}],
        "containers": [{
            "name": "a", "image": "busybox",
            "livenessProbe": {"tcpSocket": {"port": 80}},
            "ports": [{"containerPort": 80, "hostPort": 8080}],
            "resources": {"limits": {"cpu": "1", "ephemeral-storage": "1Gi"}},
            "securityContext": {"seccompProfile": {"type": "RuntimeDefault"}, "procMount": "Unmasked"},
        }],
        "volumes": [
            {"name": "h", "hostPath": {"path": "/"}},
            {"name": "e", "emptyDir": {"sizeLimit": "1Mi"}},
        ],
        "securityContext": {"seccompProfile": {"type": "Unconfined"}, "appArmorProfile": {"type": "RuntimeDefault"}},
    }));
    assert_eq!(pod.refused, ["init containers"]);
    assert_eq!(
        pod.ignored,
        [
            "securityContext.appArmorProfile RuntimeDefault of the pod",
            "sizeLimit of emptyDir volume e",
            "livenessProbe of container a",
            "resource ephemeral-storage of container a",
            "securityContext.procMount of container a",
            "securityContext.seccompProfile RuntimeDefault of container a",
        ]
    );
    // A volume of an unknown kind fails when it is to be mounted, as upstream's does.
    assert_eq!(
        pod.volumes[0].source,
        VolumeSource::Unsupported {
            kind: "hostPath".to_owned()
        }
    );
}

#[test]
fn a_deletion_carries_its_own_grace_period() {
    let object: api::Pod = serde_json::from_value(json!({
        "metadata": {
            "name": "p", "namespace": "default", "uid": "u1",
            "deletionTimestamp": "2026-01-01T00:00:00Z", "deletionGracePeriodSeconds": 1,
        },
        "spec": {"containers": [], "terminationGracePeriodSeconds": 60},
    }))
    .unwrap();
    assert_eq!(
        pod(&object).unwrap().deletion,
        Some(Deletion { grace_secs: 1 })
    );
}

#[test]
fn file_volumes_keep_items_modes_and_optionality() {
    let pod = parse(json!({
        "containers": [],
        "volumes": [
            {"name": "c", "configMap": {
                "name": "cm", "optional": true, "defaultMode": 256,
                "items": [{"key": "k", "path": "d/f", "mode": 420}],
            }},
            {"name": "m", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
        ],
    }));
    let VolumeSource::Files {
        kind, default_mode, ..
    } = &pod.volumes[0].source
    else {
        panic!("not a file volume");
    };
    assert_eq!((*kind, *default_mode), (FilesKind::ConfigMap, 0o400));
    assert_eq!(
        pod.volumes[1].source,
        VolumeSource::EmptyDir {
            memory: true,
            size_limit_bytes: Some(1 << 20)
        }
    );
}

#[test]
fn the_pods_security_context_is_the_default_of_its_containers() {
    let pod = parse(json!({
        "securityContext": {"runAsUser": 1000, "fsGroup": 7, "supplementalGroups": [5]},
        "containers": [
            {"name": "a", "image": "x"},
            {"name": "b", "image": "x", "securityContext": {"runAsUser": 0}},
        ],
    }));
    assert_eq!(pod.containers[0].security.run_as_user, Some(1000));
    assert_eq!(pod.containers[1].security.run_as_user, Some(0));
    assert_eq!(pod.containers[1].security.supplemental_groups, [5, 7]);
}
