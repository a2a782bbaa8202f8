//! JSON patch (RFC 6902) with upstream's limits: a small patch must not become a large amount of work or memory.

use super::unprocessable;
use crate::error::{ApiError, Reason};
use json_patch::PatchOperation;
use serde_json::Value;

const OPERATION_LIMIT: usize = 10_000;
/// `copy` can double a document per operation; all copies of one patch together may add this much.
const COPIED_BYTES_LIMIT: usize = 3 * 1024 * 1024;

pub(super) fn apply(current: &Value, patch: Value) -> Result<Value, ApiError> {
    let count = patch.as_array().map_or(0, Vec::len);
    if count > OPERATION_LIMIT {
        return Err(too_large(format!(
            "The allowed maximum operations in a JSON patch is {OPERATION_LIMIT}, got {count}"
        )));
    }
    let operations: Vec<PatchOperation> = serde_json::from_value(patch)
        .map_err(|e| ApiError::bad_request(format!("error decoding patch: {e}")))?;
    let mut object = current.clone();
    let mut copied_bytes = 0_usize;
    for operation in &operations {
        if let PatchOperation::Copy(copy) = operation {
            copied_bytes += object
                .pointer(copy.from.as_str())
                .map_or(0, |v| v.to_string().len());
            if copied_bytes > COPIED_BYTES_LIMIT {
                return Err(too_large(format!(
                    "the copies of the JSON patch add more than {COPIED_BYTES_LIMIT} bytes"
                )));
            }
        }
        json_patch::patch(&mut object, std::slice::from_ref(operation)).map_err(unprocessable)?;
    }
    Ok(object)
}

fn too_large(message: String) -> ApiError {
    ApiError::new(
        Reason::RequestEntityTooLarge,
        format!("Request entity too large: {message}"),
    )
}
