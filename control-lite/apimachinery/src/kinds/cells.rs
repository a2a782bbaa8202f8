//! What the columns of several kinds share.

use super::Column;
use crate::value::{list_at, map_at, str_at};
use jiff::Timestamp;
use serde_json::{Map, Value};

/// The Name column that every Table starts with.
pub(super) const NAME: Column = Column {
    name: "Name",
    kind: "string",
    format: "name",
    priority: 0,
    description: "Unique within its namespace.",
};
/// The Age column.
pub(super) const AGE: Column = text("Age", 0, "Time since creation.");
/// The Containers column of workloads.
pub(super) const CONTAINERS: Column =
    text("Containers", 1, "Names of the containers in the template.");
/// The Images column of workloads.
pub(super) const IMAGES: Column = text("Images", 1, "Images of the containers in the template.");
/// The Selector column.
pub(super) const SELECTOR: Column = text("Selector", 1, "Which pods belong to it.");

/// A column of text.
pub(super) const fn text(name: &'static str, priority: i32, description: &'static str) -> Column {
    Column {
        name,
        kind: "string",
        format: "",
        priority,
        description,
    }
}

/// A column of numbers.
pub(super) const fn integer(
    name: &'static str,
    priority: i32,
    description: &'static str,
) -> Column {
    Column {
        name,
        kind: "integer",
        format: "",
        priority,
        description,
    }
}

/// The Name cell.
pub(super) fn name(object: &Value) -> Value {
    crate::meta::name(object).into()
}

/// The Age cell.
pub(super) fn age(object: &Value, now: Timestamp) -> Value {
    crate::duration::since(crate::meta::creation_timestamp(object), now).into()
}

/// The text at `path`, or `absent`.
pub(super) fn text_or(object: &Value, path: &str, absent: &str) -> Value {
    match str_at(object, path) {
        "" => absent,
        text => text,
    }
    .into()
}

/// The number at `path`; 0 when absent.
pub(super) fn number(object: &Value, path: &str) -> Value {
    crate::value::i64_at(object, path)
        .unwrap_or_default()
        .into()
}

/// Names and images of the template's containers.
pub(super) fn containers_and_images(object: &Value) -> (Value, Value) {
    let containers = list_at(object, "spec.template.spec.containers");
    let join = |key| {
        containers
            .iter()
            .map(|c| str_at(c, key))
            .collect::<Vec<_>>()
            .join(",")
    };
    (join("name").into(), join("image").into())
}

/// `a=b,c=d`, sorted; `<none>` for none.
pub(super) fn format_labels(labels: Option<&Map<String, Value>>) -> String {
    let mut pairs: Vec<String> = labels
        .into_iter()
        .flatten()
        .map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default()))
        .collect();
    pairs.sort();
    if pairs.is_empty() {
        "<none>".to_owned()
    } else {
        pairs.join(",")
    }
}

/// The map at `path` as labels.
pub(super) fn labels_at(object: &Value, path: &str) -> Value {
    format_labels(map_at(object, path)).into()
}

/// The first `limit` entries, and how many more there are.
pub(super) fn shortened(list: &[String], limit: usize) -> String {
    let shown = list
        .iter()
        .take(limit)
        .map(String::as_str)
        .collect::<Vec<_>>()
        .join(",");
    match list.len().checked_sub(limit) {
        Some(more) if more > 0 => format!("{shown} + {more} more..."),
        _ => shown,
    }
}
