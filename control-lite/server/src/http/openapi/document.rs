//! One group version's document: its paths, with the parameters kubectl looks for.

use serde_json::{Map, Value, json};
use tholepin_apimachinery::{Kind, kinds};

/// The OpenAPI document of a group version.
pub(super) fn document(group: &str, version: &str) -> Value {
    let mut paths = Map::new();
    for kind in kinds::all() {
        if kind.group == group && kind.version == version {
            add_paths(kind, &mut paths);
        }
    }
    json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": super::super::GIT_VERSION},
        "paths": paths,
        "components": {"schemas": {}},
    })
}

fn add_paths(kind: &Kind, paths: &mut Map<String, Value>) {
    let base = match kind.group {
        "" => format!("/api/{}", kind.version),
        group => format!("/apis/{group}/{}", kind.version),
    };
    let collection = if kind.is_namespaced {
        format!("{base}/namespaces/{{namespace}}/{}", kind.plural)
    } else {
        format!("{base}/{}", kind.plural)
    };
    if kind.is_namespaced {
        let all = operations(kind, &[("get", "list")], "list");
        paths.insert(format!("{base}/{}", kind.plural), all);
    }
    let on_collection = [
        ("get", "list"),
        ("post", "create"),
        ("delete", "deletecollection"),
    ];
    paths.insert(
        collection.clone(),
        operations(kind, &on_collection, "collection"),
    );
    let on_object = [
        ("get", "get"),
        ("put", "update"),
        ("patch", "patch"),
        ("delete", "delete"),
    ];
    paths.insert(
        format!("{collection}/{{name}}"),
        operations(kind, &on_object, "object"),
    );
}

fn operations(kind: &Kind, verbs: &[(&str, &str)], place: &str) -> Value {
    let mut operations = Map::new();
    for (method, verb) in verbs {
        if kind.verbs.contains(verb) {
            operations.insert((*method).to_owned(), operation(kind, verb, place));
        }
    }
    Value::Object(operations)
}

fn operation(kind: &Kind, verb: &str, place: &str) -> Value {
    let names: &[&str] = match verb {
        "create" | "update" => &["dryRun", "fieldManager", "fieldValidation"],
        "patch" => &["dryRun", "fieldManager", "fieldValidation", "force"],
        "delete" | "deletecollection" => &["dryRun", "gracePeriodSeconds", "propagationPolicy"],
        _ => &[
            "fieldSelector",
            "labelSelector",
            "limit",
            "continue",
            "resourceVersion",
            "watch",
        ],
    };
    let parameters: Vec<Value> = names
        .iter()
        .map(|name| json!({"name": name, "in": "query", "schema": {"type": "string", "uniqueItems": true}}))
        .collect();
    json!({
        "description": format!("{verb} of {} ({place})", kind.plural),
        "parameters": parameters,
        "responses": {"200": {"description": "OK"}},
        "x-kubernetes-action": verb,
        "x-kubernetes-group-version-kind": {
            "group": kind.group, "version": kind.version, "kind": kind.kind,
        },
    })
}
