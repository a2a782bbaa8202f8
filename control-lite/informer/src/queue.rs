//! A work queue with client-go's promises: a key is processed by one worker at a time, changes during
//! processing run it once more, failures back off per key.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet, VecDeque};
use std::hash::Hash;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

const BASE_DELAY: Duration = Duration::from_millis(5);
const MAX_DELAY: Duration = Duration::from_secs(1000);

/// Keys waiting for a reconciler.
#[derive(Debug)]
pub struct WorkQueue<K> {
    inner: Mutex<Inner<K>>,
    wake: Notify,
}

#[derive(Debug)]
struct Inner<K> {
    ready: VecDeque<K>,
    dirty: HashSet<K>,
    processing: HashSet<K>,
    delayed: BinaryHeap<Reverse<(Instant, u64, K)>>,
    delayed_until: HashMap<K, Instant>,
    failures: HashMap<K, u32>,
    sequence: u64,
}

impl<K: Clone + Eq + Hash + Ord> Default for WorkQueue<K> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: Clone + Eq + Hash + Ord> WorkQueue<K> {
    /// An empty queue.
    #[must_use]
    pub fn new() -> Self {
        Self {
            inner: Mutex::new(Inner {
                ready: VecDeque::new(),
                dirty: HashSet::new(),
                processing: HashSet::new(),
                delayed: BinaryHeap::new(),
                delayed_until: HashMap::new(),
                failures: HashMap::new(),
                sequence: 0,
            }),
            wake: Notify::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner<K>> {
        self.inner
            .lock()
            .expect("no code panics while it holds the queue's lock")
    }

    /// Puts a key in, once: if it is already waiting nothing changes.
    pub fn add(&self, key: K) {
        self.lock().add(key);
        self.wake.notify_one();
    }

    /// Puts a key in after `delay`. The earliest of several times wins.
    pub fn add_after(&self, key: K, delay: Duration) {
        if delay.is_zero() {
            return self.add(key);
        }
        let due = Instant::now() + delay;
        let mut inner = self.lock();
        if inner
            .delayed_until
            .get(&key)
            .is_some_and(|known| *known <= due)
        {
            return;
        }
        inner.delayed_until.insert(key.clone(), due);
        inner.sequence += 1;
        let sequence = inner.sequence;
        inner.delayed.push(Reverse((due, sequence, key)));
        drop(inner);
        self.wake.notify_one();
    }

    /// Puts a key in after its back-off: 5 ms doubling to 1000 s with every failure since `forget`.
    pub fn add_rate_limited(&self, key: K) {
        let failures = {
            let mut inner = self.lock();
            let failures = inner.failures.entry(key.clone()).or_insert(0);
            *failures += 1;
            *failures
        };
        self.add_after(key, back_off(failures));
    }

    /// Ends a key's back-off.
    pub fn forget(&self, key: &K) {
        self.lock().failures.remove(key);
    }

    /// How often `key` failed since it last succeeded.
    pub fn failures(&self, key: &K) -> u32 {
        self.lock().failures.get(key).copied().unwrap_or(0)
    }

    /// Keys that wait now (not the delayed ones).
    pub fn len(&self) -> usize {
        self.lock().ready.len()
    }

    /// Whether no key waits now.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The next key. The caller must hand it back to [`WorkQueue::done`].
    pub async fn get(&self) -> K {
        loop {
            // Registered before the check, so that an `add` in between is not lost.
            let notified = self.wake.notified();
            let next_due = {
                let mut inner = self.lock();
                inner.promote_due(Instant::now());
                if let Some(key) = inner.take() {
                    if !inner.ready.is_empty() {
                        self.wake.notify_one();
                    }
                    return key;
                }
                inner.delayed.peek().map(|Reverse((due, _, _))| *due)
            };
            match next_due {
                Some(due) => tokio::select! {
                    () = notified => (),
                    () = tokio::time::sleep_until(due) => (),
                },
                None => notified.await,
            }
        }
    }

    /// Ends the processing of a key; it waits again if it was added meanwhile.
    pub fn done(&self, key: &K) {
        let mut inner = self.lock();
        inner.processing.remove(key);
        if inner.dirty.contains(key) {
            inner.ready.push_back(key.clone());
            drop(inner);
            self.wake.notify_one();
        }
    }
}

impl<K: Clone + Eq + Hash + Ord> Inner<K> {
    fn add(&mut self, key: K) {
        if !self.dirty.insert(key.clone()) {
            return;
        }
        if !self.processing.contains(&key) {
            self.ready.push_back(key);
        }
    }

    fn take(&mut self) -> Option<K> {
        let key = self.ready.pop_front()?;
        self.dirty.remove(&key);
        self.processing.insert(key.clone());
        Some(key)
    }

    fn promote_due(&mut self, now: Instant) {
        while self
            .delayed
            .peek()
            .is_some_and(|Reverse((due, _, _))| *due <= now)
        {
            let Some(Reverse((due, _, key))) = self.delayed.pop() else {
                return;
            };
            // An entry that an earlier time replaced is stale.
            if self.delayed_until.get(&key) == Some(&due) {
                self.delayed_until.remove(&key);
                self.add(key);
            }
        }
    }
}

/// Delay before the retry that follows the `failures`-th failure.
fn back_off(failures: u32) -> Duration {
    let doublings = failures.saturating_sub(1).min(30);
    BASE_DELAY.saturating_mul(1 << doublings).min(MAX_DELAY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn back_off_doubles_from_5_ms_to_1000_s() {
        assert_eq!(back_off(1), Duration::from_millis(5));
        assert_eq!(back_off(2), Duration::from_millis(10));
        assert_eq!(back_off(18), Duration::from_millis(5 << 17));
        assert_eq!(back_off(19), MAX_DELAY);
        assert_eq!(back_off(u32::MAX), MAX_DELAY);
    }

    #[tokio::test]
    async fn a_key_added_twice_is_processed_once() {
        let queue = WorkQueue::new();
        queue.add(1);
        queue.add(1);
        assert_eq!(queue.get().await, 1);
        queue.done(&1);
        assert!(queue.is_empty());
    }

    #[tokio::test]
    async fn a_key_added_during_processing_runs_again_only_after_done() {
        let queue = WorkQueue::new();
        queue.add(1);
        let key = queue.get().await;
        queue.add(1);
        assert!(
            queue.is_empty(),
            "the same key must not run twice at a time"
        );
        queue.done(&key);
        assert_eq!(queue.get().await, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn the_earliest_of_two_delays_wins_and_runs_once() {
        let queue = WorkQueue::new();
        let start = Instant::now();
        queue.add_after(1, Duration::from_secs(10));
        queue.add_after(1, Duration::from_secs(2));
        assert_eq!(queue.get().await, 1);
        assert_eq!(start.elapsed(), Duration::from_secs(2));
        queue.done(&1);
        queue.add_after(2, Duration::from_secs(60));
        assert_eq!(
            queue.get().await,
            2,
            "the replaced 10 s entry must not fire"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_success_resets_the_back_off() {
        let queue = WorkQueue::new();
        for _ in 0..4 {
            queue.add_rate_limited("k");
            assert_eq!(queue.get().await, "k");
            queue.done(&"k");
        }
        assert_eq!(queue.failures(&"k"), 4);
        queue.forget(&"k");
        let start = Instant::now();
        queue.add_rate_limited("k");
        assert_eq!(queue.get().await, "k");
        assert_eq!(start.elapsed(), BASE_DELAY);
    }
}
