//! Where the watches leave what has changed about Services, and the reconciler takes it from.
//!
//! Only the latest of each object is kept, so it never grows beyond what there is, and nobody waits.

use std::collections::BTreeMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use tholepin_model::service::table::{Changes, Delta};
use tholepin_model::service::{Service, ServiceName};
use tokio::sync::Notify;

use super::follow::Change;

/// Both ends; clones are the same box.
#[derive(Clone, Debug, Default)]
pub struct ServiceChanges {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    changes: Mutex<Changes>,
    notify: Notify,
    /// What there is, for whoever asks for names.
    known: Mutex<BTreeMap<ServiceName, Arc<Service>>>,
}

impl ServiceChanges {
    /// Puts changes in, and wakes whoever waits.
    pub fn change(&self, change: impl FnOnce(&mut Changes)) {
        change(
            &mut self
                .inner
                .changes
                .lock()
                .unwrap_or_else(PoisonError::into_inner),
        );
        self.inner.notify.notify_one();
    }

    /// Keeps a Service for those who ask for names: changes are gone once they are taken.
    pub(super) fn know(&self, change: &Change<ServiceName, Service>) {
        let mut known = self
            .inner
            .known
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        match change {
            Change::Apply(name, service) => drop(known.insert(name.clone(), service.clone())),
            Change::Remove(name) => drop(known.remove(name)),
            Change::Replace(all) => known.clone_from(all),
        }
    }

    /// Every Service there is.
    #[must_use]
    pub fn known(&self) -> Vec<Arc<Service>> {
        let known = self
            .inner
            .known
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        known.values().cloned().collect()
    }

    /// Takes everything out.
    #[must_use]
    pub fn take(&self) -> Changes {
        self.inner
            .changes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take()
    }

    /// Returns when something was put in since the last time.
    pub async fn changed(&self) {
        self.inner.notify.notified().await;
    }
}

/// Adds a watch's change.
pub(super) fn record<K: Eq + Hash + Ord, T>(delta: &mut Delta<K, T>, change: Change<K, T>) {
    match change {
        Change::Apply(key, value) => delta.insert(key, value),
        Change::Remove(key) => delta.remove(key),
        Change::Replace(all) => {
            let all: BTreeMap<K, Arc<T>> = all;
            delta.replace(all);
        }
    }
}
