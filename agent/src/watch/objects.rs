//! ConfigMaps and Secrets that pods of this node refer to: one watch per object, for as long as
//! somebody holds a receiver. Listing a namespace's Secrets would show a node what it must not see.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError};

use futures::StreamExt;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use tholepin_model::pod::env::ObjectKind;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Keys and values of a ConfigMap or Secret. Never logged: `Debug` shows the keys only.
#[derive(Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ObjectData {
    pub entries: BTreeMap<String, Vec<u8>>,
}

impl Debug for ObjectData {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_set().entries(self.entries.keys()).finish()
    }
}

/// What is known about one object.
#[derive(Clone, Debug)]
pub enum ObjectState {
    /// Not read yet; with the last error, if reading failed.
    Unknown {
        error: Option<String>,
    },
    Missing,
    Present(Arc<ObjectData>),
}

/// Namespace, kind and name.
pub type ObjectKey = (ObjectKind, String, String);

/// Where pod workers get ConfigMaps and Secrets.
pub trait Objects: Send + Sync + 'static {
    /// The object's state from now on. Dropping the last receiver ends the watch.
    fn subscribe(&self, key: &ObjectKey) -> watch::Receiver<ObjectState>;
}

/// The objects of an API server.
pub struct ApiObjects {
    client: Client,
    cancel: CancellationToken,
    open: Arc<Mutex<HashMap<ObjectKey, watch::Sender<ObjectState>>>>,
}

impl Debug for ApiObjects {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApiObjects").finish_non_exhaustive()
    }
}

impl ApiObjects {
    #[must_use]
    pub fn new(client: Client, cancel: CancellationToken) -> Self {
        Self {
            client,
            cancel,
            open: Arc::default(),
        }
    }
}

impl Objects for ApiObjects {
    fn subscribe(&self, key: &ObjectKey) -> watch::Receiver<ObjectState> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(sender) = open.get(key) {
            return sender.subscribe();
        }
        let (sender, receiver) = watch::channel(ObjectState::Unknown { error: None });
        open.insert(key.clone(), sender.clone());
        drop(open);
        let (client, cancel, key) = (self.client.clone(), self.cancel.clone(), key.clone());
        let table = Arc::clone(&self.open);
        tokio::spawn(async move {
            let (kind, namespace, name) = &key;
            let watching = async {
                match kind {
                    ObjectKind::ConfigMap => {
                        follow(config_maps(client, namespace), name, &sender).await;
                    }
                    ObjectKind::Secret => follow(secrets(client, namespace), name, &sender).await,
                }
            };
            tokio::pin!(watching);
            loop {
                tokio::select! {
                    () = cancel.cancelled() => break,
                    () = &mut watching => break,
                    () = sender.closed() => {
                        // Somebody may have subscribed between the last drop and this lock.
                        let mut table = table.lock().unwrap_or_else(PoisonError::into_inner);
                        if sender.receiver_count() == 0 {
                            table.remove(&key);
                            return;
                        }
                    }
                }
            }
            table
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .remove(&key);
        });
        receiver
    }
}

struct Source<K> {
    api: Api<K>,
    data: fn(K) -> ObjectData,
}

fn config_maps(client: Client, namespace: &str) -> Source<ConfigMap> {
    Source {
        api: Api::namespaced(client, namespace),
        data: |object| ObjectData {
            entries: object
                .data
                .into_iter()
                .flatten()
                .map(|(key, value)| (key, value.into_bytes()))
                .chain(
                    object
                        .binary_data
                        .into_iter()
                        .flatten()
                        .map(|(key, value)| (key, value.0)),
                )
                .collect(),
        },
    }
}

fn secrets(client: Client, namespace: &str) -> Source<Secret> {
    Source {
        api: Api::namespaced(client, namespace),
        data: |object| ObjectData {
            entries: object
                .data
                .into_iter()
                .flatten()
                .map(|(key, value)| (key, value.0))
                .collect(),
        },
    }
}

async fn follow<K>(source: Source<K>, name: &str, sender: &watch::Sender<ObjectState>)
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let stream = watcher(source.api, config).default_backoff();
    futures::pin_mut!(stream);
    let mut seen = false;
    let present = |object: K| ObjectState::Present(Arc::new((source.data)(object)));
    while let Some(event) = stream.next().await {
        match event {
            Ok(watcher::Event::Init) => seen = false,
            Ok(watcher::Event::InitApply(object)) => {
                seen = true;
                sender.send_replace(present(object));
            }
            Ok(watcher::Event::InitDone) => {
                if !seen {
                    sender.send_replace(ObjectState::Missing);
                }
            }
            Ok(watcher::Event::Apply(object)) => {
                sender.send_replace(present(object));
            }
            Ok(watcher::Event::Delete(_)) => {
                sender.send_replace(ObjectState::Missing);
            }
            Err(error) => {
                let error = crate::errors::chain(&error);
                sender.send_if_modified(|state| match state {
                    ObjectState::Unknown { error: before } => {
                        *before = Some(error);
                        true
                    }
                    _ => false,
                });
            }
        }
    }
}
