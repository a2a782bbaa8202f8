//! `status.details`: which object a failure is about, and its causes.

use serde_json::{Map, Value};

/// One cause in `status.details.causes`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cause {
    /// Machine-readable, for example `FieldValueRequired`. Empty is left out.
    pub reason: String,
    /// For people.
    pub message: String,
    /// Field path. Empty is left out.
    pub field: String,
}

/// `status.details`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Details {
    /// Object name.
    pub name: String,
    /// API group.
    pub group: String,
    /// The resource's plural, or the kind for `Invalid`, as upstream has it.
    pub kind: String,
    /// Object uid.
    pub uid: String,
    /// Causes, in order.
    pub causes: Vec<Cause>,
    /// Zero: not given.
    pub retry_after_secs: u32,
    /// Goes into the Status's own metadata: where an expired list may go on, at another revision.
    pub continue_token: String,
}

impl Details {
    pub(super) fn to_json(&self) -> Value {
        let mut map = Map::new();
        let texts = [
            ("name", &self.name),
            ("group", &self.group),
            ("kind", &self.kind),
            ("uid", &self.uid),
        ];
        for (key, text) in texts {
            if !text.is_empty() {
                map.insert(key.to_owned(), text.as_str().into());
            }
        }
        if !self.causes.is_empty() {
            map.insert(
                "causes".to_owned(),
                self.causes.iter().map(Cause::to_json).collect(),
            );
        }
        if self.retry_after_secs > 0 {
            map.insert("retryAfterSeconds".to_owned(), self.retry_after_secs.into());
        }
        Value::Object(map)
    }
}

impl Cause {
    pub(super) fn to_json(&self) -> Value {
        let mut map = Map::new();
        for (key, text) in [
            ("reason", &self.reason),
            ("message", &self.message),
            ("field", &self.field),
        ] {
            if !text.is_empty() {
                map.insert(key.to_owned(), text.as_str().into());
            }
        }
        Value::Object(map)
    }
}
