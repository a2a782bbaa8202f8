//! API timestamps: whole seconds for `Time`, microseconds for `MicroTime`, as upstream writes them.

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};

/// The present, in whole seconds as `metav1.Time` carries it.
#[must_use]
pub fn now() -> Time {
    truncate_to_secs(Timestamp::now())
}

/// `at` without its fraction of a second.
#[must_use]
pub fn truncate_to_secs(at: Timestamp) -> Time {
    Time(Timestamp::from_second(at.as_second()).unwrap_or(at))
}

/// The present, in microseconds as `metav1.MicroTime` carries it.
#[must_use]
pub fn micro_now() -> MicroTime {
    let at = Timestamp::now();
    MicroTime(Timestamp::from_microsecond(at.as_microsecond()).unwrap_or(at))
}
