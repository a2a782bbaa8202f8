//! An in-memory API with upstream's write semantics: revisions, conflicts, generation, finalizers, graceful
//! pod deletion. Watches can lag and writes can fail on demand, which the real one does only rarely.

use std::collections::BTreeMap;
use std::fmt::{self, Debug};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;

use crate::client::{
    Client, ClientError, DeleteOptions, Propagation, Subresource, WatchEvent, WatchStream,
};
use crate::kind::{Kind, kinds};
use crate::time;

type Key = (Kind, String, String);
type Fault = Box<dyn FnMut(Operation, Kind) -> Option<ClientError> + Send>;

/// What a fault can be injected into.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// A create.
    Create,
    /// A patch.
    Patch,
    /// A delete.
    Delete,
    /// A binding.
    Bind,
}

/// The in-memory API.
pub struct MemoryApi {
    state: Mutex<State>,
    lag: Duration,
}

struct State {
    objects: BTreeMap<Key, Arc<Value>>,
    revision: u64,
    history: Vec<(u64, Kind, WatchEvent)>,
    watchers: Vec<(Kind, mpsc::UnboundedSender<WatchEvent>)>,
    fault: Option<Fault>,
    created: BTreeMap<Kind, u64>,
}

impl Debug for MemoryApi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MemoryApi").finish_non_exhaustive()
    }
}

impl MemoryApi {
    /// An empty API whose watches deliver every event `lag` late.
    #[must_use]
    pub fn new(lag: Duration) -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new(State {
                objects: BTreeMap::new(),
                revision: 1,
                history: Vec::new(),
                watchers: Vec::new(),
                fault: None,
                created: BTreeMap::new(),
            }),
            lag,
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state
            .lock()
            .expect("no test panics while it holds the lock")
    }

    /// Asks `fault` before every write; `Some` refuses it.
    pub fn inject(
        &self,
        fault: impl FnMut(Operation, Kind) -> Option<ClientError> + Send + 'static,
    ) {
        self.lock().fault = Some(Box::new(fault));
    }

    /// How many objects of a kind were ever created.
    pub fn created(&self, kind: Kind) -> u64 {
        self.lock().created.get(&kind).copied().unwrap_or(0)
    }

    /// The present objects of a kind.
    pub fn objects(&self, kind: Kind) -> Vec<Arc<Value>> {
        let state = self.lock();
        state
            .objects
            .iter()
            .filter(|((of, ..), _)| *of == kind)
            .map(|(_, v)| v.clone())
            .collect()
    }

    /// How many revisions there were: an unchanged number means nothing was written.
    pub fn revision(&self) -> u64 {
        self.lock().revision
    }
}

impl State {
    fn fail(&mut self, operation: Operation, kind: Kind) -> Result<(), ClientError> {
        match self.fault.as_mut().and_then(|fault| fault(operation, kind)) {
            Some(error) => Err(error),
            None => Ok(()),
        }
    }

    fn publish(&mut self, kind: Kind, event: WatchEvent) {
        self.history.push((self.revision, kind, event.clone()));
        self.watchers
            .retain(|(of, sender)| *of != kind || sender.send(event.clone()).is_ok());
    }

    fn put(&mut self, key: Key, mut object: Value) -> Arc<Value> {
        self.revision += 1;
        object["metadata"]["resourceVersion"] = json!(self.revision.to_string());
        let object = Arc::new(object);
        self.publish(key.0, WatchEvent::Applied(object.clone()));
        self.objects.insert(key, object.clone());
        object
    }

    fn remove(&mut self, key: &Key, mut object: Value) -> Arc<Value> {
        self.revision += 1;
        object["metadata"]["resourceVersion"] = json!(self.revision.to_string());
        let object = Arc::new(object);
        self.objects.remove(key);
        self.publish(key.0, WatchEvent::Deleted(object.clone()));
        object
    }

    fn find(&self, key: &Key) -> Result<Arc<Value>, ClientError> {
        self.objects.get(key).cloned().ok_or_else(|| {
            let message = format!("{} \"{}\" not found", key.0.resource, key.2);
            ClientError::new(404, "NotFound", message)
        })
    }
}

fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        return *target = patch.clone();
    };
    if !target.is_object() {
        *target = json!({});
    }
    for (field, value) in patch {
        if value.is_null() {
            target
                .as_object_mut()
                .expect("made one above")
                .remove(field);
        } else {
            merge(&mut target[field], value);
        }
    }
}

fn key(kind: Kind, namespace: &str, name: &str) -> Key {
    let namespace = if kind.namespaced { namespace } else { "" };
    (kind, namespace.to_owned(), name.to_owned())
}

fn conflict(key: &Key) -> ClientError {
    let message = format!(
        "Operation cannot be fulfilled on {} \"{}\": the object has been modified; please apply your changes to the latest version and try again",
        key.0.resource, key.2
    );
    ClientError::new(409, "Conflict", message)
}

fn has_finalizers(object: &Value) -> bool {
    object
        .pointer("/metadata/finalizers")
        .and_then(Value::as_array)
        .is_some_and(|f| !f.is_empty())
}

#[async_trait]
impl Client for MemoryApi {
    async fn list(
        &self,
        kind: Kind,
        namespace: Option<&str>,
    ) -> Result<(Vec<Arc<Value>>, u64), ClientError> {
        let state = self.lock();
        let objects = state
            .objects
            .iter()
            .filter(|((of, ns, _), _)| *of == kind && namespace.is_none_or(|want| want == ns))
            .map(|(_, object)| object.clone())
            .collect();
        Ok((objects, state.revision))
    }

    async fn watch(&self, kind: Kind, from: u64) -> Result<WatchStream, ClientError> {
        let (sender, receiver) = mpsc::unbounded_channel();
        let mut state = self.lock();
        for (revision, of, event) in &state.history {
            if *revision > from && *of == kind {
                sender.send(event.clone()).ok();
            }
        }
        state.watchers.push((kind, sender));
        let lag = self.lag;
        Ok(UnboundedReceiverStream::new(receiver)
            .then(move |event| async move {
                if !lag.is_zero() {
                    tokio::time::sleep(lag).await;
                }
                Ok(event)
            })
            .boxed())
    }

    async fn get(
        &self,
        kind: Kind,
        namespace: &str,
        name: &str,
    ) -> Result<Arc<Value>, ClientError> {
        self.lock().find(&key(kind, namespace, name))
    }

    async fn create(
        &self,
        kind: Kind,
        namespace: &str,
        mut object: Value,
    ) -> Result<Arc<Value>, ClientError> {
        let mut state = self.lock();
        state.fail(Operation::Create, kind)?;
        let uid = uuid::Uuid::new_v4().to_string();
        if object.pointer("/metadata/name").is_none() {
            let prefix = object["metadata"]["generateName"]
                .as_str()
                .unwrap_or_default();
            object["metadata"]["name"] = json!(format!("{prefix}{}", &uid[..5]));
        }
        let name = object["metadata"]["name"]
            .as_str()
            .unwrap_or_default()
            .to_owned();
        let key = key(kind, namespace, &name);
        if state.objects.contains_key(&key) {
            let message = format!("{} \"{name}\" already exists", kind.resource);
            return Err(ClientError::new(409, "AlreadyExists", message));
        }
        object["apiVersion"] = json!(kind.api_version());
        object["kind"] = json!(kind.kind);
        if kind.namespaced {
            object["metadata"]["namespace"] = json!(namespace);
        }
        object["metadata"]["uid"] = json!(uid);
        object["metadata"]["generation"] = json!(1);
        object["metadata"]["creationTimestamp"] = json!(time::now());
        if kind == kinds::POD && object.pointer("/status/phase").is_none() {
            object["status"]["phase"] = json!("Pending");
        }
        *state.created.entry(kind).or_default() += 1;
        Ok(state.put(key, object))
    }

    async fn patch(
        &self,
        kind: Kind,
        namespace: &str,
        name: &str,
        subresource: Subresource,
        patch: Value,
    ) -> Result<Arc<Value>, ClientError> {
        let mut state = self.lock();
        state.fail(Operation::Patch, kind)?;
        let key = key(kind, namespace, name);
        let old = state.find(&key)?;
        let expected = patch.pointer("/metadata/resourceVersion");
        if expected.is_some_and(|version| version != &old["metadata"]["resourceVersion"]) {
            return Err(conflict(&key));
        }
        let mut new = Value::clone(&old);
        merge(&mut new, &patch);
        match subresource {
            Subresource::Status => {
                let status = new["status"].take();
                new = Value::clone(&old);
                new["status"] = status;
            }
            Subresource::Main => {
                match old.get("status") {
                    Some(status) => new["status"] = status.clone(),
                    None => drop(new.as_object_mut().map(|fields| fields.remove("status"))),
                }
                if new.get("spec") != old.get("spec") {
                    let generation = old["metadata"]["generation"].as_i64().unwrap_or(0) + 1;
                    new["metadata"]["generation"] = json!(generation);
                }
            }
        }
        if new == *old {
            return Ok(old);
        }
        if new.pointer("/metadata/deletionTimestamp").is_some()
            && !has_finalizers(&new)
            && kind != kinds::POD
        {
            return Ok(state.remove(&key, new));
        }
        Ok(state.put(key, new))
    }

    async fn delete(
        &self,
        kind: Kind,
        namespace: &str,
        name: &str,
        options: DeleteOptions,
    ) -> Result<(), ClientError> {
        let mut state = self.lock();
        state.fail(Operation::Delete, kind)?;
        let key = key(kind, namespace, name);
        let mut object = Value::clone(&*state.find(&key)?);
        if options
            .uid
            .as_deref()
            .is_some_and(|uid| object["metadata"]["uid"] != uid)
        {
            return Err(conflict(&key));
        }
        let finalizer = match options.propagation {
            Some(Propagation::Foreground) => Some("foregroundDeletion"),
            Some(Propagation::Orphan) => Some("orphan"),
            _ => None,
        };
        if let Some(finalizer) = finalizer {
            let list = &mut object["metadata"]["finalizers"];
            let mut finalizers = list.as_array().cloned().unwrap_or_default();
            if !finalizers.contains(&json!(finalizer)) {
                finalizers.push(json!(finalizer));
            }
            *list = json!(finalizers);
        }
        let bound = object.pointer("/spec/nodeName").is_some();
        let graceful = kind == kinds::POD && bound && options.grace_period_secs != Some(0);
        let held = has_finalizers(&object)
            || (kind == kinds::NAMESPACE && object.pointer("/spec/finalizers/0").is_some());
        if graceful || held {
            if object.pointer("/metadata/deletionTimestamp").is_none() {
                object["metadata"]["deletionTimestamp"] = json!(time::now());
                if graceful {
                    object["metadata"]["deletionGracePeriodSeconds"] = json!(30);
                }
                if kind == kinds::NAMESPACE {
                    object["status"]["phase"] = json!("Terminating");
                }
                state.put(key, object);
            }
        } else {
            state.remove(&key, object);
        }
        Ok(())
    }

    async fn bind(
        &self,
        namespace: &str,
        name: &str,
        uid: &str,
        node: &str,
    ) -> Result<(), ClientError> {
        let mut state = self.lock();
        state.fail(Operation::Bind, kinds::POD)?;
        let key = key(kinds::POD, namespace, name);
        let mut pod = Value::clone(&*state.find(&key)?);
        if pod["metadata"]["uid"] != uid || pod.pointer("/spec/nodeName").is_some() {
            return Err(conflict(&key));
        }
        pod["spec"]["nodeName"] = json!(node);
        state.put(key, pod);
        Ok(())
    }

    async fn finalize_namespace(&self, name: &str) -> Result<(), ClientError> {
        let mut state = self.lock();
        let key = key(kinds::NAMESPACE, "", name);
        let mut namespace = Value::clone(&*state.find(&key)?);
        namespace["spec"]["finalizers"] = json!([]);
        state.remove(&key, namespace);
        Ok(())
    }
}
