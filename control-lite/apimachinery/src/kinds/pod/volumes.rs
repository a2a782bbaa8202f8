//! Rules of volumes.

use super::containers::local_path;
use crate::field::{ErrorList, FieldError, Path};
use crate::names;
use crate::quantity::Quantity;
use crate::value::{at, i64_at, list_at, str_at};
use serde_json::Value;

/// Names of a spec's volumes, for mounts to refer to.
pub(super) fn names(spec: &Value) -> Vec<&str> {
    list_at(spec, "volumes")
        .iter()
        .map(|v| str_at(v, "name"))
        .collect()
}

pub(super) fn validate(volumes: &[Value], path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    for (i, volume) in volumes.iter().enumerate() {
        let path = path.index(i);
        let name = str_at(volume, "name");
        let mut messages = ErrorList::new();
        if name.is_empty() {
            messages.push(FieldError::required(&path.child("name"), ""));
        } else {
            messages.extend(names::errors(
                &path.child("name"),
                name,
                names::dns_label(name),
            ));
        }
        if messages.is_empty() && volumes[..i].iter().any(|v| str_at(v, "name") == name) {
            messages.push(FieldError::duplicate(&path.child("name"), name));
        }
        errors.extend(messages);
        let sources: Vec<&str> = volume
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(key, value)| *key != "name" && !value.is_null())
            .map(|(key, _)| key.as_str())
            .collect();
        if sources.is_empty() {
            errors.push(FieldError::required(&path, "must specify a volume type"));
        }
        for extra in sources.iter().skip(1) {
            errors.push(FieldError::forbidden(
                &path.child(extra),
                "may not specify more than 1 volume type",
            ));
        }
        if let Some(kind) = sources.first() {
            errors.extend(source(volume, kind, &path.child(kind)));
        }
    }
    errors
}

fn source(volume: &Value, kind: &str, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let source = at(volume, kind).unwrap_or(&Value::Null);
    let mut require = |key: &str| {
        if str_at(source, key).is_empty() {
            errors.push(FieldError::required(&path.child(key), ""));
        }
    };
    match kind {
        "configMap" => require("name"),
        "secret" => require("secretName"),
        "hostPath" => require("path"),
        "persistentVolumeClaim" => require("claimName"),
        "nfs" => {
            require("server");
            require("path");
        }
        "csi" => require("driver"),
        _ => {}
    }
    match kind {
        "emptyDir" => {
            let limit = str_at(source, "sizeLimit");
            if Quantity::parse(limit).is_ok_and(Quantity::is_negative) {
                let detail = "SizeLimit field must be a valid resource quantity";
                errors.push(FieldError::forbidden(&path.child("sizeLimit"), detail));
            }
        }
        "hostPath" => {
            if str_at(source, "path").split('/').any(|p| p == "..") {
                errors.push(FieldError::invalid(
                    &path.child("path"),
                    str_at(source, "path"),
                    "must not contain '..'",
                ));
            }
            let types = [
                "",
                "BlockDevice",
                "CharDevice",
                "Directory",
                "DirectoryOrCreate",
                "File",
                "FileOrCreate",
                "Socket",
            ];
            if !types.contains(&str_at(source, "type")) {
                errors.push(FieldError::not_supported(
                    &path.child("type"),
                    str_at(source, "type"),
                    &types,
                ));
            }
        }
        "configMap" | "secret" | "downwardAPI" => {
            errors.extend(mode(source, "defaultMode", path));
            errors.extend(items(source, kind == "downwardAPI", &path.child("items")));
        }
        "projected" => {
            errors.extend(mode(source, "defaultMode", path));
            errors.extend(projections(
                list_at(source, "sources"),
                &path.child("sources"),
            ));
        }
        _ => {}
    }
    errors
}

fn mode(source: &Value, key: &str, path: &Path) -> ErrorList {
    match i64_at(source, key) {
        Some(mode) if !(0..=0o777).contains(&mode) => {
            let detail = "must be a number between 0 and 0777 (octal), both inclusive";
            vec![FieldError::invalid(&path.child(key), mode, detail)]
        }
        _ => Vec::new(),
    }
}

fn items(source: &Value, is_downward: bool, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    for (i, item) in list_at(source, "items").iter().enumerate() {
        let path = path.index(i);
        if !is_downward && str_at(item, "key").is_empty() {
            errors.push(FieldError::required(&path.child("key"), ""));
        }
        let target = str_at(item, "path");
        if target.is_empty() {
            errors.push(FieldError::required(&path.child("path"), ""));
        } else {
            errors.extend(local_path(target, &path.child("path")));
            if target.starts_with("..") && !target.split('/').any(|p| p == "..") {
                errors.push(FieldError::invalid(
                    &path.child("path"),
                    target,
                    "must not start with '..'",
                ));
            }
        }
        errors.extend(mode(item, "mode", &path));
    }
    errors
}

fn projections(list: &[Value], path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    for (i, projection) in list.iter().enumerate() {
        let path = path.index(i);
        let kinds: Vec<&str> = [
            "secret",
            "configMap",
            "downwardAPI",
            "serviceAccountToken",
            "clusterTrustBundle",
            "podCertificate",
        ]
        .into_iter()
        .filter(|k| at(projection, k).is_some())
        .collect();
        if kinds.is_empty() {
            errors.push(FieldError::required(&path, "must specify a volume type"));
        }
        for extra in kinds.iter().skip(1) {
            errors.push(FieldError::forbidden(
                &path.child(extra),
                "may not specify more than 1 volume type per source",
            ));
        }
        for kind in kinds.iter().take(1) {
            let source = at(projection, kind).unwrap_or(&Value::Null);
            let path = path.child(kind);
            if matches!(*kind, "secret" | "configMap") && str_at(source, "name").is_empty() {
                errors.push(FieldError::required(&path.child("name"), ""));
            }
            if *kind == "serviceAccountToken" && str_at(source, "path").is_empty() {
                errors.push(FieldError::required(&path.child("path"), ""));
            }
            errors.extend(items(source, *kind == "downwardAPI", &path.child("items")));
        }
    }
    errors
}
