//! ObjectMeta: reading, changing and validating `metadata` of any object.

mod validate;

pub(crate) use validate::validate_annotations;
pub use validate::{validate_create, validate_labels, validate_update};

use crate::value::{at, ensure_map, set, str_at};
use jiff::Timestamp;
use serde_json::{Map, Value};

/// Finalizer of a foreground deletion.
pub const FINALIZER_FOREGROUND: &str = "foregroundDeletion";
/// Finalizer of an orphaning deletion.
pub const FINALIZER_ORPHAN: &str = "orphan";

/// `metadata.name`.
pub fn name(object: &Value) -> &str {
    str_at(object, "metadata.name")
}

/// `metadata.namespace`; empty for cluster-scoped objects.
pub fn namespace(object: &Value) -> &str {
    str_at(object, "metadata.namespace")
}

/// `metadata.generateName`.
pub fn generate_name(object: &Value) -> &str {
    str_at(object, "metadata.generateName")
}

/// `metadata.uid`.
pub fn uid(object: &Value) -> &str {
    str_at(object, "metadata.uid")
}

/// `metadata.resourceVersion` as text.
pub fn resource_version(object: &Value) -> &str {
    str_at(object, "metadata.resourceVersion")
}

/// `metadata.generation`; 0 when absent.
pub fn generation(object: &Value) -> i64 {
    crate::value::i64_at(object, "metadata.generation").unwrap_or_default()
}

/// `metadata.labels`.
pub fn labels(object: &Value) -> Option<&Map<String, Value>> {
    crate::value::map_at(object, "metadata.labels")
}

/// One label.
pub fn label<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    labels(object)?.get(key)?.as_str()
}

/// One annotation.
pub fn annotation<'a>(object: &'a Value, key: &str) -> Option<&'a str> {
    at(object, "metadata.annotations")?.get(key)?.as_str()
}

/// `metadata.creationTimestamp` as text.
pub fn creation_timestamp(object: &Value) -> &str {
    str_at(object, "metadata.creationTimestamp")
}

/// `metadata.deletionTimestamp`, when the object is being deleted.
pub fn deletion_timestamp(object: &Value) -> Option<&str> {
    at(object, "metadata.deletionTimestamp")?.as_str()
}

/// Whether the object is being deleted.
pub fn is_deleting(object: &Value) -> bool {
    deletion_timestamp(object).is_some()
}

/// `metadata.finalizers`.
pub fn finalizers(object: &Value) -> Vec<&str> {
    crate::value::list_at(object, "metadata.finalizers")
        .iter()
        .filter_map(Value::as_str)
        .collect()
}

/// Whether `finalizer` is set.
pub fn has_finalizer(object: &Value, finalizer: &str) -> bool {
    finalizers(object).contains(&finalizer)
}

/// Adds `finalizer` unless it is there.
pub fn add_finalizer(object: &mut Value, finalizer: &str) {
    if !has_finalizer(object, finalizer) {
        let list = ensure_map(object, "metadata")
            .entry("finalizers")
            .or_insert_with(|| Value::Array(Vec::new()));
        if !list.is_array() {
            *list = Value::Array(Vec::new());
        }
        list.as_array_mut()
            .expect("made a list above")
            .push(finalizer.into());
    }
}

/// Removes `finalizer`; the list goes with its last entry.
pub fn remove_finalizer(object: &mut Value, finalizer: &str) {
    if let Some(list) = crate::value::list_mut(object, "metadata.finalizers") {
        list.retain(|f| f.as_str() != Some(finalizer));
        if list.is_empty() {
            drop(crate::value::remove(object, "metadata.finalizers"));
        }
    }
}

/// `metadata.ownerReferences`.
pub fn owner_references(object: &Value) -> &[Value] {
    crate::value::list_at(object, "metadata.ownerReferences")
}

/// The owner with `controller: true`.
pub fn controller_of(object: &Value) -> Option<&Value> {
    owner_references(object)
        .iter()
        .find(|o| crate::value::bool_at(o, "controller"))
}

/// Sets `metadata.name`.
pub fn set_name(object: &mut Value, name: &str) {
    set(object, "metadata.name", name);
}

/// Sets `metadata.namespace`.
pub fn set_namespace(object: &mut Value, namespace: &str) {
    set(object, "metadata.namespace", namespace);
}

/// Sets `metadata.resourceVersion`.
pub fn set_resource_version(object: &mut Value, revision: u64) {
    set(object, "metadata.resourceVersion", revision.to_string());
}

/// Sets one label.
pub fn set_label(object: &mut Value, key: &str, value: &str) {
    ensure_map(object, "metadata.labels").insert(key.to_owned(), value.into());
}

/// Sets one annotation.
pub fn set_annotation(object: &mut Value, key: &str, value: &str) {
    ensure_map(object, "metadata.annotations").insert(key.to_owned(), value.into());
}

/// Gives a new object what only the server may set: uid and creation time. Drops what a client must not bring.
pub fn stamp_created(object: &mut Value, now: Timestamp) {
    let metadata = ensure_map(object, "metadata");
    for key in [
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "selfLink",
        "resourceVersion",
    ] {
        drop(metadata.shift_remove(key));
    }
    metadata.insert("uid".to_owned(), uuid::Uuid::new_v4().to_string().into());
    metadata.insert(
        "creationTimestamp".to_owned(),
        crate::time::format(now).into(),
    );
}

/// Marks an object as being deleted after `grace_secs`. Kinds that count their generation count this too.
pub fn mark_deleted(object: &mut Value, now: Timestamp, grace_secs: i64) {
    let at = now
        .checked_add(jiff::SignedDuration::from_secs(grace_secs))
        .unwrap_or(now);
    let metadata = ensure_map(object, "metadata");
    metadata.insert(
        "deletionTimestamp".to_owned(),
        crate::time::format(at).into(),
    );
    metadata.insert("deletionGracePeriodSeconds".to_owned(), grace_secs.into());
    if let Some(generation) = metadata
        .get("generation")
        .and_then(Value::as_i64)
        .filter(|g| *g > 0)
    {
        metadata.insert("generation".to_owned(), (generation + 1).into());
    }
}

/// Carries over what an update may not change and clients commonly leave out: uid, creation and deletion times.
/// A uid the client does give stays, so that a mismatch is refused as upstream does.
pub fn inherit(new: &mut Value, old: &Value) {
    for path in [
        "metadata.creationTimestamp",
        "metadata.deletionTimestamp",
        "metadata.deletionGracePeriodSeconds",
    ] {
        crate::value::copy(old, new, path);
    }
    if uid(new).is_empty() {
        crate::value::copy(old, new, "metadata.uid");
    }
    drop(crate::value::remove(new, "metadata.selfLink"));
}
