//! How objects lie in the store, and how they come out of it with their resourceVersion.
//!
//! The store assigns revisions, so the bytes cannot hold the resourceVersion. It is spliced into
//! the JSON text on the way out, at a place that is remembered in front of it: reading an object
//! for a client that wants JSON copies bytes and parses nothing.

use bytes::{BufMut, Bytes, BytesMut};
use serde_json::{Map, Value};
use tholepin_apimachinery::{ApiError, meta};

/// Length of the header: format, then the offset at which the resourceVersion goes.
const HEADER: usize = 5;
const FORMAT_JSON: u8 = 1;

/// Encodes an object for the store. Its resourceVersion is left out.
pub(crate) fn encode(object: &Value) -> Result<Bytes, ApiError> {
    let map = object
        .as_object()
        .ok_or_else(|| ApiError::internal("an object is no JSON map"))?;
    let mut out = BytesMut::with_capacity(512).writer();
    out.get_mut().put_bytes(0, HEADER);
    out.get_mut().put_u8(b'{');
    for key in ["kind", "apiVersion"] {
        member(&mut out, key, map.get(key).unwrap_or(&Value::Null))?;
        out.get_mut().put_u8(b',');
    }
    out.get_mut().put_slice(b"\"metadata\":{");
    let offset = u32::try_from(out.get_ref().len() - HEADER).map_err(ApiError::internal)?;
    let metadata = map.get("metadata").and_then(Value::as_object);
    members(&mut out, metadata, &["resourceVersion"])?;
    out.get_mut().put_u8(b'}');
    let others = map.keys().any(|key| !ENVELOPE.contains(&key.as_str()));
    if others {
        out.get_mut().put_u8(b',');
        members(&mut out, Some(map), &ENVELOPE)?;
    }
    out.get_mut().put_u8(b'}');
    let mut bytes = out.into_inner();
    bytes[0] = FORMAT_JSON;
    bytes[1..HEADER].copy_from_slice(&offset.to_le_bytes());
    Ok(bytes.freeze())
}

const ENVELOPE: [&str; 3] = ["kind", "apiVersion", "metadata"];

type Writer = bytes::buf::Writer<BytesMut>;

fn members(
    out: &mut Writer,
    map: Option<&Map<String, Value>>,
    except: &[&str],
) -> Result<(), ApiError> {
    let mut first = true;
    for (key, value) in map.into_iter().flatten() {
        if except.contains(&key.as_str()) {
            continue;
        }
        if !std::mem::take(&mut first) {
            out.get_mut().put_u8(b',');
        }
        member(out, key, value)?;
    }
    Ok(())
}

fn member(out: &mut Writer, key: &str, value: &Value) -> Result<(), ApiError> {
    serde_json::to_writer(&mut *out, key).map_err(ApiError::internal)?;
    out.get_mut().put_u8(b':');
    serde_json::to_writer(&mut *out, value).map_err(ApiError::internal)
}

/// The parts of a stored value: the JSON text and where its metadata begins.
fn split(value: &Bytes) -> Result<(&[u8], usize), ApiError> {
    let damaged = || ApiError::internal("a stored object is damaged or of an unknown format");
    let (header, json) = value.split_first_chunk::<HEADER>().ok_or_else(damaged)?;
    let [FORMAT_JSON, offset @ ..] = *header else {
        return Err(damaged());
    };
    let offset = usize::try_from(u32::from_le_bytes(offset)).map_err(ApiError::internal)?;
    if offset > json.len() {
        Err(damaged())
    } else {
        Ok((json, offset))
    }
}

/// Parses a stored object and gives it its resourceVersion.
pub(crate) fn decode(value: &Bytes, revision: u64) -> Result<Value, ApiError> {
    let (json, _) = split(value)?;
    let mut object: Value = serde_json::from_slice(json).map_err(ApiError::internal)?;
    meta::set_resource_version(&mut object, revision);
    Ok(object)
}

/// Appends the stored object as JSON text with its resourceVersion.
pub(crate) fn write_json(
    out: &mut impl BufMut,
    value: &Bytes,
    revision: u64,
) -> Result<(), ApiError> {
    let (json, offset) = split(value)?;
    out.put_slice(&json[..offset]);
    out.put_slice(b"\"resourceVersion\":\"");
    out.put_slice(revision.to_string().as_bytes());
    // Metadata is never empty: every stored object has at least a name.
    out.put_slice(b"\",");
    out.put_slice(&json[offset..]);
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn text(stored: &Bytes, revision: u64) -> Vec<u8> {
        let mut text = Vec::new();
        write_json(&mut text, stored, revision).unwrap();
        text
    }

    #[test]
    fn an_object_comes_out_as_it_went_in_with_the_stores_revision() {
        let object = json!({
            "metadata": {"name": "a\"b", "resourceVersion": "7", "labels": {"x": "y"}},
            "apiVersion": "v1", "kind": "ConfigMap", "data": {"k": "ü"},
        });
        let stored = encode(&object).unwrap();
        let mut expected = object;
        meta::set_resource_version(&mut expected, 42);
        assert_eq!(decode(&stored, 42).unwrap(), expected);
        let text = text(&stored, 42);
        assert_eq!(serde_json::from_slice::<Value>(&text).unwrap(), expected);
    }

    #[test]
    fn an_object_of_nothing_but_its_name_is_valid_json() {
        let object = json!({"kind": "K", "apiVersion": "v1", "metadata": {"name": "a"}});
        let stored = encode(&object).unwrap();
        let text = text(&stored, 1);
        let parsed: Value = serde_json::from_slice(&text).unwrap();
        assert_eq!(
            parsed["metadata"],
            json!({"name": "a", "resourceVersion": "1"})
        );
    }

    #[test]
    fn damaged_bytes_are_an_error_and_no_panic() {
        assert!(decode(&Bytes::from_static(b""), 1).is_err());
        assert!(decode(&Bytes::from_static(&[9, 0, 0, 0, 0, b'{', b'}']), 1).is_err());
        assert!(decode(&Bytes::from_static(&[1, 99, 0, 0, 0, b'{', b'}']), 1).is_err());
    }
}
