//! Rules of a container's environment: variables and where their values come from.

use crate::field::{ErrorList, FieldError, Path};
use crate::names;
use crate::value::{at, str_at};
use serde_json::Value;

pub(super) fn environment(list: &[Value], path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    for (i, variable) in list.iter().enumerate() {
        let path = path.index(i);
        let name = str_at(variable, "name");
        if name.is_empty() {
            errors.push(FieldError::required(&path.child("name"), ""));
        } else {
            errors.extend(names::errors(
                &path.child("name"),
                name,
                names::env_var_name(name),
            ));
        }
        let Some(from) = at(variable, "valueFrom") else {
            continue;
        };
        let path = path.child("valueFrom");
        let sources: Vec<&str> = [
            "fieldRef",
            "resourceFieldRef",
            "configMapKeyRef",
            "secretKeyRef",
            "fileKeyRef",
        ]
        .into_iter()
        .filter(|s| at(from, s).is_some())
        .collect();
        match sources.as_slice() {
            [] => {
                let detail = "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`";
                errors.push(FieldError::invalid(&path, "", detail));
            }
            [_] if !str_at(variable, "value").is_empty() => {
                errors.push(FieldError::invalid(
                    &path,
                    "",
                    "may not be specified when `value` is not empty",
                ));
            }
            [one] => errors.extend(env_source(from, one, &path.child(one))),
            _ => errors.push(FieldError::invalid(
                &path,
                "",
                "may not have more than one field specified at a time",
            )),
        }
    }
    errors
}

fn env_source(from: &Value, source: &str, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let reference = at(from, source).unwrap_or(&Value::Null);
    match source {
        "configMapKeyRef" | "secretKeyRef" => {
            let (name, key) = (str_at(reference, "name"), str_at(reference, "key"));
            if name.is_empty() {
                errors.push(FieldError::required(&path.child("name"), ""));
            }
            if key.is_empty() {
                errors.push(FieldError::required(&path.child("key"), ""));
            } else {
                errors.extend(names::errors(
                    &path.child("key"),
                    key,
                    names::config_key(key),
                ));
            }
        }
        "fieldRef" => {
            let field = str_at(reference, "fieldPath");
            if field.is_empty() {
                errors.push(FieldError::required(&path.child("fieldPath"), ""));
            } else if !is_env_field(field) {
                errors.push(FieldError::not_supported(
                    &path.child("fieldPath"),
                    field,
                    ENV_FIELDS,
                ));
            }
        }
        "resourceFieldRef" if str_at(reference, "resource").is_empty() => {
            errors.push(FieldError::required(&path.child("resource"), ""));
        }
        _ => {}
    }
    errors
}

const ENV_FIELDS: &[&str] = &[
    "metadata.name",
    "metadata.namespace",
    "metadata.uid",
    "spec.nodeName",
    "spec.serviceAccountName",
    "status.hostIP",
    "status.hostIPs",
    "status.podIP",
    "status.podIPs",
];

fn is_env_field(field: &str) -> bool {
    let is_subscript = |prefix: &str| {
        field
            .strip_prefix(prefix)
            .is_some_and(|rest| rest.ends_with("']"))
    };
    ENV_FIELDS.contains(&field)
        || is_subscript("metadata.labels['")
        || is_subscript("metadata.annotations['")
}

pub(super) fn env_from(list: &[Value], path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    for (i, source) in list.iter().enumerate() {
        let path = path.index(i);
        let prefix = str_at(source, "prefix");
        if !prefix.is_empty() {
            errors.extend(names::errors(
                &path.child("prefix"),
                prefix,
                names::env_var_name(prefix),
            ));
        }
        let given: Vec<&str> = ["configMapRef", "secretRef"]
            .into_iter()
            .filter(|s| at(source, s).is_some())
            .collect();
        match given.as_slice() {
            [] => errors.push(FieldError::invalid(
                &path,
                "",
                "must specify one of: `configMapRef` or `secretRef`",
            )),
            [one] => {
                if str_at(source, &format!("{one}.name")).is_empty() {
                    errors.push(FieldError::required(&path.child(one).child("name"), ""));
                }
            }
            _ => errors.push(FieldError::invalid(
                &path,
                "",
                "may not have more than one field specified at a time",
            )),
        }
    }
    errors
}
