//! What create and update do to an object of any kind: which parts a client may set, and when the generation counts.

use super::Kind;
use crate::field::{ErrorList, quote};
use crate::value::{at, copy, remove, semantically_equal, set};
use serde_json::Value;

/// Conversion between a version and the stored form.
#[derive(Debug, Clone, Copy)]
pub struct Conversion {
    /// Request form to stored form.
    pub to_storage: fn(Value) -> Value,
    /// Stored form to this version's.
    pub from_storage: fn(Value) -> Value,
}

/// The per-kind parts of create, update and status update.
#[derive(Debug, Clone, Copy)]
pub struct Strategy {
    /// Fills in defaults; must be idempotent.
    pub default: fn(&mut Value),
    /// Checks a new object's spec.
    pub validate: fn(&Value) -> ErrorList,
    /// Checks an update: `(new, old)`.
    pub validate_update: fn(&Value, &Value) -> ErrorList,
    /// Checks a status update: `(new, old)`.
    pub validate_status_update: fn(&Value, &Value) -> ErrorList,
    /// Kind-specific changes on create (`old` is none) and update, after the common ones.
    pub prepare: fn(&mut Value, Option<&Value>),
    /// Whether the kind counts `metadata.generation`.
    pub has_generation: bool,
    /// Whether a change of annotations counts as a change of the spec too (Deployments).
    pub counts_annotations: bool,
    /// Whether a client may bring a status on create (Nodes register with theirs).
    pub keeps_status_on_create: bool,
    /// Conversion from and to the stored form.
    pub conversion: Option<Conversion>,
}

fn accept(_: &Value) -> ErrorList {
    ErrorList::new()
}

fn accept_update(_: &Value, _: &Value) -> ErrorList {
    ErrorList::new()
}

impl Strategy {
    /// No defaults, no rules, no generation.
    pub const PLAIN: Self = Self {
        default: |_| {},
        validate: accept,
        validate_update: accept_update,
        validate_status_update: accept_update,
        prepare: |_, _| {},
        has_generation: false,
        counts_annotations: false,
        keeps_status_on_create: false,
        conversion: None,
    };

    pub(super) fn prepare_create(&self, kind: &Kind, object: &mut Value) {
        if kind.has_status() && !self.keeps_status_on_create {
            drop(remove(object, "status"));
        }
        if self.has_generation {
            set(object, "metadata.generation", 1);
        } else {
            drop(remove(object, "metadata.generation"));
        }
        (self.prepare)(object, None);
    }

    pub(super) fn prepare_update(&self, kind: &Kind, new: &mut Value, old: &Value) {
        crate::meta::inherit(new, old);
        copy(old, new, "metadata.generation");
        if kind.has_status() {
            copy(old, new, "status");
        }
        (self.prepare)(new, Some(old));
        if self.has_generation && self.is_changed(kind, new, old) {
            set(new, "metadata.generation", crate::meta::generation(old) + 1);
        }
    }

    fn is_changed(&self, kind: &Kind, new: &Value, old: &Value) -> bool {
        if self.counts_annotations
            && !semantically_equal(
                at(new, "metadata.annotations"),
                at(old, "metadata.annotations"),
            )
        {
            return true;
        }
        if kind.has_status() {
            return !semantically_equal(at(new, "spec"), at(old, "spec"));
        }
        // Kinds without spec and status (EndpointSlice): everything but metadata, and labels.
        let without_metadata = |v: &Value| {
            let mut v = v.clone();
            drop(remove(&mut v, "metadata"));
            v
        };
        !semantically_equal(Some(&without_metadata(new)), Some(&without_metadata(old)))
            || !semantically_equal(at(new, "metadata.labels"), at(old, "metadata.labels"))
    }

    pub(super) fn prepare_status_update(&self, kind: &Kind, new: &mut Value, old: &Value) {
        crate::meta::inherit(new, old);
        copy(old, new, "metadata.generation");
        copy(old, new, "spec");
        if kind.kind == "Deployment" {
            copy(old, new, "metadata.labels");
        }
        if kind.kind == "Pod" {
            copy(old, new, "metadata.ownerReferences");
            copy(old, new, "status.qosClass");
        }
    }
}

/// What upstream says about a field that cannot be selected by.
pub(super) fn unsupported_field(kind: &Kind, field: &str) -> String {
    if kind.field_selectors.is_empty() {
        let known = [quote("metadata.name"), quote("metadata.namespace")].join(", ");
        format!(
            "{} is not a known field selector: only {known}",
            quote(field)
        )
    } else {
        format!("field label not supported: {field}")
    }
}

/// The text of a selectable field; absent booleans and counts have their zero value, as in typed objects.
pub(super) fn field_text(kind: &Kind, object: &Value, path: &str) -> String {
    let path = match (kind.kind, path) {
        ("Event", "source") => {
            let component = crate::value::str_at(object, "source.component");
            let reporter = crate::value::str_at(object, "reportingComponent");
            return if component.is_empty() {
                reporter
            } else {
                component
            }
            .to_owned();
        }
        (_, path) => path,
    };
    match (at(object, path), path) {
        (Some(Value::String(s)), _) => s.clone(),
        (Some(other), _) => other.to_string(),
        (None, "spec.hostNetwork" | "spec.unschedulable") => "false".to_owned(),
        (None, "status.replicas") => "0".to_owned(),
        (None, _) => String::new(),
    }
}
