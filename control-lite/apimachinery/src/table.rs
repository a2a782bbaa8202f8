//! `meta.k8s.io/v1` Table and PartialObjectMetadata: the forms of objects that `kubectl get` and metadata clients ask for.

use crate::Kind;
use crate::list::ListMeta;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

/// What a Table's rows carry of their objects.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum IncludeObject {
    /// Nothing.
    None,
    /// PartialObjectMetadata; the default.
    #[default]
    Metadata,
    /// Everything.
    Object,
}

impl IncludeObject {
    /// Reads the query parameter; `None` for a text that is no policy.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "" | "Metadata" => Some(Self::Metadata),
            "None" => Some(Self::None),
            "Object" => Some(Self::Object),
            _ => None,
        }
    }
}

/// A Table of `objects`. `with_columns` is false from the second event of a watch on, as upstream.
pub fn table(
    kind: &Kind,
    meta: &ListMeta,
    objects: &[Value],
    include: IncludeObject,
    with_columns: bool,
    now: Timestamp,
) -> Value {
    let rows: Vec<Value> = objects.iter().map(|o| row(kind, o, include, now)).collect();
    let columns = if with_columns {
        column_definitions(kind)
    } else {
        Value::Array(Vec::new())
    };
    json!({
        "kind": "Table", "apiVersion": "meta.k8s.io/v1",
        "metadata": meta.to_json(), "columnDefinitions": columns, "rows": rows,
    })
}

/// A Table of one object; its metadata carries the object's own revision.
pub fn single(
    kind: &Kind,
    object: &Value,
    include: IncludeObject,
    with_columns: bool,
    now: Timestamp,
) -> Value {
    let meta = ListMeta {
        resource_version: crate::meta::resource_version(object)
            .parse()
            .unwrap_or_default(),
        ..ListMeta::default()
    };
    table(
        kind,
        &meta,
        std::slice::from_ref(object),
        include,
        with_columns,
        now,
    )
}

fn column_definitions(kind: &Kind) -> Value {
    kind.columns
        .iter()
        .map(|c| {
            json!({"name": c.name, "type": c.kind, "format": c.format, "description": c.description, "priority": c.priority})
        })
        .collect()
}

fn row(kind: &Kind, object: &Value, include: IncludeObject, now: Timestamp) -> Value {
    let mut row = Map::new();
    row.insert(
        "cells".to_owned(),
        Value::Array(kind.row_cells(object, now)),
    );
    let conditions = row_conditions(kind, object);
    if !conditions.is_null() {
        row.insert("conditions".to_owned(), conditions);
    }
    let carried = match include {
        IncludeObject::None => Value::Null,
        IncludeObject::Metadata => partial_metadata(object, "meta.k8s.io/v1"),
        IncludeObject::Object => object.clone(),
    };
    if !carried.is_null() {
        row.insert("object".to_owned(), carried);
    }
    Value::Object(row)
}

/// kubectl leaves finished pods out of some views by this condition.
fn row_conditions(kind: &Kind, object: &Value) -> Value {
    if kind.kind != "Pod" {
        return Value::Null;
    }
    let (reason, message) = match crate::value::str_at(object, "status.phase") {
        "Succeeded" => ("Succeeded", "The pod has completed successfully."),
        "Failed" => ("Failed", "The pod failed."),
        _ => return Value::Null,
    };
    json!([{"type": "Completed", "status": "True", "reason": reason, "message": message}])
}

/// The object's metadata alone. `api_version` is `meta.k8s.io/v1` or `meta.k8s.io/v1beta1`.
pub fn partial_metadata(object: &Value, api_version: &str) -> Value {
    json!({
        "kind": "PartialObjectMetadata", "apiVersion": api_version,
        "metadata": object.get("metadata").cloned().unwrap_or_else(|| json!({})),
    })
}

/// A list of objects' metadata.
pub fn partial_metadata_list(meta: &ListMeta, objects: &[Value], api_version: &str) -> Value {
    let items: Vec<Value> = objects
        .iter()
        .map(|o| partial_metadata(o, api_version))
        .collect();
    json!({
        "kind": "PartialObjectMetadataList", "apiVersion": api_version, "metadata": meta.to_json(), "items": items,
    })
}
