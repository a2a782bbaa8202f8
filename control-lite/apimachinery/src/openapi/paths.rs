//! Paths: which operations a resource has, on which kind, with which query parameters.

use super::schemas::reference;
use crate::kinds::Kind;
use serde_json::{Map, Value, json};

/// Adds the paths of a kind and of its subresources.
pub(super) fn add(kind: &Kind, paths: &mut Map<String, Value>) {
    let base = format!("/{}", super::path_of(kind.group, kind.version));
    let collection = if kind.is_namespaced {
        let everywhere = json!({"get": operation("list", kind, &[])});
        paths.insert(format!("{base}/{}", kind.plural), everywhere);
        format!("{base}/namespaces/{{namespace}}/{}", kind.plural)
    } else {
        format!("{base}/{}", kind.plural)
    };
    let item = format!("{collection}/{{name}}");
    let (mut many, mut one) = (Map::new(), Map::new());
    for verb in kind.verbs {
        match *verb {
            "list" => drop(many.insert("get".to_owned(), operation("list", kind, &[]))),
            "create" => drop(many.insert(
                "post".to_owned(),
                operation("post", kind, &["application/json"]),
            )),
            "deletecollection" => drop(many.insert(
                "delete".to_owned(),
                operation("deletecollection", kind, &[]),
            )),
            "get" => drop(one.insert("get".to_owned(), operation("get", kind, &[]))),
            "update" => drop(one.insert(
                "put".to_owned(),
                operation("put", kind, &["application/json"]),
            )),
            "patch" => drop(one.insert(
                "patch".to_owned(),
                operation("patch", kind, crate::patch::MEDIA_TYPES),
            )),
            "delete" => drop(one.insert("delete".to_owned(), operation("delete", kind, &[]))),
            _ => {}
        }
    }
    many.insert("parameters".to_owned(), path_parameters(kind, false));
    one.insert("parameters".to_owned(), path_parameters(kind, true));
    paths.insert(collection, Value::Object(many));
    paths.insert(item.clone(), Value::Object(one));
    for subresource in kind.subresources {
        let mut operations = Map::new();
        for verb in subresource.verbs {
            let (method, action) = match *verb {
                "get" => ("get", "get"),
                "update" => ("put", "put"),
                "patch" => ("patch", "patch"),
                _ => ("post", "post"),
            };
            operations.insert(
                method.to_owned(),
                json!({
                    "x-kubernetes-action": action,
                    "x-kubernetes-group-version-kind":
                        {"group": subresource.group, "version": subresource.version, "kind": subresource.kind},
                    "parameters": query_parameters(action),
                    "responses": {"200": {"description": "OK"}},
                }),
            );
        }
        operations.insert("parameters".to_owned(), path_parameters(kind, true));
        paths.insert(
            format!("{item}/{}", subresource.name),
            Value::Object(operations),
        );
    }
}

fn operation(action: &str, kind: &Kind, body: &[&str]) -> Value {
    let message = if action == "list" {
        format!("{}List", kind.message)
    } else {
        kind.message.to_owned()
    };
    let mut operation = json!({
        "tags": [if kind.group.is_empty() { format!("core_{}", kind.version) } else { format!("{}_{}", kind.group, kind.version) }],
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": {"group": kind.group, "version": kind.version, "kind": kind.kind},
        "parameters": query_parameters(action),
        "responses": {"200": {"description": "OK", "content": {"application/json": {"schema": reference(&message)}}}},
    });
    if !body.is_empty() {
        let schema = if action == "patch" {
            json!({"type": "object"})
        } else {
            reference(kind.message)
        };
        let content: Map<String, Value> = body
            .iter()
            .map(|t| ((*t).to_owned(), json!({"schema": schema})))
            .collect();
        operation["requestBody"] = json!({"required": true, "content": content});
    }
    operation
}

fn parameter(name: &str, kind: &str, place: &str) -> Value {
    json!({"name": name, "in": place, "required": place == "path", "schema": {"type": kind, "uniqueItems": true}})
}

fn query_parameters(action: &str) -> Value {
    let write = [
        ("dryRun", "string"),
        ("fieldManager", "string"),
        ("fieldValidation", "string"),
    ];
    let list = [
        ("allowWatchBookmarks", "boolean"),
        ("continue", "string"),
        ("fieldSelector", "string"),
        ("labelSelector", "string"),
        ("limit", "integer"),
        ("resourceVersion", "string"),
        ("resourceVersionMatch", "string"),
        ("sendInitialEvents", "boolean"),
        ("timeoutSeconds", "integer"),
        ("watch", "boolean"),
    ];
    let delete = [
        ("dryRun", "string"),
        ("gracePeriodSeconds", "integer"),
        ("propagationPolicy", "string"),
    ];
    let names: &[(&str, &str)] = match action {
        "list" => &list,
        "post" | "put" | "patch" => &write,
        "delete" | "deletecollection" => &delete,
        _ => &[],
    };
    let mut out: Vec<Value> = names
        .iter()
        .map(|(name, kind)| parameter(name, kind, "query"))
        .collect();
    if action == "patch" {
        out.push(parameter("force", "boolean", "query"));
    }
    Value::Array(out)
}

fn path_parameters(kind: &Kind, has_name: bool) -> Value {
    let mut out = Vec::new();
    if has_name {
        out.push(parameter("name", "string", "path"));
    }
    if kind.is_namespaced {
        out.push(parameter("namespace", "string", "path"));
    }
    out.push(parameter("pretty", "string", "query"));
    Value::Array(out)
}
