//! `autoscaling/v1` Scale: the view of a workload's replica count behind `/scale`.

use super::{Kind, Strategy, cells};
use crate::error::ApiError;
use crate::field::{FieldError, Path};
use crate::selector::LabelSelector;
use crate::value::{at, i64_at, map_at, set};
use jiff::Timestamp;
use serde_json::{Map, Value, json};

/// How a Scale is shown; it is served behind other kinds only, so that it is not in the table of kinds.
pub static SCALE: Kind = Kind {
    group: "autoscaling",
    version: "v1",
    kind: "Scale",
    plural: "scales",
    singular: "scale",
    short_names: &[],
    categories: &[],
    is_namespaced: true,
    verbs: &[],
    subresources: &[],
    message: "autoscaling.Scale",
    storage: "",
    is_volatile: false,
    columns: &[
        cells::NAME,
        cells::integer("Desired", 0, "Replicas that are wanted."),
        cells::integer("Available", 0, "Replicas that are there."),
        cells::AGE,
    ],
    cells: row,
    field_selectors: &[],
    name_rule: crate::names::dns_subdomain,
    strategy: Strategy::PLAIN,
};

fn row(object: &Value, now: Timestamp) -> Vec<Value> {
    vec![
        cells::name(object),
        i64_at(object, "spec.replicas").unwrap_or_default().into(),
        i64_at(object, "status.replicas").unwrap_or_default().into(),
        cells::age(object, now),
    ]
}

/// The Scale of a Deployment, ReplicaSet or ReplicationController.
pub fn of(object: &Value) -> Value {
    let mut metadata = Map::new();
    for key in [
        "name",
        "namespace",
        "uid",
        "resourceVersion",
        "creationTimestamp",
    ] {
        if let Some(value) = at(object, "metadata").and_then(|m| m.get(key)) {
            metadata.insert(key.to_owned(), value.clone());
        }
    }
    let selector = match at(object, "spec.selector") {
        // ReplicationControllers have a plain map, the others a LabelSelector.
        Some(s) if s.get("matchLabels").is_none() && s.get("matchExpressions").is_none() => {
            LabelSelector::from_map(map_at(object, "spec.selector")).to_string()
        }
        some => LabelSelector::from_spec(some).to_string(),
    };
    let mut status = json!({"replicas": i64_at(object, "status.replicas").unwrap_or_default()});
    if !selector.is_empty() {
        status["selector"] = selector.into();
    }
    let mut spec = Map::new();
    if let Some(count) = i64_at(object, "spec.replicas").filter(|c| *c != 0) {
        spec.insert("replicas".to_owned(), count.into());
    }
    json!({"kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata, "spec": spec, "status": status})
}

/// Writes the count of `scale` into the workload. The caller updates it with the scale's resourceVersion, if it has one.
pub fn apply(object: &mut Value, scale: &Value) -> Result<(), ApiError> {
    let name = crate::meta::name(object).to_owned();
    let given = crate::meta::name(scale);
    if given != name {
        let errors = vec![FieldError::invalid(
            &Path::new("metadata").child("name"),
            given,
            "must match the name in the path",
        )];
        return Err(ApiError::invalid("autoscaling", "Scale", &name, &errors));
    }
    let count = i64_at(scale, "spec.replicas").unwrap_or_default();
    if count < 0 {
        let path = Path::new("spec").child("replicas");
        let errors = vec![FieldError::invalid(
            &path,
            count,
            "must be greater than or equal to 0",
        )];
        return Err(ApiError::invalid("autoscaling", "Scale", &name, &errors));
    }
    let version = crate::meta::resource_version(scale);
    if !version.is_empty() {
        set(object, "metadata.resourceVersion", version);
    }
    set(object, "spec.replicas", count);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_shows_and_sets_the_count() {
        let mut deployment = json!({"metadata": {"name": "d", "namespace": "n", "resourceVersion": "4", "labels": {"a": "b"}},
            "spec": {"replicas": 3, "selector": {"matchLabels": {"app": "x"}}}, "status": {"replicas": 2}});
        let mut scale = of(&deployment);
        assert_eq!(scale["spec"]["replicas"], 3);
        assert_eq!(scale["status"], json!({"replicas": 2, "selector": "app=x"}));
        assert!(scale["metadata"].get("labels").is_none());
        scale["spec"] = json!({});
        apply(&mut deployment, &scale).expect("valid");
        assert_eq!(deployment["spec"]["replicas"], 0);
        scale["spec"] = json!({"replicas": -1});
        assert_eq!(
            apply(&mut deployment, &scale).expect_err("negative").code(),
            422
        );
    }

    #[test]
    fn a_replication_controllers_selector_is_a_plain_map() {
        let rc =
            json!({"metadata": {"name": "r"}, "spec": {"replicas": 1, "selector": {"app": "x"}}});
        assert_eq!(of(&rc)["status"]["selector"], "app=x");
    }
}
