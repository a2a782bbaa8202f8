//! Where the watches leave what has changed about Services, and the reconciler takes it from.
//!
//! Only the latest of each object is kept, so it never grows beyond what there is, and nobody waits.

use std::collections::BTreeMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use tholepin_model::service::table::{Changes, Delta};
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
