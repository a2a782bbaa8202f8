//! What Deployments, ReplicaSets and ReplicationControllers share: the pod template, its defaults and rules.

use crate::field::{ErrorList, FieldError, Path};
use crate::selector::LabelSelector;
use crate::value::{at, i64_at, map_at, semantically_equal, str_at};
use serde_json::Value;

/// Defaults of `spec.template.spec`.
pub(super) fn default(object: &mut Value) {
    let Some(template) = crate::value::at_mut(object, "spec.template").filter(|t| t.is_object())
    else {
        return;
    };
    // Not a pointer upstream: a pod spec that was left out is an empty one, with defaults.
    crate::value::ensure_map(template, "spec");
    if let Some(spec) = crate::value::at_mut(template, "spec") {
        super::pod::default_pod_spec(spec);
    }
}

/// Rules of the template: its metadata, its pod spec, and `restartPolicy: Always`.
pub(super) fn validate(object: &Value, selector: &LabelSelector) -> ErrorList {
    let path = Path::new("spec").child("template");
    let mut errors = ErrorList::new();
    let template = at(object, "spec.template").unwrap_or(&Value::Null);
    let labels = map_at(template, "metadata.labels");
    if !selector.is_everything() && !selector.matches(labels) {
        let value = labels.map_or(Value::Null, |l| Value::Object(l.clone()));
        let detail = "`selector` does not match template `labels`";
        errors.push(FieldError::invalid(
            &path.child("metadata").child("labels"),
            value,
            detail,
        ));
    }
    errors.extend(crate::meta::validate_labels(
        labels,
        &path.child("metadata").child("labels"),
    ));
    let annotations = map_at(template, "metadata.annotations");
    errors.extend(crate::meta::validate_annotations(
        annotations,
        &path.child("metadata").child("annotations"),
    ));
    let spec = at(template, "spec").unwrap_or(&Value::Null);
    errors.extend(super::pod::validate_spec(spec, &path.child("spec"), false));
    let policy = str_at(spec, "restartPolicy");
    if !policy.is_empty() && policy != "Always" {
        let path = path.child("spec").child("restartPolicy");
        errors.push(FieldError::not_supported(&path, policy, &["Always"]));
    }
    if at(spec, "activeDeadlineSeconds").is_some() {
        let path = path.child("spec").child("activeDeadlineSeconds");
        errors.push(FieldError::forbidden(
            &path,
            "activeDeadlineSeconds in ReplicaSet is not Supported",
        ));
    }
    errors
}

/// Counts that must not be negative.
pub(super) fn validate_counts(object: &Value, parent: &str, keys: &[&str]) -> ErrorList {
    let path = Path::new(parent);
    let negative = |key: &&&str| i64_at(object, &format!("{parent}.{key}")).is_some_and(|n| n < 0);
    keys.iter()
        .filter(negative)
        .map(|key| {
            let value = i64_at(object, &format!("{parent}.{key}")).unwrap_or_default();
            FieldError::invalid(
                &path.child(key),
                value,
                "must be greater than or equal to 0",
            )
        })
        .collect()
}

/// Rules of `spec.selector` where an empty one would take every pod.
pub(super) fn validate_selector(object: &Value, empty_detail: &str) -> ErrorList {
    let path = Path::new("spec").child("selector");
    let Some(selector) = at(object, "spec.selector") else {
        return vec![FieldError::required(&path, "")];
    };
    let mut errors = crate::selector::validate_spec(selector, &path);
    if LabelSelector::from_spec(Some(selector)).is_everything() {
        errors.push(FieldError::invalid(&path, selector.clone(), empty_detail));
    }
    errors
}

/// `spec.selector` cannot change.
pub(super) fn validate_selector_update(new: &Value, old: &Value) -> ErrorList {
    if semantically_equal(at(new, "spec.selector"), at(old, "spec.selector")) {
        return Vec::new();
    }
    let value = at(new, "spec.selector").cloned().unwrap_or_default();
    vec![FieldError::invalid(
        &Path::new("spec").child("selector"),
        value,
        "field is immutable",
    )]
}

/// Counts in the status of a replica owner, and how they bound each other.
pub(super) fn validate_status(new: &Value) -> ErrorList {
    let keys = [
        "replicas",
        "fullyLabeledReplicas",
        "readyReplicas",
        "availableReplicas",
        "observedGeneration",
    ];
    let mut errors = validate_counts(new, "status", &keys);
    let path = Path::new("status");
    let count = |key: &str| i64_at(new, &format!("status.{key}")).unwrap_or_default();
    for (key, bound) in [
        ("fullyLabeledReplicas", "replicas"),
        ("readyReplicas", "replicas"),
        ("availableReplicas", "replicas"),
        ("availableReplicas", "readyReplicas"),
    ] {
        if count(key) > count(bound) {
            let detail = format!("cannot be greater than status.{bound}");
            errors.push(FieldError::invalid(&path.child(key), count(key), detail));
        }
    }
    errors
}
