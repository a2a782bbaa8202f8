//! Checks a value against its message: drops and reports unknown fields, refuses wrong types, normalises the rest.

use super::scalar::{self, InvalidScalar};
use crate::schema::{Base, Field, Message, Shape, schema};
use serde_json::{Map, Value};

/// A value that the typed object cannot hold.
#[derive(Debug, thiserror::Error)]
pub(super) enum CheckError {
    #[error("json: cannot unmarshal {found} into Go struct field {owner}.{path} of type {wanted}")]
    Type {
        found: String,
        owner: &'static str,
        path: String,
        wanted: String,
    },
    #[error(transparent)]
    Scalar(InvalidScalar),
}

/// Unknown fields reported per body, at most; upstream's limit.
const REPORT_LIMIT: usize = 100;

/// The normalised object. Unknown fields are added to `problems`.
pub(super) fn check(
    value: Value,
    message: &'static Message,
    problems: &mut Vec<String>,
) -> Result<Value, CheckError> {
    let Value::Object(map) = value else {
        return Ok(value);
    };
    let mut walk = Walk { problems };
    walk.message(
        map,
        message,
        &Place {
            go: String::new(),
            json: String::new(),
        },
    )
    .map(Value::Object)
}

/// How JSON calls a value, in Go's error texts.
pub(super) fn word(value: &Value) -> String {
    match value {
        Value::Null => "null".to_owned(),
        Value::Bool(_) => "bool".to_owned(),
        Value::Number(_) => "number".to_owned(),
        Value::String(_) => "string".to_owned(),
        Value::Array(_) => "array".to_owned(),
        Value::Object(_) => "object".to_owned(),
    }
}

/// Go's path has no indexes, the path of unknown fields has.
struct Place {
    go: String,
    json: String,
}

impl Place {
    fn child(&self, name: &str) -> Self {
        let join = |base: &str| {
            if base.is_empty() {
                name.to_owned()
            } else {
                format!("{base}.{name}")
            }
        };
        Self {
            go: join(&self.go),
            json: join(&self.json),
        }
    }

    fn index(&self, index: usize) -> Self {
        Self {
            go: self.go.clone(),
            json: format!("{}[{index}]", self.json),
        }
    }
}

struct Walk<'a> {
    problems: &'a mut Vec<String>,
}

impl Walk<'_> {
    fn message(
        &mut self,
        map: Map<String, Value>,
        message: &'static Message,
        place: &Place,
    ) -> Result<Map<String, Value>, CheckError> {
        let mut out = Map::with_capacity(map.len());
        for (name, value) in map {
            let Some(field) = schema().json_field(message, &name) else {
                if self.problems.len() < REPORT_LIMIT {
                    let path = place.child(&name).json;
                    self.problems
                        .push(format!("unknown field {}", crate::field::quote(&path)));
                }
                continue;
            };
            if value.is_null() {
                continue;
            }
            let value = self.field(value, field, message, &place.child(&name))?;
            if !(field.omits_empty && field.shape != Shape::Optional && is_zero(&value, field)) {
                out.insert(name, value);
            }
        }
        Ok(out)
    }

    fn field(
        &mut self,
        value: Value,
        field: &Field,
        owner: &'static Message,
        place: &Place,
    ) -> Result<Value, CheckError> {
        match (field.shape, value) {
            (Shape::List, Value::Array(list)) => {
                let mut out = Vec::with_capacity(list.len());
                for (i, item) in list.into_iter().enumerate() {
                    out.push(self.element(item, field, owner, &place.index(i))?);
                }
                Ok(Value::Array(out))
            }
            (Shape::Map, Value::Object(map)) => {
                let mut out = Map::with_capacity(map.len());
                for (key, item) in map {
                    let value = self.element(item, field, owner, &place.child(&key))?;
                    out.insert(key, value);
                }
                Ok(Value::Object(out))
            }
            (Shape::List | Shape::Map, other) => Err(mismatch(&other, field, owner, place)),
            (Shape::One | Shape::Optional, other) => self.element(other, field, owner, place),
        }
    }

    fn element(
        &mut self,
        value: Value,
        field: &Field,
        owner: &'static Message,
        place: &Place,
    ) -> Result<Value, CheckError> {
        let scalar = |result: Result<Value, InvalidScalar>| result.map_err(CheckError::Scalar);
        match (field.base, value) {
            (Base::Message(id), Value::Object(map)) => self
                .message(map, schema().message(id), place)
                .map(Value::Object),
            // A null element is the zero value, as in Go.
            (Base::Message(_), Value::Null) => Ok(Value::Object(Map::new())),
            (base, Value::Null) => Ok(scalar::zero(base)),
            (Base::String(_), value @ Value::String(_)) | (Base::Bool, value @ Value::Bool(_)) => {
                Ok(value)
            }
            (Base::Int32, value @ Value::Number(_)) => integer(
                value,
                i64::from(i32::MIN)..=i64::from(i32::MAX),
                field,
                owner,
                place,
            ),
            (Base::Int64, value @ Value::Number(_)) => {
                integer(value, i64::MIN..=i64::MAX, field, owner, place)
            }
            (Base::Bytes, Value::String(text)) => scalar(scalar::bytes(text)),
            (Base::Time, Value::String(text)) => scalar(scalar::time(&text, false)),
            (Base::MicroTime, Value::String(text)) => scalar(scalar::time(&text, true)),
            (Base::Quantity, Value::String(text)) => {
                scalar(scalar::quantity(&text, field.shape == Shape::Map))
            }
            (Base::Quantity, Value::Number(number)) => scalar(scalar::quantity(
                &number.to_string(),
                field.shape == Shape::Map,
            )),
            (Base::IntOrString, value @ Value::String(_)) => Ok(value),
            (Base::IntOrString, value @ Value::Number(_)) => integer(
                value,
                i64::from(i32::MIN)..=i64::from(i32::MAX),
                field,
                owner,
                place,
            ),
            (Base::RawExtension | Base::FieldsV1, value) => Ok(value),
            (_, other) => Err(mismatch(&other, field, owner, place)),
        }
    }
}

fn integer(
    value: Value,
    range: std::ops::RangeInclusive<i64>,
    field: &Field,
    owner: &'static Message,
    place: &Place,
) -> Result<Value, CheckError> {
    // `1.0` and `1e3` are integers to JSON, and to upstream's decoder.
    let whole = value.as_i64().or_else(|| {
        let float = value
            .as_f64()
            .filter(|f| f.fract() == 0.0 && f.abs() < 9.0e15)?;
        Some(float as i64)
    });
    match whole {
        Some(number) if range.contains(&number) => Ok(number.into()),
        _ => Err(CheckError::Type {
            found: format!("number {value}"),
            owner: owner.short_name(),
            path: place.go.clone(),
            wanted: go_element(field),
        }),
    }
}

fn mismatch(found: &Value, field: &Field, owner: &'static Message, place: &Place) -> CheckError {
    let element = go_element(field);
    let wanted = match field.shape {
        Shape::List if !found.is_array() && !place.json.ends_with(']') => format!("[]{element}"),
        Shape::Map if !found.is_object() && place.go.ends_with(field.name) => {
            format!("map[string]{element}")
        }
        _ => element,
    };
    CheckError::Type {
        found: word(found),
        owner: owner.short_name(),
        path: place.go.clone(),
        wanted,
    }
}

fn go_element(field: &Field) -> String {
    let named = |name: &str| format!("v1.{}", name.split_once('.').map_or(name, |(_, n)| n));
    match field.base {
        Base::String(None) => "string".to_owned(),
        Base::String(Some(id)) => named(schema().string_type(id).name),
        Base::Bool => "bool".to_owned(),
        Base::Int32 => "int32".to_owned(),
        Base::Int64 => "int64".to_owned(),
        Base::Bytes => "[]uint8".to_owned(),
        Base::Time => "v1.Time".to_owned(),
        Base::MicroTime => "v1.MicroTime".to_owned(),
        Base::Quantity => "resource.Quantity".to_owned(),
        Base::IntOrString => "intstr.IntOrString".to_owned(),
        Base::RawExtension => "runtime.RawExtension".to_owned(),
        Base::FieldsV1 => "v1.FieldsV1".to_owned(),
        Base::Message(id) => named(schema().message(id).name),
    }
}

/// Whether Go's `omitempty` leaves the value out. Structs are never empty to Go.
pub(super) fn is_zero(value: &Value, field: &Field) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(b) => !b,
        // An IntOrString and a Quantity are structs.
        Value::Number(n) => {
            n.as_i64() == Some(0) && !matches!(field.base, Base::IntOrString | Base::Quantity)
        }
        Value::String(s) => s.is_empty(),
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty() && field.shape == Shape::Map,
    }
}
