//! The table of kinds: one static `Kind` per kind, found by resource or by kind. What is not here is not served.

use crate::error::ApiError;
use crate::field::ErrorList;
use crate::names::NameRule;
use crate::selector::{FieldSelector, InvalidFieldSelector};
use jiff::Timestamp;
use serde_json::Value;

mod cells;
mod config_map;
mod deployment;
mod endpoint_slice;
mod endpoints;
mod event;
mod lease;
mod namespace;
mod network_policy;
mod node;
mod pod;
mod replica_set;
mod replication_controller;
pub mod scale;
mod secret;
mod service;
mod service_account;
mod strategy;
mod template;
#[cfg(test)]
mod tests;

pub use config_map::CONFIG_MAP;
pub use deployment::DEPLOYMENT;
pub use endpoint_slice::ENDPOINT_SLICE;
pub use endpoints::ENDPOINTS;
pub use event::{EVENT, EVENTS_EVENT};
pub use lease::LEASE;
pub use namespace::NAMESPACE;
pub use network_policy::NETWORK_POLICY;
pub use node::NODE;
pub use pod::{POD, qos_class};
pub use replica_set::REPLICA_SET;
pub use replication_controller::REPLICATION_CONTROLLER;
pub use secret::SECRET;
pub use service::SERVICE;
pub use service_account::SERVICE_ACCOUNT;
pub use strategy::{Conversion, Strategy};

/// One column of `kubectl get`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Column {
    /// Heading; kubectl prints it in capitals.
    pub name: &'static str,
    /// `string`, `integer` or `boolean`.
    pub kind: &'static str,
    /// `name` for the first column.
    pub format: &'static str,
    /// Above 0: only with `-o wide`.
    pub priority: i32,
    /// A sentence about it.
    pub description: &'static str,
}

/// A subresource that is served.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Subresource {
    /// Last path segment.
    pub name: &'static str,
    /// Group of the object it speaks.
    pub group: &'static str,
    /// Version of the object it speaks.
    pub version: &'static str,
    /// Kind of the object it speaks.
    pub kind: &'static str,
    /// What it answers to.
    pub verbs: &'static [&'static str],
}

/// One kind of object the API serves.
#[derive(Debug)]
pub struct Kind {
    /// API group; empty for the core one.
    pub group: &'static str,
    /// Version.
    pub version: &'static str,
    /// Kind.
    pub kind: &'static str,
    /// Path segment and resource name.
    pub plural: &'static str,
    /// For `kubectl get pod`.
    pub singular: &'static str,
    /// For `kubectl get po`.
    pub short_names: &'static [&'static str],
    /// For `kubectl get all`.
    pub categories: &'static [&'static str],
    /// Whether objects live in a namespace.
    pub is_namespaced: bool,
    /// What the resource answers to.
    pub verbs: &'static [&'static str],
    /// Its subresources.
    pub subresources: &'static [Subresource],
    /// Message name in the schema.
    pub message: &'static str,
    /// `group/resource` it is stored under: two versions of one object share it.
    pub storage: &'static str,
    /// Kept in memory mostly: losing the last minutes is harmless (Leases, Events).
    pub is_volatile: bool,
    /// Columns of its Table, without the cells.
    pub columns: &'static [Column],
    /// Cells of one object, as many as there are columns.
    pub cells: fn(&Value, Timestamp) -> Vec<Value>,
    /// Fields it can be selected by, besides `metadata.name` and `metadata.namespace`.
    pub field_selectors: &'static [&'static str],
    /// Rule of its names.
    pub name_rule: NameRule,
    /// Its behaviour on create and update.
    pub strategy: Strategy,
}

/// The verbs of an ordinary resource.
pub const ALL_VERBS: &[&str] = &[
    "create",
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "update",
    "watch",
];

impl Kind {
    /// `v1` or `apps/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    /// `PodList`.
    pub fn list_kind(&self) -> String {
        format!("{}List", self.kind)
    }

    /// `pods` or `deployments.apps`, as messages have it.
    pub fn qualified(&self) -> String {
        crate::error::qualified(self.group, self.plural)
    }

    /// Whether the subresource is served.
    pub fn subresource(&self, name: &str) -> Option<&'static Subresource> {
        self.subresources.iter().find(|s| s.name == name)
    }

    /// Whether the kind has a `status` subresource.
    pub fn has_status(&self) -> bool {
        self.subresource("status").is_some()
    }

    /// Fills in upstream's defaults. Idempotent; runs on every decoded object, before validation.
    pub fn apply_defaults(&self, object: &mut Value) {
        (self.strategy.default)(object);
    }

    /// Removes what a client may not set on create (status), and starts the generation.
    pub fn prepare_create(&self, object: &mut Value) {
        self.strategy.prepare_create(self, object);
    }

    /// Validates a new object. Names are already generated, the namespace is already set.
    pub fn validate_create(&self, object: &Value) -> Result<(), ApiError> {
        let mut errors = crate::meta::validate_create(object, self.is_namespaced, self.name_rule);
        errors.extend((self.strategy.validate)(object));
        self.invalid(object, errors)
    }

    /// Takes over from `old` what an update may not touch: status, generation (counted up on a spec change), metadata.
    pub fn prepare_update(&self, new: &mut Value, old: &Value) {
        self.strategy.prepare_update(self, new, old);
    }

    /// Validates an update of the main resource.
    pub fn validate_update(&self, new: &Value, old: &Value) -> Result<(), ApiError> {
        let mut errors = crate::meta::validate_update(new, old);
        errors.extend((self.strategy.validate_update)(new, old));
        self.invalid(new, errors)
    }

    /// Takes over from `old` everything but status (and labels and annotations, as upstream).
    pub fn prepare_status_update(&self, new: &mut Value, old: &Value) {
        self.strategy.prepare_status_update(self, new, old);
    }

    /// Validates an update of `/status`.
    pub fn validate_status_update(&self, new: &Value, old: &Value) -> Result<(), ApiError> {
        let mut errors = crate::meta::validate_update(new, old);
        errors.extend((self.strategy.validate_status_update)(new, old));
        self.invalid(new, errors)
    }

    /// Cells of the object's row.
    pub fn row_cells(&self, object: &Value, now: Timestamp) -> Vec<Value> {
        (self.cells)(object, now)
    }

    /// Refuses a selector over a field this kind cannot be selected by.
    pub fn check_field_selector(
        &self,
        selector: &FieldSelector,
    ) -> Result<(), InvalidFieldSelector> {
        for term in selector.terms() {
            let field = term.field.as_str();
            let is_metadata =
                field == "metadata.name" || (field == "metadata.namespace" && self.is_namespaced);
            if !is_metadata && !self.field_selectors.contains(&field) {
                let message = strategy::unsupported_field(self, field);
                return Err(InvalidFieldSelector::Unsupported(message));
            }
        }
        Ok(())
    }

    /// The text of a selectable field.
    pub fn field(&self, object: &Value, path: &str) -> String {
        strategy::field_text(self, object, path)
    }

    /// Whether the object is selected.
    pub fn matches_fields(&self, object: &Value, selector: &FieldSelector) -> bool {
        selector.is_everything() || selector.matches(|path| self.field(object, path))
    }

    /// What the API says to everybody who uses a kind that is on its way out; for a `Warning` header.
    pub fn deprecation_warning(&self) -> Option<&'static str> {
        match (self.group, self.kind) {
            ("", "Endpoints") => {
                Some("v1 Endpoints is deprecated in v1.33+; use discovery.k8s.io/v1 EndpointSlice")
            }
            _ => None,
        }
    }

    /// An object of this version in the form it is stored in. Comes before defaults, strategy and validation.
    pub fn to_storage(&self, object: Value) -> Value {
        match self.strategy.conversion {
            Some(conversion) => (conversion.to_storage)(object),
            None => object,
        }
    }

    /// A stored object in the form of this version.
    pub fn from_storage(&self, object: Value) -> Value {
        match self.strategy.conversion {
            Some(conversion) => (conversion.from_storage)(object),
            None => object,
        }
    }

    fn invalid(&self, object: &Value, errors: ErrorList) -> Result<(), ApiError> {
        if errors.is_empty() {
            return Ok(());
        }
        let name = match crate::meta::name(object) {
            "" => crate::meta::generate_name(object),
            name => name,
        };
        Err(ApiError::invalid(self.group, self.kind, name, &errors))
    }
}

/// Some values have a single and a plural field, the first of the plural being the single one. A writer that knows only one of them
/// gets the other; where they disagree the single one wins, as in upstream's conversion. `key` is set for lists of objects.
fn mirror_first(object: &mut Value, single: &str, plural: &str, key: Option<&str>) {
    let one = crate::value::str_at(object, single).to_owned();
    let first = crate::value::list_at(object, plural)
        .first()
        .map(|f| match key {
            Some(key) => crate::value::str_at(f, key).to_owned(),
            None => f.as_str().unwrap_or_default().to_owned(),
        });
    match first {
        Some(first) if one.is_empty() => crate::value::set(object, single, first),
        Some(first) if first == one => {}
        _ if one.is_empty() => {}
        _ => {
            let entry = key.map_or_else(
                || Value::from(one.as_str()),
                |key| serde_json::json!({key: one}),
            );
            crate::value::set(object, plural, vec![entry]);
        }
    }
}

/// Every kind, in discovery's order.
pub fn all() -> &'static [&'static Kind] {
    ALL
}

static ALL: &[&Kind] = &[
    &CONFIG_MAP,
    &ENDPOINTS,
    &EVENT,
    &NAMESPACE,
    &NODE,
    &POD,
    &REPLICATION_CONTROLLER,
    &SECRET,
    &SERVICE_ACCOUNT,
    &SERVICE,
    &DEPLOYMENT,
    &REPLICA_SET,
    &LEASE,
    &ENDPOINT_SLICE,
    &EVENTS_EVENT,
    &NETWORK_POLICY,
];

/// Finds a kind by group, version and plural.
pub fn by_resource(group: &str, version: &str, plural: &str) -> Option<&'static Kind> {
    ALL.iter()
        .copied()
        .find(|k| k.plural == plural && k.group == group && k.version == version)
}

/// Finds a kind by `apiVersion` and `kind`.
pub fn by_kind(api_version: &str, kind: &str) -> Option<&'static Kind> {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    ALL.iter()
        .copied()
        .find(|k| k.kind == kind && k.group == group && k.version == version)
}

/// The groups and versions served, core first, each with its kinds.
pub fn group_versions() -> Vec<(&'static str, &'static str)> {
    let mut out: Vec<(&str, &str)> = Vec::new();
    for kind in ALL {
        if !out.contains(&(kind.group, kind.version)) {
            out.push((kind.group, kind.version));
        }
    }
    out
}
