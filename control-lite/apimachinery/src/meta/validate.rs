//! Validation of ObjectMeta on create and update, with upstream's texts.

use crate::field::{ErrorList, FieldError, Path, quote};
use crate::names::{self, NameRule};
use crate::value::{at, bool_at, list_at, map_at, semantically_equal, str_at};
use serde_json::{Map, Value};

const ANNOTATION_BYTES_LIMIT: usize = 256 * 1024;
const IMMUTABLE: &str = "field is immutable";

/// Rules for a new object's metadata, after name generation.
pub fn validate_create(object: &Value, is_namespaced: bool, name_rule: NameRule) -> ErrorList {
    let path = Path::new("metadata");
    let mut errors = ErrorList::new();
    let (name, prefix) = (super::name(object), super::generate_name(object));
    if !prefix.is_empty() {
        let masked = names::mask_trailing_dash(prefix);
        errors.extend(names::errors(
            &path.child("generateName"),
            prefix,
            name_rule(&masked),
        ));
    }
    if name.is_empty() {
        errors.push(FieldError::required(
            &path.child("name"),
            "name or generateName is required",
        ));
    } else {
        errors.extend(names::errors(&path.child("name"), name, name_rule(name)));
    }
    let namespace = super::namespace(object);
    match (is_namespaced, namespace.is_empty()) {
        (true, true) => errors.push(FieldError::required(&path.child("namespace"), "")),
        (true, false) => {
            errors.extend(names::errors(
                &path.child("namespace"),
                namespace,
                names::dns_label(namespace),
            ));
        }
        (false, false) => errors.push(FieldError::forbidden(
            &path.child("namespace"),
            "not allowed on this type",
        )),
        (false, true) => {}
    }
    if super::generation(object) < 0 {
        let detail = "must be greater than or equal to 0";
        errors.push(FieldError::invalid(
            &path.child("generation"),
            super::generation(object),
            detail,
        ));
    }
    errors.extend(common(object, &path));
    errors.extend(validate_finalizers(object, &path.child("finalizers")));
    errors
}

/// Rules for an update's metadata.
pub fn validate_update(new: &Value, old: &Value) -> ErrorList {
    let path = Path::new("metadata");
    let mut errors = ErrorList::new();
    if super::is_deleting(old) {
        let before = super::finalizers(old);
        let mut added: Vec<&str> = super::finalizers(new)
            .into_iter()
            .filter(|f| !before.contains(f))
            .collect();
        added.sort_unstable();
        if !added.is_empty() {
            let list: Vec<String> = added.iter().map(|f| quote(f)).collect();
            errors.push(FieldError::forbidden(
                &path.child("finalizers"),
                format!(
                    "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                    list.join(", ")
                ),
            ));
        }
    }
    if super::generation(new) < super::generation(old) {
        let value = super::generation(new);
        errors.push(FieldError::invalid(
            &path.child("generation"),
            value,
            "must not be decremented",
        ));
    }
    for key in [
        "name",
        "namespace",
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
    ] {
        let of = |object| {
            at(object, "metadata")
                .and_then(|m: &Value| m.get(key))
                .filter(|v| !v.is_null())
        };
        if !semantically_equal(of(new), of(old)) {
            let value = of(new)
                .cloned()
                .unwrap_or_else(|| Value::String(String::new()));
            errors.push(FieldError::invalid(&path.child(key), value, IMMUTABLE));
        }
    }
    errors.extend(common(new, &path));
    errors.extend(validate_finalizers(new, &path.child("finalizers")));
    errors
}

fn common(object: &Value, path: &Path) -> ErrorList {
    let mut errors = validate_labels(super::labels(object), &path.child("labels"));
    errors.extend(validate_annotations(
        map_at(object, "metadata.annotations"),
        &path.child("annotations"),
    ));
    errors.extend(validate_owners(
        super::owner_references(object),
        &path.child("ownerReferences"),
    ));
    errors
}

/// Rules of a label map.
pub fn validate_labels(labels: Option<&Map<String, Value>>, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    for (key, value) in labels.into_iter().flatten() {
        errors.extend(names::errors(path, key, names::qualified_name(key)));
        let value = value.as_str().unwrap_or_default();
        errors.extend(names::errors(path, value, names::label_value(value)));
    }
    errors
}

/// Rules of an annotation map.
pub(crate) fn validate_annotations(
    annotations: Option<&Map<String, Value>>,
    path: &Path,
) -> ErrorList {
    let mut errors = ErrorList::new();
    let mut size = 0;
    for (key, value) in annotations.into_iter().flatten() {
        errors.extend(names::errors(
            path,
            key,
            names::qualified_name(&key.to_lowercase()),
        ));
        size += key.len() + value.as_str().map_or(0, str::len);
    }
    if size > ANNOTATION_BYTES_LIMIT {
        errors.push(FieldError::too_long(path, ANNOTATION_BYTES_LIMIT));
    }
    errors
}

fn validate_owners(owners: &[Value], path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let mut controller = None;
    for owner in owners {
        let version = str_at(owner, "apiVersion");
        if version.rsplit('/').next().unwrap_or_default().is_empty() {
            errors.push(FieldError::invalid(
                &path.child("apiVersion"),
                version,
                "version must not be empty",
            ));
        }
        for key in ["kind", "name", "uid"] {
            if str_at(owner, key).is_empty() {
                errors.push(FieldError::invalid(
                    &path.child(key),
                    "",
                    "must not be empty",
                ));
            }
        }
        if version == "v1" && str_at(owner, "kind") == "Event" {
            errors.push(FieldError::invalid(
                path,
                owner.clone(),
                "/v1, Kind=Event is disallowed from being an owner",
            ));
        }
        if bool_at(owner, "controller") {
            let this = format!("{}/{}", str_at(owner, "kind"), str_at(owner, "name"));
            match &controller {
                Some(first) => errors.push(FieldError::invalid(
                    path,
                    Value::Array(owners.to_vec()),
                    format!(
                        "Only one reference can have Controller set to true. Found \"true\" in references for {first} and {this}"
                    ),
                )),
                None => controller = Some(this),
            }
        }
    }
    errors
}

fn validate_finalizers(object: &Value, path: &Path) -> ErrorList {
    let finalizers = super::finalizers(object);
    let mut errors: ErrorList = finalizers
        .iter()
        .flat_map(|f| names::errors(path, f, names::qualified_name(f)))
        .collect();
    if finalizers.contains(&super::FINALIZER_FOREGROUND)
        && finalizers.contains(&super::FINALIZER_ORPHAN)
    {
        let value = Value::Array(list_at(object, "metadata.finalizers").to_vec());
        let detail = "finalizer orphan and foregroundDeletion cannot be both set";
        errors.push(FieldError::invalid(path, value, detail));
    }
    errors
}
