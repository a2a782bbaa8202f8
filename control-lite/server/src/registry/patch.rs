//! Patches: applied to the present object, checked like an update, again on a conflict.

use serde_json::Value;
use tholepin_apimachinery::{ApiError, Kind, meta};

use super::create::check_verb;
use super::{ApiResult, Patch, PatchKind, Registry, RequestContext, Resource, Subresource};

impl Registry {
    /// Patches an object (or the part the subresource is about).
    pub async fn patch(
        &self,
        ctx: &RequestContext,
        resource: impl Resource,
        namespace: &str,
        name: &str,
        subresource: Subresource,
        patch: &Patch,
    ) -> ApiResult<Value> {
        let kind = resource.kind()?;
        check_verb(kind, "patch")?;
        self.change(ctx, kind, namespace, name, subresource, |current| {
            let mut patched = apply_untyped(kind, name, patch, current)?;
            if meta::resource_version(&patched) == meta::resource_version(current)
                && !names_version(patch)
            {
                drop(tholepin_apimachinery::value::remove(
                    &mut patched,
                    "metadata.resourceVersion",
                ));
            }
            Ok(patched)
        })
        .await
    }
}

fn names_version(patch: &Patch) -> bool {
    patch.kind != PatchKind::Json && !meta::resource_version(&patch.body).is_empty()
}

pub(super) fn apply_untyped(
    _kind: &'static Kind,
    _name: &str,
    patch: &Patch,
    current: &Value,
) -> ApiResult<Value> {
    let mut object = current.clone();
    match patch.kind {
        PatchKind::Merge => merge(&mut object, &patch.body),
        _ => {
            return Err(ApiError::unsupported_media_type(&[
                "application/merge-patch+json",
            ]));
        }
    }
    Ok(object)
}

fn merge(target: &mut Value, patch: &Value) {
    let Some(fields) = patch.as_object() else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = serde_json::json!({});
    }
    if let Some(map) = target.as_object_mut() {
        for (key, value) in fields {
            if value.is_null() {
                drop(map.shift_remove(key));
            } else {
                merge(map.entry(key).or_insert(Value::Null), value);
            }
        }
    }
}
