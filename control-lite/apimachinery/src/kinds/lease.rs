//! Lease of coordination.k8s.io.

use super::{ALL_VERBS, Kind, Strategy, cells};
use crate::field::{ErrorList, FieldError, Path};
use crate::value::{at, i64_at, str_at};
use serde_json::Value;

/// The table entry.
pub static LEASE: Kind = Kind {
    group: "coordination.k8s.io",
    version: "v1",
    kind: "Lease",
    plural: "leases",
    singular: "lease",
    short_names: &[],
    categories: &[],
    is_namespaced: true,
    verbs: ALL_VERBS,
    subresources: &[],
    message: "coordination.Lease",
    storage: "coordination.k8s.io/leases",
    is_volatile: true,
    columns: &[
        cells::NAME,
        cells::text("Holder", 0, "Who holds it."),
        cells::AGE,
    ],
    cells: |object, now| {
        vec![
            cells::name(object),
            cells::text_or(object, "spec.holderIdentity", ""),
            cells::age(object, now),
        ]
    },
    field_selectors: &[],
    name_rule: crate::names::dns_subdomain,
    strategy: Strategy {
        validate,
        validate_update: |new, _| validate(new),
        ..Strategy::PLAIN
    },
};

fn validate(object: &Value) -> ErrorList {
    let path = Path::new("spec");
    let mut errors = ErrorList::new();
    if at(object, "spec.holderIdentity").is_some()
        && str_at(object, "spec.holderIdentity").is_empty()
    {
        errors.push(FieldError::invalid(
            &path.child("holderIdentity"),
            "",
            "must not be empty",
        ));
    }
    if let Some(secs) = i64_at(object, "spec.leaseDurationSeconds").filter(|s| *s <= 0) {
        errors.push(FieldError::invalid(
            &path.child("leaseDurationSeconds"),
            secs,
            "must be greater than 0",
        ));
    }
    if let Some(count) = i64_at(object, "spec.leaseTransitions").filter(|s| *s < 0) {
        let detail = "must be greater than or equal to 0";
        errors.push(FieldError::invalid(
            &path.child("leaseTransitions"),
            count,
            detail,
        ));
    }
    errors
}
