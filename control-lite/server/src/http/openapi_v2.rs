//! `/openapi/v2`: a document that describes nothing.
//!
//! Schemas are published as OpenAPI v3. kubectl still wants v2 for manifests of `kind: List` and of kinds
//! that are not served, and fails without it; finding no schema in it, it leaves validation to the server,
//! which validates every field anyway.

use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Response};
use serde_json::json;
use tholepin_apimachinery::ApiError;

use super::body::{self, Body};
use super::{GIT_VERSION, encode, negotiate};

const TITLE: &str = "Kubernetes";
/// As upstream answers; clients ask for it as `…v2.v1.0+protobuf` and as `…v2@v1.0+protobuf`.
const PROTOBUF: &str = "application/com.github.proto-openapi.spec.v2.v1.0+protobuf";
const PROTOBUF_PREFIX: &str = "application/com.github.proto-openapi.spec.v2";

pub(super) fn serve(headers: &HeaderMap) -> Result<Response<Body>, ApiError> {
    let clauses = negotiate::clauses(headers);
    for clause in &clauses {
        if clause.media_type.starts_with(PROTOBUF_PREFIX) {
            let mut response = Response::new(body::full(protobuf()));
            let value = HeaderValue::from_static(PROTOBUF);
            response.headers_mut().insert(CONTENT_TYPE, value);
            return Ok(response);
        }
        if negotiate::is_json(clause.media_type) {
            break;
        }
    }
    if !clauses.is_empty() && !clauses.iter().any(|c| negotiate::is_json(c.media_type)) {
        return Err(ApiError::not_acceptable(&["application/json", PROTOBUF]));
    }
    Ok(encode::json(
        200,
        &json!({
            "swagger": "2.0",
            "info": {"title": TITLE, "version": GIT_VERSION},
            "paths": {},
        }),
    ))
}

/// gnostic's `openapi.v2.Document`: 1 is swagger, 2 is info (1 title, 2 version), 8 is paths.
fn protobuf() -> Vec<u8> {
    let mut info = Vec::new();
    field(&mut info, 1, TITLE.as_bytes());
    field(&mut info, 2, GIT_VERSION.as_bytes());
    let mut document = Vec::new();
    field(&mut document, 1, b"2.0");
    field(&mut document, 2, &info);
    field(&mut document, 8, b"");
    document
}

/// A length-delimited field. Everything here is far below the 128 bytes one length byte can say.
fn field(out: &mut Vec<u8>, number: u8, bytes: &[u8]) {
    let length = u8::try_from(bytes.len())
        .ok()
        .filter(|length| *length < 128);
    out.push(number << 3 | 2);
    out.push(length.expect("a few constant words"));
    out.extend_from_slice(bytes);
}
