//! What an update may change of a pod: images, deadlines, added tolerations and little else.

use super::validate_spec;
use crate::field::{ErrorList, FieldError, Path};
use crate::value::{at, copy, i64_at, list_at, list_mut, remove, semantically_equal, set, str_at};
use serde_json::Value;

const FORBIDDEN: &str = "pod updates may not change fields other than `spec.containers[*].image`,\
`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),\
`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

pub(super) fn validate(new: &Value, old: &Value) -> ErrorList {
    let path = Path::new("spec");
    let mut errors = validate_spec(at(new, "spec").unwrap_or(&Value::Null), &path, true);
    for key in ["containers", "initContainers"] {
        let (after, before) = (
            list_at(new, &format!("spec.{key}")),
            list_at(old, &format!("spec.{key}")),
        );
        if after.len() != before.len() {
            let detail = "pod updates may not add or remove containers";
            errors.push(FieldError::forbidden(&path.child(key), detail));
            return errors;
        }
    }
    errors.extend(deadline(new, old, &path));
    errors.extend(tolerations(new, old, &path));
    errors.extend(scheduling_gates(new, old, &path));
    if let Some(diff) = frozen_change(new, old) {
        errors.push(FieldError::forbidden(&path, format!("{FORBIDDEN}\n{diff}")));
    }
    errors
}

fn deadline(new: &Value, old: &Value, path: &Path) -> ErrorList {
    let path = path.child("activeDeadlineSeconds");
    match (
        i64_at(new, "spec.activeDeadlineSeconds"),
        i64_at(old, "spec.activeDeadlineSeconds"),
    ) {
        (Some(after), Some(before)) if after > before => {
            vec![FieldError::invalid(
                &path,
                after,
                format!("must be less than or equal to previous value: {before}"),
            )]
        }
        (None, Some(before)) => {
            vec![FieldError::invalid(
                &path,
                Value::Null,
                format!("must not update from a positive integer to nil value: {before}"),
            )]
        }
        _ => Vec::new(),
    }
}

/// Existing tolerations stay; only `tolerationSeconds` of a NoExecute one may change.
fn tolerations(new: &Value, old: &Value, path: &Path) -> ErrorList {
    let without_secs = |t: &Value| {
        let mut t = t.clone();
        drop(remove(&mut t, "tolerationSeconds"));
        t
    };
    let after = list_at(new, "spec.tolerations");
    let is_kept = |before: &Value| {
        after
            .iter()
            .any(|a| semantically_equal(Some(&without_secs(a)), Some(&without_secs(before))))
    };
    if list_at(old, "spec.tolerations").iter().all(is_kept) {
        return Vec::new();
    }
    let detail = "existing toleration can not be modified except its tolerationSeconds";
    vec![FieldError::forbidden(&path.child("tolerations"), detail)]
}

fn scheduling_gates(new: &Value, old: &Value, path: &Path) -> ErrorList {
    let before: Vec<&str> = list_at(old, "spec.schedulingGates")
        .iter()
        .map(|g| str_at(g, "name"))
        .collect();
    let added = list_at(new, "spec.schedulingGates")
        .iter()
        .map(|g| str_at(g, "name"))
        .filter(|g| !before.contains(g));
    added
        .map(|gate| {
            let detail =
                format!("only deletion is allowed, but found new scheduling gate '{gate}'");
            FieldError::forbidden(&path.child("schedulingGates").index(0), detail)
        })
        .collect()
}

/// Compares after taking over everything that may change. Answers the paths that differ.
fn frozen_change(new: &Value, old: &Value) -> Option<String> {
    let mut allowed = new.clone();
    for key in ["containers", "initContainers"] {
        let before = list_at(old, &format!("spec.{key}")).to_vec();
        for (container, before) in list_mut(&mut allowed, &format!("spec.{key}"))
            .into_iter()
            .flatten()
            .zip(&before)
        {
            copy(before, container, "image");
        }
    }
    for path in [
        "spec.activeDeadlineSeconds",
        "spec.tolerations",
        "spec.schedulingGates",
    ] {
        copy(old, &mut allowed, path);
    }
    let was_negative = i64_at(old, "spec.terminationGracePeriodSeconds").is_some_and(|s| s < 0);
    if was_negative && i64_at(new, "spec.terminationGracePeriodSeconds") == Some(1) {
        set(
            &mut allowed,
            "spec.terminationGracePeriodSeconds",
            i64_at(old, "spec.terminationGracePeriodSeconds"),
        );
    }
    // A gated pod may be steered to fewer nodes before it is scheduled.
    if !list_at(old, "spec.schedulingGates").is_empty() {
        copy(old, &mut allowed, "spec.nodeSelector");
        copy(old, &mut allowed, "spec.affinity");
    }
    let (after, before) = (at(&allowed, "spec"), at(old, "spec"));
    if semantically_equal(after, before) {
        return None;
    }
    let empty = serde_json::Map::new();
    let (after, before) = (
        after.and_then(Value::as_object).unwrap_or(&empty),
        before.and_then(Value::as_object).unwrap_or(&empty),
    );
    let mut keys: Vec<&String> = after
        .keys()
        .chain(before.keys())
        .filter(|k| !semantically_equal(after.get(*k), before.get(*k)))
        .collect();
    keys.sort();
    keys.dedup();
    let text = |v: Option<&Value>| v.map_or_else(|| "(unset)".to_owned(), Value::to_string);
    let lines: Vec<String> = keys
        .iter()
        .map(|k| {
            format!(
                "- {k}: {}\n+ {k}: {}",
                text(before.get(*k)),
                text(after.get(*k))
            )
        })
        .collect();
    Some(lines.join("\n"))
}

/// A container that ended under `restartPolicy: Never` stays ended.
pub(super) fn validate_status(new: &Value, old: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let node = str_at(new, "status.nominatedNodeName");
    if !node.is_empty() {
        let path = Path::new("status").child("nominatedNodeName");
        errors.extend(crate::names::errors(
            &path,
            node,
            crate::names::dns_subdomain(node),
        ));
    }
    let policy = str_at(old, "spec.restartPolicy");
    if policy == "Always" {
        return errors;
    }
    for (i, status) in list_at(new, "status.containerStatuses").iter().enumerate() {
        let before = list_at(old, "status.containerStatuses")
            .iter()
            .find(|s| str_at(s, "name") == str_at(status, "name"))
            .and_then(|s| at(s, "state.terminated"));
        let Some(before) = before else { continue };
        let may_restart =
            policy == "OnFailure" && i64_at(before, "exitCode").unwrap_or_default() != 0;
        if !may_restart && at(status, "state.terminated").is_none() {
            let path = Path::new("status")
                .child("containerStatuses")
                .index(i)
                .child("state");
            errors.push(FieldError::forbidden(
                &path,
                "may not be transitioned to non-terminated state",
            ));
        }
    }
    errors
}
