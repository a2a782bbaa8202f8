//! Field paths and field errors of validation, with upstream's wording. No rules here: those are in `kinds`.

use serde_json::Value;
use std::fmt;

/// A field path such as `spec.containers[0].image`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Path(String);

impl Path {
    /// A path that starts at `name`.
    pub fn new(name: &str) -> Self {
        Self(name.to_owned())
    }

    /// The field `name` below.
    #[must_use]
    pub fn child(&self, name: &str) -> Self {
        if self.0.is_empty() {
            Self(name.to_owned())
        } else {
            Self(format!("{}.{name}", self.0))
        }
    }

    /// The list item `index`.
    #[must_use]
    pub fn index(&self, index: usize) -> Self {
        Self(format!("{}[{index}]", self.0))
    }

    /// The map entry `key`.
    #[must_use]
    pub fn key(&self, key: &str) -> Self {
        Self(format!("{}[{key}]", self.0))
    }

    /// The path's text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What is wrong with a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FieldErrorKind {
    /// No such thing to refer to.
    NotFound,
    /// Must be set.
    Required,
    /// Must be unique.
    Duplicate,
    /// Malformed.
    Invalid,
    /// Not one of the supported values.
    NotSupported,
    /// Well-formed, but not allowed here.
    Forbidden,
    /// Text above its limit.
    TooLong,
    /// List above its limit.
    TooMany,
}

impl FieldErrorKind {
    /// The machine-readable cause.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::NotFound => "FieldValueNotFound",
            Self::Required => "FieldValueRequired",
            Self::Duplicate => "FieldValueDuplicate",
            Self::Invalid => "FieldValueInvalid",
            Self::NotSupported => "FieldValueNotSupported",
            Self::Forbidden => "FieldValueForbidden",
            Self::TooLong => "FieldValueTooLong",
            Self::TooMany => "FieldValueTooMany",
        }
    }

    const fn text(self) -> &'static str {
        match self {
            Self::NotFound => "Not found",
            Self::Required => "Required value",
            Self::Duplicate => "Duplicate value",
            Self::Invalid => "Invalid value",
            Self::NotSupported => "Unsupported value",
            Self::Forbidden => "Forbidden",
            Self::TooLong => "Too long",
            Self::TooMany => "Too many",
        }
    }
}

/// One field error; its text is `path: kind: value: detail`.
#[derive(Debug, Clone, PartialEq)]
pub struct FieldError {
    /// What is wrong.
    pub kind: FieldErrorKind,
    /// Where.
    pub field: String,
    /// The value, when the text shows it.
    pub value: Option<Value>,
    /// More words. Empty: none.
    pub detail: String,
}

/// What a validation returns. Empty: valid.
pub type ErrorList = Vec<FieldError>;

impl FieldError {
    fn new(
        kind: FieldErrorKind,
        path: &Path,
        value: Option<Value>,
        detail: impl Into<String>,
    ) -> Self {
        Self {
            kind,
            field: path.0.clone(),
            value,
            detail: detail.into(),
        }
    }

    /// `x: Required value`.
    pub fn required(path: &Path, detail: &str) -> Self {
        Self::new(FieldErrorKind::Required, path, None, detail)
    }

    /// `x: Invalid value: v: detail`.
    pub fn invalid(path: &Path, value: impl Into<Value>, detail: impl Into<String>) -> Self {
        Self::new(FieldErrorKind::Invalid, path, Some(value.into()), detail)
    }

    /// `x: Duplicate value: v`.
    pub fn duplicate(path: &Path, value: impl Into<Value>) -> Self {
        Self::new(FieldErrorKind::Duplicate, path, Some(value.into()), "")
    }

    /// `x: Not found: v`.
    pub fn not_found(path: &Path, value: impl Into<Value>) -> Self {
        Self::new(FieldErrorKind::NotFound, path, Some(value.into()), "")
    }

    /// `x: Unsupported value: v: supported values: "a", "b"`.
    pub fn not_supported(path: &Path, value: impl Into<Value>, supported: &[&str]) -> Self {
        let quoted: Vec<String> = supported.iter().map(|v| quote(v)).collect();
        let detail = if quoted.is_empty() {
            String::new()
        } else {
            format!("supported values: {}", quoted.join(", "))
        };
        Self::new(
            FieldErrorKind::NotSupported,
            path,
            Some(value.into()),
            detail,
        )
    }

    /// `x: Forbidden: detail`.
    pub fn forbidden(path: &Path, detail: impl Into<String>) -> Self {
        Self::new(FieldErrorKind::Forbidden, path, None, detail)
    }

    /// `x: Too long: may not be more than N bytes`.
    pub fn too_long(path: &Path, limit: usize) -> Self {
        let unit = if limit == 1 { "byte" } else { "bytes" };
        Self::new(
            FieldErrorKind::TooLong,
            path,
            None,
            format!("may not be more than {limit} {unit}"),
        )
    }

    /// `x: Too many: 5: must have at most N items`.
    pub fn too_many(path: &Path, count: usize, limit: usize) -> Self {
        let unit = if limit == 1 { "item" } else { "items" };
        Self::new(
            FieldErrorKind::TooMany,
            path,
            Some(count.into()),
            format!("must have at most {limit} {unit}"),
        )
    }

    /// The text without the path.
    pub fn body(&self) -> String {
        let mut text = self.kind.text().to_owned();
        match &self.value {
            None => {}
            Some(Value::String(s)) => text.push_str(&format!(": {}", quote(s))),
            Some(other) => text.push_str(&format!(": {other}")),
        }
        if !self.detail.is_empty() {
            text.push_str(": ");
            text.push_str(&self.detail);
        }
        text
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.body())
    }
}

/// Quotes as Go's `%q` does, because the texts are compared with upstream's.
pub fn quote(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{7}' => out.push_str("\\a"),
            '\u{8}' => out.push_str("\\b"),
            '\u{b}' => out.push_str("\\v"),
            '\u{c}' => out.push_str("\\f"),
            c if c.is_ascii_control() => out.push_str(&format!("\\x{:02x}", c as u32)),
            c if c.is_control() => out.push_str(&format!("\\u{:04x}", c as u32)),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn texts_read_as_upstream_prints_them() {
        let path = Path::new("spec")
            .child("containers")
            .index(0)
            .child("imagePullPolicy");
        assert_eq!(
            FieldError::not_supported(&path, "Sometimes", &["Always", "Never"]).to_string(),
            "spec.containers[0].imagePullPolicy: Unsupported value: \"Sometimes\": supported values: \"Always\", \"Never\""
        );
        assert_eq!(
            FieldError::invalid(&Path::new("labels"), json!({"app": "x"}), "no").to_string(),
            "labels: Invalid value: {\"app\":\"x\"}: no"
        );
        assert_eq!(
            FieldError::too_long(&Path::new("n"), 1).to_string(),
            "n: Too long: may not be more than 1 byte"
        );
        assert_eq!(
            FieldError::duplicate(&Path::new("data").key("k"), 5).to_string(),
            "data[k]: Duplicate value: 5"
        );
    }

    #[test]
    fn quoting_escapes_what_go_escapes() {
        assert_eq!(quote("a\"b\\c\n\u{1}é"), "\"a\\\"b\\\\c\\n\\x01é\"");
    }
}
