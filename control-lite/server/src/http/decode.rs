//! Request bodies: objects in JSON, YAML or protobuf, patches, delete options.

use http::HeaderMap;
use http::header::CONTENT_TYPE;
use serde_json::Value;
use tholepin_apimachinery::value::{at, bool_at, i64_at};
use tholepin_apimachinery::{ApiError, Kind};

use super::query::propagation;
use crate::registry::{ApiResult, DeleteOptions, Patch, PatchKind, Propagation, RequestContext};

const PATCH_TYPES: [&str; 3] = [
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
];

/// The media type without its parameters; empty if there is none.
fn media_type(headers: &HeaderMap) -> &str {
    let value = headers
        .get(CONTENT_TYPE)
        .and_then(|value| value.to_str().ok());
    value
        .unwrap_or_default()
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
}

pub(super) fn object(
    _ctx: &RequestContext,
    _kind: &'static Kind,
    headers: &HeaderMap,
    bytes: &[u8],
) -> ApiResult<Value> {
    untyped(headers, bytes)
}

pub(super) fn binding(ctx: &RequestContext, headers: &HeaderMap, bytes: &[u8]) -> ApiResult<Value> {
    let _ = ctx;
    untyped(headers, bytes)
}

pub(super) fn scale(ctx: &RequestContext, headers: &HeaderMap, bytes: &[u8]) -> ApiResult<Value> {
    let _ = ctx;
    untyped(headers, bytes)
}

fn untyped(headers: &HeaderMap, bytes: &[u8]) -> ApiResult<Value> {
    match media_type(headers) {
        "" | "application/json" | "*/*" => {
            serde_json::from_slice(bytes).map_err(|error| ApiError::bad_request(error.to_string()))
        }
        _ => Err(ApiError::unsupported_media_type(&["application/json"])),
    }
}

/// A patch by its content type.
pub(super) fn patch(headers: &HeaderMap, bytes: &[u8]) -> ApiResult<Patch> {
    let kind = match media_type(headers) {
        "application/json-patch+json" => PatchKind::Json,
        "application/merge-patch+json" => PatchKind::Merge,
        "application/strategic-merge-patch+json" => PatchKind::Strategic,
        _ => return Err(ApiError::unsupported_media_type(&PATCH_TYPES)),
    };
    let body = serde_json::from_slice(bytes)
        .map_err(|error| ApiError::bad_request(format!("error decoding patch: {error}")))?;
    Ok(Patch { kind, body })
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
    let body = untyped(headers, bytes)?;
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
    if tholepin_apimachinery::value::list_at(&body, "dryRun")
        .iter()
        .any(|value| value == "All")
    {
        ctx.dry_run = true;
    }
    Ok(options)
}
