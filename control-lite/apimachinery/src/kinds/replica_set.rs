//! ReplicaSet of apps.

use super::{ALL_VERBS, Kind, Strategy, Subresource, cells, template};
use crate::field::ErrorList;
use crate::selector::LabelSelector;
use crate::value::{at, default_to, ensure_map};
use jiff::Timestamp;
use serde_json::Value;

/// The table entry.
pub static REPLICA_SET: Kind = Kind {
    group: "apps",
    version: "v1",
    kind: "ReplicaSet",
    plural: "replicasets",
    singular: "replicaset",
    short_names: &["rs"],
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
            kind: "ReplicaSet",
            verbs: &["get", "patch", "update"],
        },
    ],
    message: "apps.ReplicaSet",
    storage: "apps/replicasets",
    is_volatile: false,
    columns: COLUMNS,
    cells: |object, now| {
        let selector = LabelSelector::from_spec(at(object, "spec.selector")).to_string();
        row(object, now, selector)
    },
    field_selectors: &[],
    name_rule: crate::names::dns_subdomain,
    strategy: Strategy {
        default,
        validate,
        validate_update,
        validate_status_update: |new, _| template::validate_status(new),
        has_generation: true,
        ..Strategy::PLAIN
    },
};

/// Columns of everything that keeps replicas.
pub(super) const COLUMNS: &[super::Column] = &[
    cells::NAME,
    cells::integer("Desired", 0, "Pods wanted."),
    cells::integer("Current", 0, "Pods there are."),
    cells::integer("Ready", 0, "Pods that are ready."),
    cells::AGE,
    cells::CONTAINERS,
    cells::IMAGES,
    cells::SELECTOR,
];

/// The row of everything that keeps replicas.
pub(super) fn row(object: &Value, now: Timestamp, selector: String) -> Vec<Value> {
    let (containers, images) = cells::containers_and_images(object);
    vec![
        cells::name(object),
        cells::number(object, "spec.replicas"),
        cells::number(object, "status.replicas"),
        cells::number(object, "status.readyReplicas"),
        cells::age(object, now),
        containers,
        images,
        selector.into(),
    ]
}

fn default(object: &mut Value) {
    crate::value::ensure_map(object, "spec.template");
    template::default(object);
    default_to(ensure_map(object, "spec"), "replicas", 1);
}

fn validate(object: &Value) -> ErrorList {
    let mut errors = template::validate_counts(object, "spec", &["replicas", "minReadySeconds"]);
    errors.extend(template::validate_selector(
        object,
        "empty selector is invalid for deployment",
    ));
    let selector = LabelSelector::from_spec(at(object, "spec.selector"));
    errors.extend(template::validate(object, &selector));
    errors
}

fn validate_update(new: &Value, old: &Value) -> ErrorList {
    let mut errors = validate(new);
    errors.extend(template::validate_selector_update(new, old));
    errors
}
