//! Strategic merge patch: maps merge, lists merge or are replaced as the schema says, directives do the rest.
//!
//! Directives: `$patch: replace|delete|merge`, `$retainKeys`, `$setElementOrder/<list>`, `$deleteFromPrimitiveList/<list>`.

use super::order::{arrange, is_same};
use crate::schema::{Base, Field, Message, Shape, schema};
use serde_json::{Map, Value};

const PATCH: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const ELEMENT_ORDER: &str = "$setElementOrder/";
const DELETE_FROM: &str = "$deleteFromPrimitiveList/";

/// A patch that cannot be applied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidPatch {
    /// A list element without the field that identifies it.
    #[error("map: {map} does not contain declared merge key: {key}")]
    NoMergeKey {
        /// The element.
        map: String,
        /// The merge key.
        key: &'static str,
    },
    /// `$patch` with another value than replace, delete or merge.
    #[error("unknown patch type: {kind} in map: {map}")]
    UnknownType {
        /// The value of `$patch`.
        kind: String,
        /// Where.
        map: String,
    },
    /// `$patch: merge` in a list element.
    #[error("merging lists cannot yet be specified in the patch")]
    MergeInList,
    /// `$retainKeys` that is no list, or misses a key of the patch.
    #[error("invalid patch format of retainKeys")]
    RetainKeys,
    /// `$setElementOrder` that is no list.
    #[error("invalid patch format of setElementOrder list")]
    ElementOrder,
    /// `$setElementOrder` in another order than the patch's own list.
    #[error("The order in patch list:\n{patch}\n doesn't match $setElementOrder list:\n{order}\n")]
    OrderMismatch {
        /// The patch's list.
        patch: String,
        /// The order list.
        order: String,
    },
    /// `$deleteFromPrimitiveList` that is no list.
    #[error("invalid patch format of primitive list")]
    PrimitiveList,
    /// A field that the type does not have.
    #[error("unable to find api field in struct {owner} for the json field \"{field}\"")]
    UnknownField {
        /// The type.
        owner: &'static str,
        /// The field.
        field: String,
    },
}

/// Applies `patch` to an object of the schema's `message`.
pub(super) fn apply(current: &Value, patch: Value, message: &str) -> Result<Value, InvalidPatch> {
    let (Value::Object(current), Value::Object(patch)) = (current.clone(), patch) else {
        unreachable!("callers check that both are objects");
    };
    merge_maps(current, patch, schema().find(message)).map(Value::Object)
}

type Object = Map<String, Value>;

/// `message` is none inside plain maps (labels, data), where keys are not fields.
fn merge_maps(
    mut base: Object,
    mut patch: Object,
    message: Option<&'static Message>,
) -> Result<Object, InvalidPatch> {
    if let Some(directive) = patch.shift_remove(PATCH) {
        return match directive.as_str() {
            Some("replace") => Ok(clean_map(patch)),
            Some("delete") => Ok(Object::new()),
            _ => Err(unknown_type(&directive, &patch)),
        };
    }
    retain_keys(&mut base, &mut patch)?;
    let orders = take_prefixed(&mut patch, ELEMENT_ORDER);
    for (name, deleted) in take_prefixed(&mut patch, DELETE_FROM) {
        let Value::Array(deleted) = deleted else {
            return Err(InvalidPatch::PrimitiveList);
        };
        if let Some(list) = base.get_mut(&name).and_then(Value::as_array_mut) {
            list.retain(|item| !deleted.contains(item));
        }
    }
    for (name, order) in orders {
        let Value::Array(order) = order else {
            return Err(InvalidPatch::ElementOrder);
        };
        merge_ordered(&mut base, &mut patch, &name, &order, message)?;
    }
    for (name, value) in patch {
        if value.is_null() {
            base.shift_remove(&name);
            continue;
        }
        // The value is taken out but its key keeps its place, so that an unchanged order stays unchanged.
        let merged = match (base.get_mut(&name).map(Value::take), value) {
            (Some(Value::Object(old)), Value::Object(new)) => {
                let field = lookup(message, &name)?;
                let is_replaced = field.is_some_and(|f| f.patch_strategy.contains(&"replace"));
                if is_replaced {
                    Some(Value::Object(clean_map(new)))
                } else {
                    Some(Value::Object(merge_maps(
                        old,
                        new,
                        field.and_then(message_of),
                    )?))
                }
            }
            (Some(Value::Array(old)), Value::Array(new)) => Some(Value::Array(merge_lists(
                old,
                new,
                lookup(message, &name)?,
            )?)),
            (_, value) => clean(value),
        };
        match merged {
            Some(merged) => drop(base.insert(name, merged)),
            None => drop(base.shift_remove(&name)),
        }
    }
    Ok(base)
}

fn lookup(
    message: Option<&'static Message>,
    name: &str,
) -> Result<Option<&'static Field>, InvalidPatch> {
    let Some(message) = message else {
        return Ok(None);
    };
    match schema().json_field(message, name) {
        Some(field) => Ok(Some(field)),
        None => Err(InvalidPatch::UnknownField {
            owner: message.short_name(),
            field: name.to_owned(),
        }),
    }
}

fn message_of(field: &Field) -> Option<&'static Message> {
    match (field.base, field.shape) {
        (Base::Message(id), Shape::One | Shape::Optional | Shape::List) => {
            Some(schema().message(id))
        }
        _ => None,
    }
}

fn take_prefixed(patch: &mut Object, prefix: &str) -> Vec<(String, Value)> {
    let names: Vec<String> = patch
        .keys()
        .filter(|k| k.starts_with(prefix))
        .cloned()
        .collect();
    names
        .into_iter()
        .filter_map(|k| {
            patch
                .shift_remove(&k)
                .map(|v| (k[prefix.len()..].to_owned(), v))
        })
        .collect()
}

/// Keeps of `base` only the listed keys. The patch may set no other ones.
fn retain_keys(base: &mut Object, patch: &mut Object) -> Result<(), InvalidPatch> {
    let Some(keys) = patch.shift_remove(RETAIN_KEYS) else {
        return Ok(());
    };
    let Value::Array(keys) = keys else {
        return Err(InvalidPatch::RetainKeys);
    };
    let is_listed = |name: &str| keys.iter().any(|k| k.as_str() == Some(name));
    let is_directive =
        |name: &str| name.starts_with(ELEMENT_ORDER) || name.starts_with(DELETE_FROM);
    if patch
        .iter()
        .any(|(name, value)| !value.is_null() && !is_directive(name) && !is_listed(name))
    {
        return Err(InvalidPatch::RetainKeys);
    }
    base.retain(|name, _| is_listed(name));
    Ok(())
}

/// A list with `$setElementOrder`: merged like others, then put into that order.
fn merge_ordered(
    base: &mut Object,
    patch: &mut Object,
    name: &str,
    order: &[Value],
    message: Option<&'static Message>,
) -> Result<(), InvalidPatch> {
    let field = lookup(message, name)?;
    let key = field.and_then(|f| f.merge_key);
    let new = match patch.shift_remove(name) {
        None => None,
        Some(Value::Array(list)) => Some(list),
        // The whole list is deleted or replaced by something else: there is nothing to order.
        Some(other) => {
            patch.insert(name.to_owned(), other);
            return Ok(());
        }
    };
    check_order(new.as_deref().unwrap_or_default(), order, key)?;
    let before = base.get(name).and_then(Value::as_array).cloned();
    let merged = match (before.clone(), new) {
        (None, None) => return Ok(()),
        (Some(old), None) => old,
        (None, Some(new)) => clean_list(new),
        (Some(old), Some(new)) => merge_lists(old, new, field)?,
    };
    let arranged = arrange(merged, order, &before.unwrap_or_default(), key);
    base.insert(name.to_owned(), Value::Array(arranged));
    Ok(())
}

fn check_order(list: &[Value], order: &[Value], key: Option<&str>) -> Result<(), InvalidPatch> {
    let mut rest = order.iter();
    let is_in_order = list
        .iter()
        .filter(|v| v.get(PATCH).is_none())
        .all(|item| rest.any(|o| is_same(o, item, key)));
    if is_in_order || order.is_empty() {
        return Ok(());
    }
    // Only what identifies the elements: the rest may be secret.
    let id =
        |v: &Value| key.map_or_else(|| v.clone(), |key| v.get(key).cloned().unwrap_or_default());
    let text = |list: &[Value]| list.iter().map(id).collect::<Value>().to_string();
    Err(InvalidPatch::OrderMismatch {
        patch: text(list),
        order: text(order),
    })
}

fn merge_lists(
    old: Vec<Value>,
    new: Vec<Value>,
    field: Option<&'static Field>,
) -> Result<Vec<Value>, InvalidPatch> {
    let Some(field) = field.filter(|f| f.patch_strategy.contains(&"merge")) else {
        return Ok(clean_list(new));
    };
    let before = old.clone();
    let Some(key) = field.merge_key else {
        let mut merged = old;
        for item in new.clone() {
            if !merged.contains(&item) {
                merged.push(item);
            }
        }
        return Ok(arrange(merged, &new, &before, None));
    };
    let (merged, plain) = apply_element_directives(old, new, key)?;
    let Some(mut merged) = merged else {
        // Replaced as a whole: elements with the same key (a node's addresses) stay apart.
        return Ok(clean_list(plain));
    };
    let order = plain.clone();
    for item in plain {
        let Some(id) = item.get(key).cloned() else {
            return Err(no_key(&item, key));
        };
        let Value::Object(item) = item else {
            return Err(no_key(&item, key));
        };
        match merged.iter_mut().find(|m| m.get(key) == Some(&id)) {
            Some(found) => {
                let Value::Object(found_map) = found.take() else {
                    return Err(no_key(found, key));
                };
                *found = Value::Object(merge_maps(found_map, item, message_of(field))?);
            }
            None => merged.push(Value::Object(clean_map(item))),
        }
    }
    Ok(arrange(merged, &order, &before, Some(key)))
}

/// Carries out `$patch` elements; answers what is left of the list (none: it is replaced) and the
/// elements to merge.
fn apply_element_directives(
    mut old: Vec<Value>,
    new: Vec<Value>,
    key: &'static str,
) -> Result<(Option<Vec<Value>>, Vec<Value>), InvalidPatch> {
    let (mut plain, mut is_replaced) = (Vec::with_capacity(new.len()), false);
    for item in new {
        match item.get(PATCH).map(|d| (d.as_str(), d)) {
            None => plain.push(item),
            Some((Some("delete"), _)) => {
                let id = item.get(key).ok_or_else(|| no_key(&item, key))?;
                old.retain(|o| o.get(key) != Some(id));
            }
            Some((Some("replace"), _)) => is_replaced = true,
            Some((Some("merge"), _)) => return Err(InvalidPatch::MergeInList),
            Some((_, other)) => {
                let fields = item.as_object().cloned().unwrap_or_default();
                return Err(unknown_type(other, &fields));
            }
        }
    }
    Ok(((!is_replaced).then_some(old), plain))
}

fn no_key(item: &Value, key: &'static str) -> InvalidPatch {
    // Only the names: values may be secret.
    let names: Vec<&str> = item
        .as_object()
        .into_iter()
        .flatten()
        .map(|(k, _)| k.as_str())
        .collect();
    InvalidPatch::NoMergeKey {
        map: format!("{names:?}"),
        key,
    }
}

fn unknown_type(directive: &Value, patch: &Object) -> InvalidPatch {
    let names: Vec<&str> = patch.keys().map(String::as_str).collect();
    InvalidPatch::UnknownType {
        kind: directive.to_string(),
        map: format!("{names:?}"),
    }
}

/// A value that is added as it is: without directives and nulls. None when a directive deletes it.
fn clean(value: Value) -> Option<Value> {
    match value {
        Value::Object(map) if map.get(PATCH).and_then(Value::as_str) == Some("delete") => None,
        Value::Object(map) => Some(Value::Object(clean_map(map))),
        Value::Array(list) => Some(Value::Array(clean_list(list))),
        other => Some(other),
    }
}

fn clean_list(list: Vec<Value>) -> Vec<Value> {
    // An element that is nothing but a directive adds nothing.
    let is_bare = |v: &Value| {
        v.as_object()
            .is_some_and(|m| m.len() == 1 && m.contains_key(PATCH))
    };
    list.into_iter()
        .filter(|v| !is_bare(v))
        .filter_map(clean)
        .collect()
}

fn clean_map(map: Object) -> Object {
    let is_directive = |name: &str| {
        name == PATCH
            || name == RETAIN_KEYS
            || name.starts_with(ELEMENT_ORDER)
            || name.starts_with(DELETE_FROM)
    };
    map.into_iter()
        .filter(|(name, value)| !value.is_null() && !is_directive(name))
        .filter_map(|(name, value)| clean(value).map(|v| (name, v)))
        .collect()
}
