//! Clocks: RFC 3339 for the API, and a monotonic clock that planners count in.

use std::time::{Duration, SystemTime};

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use tokio::time::Instant;

/// Whole seconds, as `metav1.Time` is written.
#[must_use]
pub fn rfc3339(time: SystemTime) -> String {
    timestamp(time).strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Microseconds, as `metav1.MicroTime` is written.
#[must_use]
pub fn rfc3339_micro(time: SystemTime) -> String {
    timestamp(time)
        .strftime("%Y-%m-%dT%H:%M:%S.%6fZ")
        .to_string()
}

fn timestamp(time: SystemTime) -> jiff::Timestamp {
    jiff::Timestamp::try_from(time).unwrap_or(jiff::Timestamp::UNIX_EPOCH)
}

/// The API's time as the system's.
#[must_use]
pub fn system_time(time: &Time) -> SystemTime {
    SystemTime::from(time.0)
}

/// Monotonic time since the agent started, and its relation to the wall clock.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    origin: Instant,
    /// Tests with paused time: the wall clock at the origin, from where it follows the paused one.
    paused_wall: Option<SystemTime>,
}

/// Head start of the clock, so that events from before the agent's start have a place in it.
const HEAD_START: Duration = Duration::from_secs(24 * 3600);

impl Default for Clock {
    fn default() -> Self {
        Self {
            origin: Instant::now(),
            paused_wall: None,
        }
    }
}

impl Clock {
    /// A clock whose wall time passes as tokio's does, for tests that pause it.
    #[cfg(test)]
    pub(crate) fn paused(wall: SystemTime) -> Self {
        Self {
            paused_wall: Some(wall),
            ..Self::default()
        }
    }

    /// The wall clock.
    #[must_use]
    pub fn wall_now(&self) -> SystemTime {
        match self.paused_wall {
            Some(wall) => wall + self.origin.elapsed(),
            None => SystemTime::now(),
        }
    }

    #[must_use]
    pub fn now(&self) -> Duration {
        HEAD_START + self.origin.elapsed()
    }

    /// When a past wall-clock event happened, on this clock. A future one (the wall clock was stepped
    /// back) counts as now.
    #[must_use]
    pub fn of(&self, past: SystemTime) -> Duration {
        let ago = self.wall_now().duration_since(past).unwrap_or_default();
        self.now().saturating_sub(ago)
    }

    /// The instant to sleep until.
    #[must_use]
    pub fn instant(&self, at: Duration) -> Instant {
        self.origin + at.saturating_sub(HEAD_START)
    }

    /// The wall-clock time of a point on this clock.
    #[must_use]
    pub fn wall(&self, at: Duration) -> SystemTime {
        let now = self.now();
        if at >= now {
            self.wall_now() + (at - now)
        } else {
            self.wall_now()
                .checked_sub(now - at)
                .unwrap_or(SystemTime::UNIX_EPOCH)
        }
    }
}
