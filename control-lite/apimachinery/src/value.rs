//! Reading and writing below a JSON object by dotted path. Only for literal paths without lists.

use serde_json::{Map, Value};

/// The value at `a.b.c`, when every step exists.
pub fn at<'a>(value: &'a Value, path: &str) -> Option<&'a Value> {
    path.split('.')
        .try_fold(value, |v, key| v.get(key))
        .filter(|v| !v.is_null())
}

/// The text at `path`; empty when it is absent or no text.
pub fn str_at<'a>(value: &'a Value, path: &str) -> &'a str {
    at(value, path).and_then(Value::as_str).unwrap_or_default()
}

/// The integer at `path`.
pub fn i64_at(value: &Value, path: &str) -> Option<i64> {
    at(value, path).and_then(Value::as_i64)
}

/// The boolean at `path`; false when absent.
pub fn bool_at(value: &Value, path: &str) -> bool {
    at(value, path).and_then(Value::as_bool).unwrap_or_default()
}

/// The list at `path`; empty when absent.
pub fn list_at<'a>(value: &'a Value, path: &str) -> &'a [Value] {
    at(value, path)
        .and_then(Value::as_array)
        .map_or(&[], Vec::as_slice)
}

/// The map at `path`.
pub fn map_at<'a>(value: &'a Value, path: &str) -> Option<&'a Map<String, Value>> {
    at(value, path).and_then(Value::as_object)
}

/// The list at `path` to change, when it exists.
pub fn list_mut<'a>(value: &'a mut Value, path: &str) -> Option<&'a mut Vec<Value>> {
    at_mut(value, path).and_then(Value::as_array_mut)
}

/// The value at `path` to change, when it exists.
pub fn at_mut<'a>(value: &'a mut Value, path: &str) -> Option<&'a mut Value> {
    path.split('.')
        .try_fold(value, |v, key| v.get_mut(key))
        .filter(|v| !v.is_null())
}

/// The object at `path`, made (with its parents) when it is absent or null.
pub fn ensure_map<'a>(value: &'a mut Value, path: &str) -> &'a mut Map<String, Value> {
    let mut current = value;
    for key in path.split('.').filter(|k| !k.is_empty()) {
        if !current.is_object() {
            *current = Value::Object(Map::new());
        }
        current = current
            .as_object_mut()
            .expect("made an object above")
            .entry(key)
            .or_insert_with(|| Value::Object(Map::new()));
    }
    if !current.is_object() {
        *current = Value::Object(Map::new());
    }
    current.as_object_mut().expect("made an object above")
}

/// Sets `key` when it is absent, null or an empty string: "not given" in the API's terms.
pub fn default_to(map: &mut Map<String, Value>, key: &str, value: impl Into<Value>) {
    match map.get(key) {
        Some(Value::Null) | None => {}
        Some(Value::String(s)) if s.is_empty() => {}
        Some(_) => return,
    }
    map.insert(key.to_owned(), value.into());
}

/// Sets `path`, making its parents.
pub fn set(value: &mut Value, path: &str, new: impl Into<Value>) {
    match path.rsplit_once('.') {
        Some((parent, key)) => ensure_map(value, parent).insert(key.to_owned(), new.into()),
        None => ensure_map(value, "").insert(path.to_owned(), new.into()),
    };
}

/// Removes `path`; answers what was there.
pub fn remove(value: &mut Value, path: &str) -> Option<Value> {
    let (parent, key) = match path.rsplit_once('.') {
        Some((parent, key)) => (at_mut(value, parent)?, key),
        None => (value, path),
    };
    parent.as_object_mut()?.shift_remove(key)
}

/// Copies `path` from `from` into `to`, removing it there when `from` has none.
pub fn copy(from: &Value, to: &mut Value, path: &str) {
    match at(from, path) {
        Some(v) => set(to, path, v.clone()),
        None => drop(remove(to, path)),
    }
}

/// Whether `a` and `b` are equal when absent, null, empty lists and empty maps count as the same.
///
/// Upstream compares typed structs, where these do not differ; a JSON comparison would see changes that are none.
pub fn semantically_equal(a: Option<&Value>, b: Option<&Value>) -> bool {
    match (a.filter(|v| !is_empty(v)), b.filter(|v| !is_empty(v))) {
        (None, None) => true,
        (Some(Value::Object(x)), Some(Value::Object(y))) => {
            x.iter().all(|(k, v)| semantically_equal(Some(v), y.get(k)))
                && y.iter().all(|(k, v)| x.contains_key(k) || is_empty(v))
        }
        (Some(Value::Array(x)), Some(Value::Array(y))) => {
            x.len() == y.len()
                && x.iter()
                    .zip(y)
                    .all(|(v, w)| semantically_equal(Some(v), Some(w)))
        }
        (Some(Value::Number(x)), Some(Value::Number(y))) => x == y || x.as_f64() == y.as_f64(),
        (x, y) => x == y,
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(map) => map.values().all(is_empty),
        Value::Array(list) => list.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn absent_null_and_empty_are_the_same_to_semantic_equality() {
        let a = json!({"a": 1, "b": null, "c": {}, "d": []});
        assert!(semantically_equal(Some(&a), Some(&json!({"a": 1}))));
        assert!(semantically_equal(Some(&json!({"a": 1})), Some(&a)));
        assert!(!semantically_equal(
            Some(&a),
            Some(&json!({"a": 1, "e": ""}))
        ));
        assert!(!semantically_equal(Some(&json!([1])), Some(&json!([1, 2]))));
    }

    #[test]
    fn parents_are_made_on_the_way_down() {
        let mut v = json!({"a": null});
        set(&mut v, "a.b.c", 1);
        assert_eq!(v, json!({"a": {"b": {"c": 1}}}));
        assert_eq!(remove(&mut v, "a.b.c"), Some(json!(1)));
        assert_eq!(at(&v, "a.b.c"), None);
    }
}
