//! PATCH bodies: JSON patch, merge patch and strategic merge patch, applied to an object and checked like a body.

mod json;
mod order;
mod strategic;

pub use strategic::InvalidPatch;

use crate::codec::{Decoded, Expected, FieldValidation};
use crate::error::{ApiError, Cause, Details, Reason};
use serde_json::Value;

/// The media types of patches, for error texts.
pub const MEDIA_TYPES: &[&str] = &[
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
];

/// How a patch is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PatchType {
    /// RFC 6902: a list of operations.
    Json,
    /// RFC 7386: an object whose fields replace.
    Merge,
    /// Kubernetes' own: lists merge by key, directives say the rest.
    Strategic,
}

impl PatchType {
    /// From a `Content-Type`. Server-side apply is not served yet, and refused as unsupported.
    pub fn from_content_type(header: &str) -> Result<Self, ApiError> {
        match header.split(';').next().unwrap_or_default().trim() {
            "application/json-patch+json" => Ok(Self::Json),
            "application/merge-patch+json" => Ok(Self::Merge),
            "application/strategic-merge-patch+json" => Ok(Self::Strategic),
            _ => Err(ApiError::unsupported_media_type(MEDIA_TYPES)),
        }
    }
}

/// Applies a patch to `current` and checks the outcome as a body of `expected`.
/// The caller goes on as with an update: defaults, strategy, validation.
pub fn apply<'a>(
    expected: impl Into<Expected<'a>>,
    kind: PatchType,
    current: &Value,
    body: &[u8],
    validation: FieldValidation,
) -> Result<Decoded, ApiError> {
    let expected = expected.into();
    let (patch, duplicates) = crate::codec::parse_json(body)
        .map_err(|e| ApiError::bad_request(format!("error decoding patch: {e}")))?;
    let patched = match kind {
        PatchType::Json => json::apply(current, patch)?,
        PatchType::Merge => {
            require_object(&patch)?;
            let mut object = current.clone();
            json_patch::merge(&mut object, &patch);
            object
        }
        PatchType::Strategic => {
            require_object(&patch)?;
            strategic::apply(current, patch, expected.message).map_err(unprocessable)?
        }
    };
    crate::codec::check_patched(&expected, patched, duplicates, validation)
}

fn require_object(patch: &Value) -> Result<(), ApiError> {
    if patch.is_object() {
        return Ok(());
    }
    Err(ApiError::bad_request(
        "error decoding patch: a patch of this type must be a JSON object",
    ))
}

/// A well-formed patch that does not fit the object. The message is upstream's, the cause says more than upstream does.
fn unprocessable(cause: impl std::fmt::Display) -> ApiError {
    let causes = vec![Cause {
        message: cause.to_string(),
        // kubectl prints `field: message`.
        field: "patch".to_owned(),
        ..Cause::default()
    }];
    ApiError {
        reason: Reason::Invalid,
        message: "the server rejected our request due to an error in our request".to_owned(),
        details: Some(Box::new(Details {
            causes,
            ..Details::default()
        })),
    }
}

#[cfg(test)]
mod tests;
