//! Request bodies: objects in JSON, YAML or protobuf, patches, delete options.

use bytes::Bytes;
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use serde_json::Value;
use tholepin_apimachinery::Kind;
use tholepin_apimachinery::codec::{self, Expected, Format};
use tholepin_apimachinery::value::{at, bool_at, i64_at, list_at};

use super::query::propagation;
use crate::registry::{ApiResult, DeleteOptions, Patch, PatchKind, Propagation, RequestContext};

fn content_type(headers: &HeaderMap) -> &str {
    headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
}

/// An object of a kind, checked and normalised.
pub(super) fn object(
    ctx: &RequestContext,
    kind: &'static Kind,
    headers: &HeaderMap,
    bytes: &[u8],
) -> ApiResult<Value> {
    decode(ctx, Expected::from(kind), headers, bytes)
}

/// A `v1` Binding.
pub(super) fn binding(ctx: &RequestContext, headers: &HeaderMap, bytes: &[u8]) -> ApiResult<Value> {
    decode(ctx, Expected::BINDING, headers, bytes)
}

/// An `autoscaling/v1` Scale.
pub(super) fn scale(ctx: &RequestContext, headers: &HeaderMap, bytes: &[u8]) -> ApiResult<Value> {
    decode(ctx, Expected::SCALE, headers, bytes)
}

fn decode(
    ctx: &RequestContext,
    expected: Expected<'_>,
    headers: &HeaderMap,
    bytes: &[u8],
) -> ApiResult<Value> {
    let format = Format::from_content_type(content_type(headers))?;
    let decoded = codec::decode(expected, format, bytes, ctx.field_validation)?;
    for warning in decoded.warnings {
        ctx.warnings.push(warning);
    }
    Ok(decoded.object)
}

/// A patch by its content type.
pub(super) fn patch(headers: &HeaderMap, bytes: &Bytes) -> ApiResult<Patch> {
    let kind = PatchKind::from_content_type(content_type(headers))?;
    Ok(Patch {
        kind,
        body: bytes.clone(),
    })
}

/// The options in a deletion's body, over those from its parameters.
pub(super) fn delete_options(
    ctx: &mut RequestContext,
    headers: &HeaderMap,
    bytes: &[u8],
    parameters: DeleteOptions,
) -> ApiResult<DeleteOptions> {
    if bytes.is_empty() {
        return Ok(parameters);
    }
    let body =
        codec::decode_delete_options(Format::from_content_type(content_type(headers))?, bytes)?;
    let text = |path: &str| at(&body, path).and_then(Value::as_str).map(str::to_owned);
    let mut options = parameters;
    options.grace_period_seconds =
        i64_at(&body, "gracePeriodSeconds").or(options.grace_period_seconds);
    if let Some(policy) = text("propagationPolicy") {
        options.propagation = Some(propagation(&policy)?);
    } else if at(&body, "orphanDependents").is_some() {
        // The old spelling of the same wish.
        let orphan = bool_at(&body, "orphanDependents");
        let policy = if orphan {
            Propagation::Orphan
        } else {
            Propagation::Background
        };
        options.propagation = Some(policy);
    }
    options.uid = text("preconditions.uid");
    options.resource_version = text("preconditions.resourceVersion");
    ctx.dry_run |= !list_at(&body, "dryRun").is_empty();
    Ok(options)
}
