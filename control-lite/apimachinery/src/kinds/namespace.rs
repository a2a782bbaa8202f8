//! Namespace.

use super::{Kind, Strategy, Subresource, cells};
use crate::field::{ErrorList, FieldError, Path};
use crate::value::{copy, default_to, ensure_map, list_at, set};
use serde_json::{Value, json};

/// The table entry.
pub static NAMESPACE: Kind = Kind {
    group: "",
    version: "v1",
    kind: "Namespace",
    plural: "namespaces",
    singular: "namespace",
    short_names: &["ns"],
    categories: &[],
    is_namespaced: false,
    // Upstream has no deletecollection here: deleting all namespaces by accident is too easy.
    verbs: &[
        "create", "delete", "get", "list", "patch", "update", "watch",
    ],
    subresources: &[
        Subresource {
            name: "status",
            group: "",
            version: "v1",
            kind: "Namespace",
            verbs: &["get", "patch", "update"],
        },
        Subresource {
            name: "finalize",
            group: "",
            version: "v1",
            kind: "Namespace",
            verbs: &["update"],
        },
    ],
    message: "core.Namespace",
    storage: "/namespaces",
    is_volatile: false,
    columns: &[
        cells::NAME,
        cells::text("Status", 0, "Active, or Terminating."),
        cells::AGE,
    ],
    cells: |object, now| {
        vec![
            cells::name(object),
            cells::text_or(object, "status.phase", ""),
            cells::age(object, now),
        ]
    },
    field_selectors: &["status.phase"],
    name_rule: crate::names::dns_label,
    strategy: Strategy {
        default,
        validate,
        prepare,
        ..Strategy::PLAIN
    },
};

fn default(object: &mut Value) {
    let name = crate::meta::name(object).to_owned();
    if !name.is_empty() {
        crate::meta::set_label(object, "kubernetes.io/metadata.name", &name);
    }
    default_to(ensure_map(object, "status"), "phase", "Active");
}

fn prepare(new: &mut Value, old: Option<&Value>) {
    let Some(old) = old else {
        set(new, "status", json!({"phase": "Active"}));
        let mut finalizers = list_at(new, "spec.finalizers").to_vec();
        if !finalizers.contains(&json!("kubernetes")) {
            finalizers.push(json!("kubernetes"));
        }
        set(new, "spec.finalizers", finalizers);
        // The name may have been generated after defaulting.
        default(new);
        return;
    };
    copy(old, new, "spec.finalizers");
}

fn validate(object: &Value) -> ErrorList {
    let path = Path::new("spec").child("finalizers");
    let mut errors = ErrorList::new();
    for (i, finalizer) in list_at(object, "spec.finalizers")
        .iter()
        .filter_map(Value::as_str)
        .enumerate()
    {
        let path = path.index(i);
        errors.extend(crate::names::errors(
            &path,
            finalizer,
            crate::names::qualified_name(finalizer),
        ));
        if !finalizer.contains('/') && finalizer != "kubernetes" {
            errors.push(FieldError::invalid(
                &path,
                finalizer,
                "name is neither a standard finalizer name nor is it fully qualified",
            ));
        }
    }
    errors
}
