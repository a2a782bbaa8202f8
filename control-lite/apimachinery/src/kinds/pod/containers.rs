//! Rules of containers: names, images, ports, environment, mounts, resources, probes and hooks.

use super::environment::{env_from, environment};
use super::spec::{one_of, validate_id, validate_port_reference};
use crate::field::{ErrorList, FieldError, Path};
use crate::names;
use crate::quantity::Quantity;
use crate::value::{at, i64_at, list_at, map_at, str_at};
use serde_json::Value;

/// Checks init, regular and ephemeral containers of a spec.
pub(super) fn validate_all(spec: &Value, volumes: &[&str], path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let mut seen: Vec<&str> = Vec::new();
    let regular = list_at(spec, "containers");
    if regular.is_empty() {
        errors.push(FieldError::required(&path.child("containers"), ""));
    }
    for (key, list) in [
        ("containers", regular),
        ("initContainers", list_at(spec, "initContainers")),
        ("ephemeralContainers", list_at(spec, "ephemeralContainers")),
    ] {
        let mut host_ports: Vec<(i64, &str, &str)> = Vec::new();
        for (i, container) in list.iter().enumerate() {
            let path = path.child(key).index(i);
            let name = str_at(container, "name");
            if name.is_empty() {
                errors.push(FieldError::required(&path.child("name"), ""));
            } else {
                errors.extend(names::errors(
                    &path.child("name"),
                    name,
                    names::dns_label(name),
                ));
                if seen.contains(&name) {
                    errors.push(FieldError::duplicate(&path.child("name"), name));
                }
                seen.push(name);
            }
            errors.extend(validate(container, volumes, &path));
            errors.extend(host_port_clashes(container, &mut host_ports, &path));
            if key == "initContainers" {
                errors.extend(init_rules(container, &path));
            } else if !str_at(container, "restartPolicy").is_empty() {
                errors.push(FieldError::forbidden(
                    &path.child("restartPolicy"),
                    "may not be set for non-init containers",
                ));
            }
        }
    }
    errors
}

fn init_rules(container: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    match str_at(container, "restartPolicy") {
        "Always" => return errors,
        "" => {}
        other => errors.push(FieldError::not_supported(
            &path.child("restartPolicy"),
            other,
            &["Always"],
        )),
    }
    for key in [
        "lifecycle",
        "livenessProbe",
        "readinessProbe",
        "startupProbe",
    ] {
        if at(container, key).is_some() {
            let detail = "may not be set for init containers without restartPolicy=Always";
            errors.push(FieldError::forbidden(&path.child(key), detail));
        }
    }
    errors
}

fn host_port_clashes<'a>(
    container: &'a Value,
    taken: &mut Vec<(i64, &'a str, &'a str)>,
    path: &Path,
) -> ErrorList {
    let mut errors = ErrorList::new();
    for (i, port) in list_at(container, "ports").iter().enumerate() {
        let Some(number) = i64_at(port, "hostPort").filter(|p| *p != 0) else {
            continue;
        };
        let (protocol, ip) = (str_at(port, "protocol"), str_at(port, "hostIP"));
        if taken.contains(&(number, protocol, ip)) {
            let path = path.child("ports").index(i).child("hostPort");
            errors.push(FieldError::duplicate(
                &path,
                format!("{protocol}/{ip}/{number}"),
            ));
        }
        taken.push((number, protocol, ip));
    }
    errors
}

fn validate(container: &Value, volumes: &[&str], path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let image = str_at(container, "image");
    if image.is_empty() {
        errors.push(FieldError::required(&path.child("image"), ""));
    } else if image.trim() != image {
        let detail = "must not have leading or trailing whitespace";
        errors.push(FieldError::invalid(&path.child("image"), image, detail));
    }
    errors.extend(one_of(
        container,
        path,
        "imagePullPolicy",
        &["Always", "IfNotPresent", "Never"],
    ));
    errors.extend(one_of(
        container,
        path,
        "terminationMessagePolicy",
        &["FallbackToLogsOnError", "File"],
    ));
    errors.extend(ports(list_at(container, "ports"), &path.child("ports")));
    errors.extend(environment(list_at(container, "env"), &path.child("env")));
    errors.extend(env_from(
        list_at(container, "envFrom"),
        &path.child("envFrom"),
    ));
    errors.extend(mounts(container, volumes, &path.child("volumeMounts")));
    errors.extend(resources(container, &path.child("resources")));
    for key in ["livenessProbe", "readinessProbe", "startupProbe"] {
        if let Some(value) = at(container, key) {
            errors.extend(probe(value, key != "readinessProbe", &path.child(key)));
        }
    }
    for key in ["postStart", "preStop"] {
        if let Some(value) = at(container, "lifecycle")
            .and_then(|l| l.get(key))
            .filter(|v| !v.is_null())
        {
            errors.extend(handler(
                value,
                &["exec", "httpGet", "tcpSocket", "sleep"],
                &path.child("lifecycle").child(key),
            ));
        }
    }
    for key in ["runAsUser", "runAsGroup"] {
        if let Some(id) = i64_at(container, &format!("securityContext.{key}")) {
            errors.extend(validate_id(id, &path.child("securityContext").child(key)));
        }
    }
    errors
}

fn ports(list: &[Value], path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    for (i, port) in list.iter().enumerate() {
        let path = path.index(i);
        let name = str_at(port, "name");
        if !name.is_empty() {
            let broken = names::port_name(name);
            let is_taken = broken.is_empty() && list[..i].iter().any(|p| str_at(p, "name") == name);
            errors.extend(names::errors(&path.child("name"), name, broken));
            if is_taken {
                errors.push(FieldError::duplicate(&path.child("name"), name));
            }
        }
        let number = i64_at(port, "containerPort").unwrap_or_default();
        if number == 0 {
            errors.push(FieldError::required(&path.child("containerPort"), ""));
        } else {
            let path = path.child("containerPort");
            errors.extend(
                names::port_number(number)
                    .into_iter()
                    .map(|m| FieldError::invalid(&path, number, m)),
            );
        }
        if let Some(number) = i64_at(port, "hostPort").filter(|p| *p != 0) {
            let path = path.child("hostPort");
            errors.extend(
                names::port_number(number)
                    .into_iter()
                    .map(|m| FieldError::invalid(&path, number, m)),
            );
        }
        errors.extend(one_of(port, &path, "protocol", &["SCTP", "TCP", "UDP"]));
    }
    errors
}

fn mounts(container: &Value, volumes: &[&str], path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let list = list_at(container, "volumeMounts");
    for (i, mount) in list.iter().enumerate() {
        let path = path.index(i);
        let (name, target) = (str_at(mount, "name"), str_at(mount, "mountPath"));
        if name.is_empty() {
            errors.push(FieldError::required(&path.child("name"), ""));
        } else if !volumes.contains(&name) {
            errors.push(FieldError::not_found(&path.child("name"), name));
        }
        if target.is_empty() {
            errors.push(FieldError::required(&path.child("mountPath"), ""));
        } else if list[..i].iter().any(|m| str_at(m, "mountPath") == target) {
            errors.push(FieldError::invalid(
                &path.child("mountPath"),
                target,
                "must be unique",
            ));
        }
        let (sub, expression) = (str_at(mount, "subPath"), str_at(mount, "subPathExpr"));
        for (key, value) in [("subPath", sub), ("subPathExpr", expression)] {
            if !value.is_empty() {
                errors.extend(local_path(value, &path.child(key)));
            }
        }
        if !sub.is_empty() && !expression.is_empty() {
            let detail = "subPathExpr and subPath are mutually exclusive";
            errors.push(FieldError::invalid(
                &path.child("subPathExpr"),
                expression,
                detail,
            ));
        }
    }
    errors
}

/// A relative path that does not climb out.
pub(super) fn local_path(value: &str, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    if value.starts_with('/') {
        errors.push(FieldError::invalid(path, value, "must be a relative path"));
    }
    if value.split('/').any(|part| part == "..") {
        errors.push(FieldError::invalid(path, value, "must not contain '..'"));
    }
    errors
}

fn resources(container: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let limits = map_at(container, "resources.limits");
    for key in ["limits", "requests"] {
        for (resource, amount) in map_at(container, &format!("resources.{key}"))
            .into_iter()
            .flatten()
        {
            let path = path.child(key).key(resource);
            errors.extend(names::errors(
                &path,
                resource,
                names::qualified_name(resource),
            ));
            let is_standard = !resource.contains('/');
            let is_known = matches!(
                resource.as_str(),
                "cpu" | "memory" | "ephemeral-storage" | "storage"
            ) || resource.starts_with("hugepages-");
            if is_standard && !is_known {
                errors.push(FieldError::invalid(
                    &path,
                    resource.as_str(),
                    "must be a standard resource type or fully qualified",
                ));
            }
            let text = amount.as_str().unwrap_or_default();
            let Ok(quantity) = Quantity::parse(text) else {
                continue;
            };
            if quantity.is_negative() {
                errors.push(FieldError::invalid(
                    &path,
                    text,
                    "must be greater than or equal to 0",
                ));
            }
            let needs_whole = !is_standard || resource.starts_with("hugepages-");
            if needs_whole && !quantity.is_whole() {
                errors.push(FieldError::invalid(&path, text, "must be an integer"));
            }
            let limit = limits.and_then(|l| l.get(resource)).and_then(Value::as_str);
            if let (true, Some(limit)) = (key == "requests", limit)
                && Quantity::parse(limit).is_ok_and(|l| quantity > l)
            {
                let detail = format!("must be less than or equal to {resource} limit of {limit}");
                // Upstream reports this one on the list, not on the resource.
                let path = Path::new(path.as_str().rsplit_once('[').map_or("", |(p, _)| p));
                errors.push(FieldError::invalid(&path, text, detail));
            }
        }
    }
    errors
}

fn probe(probe: &Value, is_single_success: bool, path: &Path) -> ErrorList {
    let mut errors = handler(probe, &["exec", "httpGet", "tcpSocket", "grpc"], path);
    for key in [
        "initialDelaySeconds",
        "timeoutSeconds",
        "periodSeconds",
        "successThreshold",
        "failureThreshold",
    ] {
        if let Some(number) = i64_at(probe, key).filter(|n| *n < 0) {
            errors.push(FieldError::invalid(
                &path.child(key),
                number,
                "must be greater than or equal to 0",
            ));
        }
    }
    if let Some(secs) = i64_at(probe, "terminationGracePeriodSeconds").filter(|s| *s <= 0) {
        errors.push(FieldError::invalid(
            &path.child("terminationGracePeriodSeconds"),
            secs,
            "must be greater than 0",
        ));
    }
    let threshold = i64_at(probe, "successThreshold").unwrap_or(1);
    if is_single_success && threshold != 1 {
        errors.push(FieldError::invalid(
            &path.child("successThreshold"),
            threshold,
            "must be 1",
        ));
    }
    errors
}

/// Exactly one of `kinds`.
fn handler(value: &Value, kinds: &[&str], path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let given: Vec<&str> = kinds
        .iter()
        .copied()
        .filter(|k| at(value, k).is_some())
        .collect();
    for extra in given.iter().skip(1) {
        errors.push(FieldError::forbidden(
            &path.child(extra),
            "may not specify more than 1 handler type",
        ));
    }
    match given.first() {
        None => errors.push(FieldError::required(path, "must specify a handler type")),
        Some(&"exec") if list_at(value, "exec.command").is_empty() => {
            errors.push(FieldError::required(
                &path.child("exec").child("command"),
                "",
            ));
        }
        Some(kind @ (&"httpGet" | &"tcpSocket")) => {
            let port = at(value, kind).and_then(|h| h.get("port"));
            errors.extend(validate_port_reference(
                port,
                &path.child(kind).child("port"),
            ));
            if *kind == "httpGet" {
                let get = at(value, kind).unwrap_or(&Value::Null);
                if str_at(get, "path").is_empty() {
                    errors.push(FieldError::required(&path.child(kind).child("path"), ""));
                }
                errors.extend(one_of(get, &path.child(kind), "scheme", &["HTTP", "HTTPS"]));
            }
        }
        Some(_) => {}
    }
    errors
}
