//! The scale subresource: `autoscaling/v1` Scale over kinds that have replicas.

use serde_json::{Value, json};
use tholepin_apimachinery::codec::Expected;
use tholepin_apimachinery::selector::LabelSelector;
use tholepin_apimachinery::value::{at, i64_at, map_at, set, str_at};
use tholepin_apimachinery::{ApiError, Kind, meta};

use super::{ApiResult, Patch, Registry, RequestContext, Resource, Subresource};

impl Registry {
    /// The Scale of an object.
    pub async fn get_scale(
        &self,
        _ctx: &RequestContext,
        resource: impl Resource,
        namespace: &str,
        name: &str,
    ) -> ApiResult<Value> {
        let kind = scalable(resource)?;
        Ok(scale_of(&self.read(kind, namespace, name).await?.object))
    }

    /// Sets the replicas from a Scale. Its resourceVersion is the object's.
    pub async fn update_scale(
        &self,
        ctx: &RequestContext,
        resource: impl Resource,
        namespace: &str,
        name: &str,
        scale: Value,
    ) -> ApiResult<Value> {
        let kind = scalable(resource)?;
        self.change_scale(ctx, kind, namespace, name, |_| Ok(scale.clone()))
            .await
    }

    /// Patches the Scale.
    pub async fn patch_scale(
        &self,
        ctx: &RequestContext,
        resource: impl Resource,
        namespace: &str,
        name: &str,
        patch: &Patch,
    ) -> ApiResult<Value> {
        let kind = scalable(resource)?;
        self.change_scale(ctx, kind, namespace, name, |scale| {
            super::patch::apply(ctx, Expected::SCALE, patch, scale)
        })
        .await
    }

    async fn change_scale(
        &self,
        ctx: &RequestContext,
        kind: &'static Kind,
        namespace: &str,
        name: &str,
        mut make: impl FnMut(&Value) -> ApiResult<Value> + Send,
    ) -> ApiResult<Value> {
        let changed = self
            .change(ctx, kind, namespace, name, Subresource::Main, |current| {
                let present = scale_of(current);
                let wanted = make(&present)?;
                apply(kind, name, &wanted, &present, current)
            })
            .await?;
        Ok(scale_of(&changed))
    }
}

fn scalable(resource: impl Resource) -> ApiResult<&'static Kind> {
    let kind = resource.kind()?;
    if kind.subresource("scale").is_none() {
        return Err(ApiError::unknown_path());
    }
    Ok(kind)
}

/// The object with the replicas of a Scale.
fn apply(
    kind: &Kind,
    name: &str,
    wanted: &Value,
    present: &Value,
    current: &Value,
) -> ApiResult<Value> {
    let replicas = match at(wanted, "spec.replicas") {
        None => 0,
        Some(value) => value.as_i64().ok_or_else(|| {
            ApiError::bad_request(format!(
                "spec.replicas: Invalid value: {value}: not a number"
            ))
        })?,
    };
    if replicas < 0 {
        use tholepin_apimachinery::field::{FieldError, Path};
        let path = Path::new("spec").child("replicas");
        let detail = "must be greater than or equal to 0";
        let error = FieldError::invalid(&path, replicas, detail);
        return Err(ApiError::invalid(
            "autoscaling",
            "Scale",
            name,
            &vec![error],
        ));
    }
    let mut object = current.clone();
    set(&mut object, "spec.replicas", replicas);
    // The version named by the Scale, and none if it names none: then any version is meant.
    match meta::resource_version(wanted) {
        "" => drop(tholepin_apimachinery::value::remove(
            &mut object,
            "metadata.resourceVersion",
        )),
        version if version == meta::resource_version(present) => (),
        _ => return Err(ApiError::stale(kind.group, kind.plural, name)),
    }
    Ok(object)
}

fn scale_of(object: &Value) -> Value {
    let mut metadata = json!({"name": meta::name(object), "namespace": meta::namespace(object)});
    for field in ["uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = object["metadata"].get(field) {
            metadata[field] = value.clone();
        }
    }
    let mut scale = json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata,
        "spec": {"replicas": i64_at(object, "spec.replicas").unwrap_or_default()},
        "status": {"replicas": i64_at(object, "status.replicas").unwrap_or_default()},
    });
    let selector = selector_text(object);
    if !selector.is_empty() {
        scale["status"]["selector"] = selector.into();
    }
    scale
}

fn selector_text(object: &Value) -> String {
    if str_at(object, "kind") == "ReplicationController" {
        return LabelSelector::from_map(map_at(object, "spec.selector")).to_string();
    }
    LabelSelector::from_spec(at(object, "spec.selector")).to_string()
}
