//! Documents hold together: every reference leads somewhere, and what kubectl looks for is there.

use super::*;

fn references(value: &Value, out: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            out.extend(map.get("$ref").and_then(Value::as_str).map(str::to_owned));
            map.values().for_each(|v| references(v, out));
        }
        Value::Array(list) => list.iter().for_each(|v| references(v, out)),
        _ => {}
    }
}

#[test]
fn every_reference_of_every_document_leads_to_a_schema() {
    for path in index()["paths"].as_object().expect("paths").keys() {
        let document = document_at(path).expect("in the index");
        let mut found = Vec::new();
        references(&document, &mut found);
        assert!(!found.is_empty());
        for reference in found {
            let name = reference
                .strip_prefix("#/components/schemas/")
                .expect("local");
            assert!(
                document["components"]["schemas"].get(name).is_some(),
                "{path}: {name}"
            );
        }
    }
    assert!(document_at("apis/none/v1").is_none());
    assert!(document_at("apis").is_none());
}

#[test]
fn kubectl_finds_the_kind_the_parameters_and_the_merge_keys() {
    let document = document_at("apis/apps/v1").expect("served");
    let item = &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"];
    assert_eq!(
        item["get"]["x-kubernetes-group-version-kind"],
        json!({"group": "apps", "version": "v1", "kind": "Deployment"})
    );
    let parameters = item["patch"]["parameters"].as_array().expect("list");
    for name in ["dryRun", "fieldManager", "fieldValidation"] {
        assert!(parameters.iter().any(|p| p["name"] == name), "{name}");
    }
    assert!(
        item["patch"]["requestBody"]["content"]
            .get("application/strategic-merge-patch+json")
            .is_some()
    );
    let schemas = &document["components"]["schemas"];
    let containers = &schemas["io.k8s.api.core.v1.PodSpec"]["properties"]["containers"];
    assert_eq!(
        (
            &containers["x-kubernetes-patch-merge-key"],
            &containers["x-kubernetes-patch-strategy"]
        ),
        (&json!("name"), &json!("merge"))
    );
    assert_eq!(
        schemas["io.k8s.api.core.v1.PodSpec"]["required"],
        json!(["containers"])
    );
    assert_eq!(
        schemas["io.k8s.api.apps.v1.Deployment"]["properties"]["kind"]["type"],
        "string"
    );
    assert_eq!(
        schemas["io.k8s.api.core.v1.Volume"]["properties"]["emptyDir"]["allOf"][0]["$ref"],
        "#/components/schemas/io.k8s.api.core.v1.EmptyDirVolumeSource"
    );
}

#[test]
fn every_description_belongs_to_something() {
    let schema = crate::schema::schema();
    for line in schemas::DESCRIPTIONS
        .lines()
        .filter(|l| !l.starts_with('#'))
    {
        let (subject, text) = line.split_once(' ').expect("subject and text");
        let parts: Vec<&str> = subject.split('.').collect();
        let message = schema.find(&parts[..2].join(".")).expect(subject);
        assert!(
            parts
                .get(2)
                .is_none_or(|f| schema.json_field(message, f).is_some()),
            "{subject}"
        );
        assert!(text.ends_with('.'), "{line}");
    }
}

#[test]
fn hashes_differ_by_group_version() {
    assert_ne!(hash("", "v1"), hash("apps", "v1"));
    assert_eq!(hash("", "v1").len(), 16);
}
