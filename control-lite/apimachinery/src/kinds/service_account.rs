//! ServiceAccount.

use super::{ALL_VERBS, Kind, Strategy, cells};
use crate::value::list_at;

/// The table entry.
pub static SERVICE_ACCOUNT: Kind = Kind {
    group: "",
    version: "v1",
    kind: "ServiceAccount",
    plural: "serviceaccounts",
    singular: "serviceaccount",
    short_names: &["sa"],
    categories: &[],
    is_namespaced: true,
    verbs: ALL_VERBS,
    subresources: &[],
    message: "core.ServiceAccount",
    storage: "/serviceaccounts",
    is_volatile: false,
    columns: &[
        cells::NAME,
        cells::text("Secrets", 0, "Number of secrets it names."),
        cells::AGE,
    ],
    cells: |object, now| {
        vec![
            cells::name(object),
            list_at(object, "secrets").len().into(),
            cells::age(object, now),
        ]
    },
    field_selectors: &[],
    name_rule: crate::names::dns_subdomain,
    strategy: Strategy::PLAIN,
};
