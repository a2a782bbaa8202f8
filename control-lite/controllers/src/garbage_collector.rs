//! Deletes what its owners left behind: background, foreground and orphaning, over every cached kind.

mod classify;

use std::fmt::{self, Display};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use serde_json::{Value, json};
use tholepin_informer::{Caches, DeleteOptions, Dependents, Kind, ObjectKey, WorkQueue, kinds};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::context::{Context, ReconcileError};
use crate::ownership::release_patch;
use crate::runner::{self, Reconciler};
use classify::{Decision, OwnerState, decide};

const WORKERS: usize = 5;
const FOREGROUND: &str = "foregroundDeletion";
const ORPHAN: &str = "orphan";

/// One object of any kind.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
struct Item {
    kind: Kind,
    key: ObjectKey,
}

impl Display for Item {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind.resource, self.key)
    }
}

struct GarbageCollector {
    caches: Arc<Caches>,
    stores: Vec<Arc<dyn Dependents>>,
    queue: Arc<WorkQueue<Item>>,
}

/// Registers handlers on every cache and starts the workers.
pub(crate) fn spawn(context: &Context, tasks: &mut JoinSet<()>, cancel: &CancellationToken) {
    let queue = Arc::new(WorkQueue::new());
    let stores = context.caches.all();
    for store in &stores {
        let (kind, queue) = (store.kind(), queue.clone());
        // Weak: the handler lives in the store it looks at.
        let others: Vec<_> = stores.iter().map(Arc::downgrade).collect();
        store.on_meta_change(Box::new(move |old, new| {
            let stores: Vec<_> = others.iter().filter_map(std::sync::Weak::upgrade).collect();
            changed(kind, old, new, &stores, &queue);
        }));
    }
    let collector = Arc::new(GarbageCollector {
        caches: context.caches.clone(),
        stores,
        queue: queue.clone(),
    });
    runner::spawn(context, tasks, cancel, queue, collector, WORKERS);
}

fn finalizes(meta: &ObjectMeta, finalizer: &str) -> bool {
    meta.deletion_timestamp.is_some()
        && meta
            .finalizers
            .iter()
            .flatten()
            .any(|held| held == finalizer)
}

fn changed(
    kind: Kind,
    old: Option<&ObjectMeta>,
    new: Option<&ObjectMeta>,
    stores: &[Arc<dyn Dependents>],
    queue: &WorkQueue<Item>,
) {
    if let Some(new) = new {
        let owners = new
            .owner_references
            .as_ref()
            .filter(|owners| !owners.is_empty());
        let new_owners =
            owners.is_some() && old.and_then(|old| old.owner_references.as_ref()) != owners;
        if new_owners || finalizes(new, FOREGROUND) || finalizes(new, ORPHAN) {
            queue.add(Item {
                kind,
                key: ObjectKey::of(new),
            });
        }
    }
    // An object that is gone, or begins to go, sets its dependents and its owners in motion.
    let gone = new.is_none();
    let going = new.is_some_and(|new| finalizes(new, FOREGROUND))
        && old.is_none_or(|old| !finalizes(old, FOREGROUND));
    let Some(meta) = new.or(old).filter(|_| gone || going) else {
        return;
    };
    let uid = meta.uid.as_deref().unwrap_or_default();
    for store in stores {
        for dependent in store.owned_by(uid) {
            queue.add(Item {
                kind: store.kind(),
                key: ObjectKey::of(&dependent),
            });
        }
    }
    if gone {
        for owner in meta.owner_references.iter().flatten() {
            if let Some(item) = item_of(owner, meta) {
                queue.add(item);
            }
        }
    }
}

/// The object an owner reference of `dependent` names.
fn item_of(owner: &OwnerReference, dependent: &ObjectMeta) -> Option<Item> {
    let kind = kinds::by_reference(&owner.api_version, &owner.kind)?;
    let namespace = if kind.namespaced {
        dependent.namespace.clone()?
    } else {
        String::new()
    };
    Some(Item {
        kind,
        key: ObjectKey::new(namespace, owner.name.clone()),
    })
}

impl Reconciler for GarbageCollector {
    type Key = Item;
    const NAME: &'static str = "garbage-collector";

    async fn reconcile(&self, item: &Item) -> Result<Option<Duration>, ReconcileError> {
        let Some(store) = self.store(item.kind) else {
            return Ok(None);
        };
        let Some(meta) = store.meta(&item.key) else {
            return Ok(None);
        };
        if finalizes(&meta, ORPHAN) {
            self.orphan_dependents(&meta).await?;
            return self.remove_finalizer(store, item, &meta, ORPHAN).await;
        }
        if finalizes(&meta, FOREGROUND) {
            return self.delete_in_foreground(store, item, &meta).await;
        }
        if meta.deletion_timestamp.is_some() {
            return Ok(None);
        }
        let owners = meta.owner_references.clone().unwrap_or_default();
        let mut states = Vec::new();
        for owner in &owners {
            states.push(self.owner_state(owner, &meta).await?);
        }
        let has_dependents = self.has_dependents(meta.uid.as_deref().unwrap_or_default());
        match decide(&owners, &states, has_dependents) {
            Decision::Keep => Ok(None),
            Decision::DropReferences(uids) => {
                let uids: Vec<&str> = uids.iter().map(String::as_str).collect();
                let patch = release_patch(&meta, &uids);
                match store.patch_main(&item.key, patch).await {
                    Err(error) if !error.is_not_found() => {
                        Err(ReconcileError::of("drop owner references of", item)(error))
                    }
                    _ => Ok(None),
                }
            }
            Decision::Delete(propagation) => {
                let options = DeleteOptions {
                    uid: meta.uid.clone(),
                    propagation: Some(propagation),
                    ..Default::default()
                };
                tracing::debug!(%item, "deleting: its owners are gone");
                match store.delete_uid(&item.key, options).await {
                    Err(error) if !error.is_not_found() => {
                        Err(ReconcileError::of("delete", item)(error))
                    }
                    _ => Ok(None),
                }
            }
        }
    }
}

impl GarbageCollector {
    fn store(&self, kind: Kind) -> Option<&Arc<dyn Dependents>> {
        self.stores.iter().find(|store| store.kind() == kind)
    }

    fn dependents(&self, uid: &str) -> Vec<(Kind, ObjectMeta)> {
        let of = |store: &Arc<dyn Dependents>| {
            let kind = store.kind();
            store
                .owned_by(uid)
                .into_iter()
                .map(move |meta| (kind, meta))
                .collect::<Vec<_>>()
        };
        self.stores.iter().flat_map(of).collect()
    }

    fn has_dependents(&self, uid: &str) -> bool {
        self.stores
            .iter()
            .any(|store| !store.owned_by(uid).is_empty())
    }

    /// Looks into the cache, and asks the store before it calls an owner absent.
    async fn owner_state(
        &self,
        owner: &OwnerReference,
        dependent: &ObjectMeta,
    ) -> Result<OwnerState, ReconcileError> {
        let Some(item) = item_of(owner, dependent) else {
            // A kind that is not served, or a namespaced owner of a cluster-scoped object: nobody can say
            // whether it exists, so nothing is deleted.
            return Ok(OwnerState::Solid);
        };
        let state = |uid: Option<&str>, waiting: bool| match uid {
            Some(uid) if uid != owner.uid => OwnerState::Absent,
            _ if waiting => OwnerState::WaitingForDependents,
            _ => OwnerState::Solid,
        };
        if let Some(meta) = self
            .store(item.kind)
            .and_then(|store| store.meta(&item.key))
            && meta.uid.as_deref() == Some(&owner.uid)
        {
            return Ok(state(meta.uid.as_deref(), finalizes(&meta, FOREGROUND)));
        }
        match self
            .caches
            .client()
            .get(item.kind, &item.key.namespace, &item.key.name)
            .await
        {
            Ok(fresh) => {
                let finalizers = fresh
                    .pointer("/metadata/finalizers")
                    .and_then(Value::as_array);
                let waiting = fresh.pointer("/metadata/deletionTimestamp").is_some()
                    && finalizers
                        .into_iter()
                        .flatten()
                        .any(|held| held == FOREGROUND);
                Ok(state(
                    fresh.pointer("/metadata/uid").and_then(Value::as_str),
                    waiting,
                ))
            }
            Err(error) if error.is_not_found() => Ok(OwnerState::Absent),
            Err(error) => Err(ReconcileError::of("read owner", item)(error)),
        }
    }

    async fn orphan_dependents(&self, meta: &ObjectMeta) -> Result<(), ReconcileError> {
        let uid = meta.uid.as_deref().unwrap_or_default();
        for (kind, dependent) in self.dependents(uid) {
            let item = Item {
                kind,
                key: ObjectKey::of(&dependent),
            };
            let Some(store) = self.store(kind) else {
                continue;
            };
            match store
                .patch_main(&item.key, release_patch(&dependent, &[uid]))
                .await
            {
                Err(error) if !error.is_not_found() => {
                    return Err(ReconcileError::of("orphan", item)(error));
                }
                _ => (),
            }
        }
        Ok(())
    }

    async fn delete_in_foreground(
        &self,
        store: &Arc<dyn Dependents>,
        item: &Item,
        meta: &ObjectMeta,
    ) -> Result<Option<Duration>, ReconcileError> {
        let uid = meta.uid.as_deref().unwrap_or_default();
        let mut blocked = false;
        for (kind, dependent) in self.dependents(uid) {
            blocked |= dependent
                .owner_references
                .iter()
                .flatten()
                .any(|owner| owner.uid == uid && owner.block_owner_deletion == Some(true));
            if dependent.deletion_timestamp.is_none() {
                self.queue.add(Item {
                    kind,
                    key: ObjectKey::of(&dependent),
                });
            }
        }
        if blocked {
            // The last dependent to go wakes us.
            return Ok(None);
        }
        self.remove_finalizer(store, item, meta, FOREGROUND).await
    }

    async fn remove_finalizer(
        &self,
        store: &Arc<dyn Dependents>,
        item: &Item,
        meta: &ObjectMeta,
        finalizer: &str,
    ) -> Result<Option<Duration>, ReconcileError> {
        let mut finalizers = meta.finalizers.clone().unwrap_or_default();
        finalizers.retain(|held| held != finalizer);
        let finalizers = if finalizers.is_empty() {
            Value::Null
        } else {
            json!(finalizers)
        };
        let patch = json!({"metadata": {
            "resourceVersion": meta.resource_version, "finalizers": finalizers,
        }});
        match store.patch_main(&item.key, patch).await {
            Err(error) if !error.is_not_found() => {
                Err(ReconcileError::of("remove the finalizer of", item)(error))
            }
            _ => Ok(None),
        }
    }
}
