//! Kubernetes protobuf to an object: the `k8s\0` envelope, then messages by the schema.
//!
//! gogo's encoding writes fields that are no pointers even when they are zero, so presence only tells for optional ones.
//! No message of the schema contains itself, which bounds the recursion.

use super::{Expected, check, scalar};
use crate::error::ApiError;
use crate::schema::{Base, Field, Message, Shape, schema};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value};

const MAGIC: &[u8] = b"k8s\0";

/// A body that is no Kubernetes protobuf.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidProtobuf {
    /// No `k8s\0` at the start.
    #[error(
        "provided data does not appear to be a protobuf message, expected prefix [107 56 115 0]"
    )]
    Magic,
    /// Ends inside a value.
    #[error("proto: unexpected EOF")]
    Truncated,
    /// A varint of more than ten bytes.
    #[error("proto: integer overflow")]
    Overflow,
    /// A wire type that does not exist or does not fit the field.
    #[error("proto: wrong wireType = {wire_type} for field {field}")]
    WireType {
        /// The wire type.
        wire_type: u8,
        /// JSON name or number of the field.
        field: String,
    },
    /// Text that is no UTF-8.
    #[error("proto: field {0} contains invalid UTF-8")]
    Utf8(&'static str),
    /// A value that its type cannot hold.
    #[error("field {field}: {cause}")]
    Value {
        /// JSON name of the field.
        field: &'static str,
        /// Why.
        cause: String,
    },
    /// A payload that is compressed or in another format.
    #[error("unsupported content type or encoding in the protobuf envelope")]
    Envelope,
}

/// Answers `apiVersion`, `kind` and the object without them.
pub(super) fn decode(
    body: &[u8],
    expected: &Expected<'_>,
) -> Result<(String, String, Value), ApiError> {
    decode_envelope(body, expected.message()).map_err(|e| expected.refuse(e))
}

fn decode_envelope(
    body: &[u8],
    message: &'static Message,
) -> Result<(String, String, Value), InvalidProtobuf> {
    let mut reader = Reader(body.strip_prefix(MAGIC).ok_or(InvalidProtobuf::Magic)?);
    let (mut api_version, mut kind, mut raw) = (String::new(), String::new(), &[][..]);
    while let Some((number, wire)) = reader.tag()? {
        match number {
            1 => {
                let mut types = Reader(reader.bytes(wire, "typeMeta")?);
                while let Some((number, wire)) = types.tag()? {
                    match number {
                        1 => {
                            api_version =
                                text(types.bytes(wire, "apiVersion")?, "apiVersion")?.to_owned()
                        }
                        2 => kind = text(types.bytes(wire, "kind")?, "kind")?.to_owned(),
                        _ => types.skip(wire)?,
                    }
                }
            }
            2 => raw = reader.bytes(wire, "raw")?,
            3 | 4 => {
                let value = text(reader.bytes(wire, "contentType")?, "contentType")?;
                if !value.is_empty() && value != "application/vnd.kubernetes.protobuf" {
                    return Err(InvalidProtobuf::Envelope);
                }
            }
            _ => reader.skip(wire)?,
        }
    }
    Ok((
        api_version,
        kind,
        Value::Object(decode_message(raw, message)?),
    ))
}

fn decode_message(
    bytes: &[u8],
    message: &'static Message,
) -> Result<Map<String, Value>, InvalidProtobuf> {
    let mut reader = Reader(bytes);
    let mut map = Map::new();
    while let Some((number, wire)) = reader.tag()? {
        let Some(field) = message.by_number(number) else {
            // A field of a newer version; upstream's decoder skips it too.
            reader.skip(wire)?;
            continue;
        };
        match (field.shape, field.base) {
            (_, Base::Message(id)) if field.is_inline => {
                map.extend(decode_message(
                    reader.bytes(wire, field.name)?,
                    schema().message(id),
                )?);
            }
            (Shape::List, base) => {
                let list = map
                    .entry(field.name)
                    .or_insert_with(|| Value::Array(Vec::new()));
                let list = list.as_array_mut().expect("a list field holds a list");
                if wire == 2 && matches!(base, Base::Int32 | Base::Int64 | Base::Bool) {
                    let mut packed = Reader(reader.bytes(wire, field.name)?);
                    while !packed.0.is_empty() {
                        list.push(element(&mut packed, 0, field)?);
                    }
                } else {
                    list.push(element(&mut reader, wire, field)?);
                }
            }
            (Shape::Map, _) => {
                let (key, value) = map_entry(reader.bytes(wire, field.name)?, field)?;
                let entries = map
                    .entry(field.name)
                    .or_insert_with(|| Value::Object(Map::new()));
                entries
                    .as_object_mut()
                    .expect("a map field holds a map")
                    .insert(key, value);
            }
            (shape, _) => {
                let value = element(&mut reader, wire, field)?;
                let is_absent = value.is_null()
                    || (shape == Shape::One && field.omits_empty && check::is_zero(&value, field));
                if is_absent {
                    map.shift_remove(field.name);
                } else {
                    map.insert(field.name.to_owned(), value);
                }
            }
        }
    }
    Ok(map)
}

fn map_entry(bytes: &[u8], field: &Field) -> Result<(String, Value), InvalidProtobuf> {
    let mut reader = Reader(bytes);
    let (mut key, mut value) = (String::new(), scalar::zero(field.base));
    while let Some((number, wire)) = reader.tag()? {
        match number {
            1 => key = text(reader.bytes(wire, field.name)?, field.name)?.to_owned(),
            2 => value = element(&mut reader, wire, field)?,
            _ => reader.skip(wire)?,
        }
    }
    Ok((key, value))
}

/// One value. Null stands for "not set" (a zero time).
fn element(reader: &mut Reader<'_>, wire: u8, field: &Field) -> Result<Value, InvalidProtobuf> {
    let invalid = |cause: String| InvalidProtobuf::Value {
        field: field.name,
        cause,
    };
    Ok(match field.base {
        Base::Bool => (reader.varint_of(wire, field.name)? != 0).into(),
        // The low 32 bits, as protobuf says for a too wide varint.
        Base::Int32 => (reader.varint_of(wire, field.name)? as i32).into(),
        Base::Int64 => (reader.varint_of(wire, field.name)? as i64).into(),
        Base::String(_) => text(reader.bytes(wire, field.name)?, field.name)?.into(),
        Base::Bytes => STANDARD.encode(reader.bytes(wire, field.name)?).into(),
        Base::Message(id) => Value::Object(decode_message(
            reader.bytes(wire, field.name)?,
            schema().message(id),
        )?),
        Base::Time => time(reader.bytes(wire, field.name)?, false).map_err(|e| named(e, field))?,
        Base::MicroTime => {
            time(reader.bytes(wire, field.name)?, true).map_err(|e| named(e, field))?
        }
        Base::Quantity => {
            let inner = single_bytes(reader.bytes(wire, field.name)?)?;
            let amount = text(inner, field.name)?;
            let amount = if amount.is_empty() { "0" } else { amount };
            scalar::quantity(amount, field.shape == Shape::Map)
                .map_err(|e| invalid(e.to_string()))?
        }
        Base::IntOrString => int_or_string(reader.bytes(wire, field.name)?, field.name)?,
        Base::RawExtension | Base::FieldsV1 => {
            let inner = single_bytes(reader.bytes(wire, field.name)?)?;
            if inner.is_empty() {
                Value::Null
            } else {
                serde_json::from_slice(inner).map_err(|e| invalid(e.to_string()))?
            }
        }
    })
}

fn named(error: InvalidProtobuf, field: &Field) -> InvalidProtobuf {
    match error {
        InvalidProtobuf::Value { cause, .. } => InvalidProtobuf::Value {
            field: field.name,
            cause,
        },
        other => other,
    }
}

/// The bytes of field 1 of a wrapper message.
fn single_bytes(bytes: &[u8]) -> Result<&[u8], InvalidProtobuf> {
    let (mut reader, mut inner) = (Reader(bytes), &[][..]);
    while let Some((number, wire)) = reader.tag()? {
        match number {
            1 => inner = reader.bytes(wire, "raw")?,
            _ => reader.skip(wire)?,
        }
    }
    Ok(inner)
}

fn time(bytes: &[u8], is_micro: bool) -> Result<Value, InvalidProtobuf> {
    let (mut reader, mut secs, mut nanos) = (Reader(bytes), 0, 0);
    while let Some((number, wire)) = reader.tag()? {
        match number {
            1 => secs = reader.varint_of(wire, "seconds")? as i64,
            2 => nanos = reader.varint_of(wire, "nanos")? as i32,
            _ => reader.skip(wire)?,
        }
    }
    if secs == 0 && nanos == 0 {
        return Ok(Value::Null);
    }
    let at = crate::time::from_unix(secs, nanos).ok_or_else(|| InvalidProtobuf::Value {
        field: "",
        cause: "time is out of range".to_owned(),
    })?;
    Ok(if is_micro {
        crate::time::format_micro(at)
    } else {
        crate::time::format(at)
    }
    .into())
}

fn int_or_string(bytes: &[u8], name: &'static str) -> Result<Value, InvalidProtobuf> {
    let (mut reader, mut is_text, mut number, mut string) = (Reader(bytes), false, 0_i32, "");
    while let Some((field, wire)) = reader.tag()? {
        match field {
            1 => is_text = reader.varint_of(wire, name)? == 1,
            2 => number = reader.varint_of(wire, name)? as i32,
            3 => string = text(reader.bytes(wire, name)?, name)?,
            _ => reader.skip(wire)?,
        }
    }
    Ok(if is_text {
        string.into()
    } else {
        number.into()
    })
}

fn text<'a>(bytes: &'a [u8], field: &'static str) -> Result<&'a str, InvalidProtobuf> {
    std::str::from_utf8(bytes).map_err(|_| InvalidProtobuf::Utf8(field))
}

/// Reads the wire format; never past its end.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    /// Field number and wire type of the next field; none at the end.
    fn tag(&mut self) -> Result<Option<(u32, u8)>, InvalidProtobuf> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let number = u32::try_from(tag >> 3).map_err(|_| InvalidProtobuf::Overflow)?;
        Ok(Some((number, (tag & 7) as u8)))
    }

    fn varint(&mut self) -> Result<u64, InvalidProtobuf> {
        let mut value = 0_u64;
        for shift in (0..70).step_by(7) {
            let (first, rest) = self.0.split_first().ok_or(InvalidProtobuf::Truncated)?;
            self.0 = rest;
            if shift < 64 {
                value |= u64::from(first & 0x7f) << shift;
            }
            if first & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(InvalidProtobuf::Overflow)
    }

    fn varint_of(&mut self, wire: u8, field: &str) -> Result<u64, InvalidProtobuf> {
        if wire != 0 {
            return Err(InvalidProtobuf::WireType {
                wire_type: wire,
                field: field.to_owned(),
            });
        }
        self.varint()
    }

    fn bytes(&mut self, wire: u8, field: &str) -> Result<&'a [u8], InvalidProtobuf> {
        if wire != 2 {
            return Err(InvalidProtobuf::WireType {
                wire_type: wire,
                field: field.to_owned(),
            });
        }
        let length = usize::try_from(self.varint()?).map_err(|_| InvalidProtobuf::Overflow)?;
        self.take(length)
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], InvalidProtobuf> {
        let (taken, rest) = self
            .0
            .split_at_checked(length)
            .ok_or(InvalidProtobuf::Truncated)?;
        self.0 = rest;
        Ok(taken)
    }

    fn skip(&mut self, wire: u8) -> Result<(), InvalidProtobuf> {
        match wire {
            0 => drop(self.varint()?),
            1 => drop(self.take(8)?),
            2 => drop(self.bytes(wire, "")?),
            5 => drop(self.take(4)?),
            other => {
                return Err(InvalidProtobuf::WireType {
                    wire_type: other,
                    field: "unknown".to_owned(),
                });
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
