//! Questions about a pod's state that several controllers ask.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodCondition};

fn phase(pod: &Pod) -> &str {
    pod.status
        .as_ref()
        .and_then(|status| status.phase.as_deref())
        .unwrap_or_default()
}

/// The condition of this type, if the pod has it.
#[must_use]
pub fn pod_condition<'a>(pod: &'a Pod, type_: &str) -> Option<&'a PodCondition> {
    pod.status
        .as_ref()?
        .conditions
        .as_ref()?
        .iter()
        .find(|condition| condition.type_ == type_)
}

/// Succeeded or Failed: it will not run again.
#[must_use]
pub fn is_pod_terminal(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

/// Neither finished nor being deleted.
#[must_use]
pub fn is_pod_active(pod: &Pod) -> bool {
    !is_pod_terminal(pod) && pod.metadata.deletion_timestamp.is_none()
}

/// Being deleted, and not finished yet.
#[must_use]
pub fn is_pod_terminating(pod: &Pod) -> bool {
    !is_pod_terminal(pod) && pod.metadata.deletion_timestamp.is_some()
}

/// Its Ready condition is True.
#[must_use]
pub fn is_pod_ready(pod: &Pod) -> bool {
    pod_condition(pod, "Ready").is_some_and(|ready| ready.status == "True")
}

/// Ready for at least `min_ready_secs`. `Err` is the time it still needs.
pub fn is_pod_available(pod: &Pod, min_ready_secs: i32, now: Timestamp) -> Result<bool, Duration> {
    if !is_pod_ready(pod) {
        return Ok(false);
    }
    if min_ready_secs <= 0 {
        return Ok(true);
    }
    let Some(since) =
        pod_condition(pod, "Ready").and_then(|ready| ready.last_transition_time.as_ref())
    else {
        return Ok(false);
    };
    let wanted = i64::from(min_ready_secs);
    let passed_millis = now.as_millisecond() - since.0.as_millisecond();
    let missing = wanted * 1000 - passed_millis;
    if missing <= 0 {
        Ok(true)
    } else {
        Err(Duration::from_millis(missing.unsigned_abs()))
    }
}
