//! Component schemas: every message that the kinds of a document reach, under upstream's names.

use crate::kinds::Kind;
use crate::schema::{Base, Field, Message, Shape, schema};
use serde_json::{Map, Value, json};
use std::collections::BTreeMap;

pub(super) static DESCRIPTIONS: &str = include_str!("../../schema/descriptions.txt");

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";
const QUANTITY: &str = "io.k8s.apimachinery.pkg.api.resource.Quantity";
const INT_OR_STRING: &str = "io.k8s.apimachinery.pkg.util.intstr.IntOrString";
const RAW: &str = "io.k8s.apimachinery.pkg.runtime.RawExtension";

/// Upstream's name of a message: `core.Pod` is `io.k8s.api.core.v1.Pod`.
fn component(message: &str) -> String {
    match message.split_once('.') {
        Some(("meta", name)) => format!("{META}.{name}"),
        Some((package, name)) => format!("io.k8s.api.{package}.v1.{name}"),
        None => message.to_owned(),
    }
}

/// A reference to a message's schema.
pub(super) fn reference(message: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{}", component(message))})
}

/// The schemas of `kinds`, of their lists, and of everything below.
pub(super) fn of(kinds: &[&Kind]) -> Value {
    let mut out = BTreeMap::new();
    let mut queue: Vec<&'static Message> = Vec::new();
    let want = |name: &str, queue: &mut Vec<&'static Message>| queue.extend(schema().find(name));
    for kind in kinds {
        want(kind.message, &mut queue);
        out.insert(
            component(&format!("{}List", kind.message)),
            list_schema(kind),
        );
    }
    for name in [
        "meta.DeleteOptions",
        "meta.ListMeta",
        "meta.Status",
        "autoscaling.Scale",
        "core.Binding",
    ] {
        want(name, &mut queue);
    }
    while let Some(message) = queue.pop() {
        let name = component(message.name);
        if out.contains_key(&name) {
            continue;
        }
        out.insert(name, message_schema(message));
        for field in schema().json_fields(message) {
            match field.base {
                Base::Message(id) => queue.push(schema().message(id)),
                other => drop(special(other).map(|(name, schema)| out.insert(name, schema))),
            }
        }
    }
    for kind in kinds {
        if let Some(entry) = out.get_mut(&component(kind.message)) {
            mark(entry, kind.group, kind.version, kind.kind);
        }
    }
    for (message, group, kind) in [
        ("autoscaling.Scale", "autoscaling", "Scale"),
        ("core.Binding", "", "Binding"),
        ("meta.Status", "", "Status"),
        ("meta.DeleteOptions", "", "DeleteOptions"),
    ] {
        if let Some(entry) = out.get_mut(&component(message)) {
            mark(entry, group, "v1", kind);
        }
    }
    Value::Object(out.into_iter().collect())
}

/// A top-level object has `apiVersion` and `kind`, which the schema text leaves out.
fn mark(entry: &mut Value, group: &str, version: &str, kind: &str) {
    entry["x-kubernetes-group-version-kind"] =
        json!([{"group": group, "version": version, "kind": kind}]);
    let types = [
        ("apiVersion", "Group and version of the object's form."),
        ("kind", "What the object is."),
    ];
    for (name, description) in types {
        entry["properties"][name] = json!({"type": "string", "description": description});
    }
}

fn list_schema(kind: &Kind) -> Value {
    let mut schema = json!({
        "type": "object",
        "description": format!("A list of objects of kind {}.", kind.kind),
        "required": ["items"],
        "properties": {
            "items": {"type": "array", "items": {"allOf": [reference(kind.message)], "default": {}}},
            "metadata": {"allOf": [reference("meta.ListMeta")], "default": {}},
        },
    });
    mark(&mut schema, kind.group, kind.version, &kind.list_kind());
    schema
}

fn message_schema(message: &'static Message) -> Value {
    let mut properties = Map::new();
    let mut required = Vec::new();
    for field in schema().json_fields(message) {
        let mut value = field_schema(field);
        if let Some(text) = description(&format!("{}.{}", message.name, field.name)) {
            value["description"] = text.into();
        }
        properties.insert(field.name.to_owned(), value);
        if field.is_required {
            required.push(Value::from(field.name));
        }
    }
    let mut out = json!({"type": "object"});
    if let Some(text) = description(message.name) {
        out["description"] = text.into();
    }
    if !required.is_empty() {
        out["required"] = Value::Array(required);
    }
    if !properties.is_empty() {
        out["properties"] = Value::Object(properties);
    }
    out
}

fn description(subject: &str) -> Option<&'static str> {
    DESCRIPTIONS
        .lines()
        .find_map(|line| line.strip_prefix(subject)?.strip_prefix(' '))
}

fn field_schema(field: &Field) -> Value {
    let element = base_schema(field.base);
    let mut out = match field.shape {
        Shape::One => with_default(element, field.base),
        Shape::Optional => wrapped(element),
        Shape::List => json!({"type": "array", "items": with_default(element, field.base)}),
        Shape::Map => {
            json!({"type": "object", "additionalProperties": with_default(element, field.base)})
        }
    };
    if let Some(key) = field.merge_key {
        out["x-kubernetes-patch-merge-key"] = key.into();
    }
    if !field.patch_strategy.is_empty() {
        out["x-kubernetes-patch-strategy"] = field.patch_strategy.join(",").into();
    }
    if let Some(kind) = field.list_type {
        out["x-kubernetes-list-type"] = kind.into();
    }
    if !field.list_keys.is_empty() {
        out["x-kubernetes-list-map-keys"] = field.list_keys.clone().into();
    }
    if field.is_atomic {
        out["x-kubernetes-map-type"] = "atomic".into();
    }
    out
}

/// A bare `$ref` may have no siblings, so it is wrapped.
fn wrapped(element: Value) -> Value {
    if element.get("$ref").is_some() {
        json!({"allOf": [element]})
    } else {
        element
    }
}

fn with_default(element: Value, base: Base) -> Value {
    let mut out = wrapped(element);
    match base {
        Base::Message(_) => out["default"] = json!({}),
        Base::String(_) if out.get("enum").is_none() => out["default"] = "".into(),
        Base::Int32 | Base::Int64 => out["default"] = 0.into(),
        Base::Bool => out["default"] = false.into(),
        _ => {}
    }
    out
}

fn base_schema(base: Base) -> Value {
    match base {
        Base::String(named) => {
            let closed = named
                .map(|id| schema().string_type(id))
                .filter(|t| t.is_closed && !t.values.is_empty());
            match closed {
                Some(t) => json!({"type": "string", "enum": t.values}),
                None => json!({"type": "string"}),
            }
        }
        Base::Bool => json!({"type": "boolean"}),
        Base::Int32 => json!({"type": "integer", "format": "int32"}),
        Base::Int64 => json!({"type": "integer", "format": "int64"}),
        Base::Bytes => json!({"type": "string", "format": "byte"}),
        Base::Message(id) => reference(schema().message(id).name),
        other => {
            let (name, _) = special(other).expect("all other types have a component of their own");
            json!({"$ref": format!("#/components/schemas/{name}")})
        }
    }
}

/// Types that are components of their own without being messages.
fn special(base: Base) -> Option<(String, Value)> {
    let (name, schema) = match base {
        Base::Time => (
            format!("{META}.Time"),
            json!({"type": "string", "format": "date-time"}),
        ),
        Base::MicroTime => (
            format!("{META}.MicroTime"),
            json!({"type": "string", "format": "date-time"}),
        ),
        Base::FieldsV1 => (format!("{META}.FieldsV1"), json!({"type": "object"})),
        Base::RawExtension => (RAW.to_owned(), json!({"type": "object"})),
        Base::Quantity => (
            QUANTITY.to_owned(),
            json!({"description": "An amount, such as 500m or 1Gi.", "oneOf": [{"type": "string"}, {"type": "number"}]}),
        ),
        Base::IntOrString => (
            INT_OR_STRING.to_owned(),
            json!({"description": "A number, or text such as a name or a percentage.", "format": "int-or-string",
                "oneOf": [{"type": "integer"}, {"type": "string"}]}),
        ),
        _ => return None,
    };
    Some((name, schema))
}
