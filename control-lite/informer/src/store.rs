//! The cache of one kind: what the reflector saw, plus what this process wrote a moment ago.
//!
//! Writes made through the store are put into it at once (read your own writes), so a controller never
//! acts twice because its watch lags: that takes the place of client-go's expectations. An object's
//! resourceVersion decides between the two sources, because revisions are global and ordered.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::fmt::{self, Debug, Display};
use std::sync::{Arc, RwLock, RwLockReadGuard, RwLockWriteGuard};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::watch;

use crate::client::{Client, ClientError, DeleteOptions, Subresource};
use crate::kind::Kind;
use crate::time;

/// An object that can be cached.
pub trait Cached: DeserializeOwned + Debug + Send + Sync + 'static {
    /// Its metadata.
    fn meta(&self) -> &ObjectMeta;
    /// Its metadata, to change.
    fn meta_mut(&mut self) -> &mut ObjectMeta;
}

impl<T> Cached for T
where
    T: k8s_openapi::Metadata<Ty = ObjectMeta> + DeserializeOwned + Debug + Send + Sync + 'static,
{
    fn meta(&self) -> &ObjectMeta {
        self.metadata()
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        self.metadata_mut()
    }
}

/// Only the metadata of an object, for kinds whose content no controller needs (and should not hold).
#[derive(Clone, Debug, Deserialize)]
pub struct Partial {
    metadata: ObjectMeta,
}

impl Cached for Partial {
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// Namespace (empty for cluster-scoped kinds) and name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    /// Namespace, or empty.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl ObjectKey {
    /// A key from its parts.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self {
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    /// The key of the object with this metadata.
    #[must_use]
    pub fn of(meta: &ObjectMeta) -> Self {
        Self::new(
            meta.namespace.clone().unwrap_or_default(),
            meta.name.clone().unwrap_or_default(),
        )
    }
}

impl Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

/// What happened to one object.
#[derive(Debug)]
pub struct Change<T> {
    /// Before; `None` if it is new.
    pub old: Option<Arc<T>>,
    /// After; `None` if it is gone.
    pub new: Option<Arc<T>>,
}

impl<T> Change<T> {
    /// The newest state known, which for a deletion is the last one.
    #[must_use]
    pub fn latest(&self) -> Option<&Arc<T>> {
        self.new.as_ref().or(self.old.as_ref())
    }
}

type Handler<T> = Arc<dyn Fn(&Change<T>) + Send + Sync>;
type Indexer<T> = fn(&T) -> Option<String>;

/// The cache of one kind.
pub struct Store<T> {
    kind: Kind,
    client: Arc<dyn Client>,
    state: RwLock<State<T>>,
    handlers: RwLock<Vec<Handler<T>>>,
    indexer: Option<Indexer<T>>,
    synced: watch::Sender<bool>,
}

impl<T> Debug for Store<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Store")
            .field("kind", &self.kind)
            .finish_non_exhaustive()
    }
}

struct State<T> {
    objects: BTreeMap<ObjectKey, Arc<T>>,
    by_owner: HashMap<String, BTreeSet<ObjectKey>>,
    index: HashMap<String, BTreeSet<ObjectKey>>,
    /// Everything up to this revision has come through the reflector.
    seen_revision: u64,
    /// Deleted by us; the watch has not said so yet. Older states must not look alive again.
    deleted_uids: HashSet<String>,
}

fn revision_of(meta: &ObjectMeta) -> u64 {
    meta.resource_version
        .as_deref()
        .and_then(|text| text.parse().ok())
        .unwrap_or(0)
}

impl<T: Cached> Store<T> {
    /// An empty cache. `indexer` gives the value [`Store::by_index`] looks objects up by.
    #[must_use]
    pub fn new(kind: Kind, client: Arc<dyn Client>, indexer: Option<Indexer<T>>) -> Self {
        Self {
            kind,
            client,
            state: RwLock::new(State {
                objects: BTreeMap::new(),
                by_owner: HashMap::new(),
                index: HashMap::new(),
                seen_revision: 0,
                deleted_uids: HashSet::new(),
            }),
            handlers: RwLock::new(Vec::new()),
            indexer,
            synced: watch::Sender::new(false),
        }
    }

    /// The kind it caches.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The API behind it.
    pub fn client(&self) -> &Arc<dyn Client> {
        &self.client
    }

    fn read(&self) -> RwLockReadGuard<'_, State<T>> {
        self.state
            .read()
            .expect("no code panics while it holds a cache's lock")
    }

    fn write(&self) -> RwLockWriteGuard<'_, State<T>> {
        self.state
            .write()
            .expect("no code panics while it holds a cache's lock")
    }

    /// Calls `handler` for every change, on the task that saw it. It must be short and not block.
    pub fn on_change(&self, handler: impl Fn(&Change<T>) + Send + Sync + 'static) {
        let mut handlers = self
            .handlers
            .write()
            .expect("no code panics while it holds this lock");
        handlers.push(Arc::new(handler));
    }

    /// Waits for the first complete list.
    pub async fn wait_synced(&self) {
        // An error means the sender is gone, which it is not while `self` lives.
        self.synced
            .subscribe()
            .wait_for(|synced| *synced)
            .await
            .ok();
    }

    /// One object.
    pub fn get(&self, key: &ObjectKey) -> Option<Arc<T>> {
        self.read().objects.get(key).cloned()
    }

    /// Every object, in key order.
    pub fn list(&self) -> Vec<Arc<T>> {
        self.read().objects.values().cloned().collect()
    }

    /// Every object of a namespace, in key order.
    pub fn list_in(&self, namespace: &str) -> Vec<Arc<T>> {
        let start = ObjectKey::new(namespace, "");
        self.read()
            .objects
            .range(start..)
            .take_while(|(key, _)| key.namespace == namespace)
            .map(|(_, object)| object.clone())
            .collect()
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.read().objects.len()
    }

    /// Objects with an owner reference (of any sort) to `uid`.
    pub fn owned_by(&self, uid: &str) -> Vec<Arc<T>> {
        let state = self.read();
        let keys = state.by_owner.get(uid);
        keys.into_iter()
            .flatten()
            .filter_map(|key| state.objects.get(key).cloned())
            .collect()
    }

    /// Objects whose indexer gave `value`.
    pub fn by_index(&self, value: &str) -> Vec<Arc<T>> {
        let state = self.read();
        let keys = state.index.get(value);
        keys.into_iter()
            .flatten()
            .filter_map(|key| state.objects.get(key).cloned())
            .collect()
    }

    /// Creates an object and caches the result.
    ///
    /// # Errors
    /// What the API refuses.
    pub async fn create(&self, namespace: &str, object: Value) -> Result<Arc<T>, ClientError> {
        let value = self.client.create(self.kind, namespace, object).await?;
        self.wrote(&value)
    }

    /// Patches an object (JSON merge patch) and caches the result.
    ///
    /// # Errors
    /// What the API refuses.
    pub async fn patch(
        &self,
        key: &ObjectKey,
        subresource: Subresource,
        patch: Value,
    ) -> Result<Arc<T>, ClientError> {
        let value = self
            .client
            .patch(self.kind, &key.namespace, &key.name, subresource, patch)
            .await?;
        self.wrote(&value)
    }

    /// Deletes an object. The cache shows it as being deleted from then on.
    ///
    /// # Errors
    /// What the API refuses; `NotFound` too, after noting that it is gone.
    pub async fn delete(&self, object: &T, options: DeleteOptions) -> Result<(), ClientError>
    where
        T: Clone,
    {
        let key = ObjectKey::of(object.meta());
        let result = self
            .client
            .delete(self.kind, &key.namespace, &key.name, options)
            .await;
        if result.is_ok() || result.as_ref().is_err_and(ClientError::is_not_found) {
            self.mark_deleted(&key, object.meta().uid.as_deref().unwrap_or_default());
        }
        result
    }

    fn mark_deleted(&self, key: &ObjectKey, uid: &str)
    where
        T: Clone,
    {
        let change = {
            let mut state = self.write();
            let Some(cached) = state.objects.get(key).cloned() else {
                return;
            };
            if cached.meta().uid.as_deref() != Some(uid) {
                return;
            }
            if cached.meta().deletion_timestamp.is_some() {
                return;
            }
            state.deleted_uids.insert(uid.to_owned());
            let mut marked = T::clone(&cached);
            marked.meta_mut().deletion_timestamp = Some(time::now());
            let marked = Arc::new(marked);
            state.insert(marked.clone(), self.indexer);
            Change {
                old: Some(cached),
                new: Some(marked),
            }
        };
        self.notify(&change);
    }

    fn parse(&self, value: &Value) -> Result<T, ClientError> {
        let mut object = T::deserialize(value).map_err(|error| {
            let name = value
                .pointer("/metadata/name")
                .and_then(Value::as_str)
                .unwrap_or_default();
            let kind = self.kind.kind;
            ClientError::new(
                500,
                "InternalError",
                format!("cannot read {kind} {name:?}: {error}"),
            )
        })?;
        // Nothing here reads them, and they are often half of an object.
        object.meta_mut().managed_fields = None;
        Ok(object)
    }

    /// Notes the result of a write of our own.
    fn wrote(&self, value: &Value) -> Result<Arc<T>, ClientError> {
        let object = Arc::new(self.parse(value)?);
        let revision = revision_of(object.meta());
        let change = {
            let mut state = self.write();
            // The reflector was faster: what it left (perhaps a deletion) is newer.
            if revision <= state.seen_revision {
                return Ok(object);
            }
            let old = state.objects.get(&ObjectKey::of(object.meta())).cloned();
            if old
                .as_ref()
                .is_some_and(|old| revision_of(old.meta()) >= revision)
            {
                return Ok(object);
            }
            // A patch that removed the last finalizer of a deleted object removed the object.
            let gone = object.meta().deletion_timestamp.is_some()
                && object.meta().finalizers.as_ref().is_none_or(Vec::is_empty)
                && object
                    .meta()
                    .deletion_grace_period_seconds
                    .is_none_or(|grace| grace == 0);
            if gone {
                return Ok(object);
            }
            state.insert(object.clone(), self.indexer);
            Change {
                old,
                new: Some(object.clone()),
            }
        };
        self.notify(&change);
        Ok(object)
    }

    /// Reflector: an object was added or changed.
    pub(crate) fn applied(&self, value: &Value) {
        let mut object = match self.parse(value) {
            Ok(object) => object,
            // One unreadable object degrades itself only.
            Err(error) => return tracing::error!(%error, "object left out of the cache"),
        };
        let revision = revision_of(object.meta());
        let change = {
            let mut state = self.write();
            state.seen_revision = state.seen_revision.max(revision);
            let key = ObjectKey::of(object.meta());
            let old = state.objects.get(&key).cloned();
            // Written through already, or an older state than the one we wrote.
            if old
                .as_ref()
                .is_some_and(|old| revision_of(old.meta()) >= revision)
            {
                return;
            }
            let uid = object.meta().uid.clone().unwrap_or_default();
            if object.meta().deletion_timestamp.is_some() {
                state.deleted_uids.remove(&uid);
            } else if state.deleted_uids.contains(&uid) {
                object.meta_mut().deletion_timestamp = Some(time::now());
            }
            let object = Arc::new(object);
            state.insert(object.clone(), self.indexer);
            Change {
                old,
                new: Some(object),
            }
        };
        self.notify(&change);
    }

    /// Reflector: an object is gone.
    pub(crate) fn removed(&self, value: &Value) {
        let Ok(object) = self.parse(value) else {
            return;
        };
        let change = {
            let mut state = self.write();
            let revision = revision_of(object.meta());
            state.seen_revision = state.seen_revision.max(revision);
            state
                .deleted_uids
                .remove(object.meta().uid.as_deref().unwrap_or_default());
            let key = ObjectKey::of(object.meta());
            // A newer object of that name may have been written through already.
            if state
                .objects
                .get(&key)
                .is_none_or(|held| held.meta().uid != object.meta().uid)
            {
                return;
            }
            Change {
                old: state.remove(&key, self.indexer),
                new: None,
            }
        };
        self.notify(&change);
    }

    /// Reflector: everything up to `revision` was sent.
    pub(crate) fn progressed(&self, revision: u64) {
        let mut state = self.write();
        state.seen_revision = state.seen_revision.max(revision);
    }

    /// Reflector: the complete state at `revision`.
    pub(crate) fn replaced(&self, values: &[Arc<Value>], revision: u64) {
        let mut listed = HashSet::new();
        for value in values {
            if let Ok(object) = self.parse(value) {
                listed.insert(ObjectKey::of(object.meta()));
            }
            self.applied(value);
        }
        let changes: Vec<Change<T>> = {
            let mut state = self.write();
            state.seen_revision = state.seen_revision.max(revision);
            let gone: Vec<ObjectKey> = state
                .objects
                .iter()
                .filter(|(key, held)| !listed.contains(key) && revision_of(held.meta()) <= revision)
                .map(|(key, _)| key.clone())
                .collect();
            gone.iter()
                .map(|key| Change {
                    old: state.remove(key, self.indexer),
                    new: None,
                })
                .collect()
        };
        for change in &changes {
            self.notify(change);
        }
        self.synced.send_replace(true);
    }

    fn notify(&self, change: &Change<T>) {
        let handlers = self
            .handlers
            .read()
            .expect("no code panics while it holds this lock")
            .clone();
        for handler in &handlers {
            handler(change);
        }
    }
}

impl<T: Cached> State<T> {
    fn insert(&mut self, object: Arc<T>, indexer: Option<Indexer<T>>) {
        let key = ObjectKey::of(object.meta());
        self.remove(&key, indexer);
        for owner in object.meta().owner_references.iter().flatten() {
            self.by_owner
                .entry(owner.uid.clone())
                .or_default()
                .insert(key.clone());
        }
        if let Some(value) = indexer.and_then(|indexer| indexer(&object)) {
            self.index.entry(value).or_default().insert(key.clone());
        }
        self.objects.insert(key, object);
    }

    fn remove(&mut self, key: &ObjectKey, indexer: Option<Indexer<T>>) -> Option<Arc<T>> {
        let object = self.objects.remove(key)?;
        for owner in object.meta().owner_references.iter().flatten() {
            unindex(&mut self.by_owner, &owner.uid, key);
        }
        if let Some(value) = indexer.and_then(|indexer| indexer(&object)) {
            unindex(&mut self.index, &value, key);
        }
        Some(object)
    }
}

fn unindex(index: &mut HashMap<String, BTreeSet<ObjectKey>>, value: &str, key: &ObjectKey) {
    if let Some(keys) = index.get_mut(value) {
        keys.remove(key);
        if keys.is_empty() {
            index.remove(value);
        }
    }
}

#[cfg(test)]
#[cfg(feature = "testing")]
mod tests;
