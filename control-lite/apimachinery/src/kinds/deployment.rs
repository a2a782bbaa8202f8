//! Deployment of apps.

use super::{ALL_VERBS, Kind, Strategy, Subresource, cells, template};
use crate::field::{ErrorList, FieldError, Path};
use crate::selector::LabelSelector;
use crate::value::{at, default_to, ensure_map, i64_at, str_at};
use jiff::Timestamp;
use serde_json::{Value, json};

/// The table entry.
pub static DEPLOYMENT: Kind = Kind {
    group: "apps",
    version: "v1",
    kind: "Deployment",
    plural: "deployments",
    singular: "deployment",
    short_names: &["deploy"],
    categories: &["all"],
    is_namespaced: true,
    verbs: ALL_VERBS,
    subresources: &[
        Subresource {
            name: "scale",
            group: "autoscaling",
            version: "v1",
            kind: "Scale",
            verbs: &["get", "patch", "update"],
        },
        Subresource {
            name: "status",
            group: "apps",
            version: "v1",
            kind: "Deployment",
            verbs: &["get", "patch", "update"],
        },
    ],
    message: "apps.Deployment",
    storage: "apps/deployments",
    is_volatile: false,
    columns: &[
        cells::NAME,
        cells::text("Ready", 0, "Pods that are ready, of those wanted."),
        cells::text("Up-to-date", 0, "Pods that have the latest template."),
        cells::text("Available", 0, "Pods that have been ready long enough."),
        cells::AGE,
        cells::CONTAINERS,
        cells::IMAGES,
        cells::SELECTOR,
    ],
    cells: row,
    field_selectors: &[],
    name_rule: crate::names::dns_subdomain,
    strategy: Strategy {
        default,
        validate,
        validate_update,
        validate_status_update,
        has_generation: true,
        counts_annotations: true,
        ..Strategy::PLAIN
    },
};

fn row(object: &Value, now: Timestamp) -> Vec<Value> {
    let count = |path| i64_at(object, path).unwrap_or_default();
    let (containers, images) = cells::containers_and_images(object);
    vec![
        cells::name(object),
        format!(
            "{}/{}",
            count("status.readyReplicas"),
            count("spec.replicas")
        )
        .into(),
        count("status.updatedReplicas").into(),
        count("status.availableReplicas").into(),
        cells::age(object, now),
        containers,
        images,
        LabelSelector::from_spec(at(object, "spec.selector"))
            .to_string()
            .into(),
    ]
}

fn default(object: &mut Value) {
    ensure_map(object, "spec.template");
    template::default(object);
    let spec = ensure_map(object, "spec");
    default_to(spec, "replicas", 1);
    let strategy = ensure_map(object, "spec.strategy");
    default_to(strategy, "type", "RollingUpdate");
    if strategy.get("type") == Some(&json!("RollingUpdate")) {
        let rolling = ensure_map(object, "spec.strategy.rollingUpdate");
        default_to(rolling, "maxUnavailable", "25%");
        default_to(rolling, "maxSurge", "25%");
    }
    let spec = ensure_map(object, "spec");
    default_to(spec, "revisionHistoryLimit", 10);
    default_to(spec, "progressDeadlineSeconds", 600);
}

fn validate(object: &Value) -> ErrorList {
    let path = Path::new("spec");
    let mut errors = template::validate_counts(object, "spec", &["replicas"]);
    errors.extend(template::validate_selector(
        object,
        "empty selector is invalid for deployment",
    ));
    // An absent selector selects nothing, so it does not match the template either: upstream reports both.
    errors.extend(template::validate(
        object,
        &LabelSelector::from_spec(at(object, "spec.selector")),
    ));
    errors.extend(validate_strategy(object, &path.child("strategy")));
    errors.extend(template::validate_counts(
        object,
        "spec",
        &[
            "minReadySeconds",
            "revisionHistoryLimit",
            "progressDeadlineSeconds",
        ],
    ));
    let (deadline, ready) = (
        i64_at(object, "spec.progressDeadlineSeconds"),
        i64_at(object, "spec.minReadySeconds"),
    );
    if let Some(deadline) = deadline.filter(|d| *d <= ready.unwrap_or_default()) {
        let detail = "must be greater than minReadySeconds";
        errors.push(FieldError::invalid(
            &path.child("progressDeadlineSeconds"),
            deadline,
            detail,
        ));
    }
    errors
}

fn validate_strategy(object: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let rolling = at(object, "spec.strategy.rollingUpdate");
    match str_at(object, "spec.strategy.type") {
        "Recreate" if rolling.is_some() => {
            let detail = "may not be specified when strategy `type` is 'Recreate'";
            errors.push(FieldError::forbidden(&path.child("rollingUpdate"), detail));
        }
        "Recreate" => {}
        "RollingUpdate" => {
            let path = path.child("rollingUpdate");
            let (unavailable, surge) = (
                rolling.and_then(|r| r.get("maxUnavailable")),
                rolling.and_then(|r| r.get("maxSurge")),
            );
            errors.extend(validate_share(
                unavailable,
                false,
                &path.child("maxUnavailable"),
            ));
            errors.extend(validate_share(surge, true, &path.child("maxSurge")));
            if is_zero(unavailable) && is_zero(surge) {
                let value = unavailable.cloned().unwrap_or_default();
                errors.push(FieldError::invalid(
                    &path.child("maxUnavailable"),
                    value,
                    "may not be 0 when `maxSurge` is 0",
                ));
            }
        }
        "" => errors.push(FieldError::required(&path.child("type"), "")),
        other => errors.push(FieldError::not_supported(
            &path.child("type"),
            other,
            &["Recreate", "RollingUpdate"],
        )),
    }
    errors
}

fn percent(value: Option<&Value>) -> Option<u64> {
    value?
        .as_str()?
        .strip_suffix('%')
        .filter(|d| d.bytes().all(|b| b.is_ascii_digit()))?
        .parse()
        .ok()
}

fn is_zero(value: Option<&Value>) -> bool {
    value.is_none_or(|v| *v == json!(0)) || percent(value) == Some(0)
}

/// A count, or a percentage; of `maxUnavailable` at most all of them.
fn validate_share(value: Option<&Value>, may_exceed: bool, path: &Path) -> ErrorList {
    match value {
        Some(Value::String(text)) => match percent(value) {
            None => {
                let detail = "a valid percent string must be a numeric string followed by an ending '%' \
                     (e.g. '1%',  or '93%', regex used for validation is '[0-9]+%')";
                vec![FieldError::invalid(path, text.as_str(), detail)]
            }
            Some(share) if share > 100 && !may_exceed => {
                vec![FieldError::invalid(
                    path,
                    text.as_str(),
                    "must not be greater than 100%",
                )]
            }
            Some(_) => Vec::new(),
        },
        Some(number) if number.as_i64().is_some_and(|n| n < 0) => {
            vec![FieldError::invalid(
                path,
                number.clone(),
                "must be greater than or equal to 0",
            )]
        }
        _ => Vec::new(),
    }
}

fn validate_update(new: &Value, old: &Value) -> ErrorList {
    let mut errors = validate(new);
    errors.extend(template::validate_selector_update(new, old));
    errors
}

fn validate_status_update(new: &Value, old: &Value) -> ErrorList {
    let keys = [
        "observedGeneration",
        "replicas",
        "updatedReplicas",
        "readyReplicas",
        "availableReplicas",
        "unavailableReplicas",
    ];
    let mut errors = template::validate_counts(new, "status", &keys);
    let count =
        |object: &Value, key: &str| i64_at(object, &format!("status.{key}")).unwrap_or_default();
    for (key, bound) in [
        ("updatedReplicas", "replicas"),
        ("readyReplicas", "replicas"),
        ("availableReplicas", "replicas"),
        ("availableReplicas", "readyReplicas"),
    ] {
        if count(new, key) > count(new, bound) {
            let detail = format!(
                "cannot be greater than {}",
                if bound == "replicas" {
                    "status.replicas"
                } else {
                    bound
                }
            );
            errors.push(FieldError::invalid(
                &Path::new("status").child(key),
                count(new, key),
                detail,
            ));
        }
    }
    let collisions = |o| i64_at(o, "status.collisionCount");
    if let Some(before) = collisions(old) {
        let path = Path::new("status").child("collisionCount");
        match collisions(new) {
            None => errors.push(FieldError::invalid(&path, Value::Null, "cannot be removed")),
            Some(after) if after < before => {
                errors.push(FieldError::invalid(&path, after, "cannot be decremented"));
            }
            Some(_) => {}
        }
    }
    errors
}
