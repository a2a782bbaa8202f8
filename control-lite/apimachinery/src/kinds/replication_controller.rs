//! ReplicationController.

use super::{ALL_VERBS, Kind, Strategy, Subresource, cells, replica_set, template};
use crate::field::{ErrorList, FieldError, Path};
use crate::selector::LabelSelector;
use crate::value::{at, default_to, ensure_map, map_at, set};
use serde_json::{Map, Value};

/// The table entry.
pub static REPLICATION_CONTROLLER: Kind = Kind {
    group: "",
    version: "v1",
    kind: "ReplicationController",
    plural: "replicationcontrollers",
    singular: "replicationcontroller",
    short_names: &["rc"],
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
            group: "",
            version: "v1",
            kind: "ReplicationController",
            verbs: &["get", "patch", "update"],
        },
    ],
    message: "core.ReplicationController",
    storage: "/controllers",
    is_volatile: false,
    columns: replica_set::COLUMNS,
    cells: |object, now| {
        replica_set::row(
            object,
            now,
            cells::format_labels(map_at(object, "spec.selector")),
        )
    },
    field_selectors: &["status.replicas"],
    name_rule: crate::names::dns_subdomain,
    strategy: Strategy {
        default,
        validate,
        validate_update: |new, _| validate(new),
        validate_status_update: |new, _| template::validate_status(new),
        has_generation: true,
        ..Strategy::PLAIN
    },
};

fn default(object: &mut Value) {
    template::default(object);
    let labels = map_at(object, "spec.template.metadata.labels")
        .filter(|l| !l.is_empty())
        .cloned();
    if let Some(labels) = labels {
        if map_at(object, "spec.selector").is_none_or(Map::is_empty) {
            set(object, "spec.selector", labels.clone());
        }
        if crate::meta::labels(object).is_none_or(Map::is_empty) {
            set(object, "metadata.labels", labels);
        }
    }
    default_to(ensure_map(object, "spec"), "replicas", 1);
}

fn validate(object: &Value) -> ErrorList {
    let path = Path::new("spec");
    let mut errors = template::validate_counts(object, "spec", &["minReadySeconds"]);
    let selector = map_at(object, "spec.selector");
    if selector.is_none_or(Map::is_empty) {
        errors.push(FieldError::required(&path.child("selector"), ""));
    }
    errors.extend(template::validate_counts(object, "spec", &["replicas"]));
    if at(object, "spec.template").is_none() {
        errors.push(FieldError::required(&path.child("template"), ""));
    } else {
        let selector = match selector {
            Some(map) if !map.is_empty() => LabelSelector::from_map(Some(map)),
            _ => LabelSelector::everything(),
        };
        errors.extend(template::validate(object, &selector));
    }
    errors
}
