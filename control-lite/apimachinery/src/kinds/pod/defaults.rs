//! Upstream's defaults of pods and pod templates.

use crate::value::{at, default_to, ensure_map, list_mut, map_at, set, str_at};
use serde_json::{Map, Value, json};

/// Defaults of a Pod object: those of its spec, and some that templates do not get.
pub(super) fn pod(pod: &mut Value) {
    crate::kinds::mirror_first(pod, "status.podIP", "status.podIPs", Some("ip"));
    crate::kinds::mirror_first(pod, "status.hostIP", "status.hostIPs", Some("ip"));
    if let Some(spec) = pod.get_mut("spec").filter(|s| s.is_object()) {
        pod_spec(spec);
        for key in ["containers", "initContainers"] {
            for container in list_mut(spec, key).into_iter().flatten() {
                limits_to_requests(container);
            }
        }
        let map = ensure_map(spec, "");
        if map.get("enableServiceLinks").is_none_or(Value::is_null) {
            map.insert("enableServiceLinks".to_owned(), true.into());
        }
        if crate::value::bool_at(spec, "hostNetwork") {
            host_ports(spec);
        }
    }
}

/// Requests that are not given are the limits.
fn limits_to_requests(container: &mut Value) {
    let Some(limits) = map_at(container, "resources.limits").cloned() else {
        return;
    };
    let requests = ensure_map(container, "resources.requests");
    for (resource, amount) in limits {
        requests.entry(resource).or_insert(amount);
    }
}

fn host_ports(spec: &mut Value) {
    for key in ["containers", "initContainers"] {
        for container in list_mut(spec, key).into_iter().flatten() {
            for port in list_mut(container, "ports")
                .into_iter()
                .flatten()
                .filter_map(Value::as_object_mut)
            {
                if port
                    .get("hostPort")
                    .is_none_or(|p| p.is_null() || *p == json!(0))
                {
                    let number = port.get("containerPort").cloned().unwrap_or_default();
                    port.insert("hostPort".to_owned(), number);
                }
            }
        }
    }
}

/// Defaults of a pod spec, in a Pod or in a template.
pub(in crate::kinds) fn pod_spec(spec: &mut Value) {
    for volume in list_mut(spec, "volumes").into_iter().flatten() {
        default_volume(volume);
    }
    for key in ["initContainers", "containers", "ephemeralContainers"] {
        for container in list_mut(spec, key).into_iter().flatten() {
            default_container(container);
        }
    }
    // `serviceAccount` is the old name of the same thing.
    let (account, deprecated) = (
        str_at(spec, "serviceAccountName").to_owned(),
        str_at(spec, "serviceAccount").to_owned(),
    );
    match (account.is_empty(), deprecated.is_empty()) {
        (true, false) => set(spec, "serviceAccountName", deprecated),
        (false, _) => set(spec, "serviceAccount", account),
        (true, true) => {}
    }
    let map = ensure_map(spec, "");
    default_to(map, "restartPolicy", "Always");
    default_to(map, "terminationGracePeriodSeconds", 30);
    default_to(map, "dnsPolicy", "ClusterFirst");
    default_to(map, "securityContext", json!({}));
    default_to(map, "schedulerName", "default-scheduler");
}

fn default_container(container: &mut Value) {
    for port in list_mut(container, "ports")
        .into_iter()
        .flatten()
        .filter_map(Value::as_object_mut)
    {
        default_to(port, "protocol", "TCP");
    }
    for variable in list_mut(container, "env").into_iter().flatten() {
        if let Some(reference) =
            crate::value::at_mut(variable, "valueFrom.fieldRef").and_then(Value::as_object_mut)
        {
            default_to(reference, "apiVersion", "v1");
        }
        if let Some(reference) = crate::value::at_mut(variable, "valueFrom.resourceFieldRef")
            .and_then(Value::as_object_mut)
        {
            default_to(reference, "divisor", "0");
        }
    }
    for key in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(probe) = container.get_mut(key).filter(|p| p.is_object()) {
            default_probe(probe);
        }
    }
    for hook in ["lifecycle.postStart.httpGet", "lifecycle.preStop.httpGet"] {
        if let Some(get) = crate::value::at_mut(container, hook).and_then(Value::as_object_mut) {
            default_http_get(get);
        }
    }
    let policy = if image_tag(str_at(container, "image")) == "latest" {
        "Always"
    } else {
        "IfNotPresent"
    };
    let map = ensure_map(container, "");
    default_to(map, "resources", json!({}));
    default_to(map, "terminationMessagePath", "/dev/termination-log");
    default_to(map, "terminationMessagePolicy", "File");
    default_to(map, "imagePullPolicy", policy);
}

/// The tag of an image reference; `latest` when there is neither tag nor digest.
fn image_tag(image: &str) -> &str {
    let (name, digest) = image
        .split_once('@')
        .map_or((image, None), |(n, d)| (n, Some(d)));
    let last = name.rsplit('/').next().unwrap_or(name);
    match (last.split_once(':'), digest) {
        (Some((_, tag)), _) => tag,
        (None, Some(_)) => "",
        (None, None) => "latest",
    }
}

fn default_probe(probe: &mut Value) {
    if let Some(get) = probe.get_mut("httpGet").and_then(Value::as_object_mut) {
        default_http_get(get);
    }
    if let Some(grpc) = probe.get_mut("grpc").and_then(Value::as_object_mut)
        && grpc.get("service").is_none_or(Value::is_null)
    {
        grpc.insert("service".to_owned(), "".into());
    }
    let map = ensure_map(probe, "");
    for (key, value) in [
        ("timeoutSeconds", 1),
        ("periodSeconds", 10),
        ("successThreshold", 1),
        ("failureThreshold", 3),
    ] {
        if map.get(key).is_none_or(|v| v.is_null() || *v == json!(0)) {
            map.insert(key.to_owned(), value.into());
        }
    }
}

fn default_http_get(get: &mut Map<String, Value>) {
    default_to(get, "path", "/");
    default_to(get, "scheme", "HTTP");
}

fn default_volume(volume: &mut Value) {
    let Some(map) = volume.as_object_mut() else {
        return;
    };
    if !map
        .iter()
        .any(|(key, value)| key != "name" && !value.is_null())
    {
        map.insert("emptyDir".to_owned(), json!({}));
    }
    for key in ["secret", "configMap", "downwardAPI", "projected"] {
        if let Some(source) = map.get_mut(key).and_then(Value::as_object_mut) {
            default_to(source, "defaultMode", 420);
        }
    }
    if let Some(path) = map.get_mut("hostPath").and_then(Value::as_object_mut)
        && path.get("type").is_none_or(Value::is_null)
    {
        path.insert("type".to_owned(), "".into());
    }
    default_field_references(volume, "downwardAPI.items");
    for source in list_mut(volume, "projected.sources").into_iter().flatten() {
        default_field_references(source, "downwardAPI.items");
        if at(source, "serviceAccountToken").is_some()
            && at(source, "serviceAccountToken.expirationSeconds").is_none()
        {
            set(source, "serviceAccountToken.expirationSeconds", 3600);
        }
    }
    if let Some(claim) = crate::value::at_mut(volume, "ephemeral.volumeClaimTemplate.spec")
        .and_then(Value::as_object_mut)
    {
        default_to(claim, "volumeMode", "Filesystem");
    }
}

fn default_field_references(value: &mut Value, items: &str) {
    for item in list_mut(value, items).into_iter().flatten() {
        if let Some(reference) = item.get_mut("fieldRef").and_then(Value::as_object_mut) {
            default_to(reference, "apiVersion", "v1");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bare_pod_gets_upstreams_defaults() {
        let mut object = json!({"spec": {"containers": [{"name": "a", "image": "busybox", "ports": [{"containerPort": 80}],
            "readinessProbe": {"httpGet": {"port": 80}}}], "volumes": [{"name": "v"}, {"name": "c", "configMap": {"name": "x"}}]}});
        pod(&mut object);
        assert_eq!(
            object["spec"],
            json!({
            "containers": [{"name": "a", "image": "busybox", "ports": [{"containerPort": 80, "protocol": "TCP"}],
                "readinessProbe": {"httpGet": {"port": 80, "path": "/", "scheme": "HTTP"}, "timeoutSeconds": 1,
                    "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3},
                "resources": {}, "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
                "imagePullPolicy": "Always"}],
            "volumes": [{"name": "v", "emptyDir": {}}, {"name": "c", "configMap": {"name": "x", "defaultMode": 420}}],
            "restartPolicy": "Always", "terminationGracePeriodSeconds": 30, "dnsPolicy": "ClusterFirst",
            "securityContext": {}, "schedulerName": "default-scheduler", "enableServiceLinks": true})
        );
        let once = object.clone();
        pod(&mut object);
        assert_eq!(object, once);
    }

    #[test]
    fn the_pull_policy_follows_the_tag() {
        for (image, tag) in [
            ("a", "latest"),
            ("a:1", "1"),
            ("r:5000/a", "latest"),
            ("r:5000/a:2", "2"),
            ("a@sha256:x", ""),
            ("a:3@sha256:x", "3"),
        ] {
            assert_eq!(image_tag(image), tag, "{image}");
        }
    }

    #[test]
    fn limits_become_requests_in_pods_only() {
        let mut object = json!({"spec": {"containers": [{"resources": {"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "500m"}}}]}});
        pod(&mut object);
        assert_eq!(
            object["spec"]["containers"][0]["resources"]["requests"],
            json!({"cpu": "500m", "memory": "1Gi"})
        );
    }
}
