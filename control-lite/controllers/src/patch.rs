//! Merge patches from the difference of two states, so that a write carries only what it means to change.

use serde::Serialize;
use serde_json::{Map, Value, json};

/// The merge patch that turns `old` into `new`, or `None` if they are equal.
pub(crate) fn merge_diff(old: &Value, new: &Value) -> Option<Value> {
    if old == new {
        return None;
    }
    let (Value::Object(old), Value::Object(new)) = (old, new) else {
        return Some(new.clone());
    };
    let mut patch = Map::new();
    for (field, value) in new {
        match old.get(field) {
            Some(before) => {
                if let Some(change) = merge_diff(before, value) {
                    patch.insert(field.clone(), change);
                }
            }
            None => drop(patch.insert(field.clone(), value.clone())),
        }
    }
    for field in old.keys().filter(|field| !new.contains_key(*field)) {
        patch.insert(field.clone(), Value::Null);
    }
    Some(Value::Object(patch))
}

/// [`merge_diff`] of two objects, conditional on the revision of `old`.
pub(crate) fn object_diff<T: Serialize>(old: &T, new: &T) -> Option<Value> {
    let (old, new) = (to_value(old), to_value(new));
    let mut patch = merge_diff(&old, &new)?;
    patch["metadata"]["resourceVersion"] = old["metadata"]["resourceVersion"].clone();
    Some(patch)
}

/// The object as JSON.
pub(crate) fn to_value<T: Serialize>(object: &T) -> Value {
    serde_json::to_value(object).expect("API types have only string keys")
}

/// A status patch conditional on a revision, or `None` if nothing changes.
pub(crate) fn status_diff<T: Serialize>(
    resource_version: Option<&str>,
    old: &T,
    new: &T,
) -> Option<Value> {
    let change = merge_diff(&to_value(old), &to_value(new))?;
    Some(json!({"metadata": {"resourceVersion": resource_version}, "status": change}))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn apply(target: &mut Value, patch: &Value) {
        let Value::Object(patch) = patch else {
            return *target = patch.clone();
        };
        if !target.is_object() {
            *target = json!({});
        }
        for (field, value) in patch {
            if value.is_null() {
                target.as_object_mut().expect("an object").remove(field);
            } else {
                apply(&mut target[field], value);
            }
        }
    }

    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![any::<u8>().prop_map(|n| json!(n)), Just(json!(["x"]))];
        leaf.prop_recursive(3, 12, 4, |inner| {
            prop::collection::btree_map("[a-c]", inner, 0..4).prop_map(|map| json!(map))
        })
    }

    proptest! {
        #[test]
        fn applying_the_difference_gives_the_new_state(
            old in prop::collection::btree_map("[a-c]", any_value(), 0..4),
            new in prop::collection::btree_map("[a-c]", any_value(), 0..4),
        ) {
            let (mut old, new) = (json!(old), json!(new));
            match merge_diff(&old, &new) {
                Some(patch) => apply(&mut old, &patch),
                None => prop_assert_eq!(&old, &new),
            }
            // A merge patch cannot set an empty object where a scalar was; it still ends as one.
            prop_assert_eq!(old, new);
        }
    }
}
