//! Rules of what steers a pod to nodes: affinity, tolerations, topology spread.

use crate::field::{ErrorList, FieldError, Path};
use crate::names;
use crate::value::{at, i64_at, list_at, str_at};
use serde_json::Value;

pub(super) fn affinity(spec: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let path = path.child("affinity");
    let required = "requiredDuringSchedulingIgnoredDuringExecution";
    let preferred = "preferredDuringSchedulingIgnoredDuringExecution";
    if let Some(terms) = at(spec, &format!("affinity.nodeAffinity.{required}")) {
        let path = path
            .child("nodeAffinity")
            .child(required)
            .child("nodeSelectorTerms");
        let list = list_at(terms, "nodeSelectorTerms");
        if list.is_empty() {
            errors.push(FieldError::required(
                &path,
                "must have at least one node selector term",
            ));
        }
        for (i, term) in list.iter().enumerate() {
            errors.extend(node_selector_term(term, &path.index(i)));
        }
    }
    for (i, weighted) in list_at(spec, &format!("affinity.nodeAffinity.{preferred}"))
        .iter()
        .enumerate()
    {
        let path = path.child("nodeAffinity").child(preferred).index(i);
        errors.extend(weight(weighted, &path));
        errors.extend(node_selector_term(
            at(weighted, "preference").unwrap_or(&Value::Null),
            &path.child("preference"),
        ));
    }
    for key in ["podAffinity", "podAntiAffinity"] {
        for (i, term) in list_at(spec, &format!("affinity.{key}.{required}"))
            .iter()
            .enumerate()
        {
            errors.extend(pod_affinity_term(
                term,
                &path.child(key).child(required).index(i),
            ));
        }
        for (i, weighted) in list_at(spec, &format!("affinity.{key}.{preferred}"))
            .iter()
            .enumerate()
        {
            let path = path.child(key).child(preferred).index(i);
            errors.extend(weight(weighted, &path));
            let term = at(weighted, "podAffinityTerm").unwrap_or(&Value::Null);
            errors.extend(pod_affinity_term(term, &path.child("podAffinityTerm")));
        }
    }
    errors
}

fn weight(weighted: &Value, path: &Path) -> ErrorList {
    let weight = i64_at(weighted, "weight").unwrap_or_default();
    if (1..=100).contains(&weight) {
        return Vec::new();
    }
    vec![FieldError::invalid(
        &path.child("weight"),
        weight,
        "must be in the range 1-100",
    )]
}

fn pod_affinity_term(term: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    if let Some(selector) = at(term, "labelSelector") {
        errors.extend(crate::selector::validate_spec(
            selector,
            &path.child("labelSelector"),
        ));
    }
    let key = str_at(term, "topologyKey");
    if key.is_empty() {
        errors.push(FieldError::required(
            &path.child("topologyKey"),
            "can not be empty",
        ));
    } else {
        errors.extend(names::errors(
            &path.child("topologyKey"),
            key,
            names::qualified_name(key),
        ));
    }
    errors
}

fn node_selector_term(term: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    for (i, expression) in list_at(term, "matchExpressions").iter().enumerate() {
        let path = path.child("matchExpressions").index(i);
        let values = list_at(expression, "values");
        match str_at(expression, "operator") {
            "In" | "NotIn" if values.is_empty() => {
                let detail = "must be specified when `operator` is 'In' or 'NotIn'";
                errors.push(FieldError::required(&path.child("values"), detail));
            }
            "Exists" | "DoesNotExist" if !values.is_empty() => {
                let detail = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
                errors.push(FieldError::forbidden(&path.child("values"), detail));
            }
            "Gt" | "Lt" if values.len() != 1 => {
                let detail = "must be specified single value when `operator` is 'Lt' or 'Gt'";
                errors.push(FieldError::required(&path.child("values"), detail));
            }
            "In" | "NotIn" | "Exists" | "DoesNotExist" | "Gt" | "Lt" => {}
            other => errors.push(FieldError::invalid(
                &path.child("operator"),
                other,
                "not a valid selector operator",
            )),
        }
        let key = str_at(expression, "key");
        errors.extend(names::errors(
            &path.child("key"),
            key,
            names::qualified_name(key),
        ));
    }
    errors
}

/// A taint's or toleration's effect.
pub(in crate::kinds) fn validate_taint_effect(
    effect: &str,
    may_be_empty: bool,
    path: &Path,
) -> ErrorList {
    match effect {
        "" if may_be_empty => Vec::new(),
        "" => vec![FieldError::required(path, "")],
        "NoSchedule" | "PreferNoSchedule" | "NoExecute" => Vec::new(),
        other => vec![FieldError::not_supported(
            path,
            other,
            &["NoSchedule", "PreferNoSchedule", "NoExecute"],
        )],
    }
}

pub(super) fn tolerations(list: &[Value], path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    for (i, toleration) in list.iter().enumerate() {
        let path = path.index(i);
        let (key, operator) = (str_at(toleration, "key"), str_at(toleration, "operator"));
        if !key.is_empty() {
            errors.extend(names::errors(
                &path.child("key"),
                key,
                names::qualified_name(key),
            ));
        }
        if key.is_empty() && operator != "Exists" {
            let detail = "operator must be Exists when `key` is empty, which means \"match all values and all keys\"";
            errors.push(FieldError::invalid(
                &path.child("operator"),
                operator,
                detail,
            ));
        }
        if at(toleration, "tolerationSeconds").is_some()
            && str_at(toleration, "effect") != "NoExecute"
        {
            let detail = "effect must be 'NoExecute' when `tolerationSeconds` is set";
            errors.push(FieldError::invalid(
                &path.child("effect"),
                str_at(toleration, "effect"),
                detail,
            ));
        }
        let value = str_at(toleration, "value");
        match operator {
            "Equal" | "" => errors.extend(names::errors(
                &path.child("operator"),
                value,
                names::label_value(value),
            )),
            "Exists" if !value.is_empty() => {
                let detail = "value must be empty when `operator` is 'Exists'";
                let value: Value = toleration.clone();
                errors.push(FieldError::invalid(&path.child("operator"), value, detail));
            }
            "Exists" => {}
            other => errors.push(FieldError::not_supported(
                &path.child("operator"),
                other,
                &["Equal", "Exists"],
            )),
        }
        errors.extend(validate_taint_effect(
            str_at(toleration, "effect"),
            true,
            &path.child("effect"),
        ));
    }
    errors
}

pub(super) fn topology(spec: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    for (i, constraint) in list_at(spec, "topologySpreadConstraints")
        .iter()
        .enumerate()
    {
        let path = path.child("topologySpreadConstraints").index(i);
        let skew = i64_at(constraint, "maxSkew").unwrap_or_default();
        if skew <= 0 {
            errors.push(FieldError::invalid(
                &path.child("maxSkew"),
                skew,
                "must be greater than zero",
            ));
        }
        let key = str_at(constraint, "topologyKey");
        if key.is_empty() {
            errors.push(FieldError::required(
                &path.child("topologyKey"),
                "can not be empty",
            ));
        } else {
            errors.extend(names::errors(
                &path.child("topologyKey"),
                key,
                names::qualified_name(key),
            ));
        }
        let action = str_at(constraint, "whenUnsatisfiable");
        if !["DoNotSchedule", "ScheduleAnyway"].contains(&action) {
            let supported = ["DoNotSchedule", "ScheduleAnyway"];
            errors.push(FieldError::not_supported(
                &path.child("whenUnsatisfiable"),
                action,
                &supported,
            ));
        }
        if let Some(selector) = at(constraint, "labelSelector") {
            errors.extend(crate::selector::validate_spec(
                selector,
                &path.child("labelSelector"),
            ));
        }
    }
    errors
}
