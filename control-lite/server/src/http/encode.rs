//! Answers: objects, lists and failures in the form the client asked for.

use bytes::{BufMut, Bytes, BytesMut};
use http::header::{CONTENT_TYPE, RETRY_AFTER, WARNING};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use jiff::Timestamp;
use serde_json::Value;
use tholepin_apimachinery::list::{self, ListMeta};
use tholepin_apimachinery::table::{self, IncludeObject};
use tholepin_apimachinery::{ApiError, Kind};

use super::body::{self, Body};
use super::negotiate::Form;
use crate::registry::{StoredList, stored};

const JSON: HeaderValue = HeaderValue::from_static("application/json");

/// What is asked for and in which form.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Shape {
    pub(super) form: Form,
    pub(super) include: IncludeObject,
}

/// A JSON answer.
pub(super) fn json(status: u16, value: &Value) -> Response<Body> {
    json_bytes(status, value.to_string()).map(body::full)
}

fn json_bytes(status: u16, bytes: impl Into<Bytes>) -> Response<Bytes> {
    let mut response = Response::new(bytes.into());
    *response.status_mut() =
        StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(CONTENT_TYPE, JSON);
    response
}

/// A failure as the `Status` it is.
pub(crate) fn error(error: &ApiError) -> Response<Body> {
    let mut response = json(error.code(), &error.to_status());
    if let Some(secs) = error.retry_after_secs() {
        response
            .headers_mut()
            .insert(RETRY_AFTER, HeaderValue::from(secs));
    }
    response
}

/// One object.
pub(super) fn object(
    request: &HeaderMap,
    status: u16,
    kind: &Kind,
    object: &Value,
    shape: Shape,
) -> Response<Body> {
    let value = match shape.form {
        Form::Object => return body::maybe_gzip(request, json_bytes(status, object.to_string())),
        Form::Table => table::single(kind, object, shape.include, true, Timestamp::now()),
        Form::Metadata | Form::MetadataList => table::partial_metadata(object, "meta.k8s.io/v1"),
    };
    body::maybe_gzip(request, json_bytes(status, value.to_string()))
}

/// A list as it lies in the store.
pub(super) fn stored_list(
    request: &HeaderMap,
    kind: &Kind,
    list: &StoredList,
    shape: Shape,
) -> Result<Response<Body>, ApiError> {
    let meta = ListMeta {
        resource_version: list.resource_version,
        continue_token: list.continue_token.clone().unwrap_or_default(),
        remaining_item_count: list.remaining.map(|count| count as u64),
    };
    let bytes = if shape.form == Form::Object && kind.strategy.conversion.is_none() {
        spliced(kind, &meta, list)?
    } else {
        let objects = list
            .items
            .iter()
            .map(|item| Ok(kind.from_storage(stored::decode(&item.value, item.revision)?)))
            .collect::<Result<Vec<_>, ApiError>>()?;
        objects_list(kind, &meta, objects, shape).to_string().into()
    };
    Ok(body::maybe_gzip(request, json_bytes(200, bytes)))
}

/// A list of parsed objects.
pub(super) fn objects(
    request: &HeaderMap,
    kind: &Kind,
    resource_version: u64,
    objects: Vec<Value>,
    shape: Shape,
) -> Response<Body> {
    let meta = ListMeta {
        resource_version,
        ..ListMeta::default()
    };
    let list = objects_list(kind, &meta, objects, shape);
    body::maybe_gzip(request, json_bytes(200, list.to_string()))
}

fn objects_list(kind: &Kind, meta: &ListMeta, objects: Vec<Value>, shape: Shape) -> Value {
    match shape.form {
        Form::Object => list::list(kind, meta, objects),
        Form::Table => table::table(kind, meta, &objects, shape.include, true, Timestamp::now()),
        Form::Metadata | Form::MetadataList => {
            table::partial_metadata_list(meta, &objects, "meta.k8s.io/v1")
        }
    }
}

/// The list's text from the stored texts of its items: nothing is parsed.
fn spliced(kind: &Kind, meta: &ListMeta, list: &StoredList) -> Result<Bytes, ApiError> {
    let size: usize = list.items.iter().map(|item| item.value.len() + 48).sum();
    let mut out = BytesMut::with_capacity(size + 256);
    let head = format!(
        "{{\"kind\":{},\"apiVersion\":{},\"metadata\":{},\"items\":[",
        Value::from(kind.list_kind()),
        Value::from(kind.api_version()),
        meta.to_json(),
    );
    out.put_slice(head.as_bytes());
    for (index, item) in list.items.iter().enumerate() {
        if index > 0 {
            out.put_u8(b',');
        }
        stored::write_json(&mut out, &item.value, item.revision)?;
    }
    out.put_slice(b"]}");
    Ok(out.freeze())
}

/// Warnings as kubectl prints them.
pub(super) fn add_warnings(headers: &mut HeaderMap, warnings: Vec<String>) {
    for warning in warnings {
        let clean: String = warning
            .chars()
            .filter(|character| !character.is_control())
            .collect();
        let quoted = clean.replace('\\', "\\\\").replace('"', "\\\"");
        // Text that fits no header is lost with a trace of it in the log.
        match HeaderValue::from_bytes(format!("299 - \"{quoted}\"").as_bytes()) {
            Ok(value) => drop(headers.append(WARNING, value)),
            Err(_) => tracing::warn!(warning = clean, "a warning fits no header"),
        }
    }
}
