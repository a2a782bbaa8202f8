//! Patches: applied to the present object, checked like an update, again on a conflict.

use serde_json::Value;
use tholepin_apimachinery::codec::Expected;
use tholepin_apimachinery::{ApiError, patch};

use super::create::check_verb;
use super::{ApiResult, Patch, Registry, RequestContext, Resource, Subresource};

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
            apply(ctx, kind, patch, current)
        })
        .await
    }
}

/// The object a patch makes of the present one.
pub(super) fn apply<'a>(
    ctx: &RequestContext,
    expected: impl Into<Expected<'a>>,
    patch: &Patch,
    current: &Value,
) -> ApiResult<Value> {
    let patched = patch::apply(
        expected,
        patch.kind,
        current,
        &patch.body,
        ctx.field_validation,
    )?;
    for warning in patched.warnings {
        ctx.warnings.push(warning);
    }
    let mut object = patched.object;
    if !names_version(&patch.body) {
        // The version came from the object and not from the client, who means any version.
        drop(tholepin_apimachinery::value::remove(
            &mut object,
            "metadata.resourceVersion",
        ));
    }
    Ok(object)
}

/// Whether a patch says which version it is about. A label of that name costs a needless 409 at
/// worst.
fn names_version(body: &[u8]) -> bool {
    const NEEDLE: &[u8] = b"resourceVersion";
    body.windows(NEEDLE.len()).any(|window| window == NEEDLE)
}

impl Patch {
    /// A merge patch: what controllers use most.
    pub fn merge(body: &Value) -> ApiResult<Self> {
        let body = serde_json::to_vec(body).map_err(ApiError::internal)?;
        Ok(Self {
            kind: super::PatchKind::Merge,
            body: body.into(),
        })
    }
}
