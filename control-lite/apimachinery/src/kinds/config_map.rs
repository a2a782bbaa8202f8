//! ConfigMap.

use super::{ALL_VERBS, Kind, Strategy, cells};
use crate::field::{ErrorList, FieldError, Path};
use crate::value::{at, bool_at, map_at, semantically_equal};
use serde_json::Value;

/// The limit of a ConfigMap's or Secret's data.
pub(super) const DATA_BYTES_LIMIT: usize = 1024 * 1024;

/// The table entry.
pub static CONFIG_MAP: Kind = Kind {
    group: "",
    version: "v1",
    kind: "ConfigMap",
    plural: "configmaps",
    singular: "configmap",
    short_names: &["cm"],
    categories: &[],
    is_namespaced: true,
    verbs: ALL_VERBS,
    subresources: &[],
    message: "core.ConfigMap",
    storage: "/configmaps",
    is_volatile: false,
    columns: &[
        cells::NAME,
        cells::text("Data", 0, "Number of keys."),
        cells::AGE,
    ],
    cells: |object, now| {
        let count = |path| map_at(object, path).map_or(0, serde_json::Map::len);
        vec![
            cells::name(object),
            (count("data") + count("binaryData")).into(),
            cells::age(object, now),
        ]
    },
    field_selectors: &[],
    name_rule: crate::names::dns_subdomain,
    strategy: Strategy {
        validate,
        validate_update,
        ..Strategy::PLAIN
    },
};

fn validate(object: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let mut size = 0;
    let (text, binary) = (map_at(object, "data"), map_at(object, "binaryData"));
    for (key, value) in text.into_iter().flatten() {
        errors.extend(crate::names::errors(
            &Path::new("data").key(key),
            key,
            crate::names::config_key(key),
        ));
        if binary.is_some_and(|b| b.contains_key(key)) {
            errors.push(FieldError::invalid(
                &Path::new("data").key(key),
                key.as_str(),
                "duplicate of key present in binaryData",
            ));
        }
        size += value.as_str().map_or(0, str::len);
    }
    for (key, value) in binary.into_iter().flatten() {
        errors.extend(crate::names::errors(
            &Path::new("binaryData").key(key),
            key,
            crate::names::config_key(key),
        ));
        size += decoded_length(value);
    }
    if size > DATA_BYTES_LIMIT {
        errors.push(FieldError::too_long(&Path::new("[]"), DATA_BYTES_LIMIT));
    }
    errors
}

/// Bytes behind a base64 text.
pub(super) fn decoded_length(value: &Value) -> usize {
    value
        .as_str()
        .map_or(0, |text| text.trim_end_matches('=').len() * 3 / 4)
}

fn validate_update(new: &Value, old: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let is_immutable = bool_at(old, "immutable");
    if is_immutable {
        errors.extend(immutable_parts(new, old, &["data", "binaryData"]));
    }
    errors.extend(validate(new));
    errors
}

/// Errors of an update to an object that was marked immutable.
pub(super) fn immutable_parts(new: &Value, old: &Value, parts: &[&str]) -> ErrorList {
    let mut errors = ErrorList::new();
    const DETAIL: &str = "field is immutable when `immutable` is set";
    if !bool_at(new, "immutable") {
        errors.push(FieldError::forbidden(&Path::new("immutable"), DETAIL));
    }
    for part in parts {
        if !semantically_equal(at(new, part), at(old, part)) {
            errors.push(FieldError::forbidden(&Path::new(part), DETAIL));
        }
    }
    errors
}
