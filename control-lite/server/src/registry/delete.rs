//! Delete: preconditions, grace, finalizers, propagation, and deletion of many.

use jiff::Timestamp;
use serde_json::Value;
use tholepin_apimachinery::meta::{FINALIZER_FOREGROUND, FINALIZER_ORPHAN};
use tholepin_apimachinery::value::{i64_at, list_at, set, str_at};
use tholepin_apimachinery::{ApiError, Kind, meta};
use tholepin_store::Expected;

use super::admission::admit_delete;
use super::create::check_verb;
use super::update::is_finished;
use super::{
    ApiResult, Current, DeleteOptions, DeleteOutcome, ListOptions, Propagation, Registry,
    RequestContext, Resource, WriteConflict, stored,
};

const CONFLICT_RETRIES: usize = 100;
/// Seconds a pod gets that says nothing.
const DEFAULT_GRACE_SECS: i64 = 30;

impl Registry {
    /// Deletes an object, or marks it as being deleted if something holds it.
    pub async fn delete(
        &self,
        ctx: &RequestContext,
        resource: impl Resource,
        namespace: &str,
        name: &str,
        options: &DeleteOptions,
    ) -> ApiResult<DeleteOutcome> {
        let kind = resource.kind()?;
        check_verb(kind, "delete")?;
        admit_delete(kind, name)?;
        for _ in 0..CONFLICT_RETRIES {
            let current = self.read(kind, namespace, name).await?;
            check_preconditions(kind, name, options, &current)?;
            if let Ok(outcome) = self
                .delete_current(ctx, kind, namespace, name, options, current)
                .await?
            {
                return Ok(outcome);
            }
        }
        Err(ApiError::stale(kind.group, kind.plural, name))
    }

    async fn delete_current(
        &self,
        ctx: &RequestContext,
        kind: &'static Kind,
        namespace: &str,
        name: &str,
        options: &DeleteOptions,
        current: Current,
    ) -> ApiResult<Result<DeleteOutcome, WriteConflict>> {
        let mut object = current.object.clone();
        set_finalizers(kind, options.propagation, &mut object);
        mark(kind, options, &mut object);
        if is_finished(kind, &object) {
            if ctx.dry_run {
                return Ok(Ok(DeleteOutcome::Deleted(kind.from_storage(object))));
            }
            let removed = self
                .remove(kind, namespace, name, object, current.revision)
                .await?;
            return Ok(removed.map(|object| DeleteOutcome::Deleted(kind.from_storage(object))));
        }
        if object == current.object || ctx.dry_run {
            return Ok(Ok(DeleteOutcome::Terminating(kind.from_storage(object))));
        }
        let expected = Expected::Revision(current.revision);
        let written = self
            .write(kind, namespace, name, &mut object, expected)
            .await?;
        Ok(written.map(|()| DeleteOutcome::Terminating(kind.from_storage(object))))
    }

    /// Deletes every object a list selects, and returns what was deleted.
    pub async fn delete_collection(
        &self,
        ctx: &RequestContext,
        resource: impl Resource,
        namespace: &str,
        list: &ListOptions,
        options: &DeleteOptions,
    ) -> ApiResult<Vec<Value>> {
        let kind = resource.kind()?;
        check_verb(kind, "deletecollection")?;
        let selected = self.list_stored(kind, namespace, list).await?;
        let mut deleted = Vec::with_capacity(selected.items.len());
        for item in &selected.items {
            let object = stored::decode(&item.value, item.revision)?;
            let (namespace, name) = (meta::namespace(&object), meta::name(&object));
            match self.delete(ctx, kind, namespace, name, options).await {
                Ok(outcome) => deleted.push(outcome.object().clone()),
                // Somebody else was faster.
                Err(error) if error.is_not_found() => (),
                Err(error) => return Err(error),
            }
        }
        Ok(deleted)
    }
}

fn check_preconditions(
    kind: &Kind,
    name: &str,
    options: &DeleteOptions,
    current: &Current,
) -> ApiResult<()> {
    let version = current.revision.to_string();
    let checks = [
        ("UID", options.uid.as_deref(), meta::uid(&current.object)),
        (
            "ResourceVersion",
            options.resource_version.as_deref(),
            version.as_str(),
        ),
    ];
    for (what, expected, actual) in checks {
        if let Some(expected) = expected.filter(|expected| *expected != actual) {
            return Err(ApiError::precondition_failed(
                kind.group,
                kind.plural,
                name,
                what,
                expected,
                actual,
            ));
        }
    }
    Ok(())
}

/// The garbage collector works by finalizers: they say what becomes of the dependents.
fn set_finalizers(kind: &Kind, propagation: Option<Propagation>, object: &mut Value) {
    let propagation = match propagation {
        Some(propagation) => propagation,
        None if meta::has_finalizer(object, FINALIZER_ORPHAN) => Propagation::Orphan,
        None if meta::has_finalizer(object, FINALIZER_FOREGROUND) => Propagation::Foreground,
        // The one kind that is old enough to have another default.
        None if kind.kind == "ReplicationController" => Propagation::Orphan,
        None => Propagation::Background,
    };
    let (wanted, unwanted): (Option<&str>, &[&str]) = match propagation {
        Propagation::Orphan => (Some(FINALIZER_ORPHAN), &[FINALIZER_FOREGROUND]),
        Propagation::Foreground => (Some(FINALIZER_FOREGROUND), &[FINALIZER_ORPHAN]),
        Propagation::Background => (None, &[FINALIZER_FOREGROUND, FINALIZER_ORPHAN]),
    };
    for finalizer in unwanted {
        meta::remove_finalizer(object, finalizer);
    }
    if let Some(finalizer) = wanted {
        meta::add_finalizer(object, finalizer);
    }
}

/// Sets the deletion time, or brings it forward.
fn mark(kind: &Kind, options: &DeleteOptions, object: &mut Value) {
    let grace = grace_secs(kind, options, object);
    let now = Timestamp::now();
    if meta::is_deleting(object) {
        let present = i64_at(object, "metadata.deletionGracePeriodSeconds").unwrap_or_default();
        if grace < present {
            meta::mark_deleted(object, now, grace);
        }
        return;
    }
    meta::mark_deleted(object, now, grace);
    let generation = meta::generation(object);
    if generation > 0 {
        set(object, "metadata.generation", generation + 1);
    }
    if kind.kind == "Namespace" && !list_at(object, "spec.finalizers").is_empty() {
        set(object, "status.phase", "Terminating");
    }
}

/// Only pods take time to stop, and only those that a node may be running.
fn grace_secs(kind: &Kind, options: &DeleteOptions, object: &Value) -> i64 {
    if kind.kind != "Pod" {
        return 0;
    }
    let has_ended = matches!(str_at(object, "status.phase"), "Failed" | "Succeeded");
    if str_at(object, "spec.nodeName").is_empty() || has_ended {
        return 0;
    }
    let own = i64_at(object, "spec.terminationGracePeriodSeconds").unwrap_or(DEFAULT_GRACE_SECS);
    let grace = match options.grace_period_seconds {
        Some(asked) => asked,
        // A second deletion without a wish of its own changes nothing.
        None => i64_at(object, "metadata.deletionGracePeriodSeconds").unwrap_or(own),
    };
    // Negative means "as soon as possible, but orderly".
    if grace < 0 { 1 } else { grace }
}

#[cfg(test)]
mod tests {
    use serde_json::json;
    use tholepin_apimachinery::kinds;

    use super::*;

    fn kind(plural: &str) -> &'static Kind {
        kinds::all()
            .iter()
            .copied()
            .find(|kind| kind.plural == plural)
            .unwrap()
    }

    fn grace(pod: &Value, asked: Option<i64>) -> i64 {
        let options = DeleteOptions {
            grace_period_seconds: asked,
            ..DeleteOptions::default()
        };
        grace_secs(kind("pods"), &options, pod)
    }

    #[test]
    fn only_a_pod_that_a_node_may_run_has_a_grace_period() {
        let running = json!({
            "spec": {"nodeName": "n", "terminationGracePeriodSeconds": 5}, "status": {},
        });
        assert_eq!(grace(&running, None), 5);
        assert_eq!(grace(&running, Some(0)), 0);
        assert_eq!(grace(&running, Some(-1)), 1);
        let ended = json!({"spec": {"nodeName": "n"}, "status": {"phase": "Succeeded"}});
        assert_eq!(grace(&ended, None), 0);
        let unscheduled = json!({"spec": {}, "status": {"phase": "Pending"}});
        assert_eq!(grace(&unscheduled, Some(60)), 0);
    }

    #[test]
    fn a_second_deletion_can_only_shorten_the_first() {
        let pods = kind("pods");
        let mut pod = json!({"metadata": {"name": "p"}, "spec": {"nodeName": "n"}});
        mark(pods, &DeleteOptions::default(), &mut pod);
        assert_eq!(pod["metadata"]["deletionGracePeriodSeconds"], 30);
        let longer = DeleteOptions {
            grace_period_seconds: Some(60),
            ..DeleteOptions::default()
        };
        mark(pods, &longer, &mut pod);
        assert_eq!(pod["metadata"]["deletionGracePeriodSeconds"], 30);
        let shorter = DeleteOptions {
            grace_period_seconds: Some(0),
            ..DeleteOptions::default()
        };
        mark(pods, &shorter, &mut pod);
        assert_eq!(pod["metadata"]["deletionGracePeriodSeconds"], 0);
    }

    #[test]
    fn propagation_decides_the_garbage_collectors_finalizers() {
        let sets = kind("replicasets");
        let mut object = json!({"metadata": {"finalizers": ["a.example/x", "orphan"]}});
        set_finalizers(sets, Some(Propagation::Foreground), &mut object);
        assert_eq!(
            meta::finalizers(&object),
            ["a.example/x", "foregroundDeletion"]
        );
        set_finalizers(sets, Some(Propagation::Background), &mut object);
        assert_eq!(meta::finalizers(&object), ["a.example/x"]);
        let mut legacy = json!({"metadata": {}});
        set_finalizers(kind("replicationcontrollers"), None, &mut legacy);
        assert_eq!(meta::finalizers(&legacy), ["orphan"]);
    }
}
