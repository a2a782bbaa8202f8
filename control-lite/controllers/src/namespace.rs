//! Empties a namespace that is being deleted, says what is left, and lets it go at the end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Namespace, NamespaceCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::Value;
use tholepin_informer::{
    ClientError, DeleteOptions, Kind, ObjectKey, Propagation, Subresource, WorkQueue, kinds, now,
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::context::{Context, ReconcileError};
use crate::patch::status_diff;
use crate::runner::{self, Reconciler};

/// A look without an event, for content that no cache shows (Events).
const RETRY: Duration = Duration::from_secs(5);

#[derive(Debug)]
struct NamespaceController {
    context: Context,
}

/// Registers handlers and starts the workers.
pub(crate) fn spawn(context: &Context, tasks: &mut JoinSet<()>, cancel: &CancellationToken) {
    let queue = Arc::new(WorkQueue::<ObjectKey>::new());
    let add = queue.clone();
    context.caches.namespaces.on_change(move |change| {
        if let Some(new) = &change.new
            && new.metadata.deletion_timestamp.is_some()
        {
            add.add(ObjectKey::of(&new.metadata));
        }
    });
    // Every object that goes may be the last one.
    for store in context
        .caches
        .all()
        .into_iter()
        .filter(|store| store.kind().namespaced)
    {
        let (add, namespaces) = (queue.clone(), context.caches.namespaces.clone());
        store.on_meta_change(Box::new(move |old: Option<&ObjectMeta>, new| {
            let (Some(old), None) = (old, new) else {
                return;
            };
            let key = ObjectKey::new("", old.namespace.clone().unwrap_or_default());
            let terminating = |ns: Arc<Namespace>| ns.metadata.deletion_timestamp.is_some();
            if namespaces.get(&key).is_some_and(terminating) {
                add.add(key);
            }
        }));
    }
    let controller = Arc::new(NamespaceController {
        context: context.clone(),
    });
    runner::spawn(context, tasks, cancel, queue, controller, 2);
}

/// What is left of one kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Remains {
    count: usize,
    finalizers: BTreeMap<String, usize>,
}

impl Reconciler for NamespaceController {
    type Key = ObjectKey;
    const NAME: &'static str = "namespace";

    async fn reconcile(&self, key: &ObjectKey) -> Result<Option<Duration>, ReconcileError> {
        let caches = &self.context.caches;
        let Some(namespace) = caches.namespaces.get(key) else {
            return Ok(None);
        };
        if namespace.metadata.deletion_timestamp.is_none() {
            return Ok(None);
        }
        let finalizers = namespace
            .spec
            .as_ref()
            .and_then(|spec| spec.finalizers.as_ref());
        if !finalizers
            .into_iter()
            .flatten()
            .any(|finalizer| finalizer == "kubernetes")
        {
            return Ok(None);
        }
        let (remains, failures) = self.empty(&key.name).await;
        let finished = remains.is_empty() && failures.is_empty();
        let mut status = namespace.status.clone().unwrap_or_default();
        status.phase = Some("Terminating".to_owned());
        status.conditions = Some(conditions(
            status.conditions.take().unwrap_or_default(),
            &remains,
            &failures,
        ));
        let before = namespace.status.clone().unwrap_or_default();
        if !finished
            && let Some(patch) = status_diff(
                namespace.metadata.resource_version.as_deref(),
                &before,
                &status,
            )
        {
            let patched = caches
                .namespaces
                .patch(key, Subresource::Status, patch)
                .await;
            patched.map_err(ReconcileError::of("update the status of namespace", key))?;
        }
        if let Some(error) = failures.into_values().next() {
            return Err(ReconcileError::of("empty namespace", key)(error));
        }
        if !finished {
            return Ok(Some(RETRY));
        }
        let finalized = caches.client().finalize_namespace(&key.name).await;
        match finalized {
            Err(error) if !error.is_not_found() => {
                Err(ReconcileError::of("finalize namespace", key)(error))
            }
            _ => Ok(None),
        }
    }
}

impl NamespaceController {
    /// Deletes everything in the namespace: pods first, the rest when they are gone, so that what pods
    /// use (Secrets, policies) outlives them.
    async fn empty(
        &self,
        namespace: &str,
    ) -> (BTreeMap<Kind, Remains>, BTreeMap<Kind, ClientError>) {
        let mut remains = BTreeMap::new();
        let mut failures = BTreeMap::new();
        let (pods, rest): (Vec<Kind>, Vec<Kind>) = kinds::ALL
            .into_iter()
            .filter(|kind| kind.namespaced)
            .partition(|k| *k == kinds::POD);
        for stage in [pods, rest] {
            for kind in stage {
                match self.empty_of(kind, namespace).await {
                    Ok(left) if left.count > 0 => drop(remains.insert(kind, left)),
                    Ok(_) => (),
                    Err(error) => drop(failures.insert(kind, error)),
                }
            }
            if !remains.is_empty() || !failures.is_empty() {
                break;
            }
        }
        (remains, failures)
    }

    async fn empty_of(&self, kind: Kind, namespace: &str) -> Result<Remains, ClientError> {
        let client = self.context.caches.client();
        let (objects, _) = client.list(kind, Some(namespace)).await?;
        for object in &objects {
            if object.pointer("/metadata/deletionTimestamp").is_some() {
                continue;
            }
            let text = |pointer| object.pointer(pointer).and_then(Value::as_str);
            let options = DeleteOptions {
                uid: text("/metadata/uid").map(str::to_owned),
                propagation: Some(Propagation::Background),
                ..Default::default()
            };
            let name = text("/metadata/name").unwrap_or_default();
            match client.delete(kind, namespace, name, options).await {
                Err(error) if !error.is_not_found() && !error.is_conflict() => return Err(error),
                _ => (),
            }
        }
        if objects.is_empty() {
            return Ok(Remains::default());
        }
        let (left, _) = client.list(kind, Some(namespace)).await?;
        let mut remains = Remains {
            count: left.len(),
            ..Default::default()
        };
        for object in &left {
            let finalizers = object
                .pointer("/metadata/finalizers")
                .and_then(Value::as_array);
            for finalizer in finalizers.into_iter().flatten().filter_map(Value::as_str) {
                *remains.finalizers.entry(finalizer.to_owned()).or_default() += 1;
            }
        }
        Ok(remains)
    }
}

/// Upstream's five conditions of a namespace that is going.
fn conditions(
    known: Vec<NamespaceCondition>,
    remains: &BTreeMap<Kind, Remains>,
    failures: &BTreeMap<Kind, ClientError>,
) -> Vec<NamespaceCondition> {
    let mut finalizers: BTreeMap<&str, usize> = BTreeMap::new();
    for (name, count) in remains.values().flat_map(|left| &left.finalizers) {
        *finalizers.entry(name).or_default() += count;
    }
    let join = |parts: Vec<String>| parts.join(", ");
    let resources = join(
        remains
            .iter()
            .map(|(kind, left)| {
                format!(
                    "{}.{} has {} resource instances",
                    kind.resource, kind.group, left.count
                )
            })
            .collect(),
    );
    let holders = join(
        finalizers
            .iter()
            .map(|(name, n)| format!("{name} in {n} resource instances"))
            .collect(),
    );
    let causes = join(failures.values().map(ToString::to_string).collect());
    let wanted = [
        (
            "NamespaceDeletionDiscoveryFailure",
            None,
            (
                "ResourcesDiscovered",
                "All resources successfully discovered",
            ),
        ),
        (
            "NamespaceDeletionGroupVersionParsingFailure",
            None,
            (
                "ParsedGroupVersions",
                "All legacy kube types successfully parsed",
            ),
        ),
        (
            "NamespaceDeletionContentFailure",
            (!failures.is_empty()).then(|| {
                let message = format!(
                    "Failed to delete all resource types, {} remaining: {causes}",
                    failures.len()
                );
                ("ContentDeletionFailed", message)
            }),
            (
                "ContentDeleted",
                "All content successfully deleted, may be waiting on finalization",
            ),
        ),
        (
            "NamespaceContentRemaining",
            (!remains.is_empty()).then(|| {
                (
                    "SomeResourcesRemain",
                    format!("Some resources are remaining: {resources}"),
                )
            }),
            ("ContentRemoved", "All content successfully removed"),
        ),
        (
            "NamespaceFinalizersRemaining",
            (!finalizers.is_empty()).then(|| {
                let message =
                    format!("Some content in the namespace has finalizers remaining: {holders}");
                ("SomeFinalizersRemain", message)
            }),
            (
                "ContentHasNoFinalizers",
                "All content-preserving finalizers finished",
            ),
        ),
    ];
    wanted
        .into_iter()
        .map(|(type_, bad, good)| {
            let (status, reason, message) = match bad {
                Some((reason, message)) => ("True", reason, message),
                None => ("False", good.0, good.1.to_owned()),
            };
            let before = known.iter().find(|condition| condition.type_ == type_);
            let since = before
                .filter(|before| before.status == status)
                .and_then(|before| before.last_transition_time.clone())
                .unwrap_or_else(now);
            NamespaceCondition {
                type_: type_.to_owned(),
                status: status.to_owned(),
                reason: Some(reason.to_owned()),
                message: Some(message),
                last_transition_time: Some(since),
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn conditions_say_what_is_left_and_who_holds_it() {
        let left = Remains {
            count: 2,
            finalizers: [("example.com/hold".to_owned(), 1)].into(),
        };
        let remains = BTreeMap::from([(kinds::POD, left)]);
        let conditions = conditions(Vec::new(), &remains, &BTreeMap::new());
        let message = |type_: &str| {
            let found = conditions
                .iter()
                .find(|c| c.type_ == type_)
                .expect("all five are there");
            (
                found.status.clone(),
                found.message.clone().unwrap_or_default(),
            )
        };
        assert_eq!(
            message("NamespaceContentRemaining"),
            (
                "True".into(),
                "Some resources are remaining: pods. has 2 resource instances".into()
            )
        );
        assert_eq!(
            message("NamespaceFinalizersRemaining"),
            (
                "True".into(),
                "Some content in the namespace has finalizers remaining: example.com/hold in 1 resource instances".into()
            )
        );
        assert_eq!(message("NamespaceDeletionContentFailure").0, "False");
    }
}
