//! The ConfigMaps and Secrets one pod refers to: watched while the pod lives, with the journal's copies
//! for when the API server is away.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tholepin_model::pod::env::{EnvValue, ObjectKind};
use tholepin_model::pod::{FileSource, Pod, VolumeSource};
use tokio::sync::watch;

use crate::journal;
use crate::volumes::render::{Facts, RenderError, SourceLookup};
use crate::watch::objects::{ObjectData, ObjectState, Objects};

/// How long the first read of an object may hold up a pod before the journal's copy is used.
pub(super) const FIRST_READ: Duration = Duration::from_secs(5);

type Name = (ObjectKind, String);

/// One pod's sources.
#[derive(Debug, Default)]
pub(super) struct PodSources {
    receivers: BTreeMap<Name, watch::Receiver<ObjectState>>,
    remembered: journal::Sources,
}

impl PodSources {
    pub(super) fn new(remembered: journal::Sources) -> Self {
        Self {
            receivers: BTreeMap::new(),
            remembered,
        }
    }

    /// Follows what the spec names, and nothing else any more.
    pub(super) fn follow(&mut self, pod: &Pod, objects: &dyn Objects) {
        let wanted = referenced(pod);
        self.receivers.retain(|name, _| wanted.contains(name));
        for (kind, name) in wanted {
            let key = (kind, pod.namespace.clone(), name.clone());
            self.receivers
                .entry((kind, name))
                .or_insert_with(|| objects.subscribe(&key));
        }
    }

    /// Drops all watches; the pod is on its way out.
    pub(super) fn release(&mut self) {
        self.receivers.clear();
    }

    /// Waits until every source was read once, but not longer than a few seconds.
    pub(super) async fn settled(&mut self) {
        let all = async {
            for receiver in self.receivers.values_mut() {
                let known = |state: &ObjectState| !matches!(state, ObjectState::Unknown { .. });
                // An error means that the watch has ended with the agent.
                receiver.wait_for(known).await.ok();
            }
        };
        tokio::time::timeout(FIRST_READ, all).await.ok();
    }

    /// Completes when any source changes.
    pub(super) async fn changed(&mut self) {
        if self.receivers.is_empty() {
            return std::future::pending().await;
        }
        let changes = self.receivers.values_mut().map(|receiver| {
            Box::pin(async move {
                if receiver.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            })
        });
        futures::future::select_all(changes).await;
    }

    /// The present values, detached from the watches.
    pub(super) fn lookup(&self, facts: Facts) -> Lookup {
        let objects = self
            .receivers
            .iter()
            .map(|(name, receiver)| (name.clone(), self.value(name, &receiver.borrow())))
            .collect();
        Lookup { objects, facts }
    }

    fn value(
        &self,
        (kind, name): &Name,
        state: &ObjectState,
    ) -> Result<Option<Arc<ObjectData>>, RenderError> {
        match state {
            ObjectState::Present(data) => Ok(Some(Arc::clone(data))),
            ObjectState::Missing => Ok(None),
            ObjectState::Unknown { error } => {
                match self.remembered.get(&journal_key(*kind, name)) {
                    Some(data) => Ok(Some(Arc::new(data.clone()))),
                    None => Err(RenderError::Unavailable {
                        resource: kind.resource(),
                        name: name.clone(),
                        message: error.clone().unwrap_or_else(|| "no answer yet".to_owned()),
                    }),
                }
            }
        }
    }

    /// What the journal should hold, if that is not what it holds.
    pub(super) fn unremembered(&mut self) -> Option<journal::Sources> {
        let mut current = journal::Sources::new();
        for ((kind, name), receiver) in &self.receivers {
            let key = journal_key(*kind, name);
            match &*receiver.borrow() {
                ObjectState::Present(data) => drop(current.insert(key, ObjectData::clone(data))),
                ObjectState::Missing => {}
                ObjectState::Unknown { .. } => {
                    if let Some(data) = self.remembered.get(&key) {
                        current.insert(key, data.clone());
                    }
                }
            }
        }
        if current == self.remembered {
            return None;
        }
        self.remembered.clone_from(&current);
        Some(current)
    }
}

fn journal_key(kind: ObjectKind, name: &str) -> String {
    format!("{}/{name}", kind.as_str())
}

fn referenced(pod: &Pod) -> BTreeSet<Name> {
    let mut names = BTreeSet::new();
    for volume in &pod.volumes {
        if let VolumeSource::Files { sources, .. } = &volume.source {
            for source in sources {
                match source {
                    FileSource::ConfigMap(keyed) => {
                        names.insert((ObjectKind::ConfigMap, keyed.name.clone()));
                    }
                    FileSource::Secret(keyed) => {
                        names.insert((ObjectKind::Secret, keyed.name.clone()));
                    }
                    FileSource::DownwardApi(_) => {}
                }
            }
        }
    }
    for container in &pod.containers {
        names.extend(
            container
                .env_from
                .iter()
                .map(|from| (from.kind, from.name.clone())),
        );
        for variable in &container.env {
            if let EnvValue::Key(key) = &variable.value {
                names.insert((key.kind, key.name.clone()));
            }
        }
    }
    names.extend(
        pod.image_pull_secrets
            .iter()
            .map(|name| (ObjectKind::Secret, name.clone())),
    );
    names.retain(|(_, name)| !name.is_empty());
    names
}

/// Values of all sources at one moment.
#[derive(Debug)]
pub(super) struct Lookup {
    objects: BTreeMap<Name, Result<Option<Arc<ObjectData>>, RenderError>>,
    facts: Facts,
}

impl SourceLookup for Lookup {
    fn object(&self, kind: ObjectKind, name: &str) -> Result<Option<Arc<ObjectData>>, RenderError> {
        self.objects
            .get(&(kind, name.to_owned()))
            .cloned()
            .unwrap_or(Ok(None))
    }

    fn facts(&self) -> &Facts {
        &self.facts
    }
}
