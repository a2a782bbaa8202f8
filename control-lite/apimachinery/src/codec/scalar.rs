//! Values with a form of their own: bytes, times, quantities.

use crate::quantity::{InvalidQuantity, Quantity};
use crate::schema::Base;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

/// A text that is no value of its type. The text itself is left out for bytes: it may be a secret.
#[derive(Debug, thiserror::Error)]
pub(super) enum InvalidScalar {
    #[error("illegal base64 data at input byte {0}")]
    Bytes(usize),
    #[error("parsing time {text} as \"2006-01-02T15:04:05Z07:00\": cannot parse it")]
    Time { text: String },
    #[error(transparent)]
    Quantity(InvalidQuantity),
}

/// The zero value of a list's or map's element.
pub(super) fn zero(base: Base) -> Value {
    match base {
        Base::Bool => false.into(),
        Base::Int32 | Base::Int64 | Base::IntOrString => 0.into(),
        Base::Quantity => "0".into(),
        Base::RawExtension | Base::FieldsV1 | Base::Time | Base::MicroTime | Base::Message(_) => {
            Value::Null
        }
        Base::String(_) | Base::Bytes => "".into(),
    }
}

/// Base64, with line breaks taken out as Go does.
pub(super) fn bytes(text: String) -> Result<Value, InvalidScalar> {
    let compact = if text.contains(['\n', '\r']) {
        text.replace(['\n', '\r'], "")
    } else {
        text
    };
    match STANDARD.decode(&compact) {
        Ok(_) => Ok(compact.into()),
        Err(
            base64::DecodeError::InvalidByte(at, _) | base64::DecodeError::InvalidLastSymbol(at, _),
        ) => Err(InvalidScalar::Bytes(at)),
        Err(_) => Err(InvalidScalar::Bytes(compact.len())),
    }
}

/// An RFC 3339 time in the precision of its type.
pub(super) fn time(text: &str, is_micro: bool) -> Result<Value, InvalidScalar> {
    let at = crate::time::parse(text).ok_or_else(|| InvalidScalar::Time {
        text: crate::field::quote(text),
    })?;
    Ok(if is_micro {
        crate::time::format_micro(at)
    } else {
        crate::time::format(at)
    }
    .into())
}

/// A quantity in canonical form; those of resource lists are rounded up to thousandths.
pub(super) fn quantity(text: &str, is_in_list: bool) -> Result<Value, InvalidScalar> {
    let quantity = Quantity::parse(text.trim()).map_err(InvalidScalar::Quantity)?;
    let quantity = if is_in_list {
        quantity.round_up_to_millis()
    } else {
        quantity
    };
    Ok(quantity.to_string().into())
}
