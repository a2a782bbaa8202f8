//! Exponential back-off per key, with the kubelet's rules. Times are monotonic, counted from an
//! arbitrary origin, so that a stepped wall clock cannot stretch or skip a delay.

use std::collections::BTreeMap;
use std::time::Duration;

/// Delays of restarts and of image pulls: 10 s, doubled to at most 300 s.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backoff {
    initial: Duration,
    max: Duration,
    entries: BTreeMap<String, Entry>,
}

/// One key's delay and when it was set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub delay: Duration,
    pub updated: Duration,
}

impl Default for Backoff {
    fn default() -> Self {
        Self::new(Duration::from_secs(10), Duration::from_secs(300))
    }
}

impl Backoff {
    #[must_use]
    pub fn new(initial: Duration, max: Duration) -> Self {
        Self {
            initial,
            max,
            entries: BTreeMap::new(),
        }
    }

    /// When the wait that `event` (a crash) began is over, and its whole length; `None` if there is
    /// nothing to wait for. An entry older than twice the maximum (10 min) counts as absent.
    #[must_use]
    pub fn waits_until(
        &self,
        key: &str,
        event: Duration,
        now: Duration,
    ) -> Option<(Duration, Duration)> {
        let entry = self.entries.get(key)?;
        if event.saturating_sub(entry.updated) > self.max * 2 {
            return None;
        }
        let until = event + entry.delay;
        (now < until).then_some((until, entry.delay))
    }

    /// As [`waits_until`](Self::waits_until), counted from the last failure of the key.
    #[must_use]
    pub fn waits_since_update(&self, key: &str, now: Duration) -> Option<Duration> {
        let entry = self.entries.get(key)?;
        let until = entry.updated + entry.delay;
        (now < until).then_some(until)
    }

    /// Notes another attempt: starts at the initial delay, doubles, starts over after 10 quiet minutes.
    pub fn advance(&mut self, key: &str, now: Duration) {
        let max = self.max;
        let initial = self.initial;
        self.entries
            .entry(key.to_owned())
            .and_modify(|entry| {
                let expired = now.saturating_sub(entry.updated) > max * 2;
                entry.delay = if expired {
                    initial
                } else {
                    (entry.delay * 2).min(max)
                };
                entry.updated = now;
            })
            .or_insert(Entry {
                delay: initial,
                updated: now,
            });
    }

    pub fn forget(&mut self, key: &str) {
        self.entries.remove(key);
    }

    #[must_use]
    pub fn entry(&self, key: &str) -> Option<Entry> {
        self.entries.get(key).copied()
    }

    /// Puts back what a journal remembered.
    pub fn restore(&mut self, key: &str, entry: Entry) {
        self.entries.insert(key.to_owned(), entry);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn delays_double_from_ten_seconds_to_five_minutes() {
        let mut backoff = Backoff::default();
        let mut seen = Vec::new();
        for round in 0..7 {
            backoff.advance("c", SECOND * round);
            seen.push(backoff.entry("c").unwrap().delay.as_secs());
        }
        assert_eq!(seen, [10, 20, 40, 80, 160, 300, 300]);
    }

    #[test]
    fn the_first_crash_is_restarted_at_once_and_the_second_waits() {
        let mut backoff = Backoff::default();
        let crash = SECOND * 100;
        assert_eq!(backoff.waits_until("c", crash, crash), None);
        backoff.advance("c", crash);
        let second = crash + SECOND * 2;
        assert_eq!(
            backoff.waits_until("c", second, second + SECOND),
            Some((second + SECOND * 10, SECOND * 10))
        );
        assert_eq!(backoff.waits_until("c", second, second + SECOND * 10), None);
    }

    #[test]
    fn ten_minutes_of_running_reset_the_delay() {
        let mut backoff = Backoff::default();
        for round in 0..6 {
            backoff.advance("c", SECOND * round);
        }
        let late = SECOND * (5 + 601);
        assert_eq!(backoff.waits_until("c", late, late), None);
        backoff.advance("c", late);
        assert_eq!(backoff.entry("c").unwrap().delay, SECOND * 10);
    }
}
