//! The status of a Deployment and whether it makes progress.

use std::time::Duration;

use k8s_openapi::api::apps::v1::{DeploymentCondition, DeploymentStatus, ReplicaSetCondition};

use super::round::{Round, actual, available, size};

const PROGRESSING: &str = "Progressing";
const REPLICA_FAILURE: &str = "ReplicaFailure";
const NEW_SET_AVAILABLE: &str = "NewReplicaSetAvailable";
const TIMED_OUT: &str = "ProgressDeadlineExceeded";
const PAUSED: &str = "DeploymentPaused";

/// Replaces the condition of that type, unless status and reason stay the same.
pub(super) fn set_condition(status: &mut DeploymentStatus, mut condition: DeploymentCondition) {
    let conditions = status.conditions.get_or_insert_default();
    if let Some(known) = conditions
        .iter()
        .find(|known| known.type_ == condition.type_)
    {
        if known.status == condition.status && known.reason == condition.reason {
            return;
        }
        if known.status == condition.status {
            condition.last_transition_time = known.last_transition_time.clone();
        }
    }
    remove_condition(status, &condition.type_.clone());
    status.conditions.get_or_insert_default().push(condition);
}

fn remove_condition(status: &mut DeploymentStatus, type_: &str) {
    if let Some(conditions) = status.conditions.as_mut() {
        conditions.retain(|condition| condition.type_ != type_);
    }
}

fn count(number: i32) -> Option<i32> {
    (number != 0).then_some(number)
}

impl Round {
    /// Notes in the Progressing condition that a pause began or ended.
    pub(super) fn check_pause(&mut self) {
        if self.progress_deadline().is_none() {
            return;
        }
        let reason = self.condition(PROGRESSING).and_then(|c| c.reason.clone());
        if reason.as_deref() == Some(TIMED_OUT) {
            return;
        }
        let noted = reason.as_deref() == Some(PAUSED);
        let paused = self.spec().paused == Some(true);
        let condition = match (paused, noted) {
            (true, false) => self.make_condition(
                PROGRESSING,
                "Unknown",
                PAUSED,
                "Deployment is paused".into(),
            ),
            (false, true) => self.make_condition(
                PROGRESSING,
                "Unknown",
                "DeploymentResumed",
                "Deployment is resumed".into(),
            ),
            _ => return,
        };
        set_condition(self.status(), condition);
    }

    /// Counts of all sets and the Available condition.
    pub(super) fn count_status(&mut self) {
        let total: i32 = self.all().map(size).sum();
        let all_available: i32 = self.all().map(available).sum();
        let ready: i32 = self
            .all()
            .filter_map(|set| set.status.as_ref()?.ready_replicas)
            .sum();
        let terminating: i32 = self
            .all()
            .filter_map(|set| set.status.as_ref()?.terminating_replicas)
            .sum();
        let replicas: i32 = self.all().map(actual).sum();
        let updated = self.new.as_ref().map_or(0, actual);
        let generation = self.deployment.metadata.generation;
        let enough = all_available >= self.replicas() - self.max_unavailable();
        let condition = if enough {
            let message = "Deployment has minimum availability.".to_owned();
            self.make_condition("Available", "True", "MinimumReplicasAvailable", message)
        } else {
            let message = "Deployment does not have minimum availability.".to_owned();
            self.make_condition("Available", "False", "MinimumReplicasUnavailable", message)
        };
        let status = self.status();
        status.observed_generation = generation;
        status.replicas = count(replicas);
        status.updated_replicas = count(updated);
        status.ready_replicas = count(ready);
        status.available_replicas = count(all_available);
        status.unavailable_replicas = count((total - all_available).max(0));
        status.terminating_replicas = Some(terminating);
        set_condition(status, condition);
    }

    /// Whether everything wanted is updated and available, and nothing else exists.
    pub(super) fn is_complete(&self) -> bool {
        let wanted = self.replicas();
        let Some(status) = self.deployment.status.as_ref() else {
            return false;
        };
        status.updated_replicas.unwrap_or(0) == wanted
            && status.replicas.unwrap_or(0) == wanted
            && status.available_replicas.unwrap_or(0) == wanted
            && status.observed_generation.unwrap_or(0)
                >= self.deployment.metadata.generation.unwrap_or(0)
    }

    /// Counts, then judges progress against `before`, the status of the last round. Returns when the
    /// progress deadline has to be looked at again.
    pub(super) fn rollout_status(&mut self, before: &DeploymentStatus) -> Option<Duration> {
        self.count_status();
        if self.progress_deadline().is_none() {
            remove_condition(self.status(), PROGRESSING);
        }
        let known = self.condition(PROGRESSING).cloned();
        let settled = {
            let status = self.status();
            status.replicas == status.updated_replicas
                && known.as_ref().and_then(|c| c.reason.as_deref()) == Some(NEW_SET_AVAILABLE)
        };
        if self.progress_deadline().is_some() && !settled {
            self.judge_progress(before, known);
        }
        self.report_failures();
        self.next_deadline()
    }

    fn judge_progress(&mut self, before: &DeploymentStatus, known: Option<DeploymentCondition>) {
        let subject = match &self.new {
            Some(set) => format!(
                "ReplicaSet \"{}\"",
                set.metadata.name.as_deref().unwrap_or("")
            ),
            None => {
                let name = self.deployment.metadata.name.as_deref().unwrap_or_default();
                format!("Deployment \"{name}\"")
            }
        };
        if self.is_complete() {
            let message = format!("{subject} has successfully progressed.");
            let condition = self.make_condition(PROGRESSING, "True", NEW_SET_AVAILABLE, message);
            set_condition(self.status(), condition);
        } else if self.has_progressed(before) {
            let message = format!("{subject} is progressing.");
            let mut condition =
                self.make_condition(PROGRESSING, "True", "ReplicaSetUpdated", message);
            if let Some(known) = known {
                if known.status == "True" {
                    condition.last_transition_time = known.last_transition_time;
                }
                // Its update time has to move even if nothing else in it does.
                remove_condition(self.status(), PROGRESSING);
            }
            set_condition(self.status(), condition);
        } else if self.has_timed_out() {
            let message = format!("{subject} has timed out progressing.");
            let condition = self.make_condition(PROGRESSING, "False", TIMED_OUT, message);
            set_condition(self.status(), condition);
        }
    }

    fn has_progressed(&self, before: &DeploymentStatus) -> bool {
        let after = self.deployment.status.clone().unwrap_or_default();
        let old_pods = |status: &DeploymentStatus| {
            status.replicas.unwrap_or(0) - status.updated_replicas.unwrap_or(0)
        };
        after.updated_replicas > before.updated_replicas
            || old_pods(&after) < old_pods(before)
            || after.ready_replicas > before.ready_replicas
            || after.available_replicas > before.available_replicas
    }

    fn has_timed_out(&self) -> bool {
        let (Some(deadline), Some(condition)) =
            (self.progress_deadline(), self.condition(PROGRESSING))
        else {
            return false;
        };
        match condition.reason.as_deref() {
            Some(NEW_SET_AVAILABLE) => false,
            Some(TIMED_OUT) => true,
            _ => condition
                .last_update_time
                .as_ref()
                .is_some_and(|since| since.0.as_second() + deadline < self.now.as_second()),
        }
    }

    /// A set that cannot make its pods makes the Deployment fail; the new set's cause counts most.
    fn report_failures(&mut self) {
        let failure: Option<ReplicaSetCondition> = self.all().find_map(|set| {
            let conditions = set.status.as_ref()?.conditions.as_ref()?;
            conditions
                .iter()
                .find(|condition| condition.type_ == REPLICA_FAILURE)
                .cloned()
        });
        match failure {
            Some(failure) => {
                let reason = failure.reason.unwrap_or_default();
                let message = failure.message.unwrap_or_default();
                let condition =
                    self.make_condition(REPLICA_FAILURE, &failure.status, &reason, message);
                set_condition(self.status(), condition);
            }
            None => remove_condition(self.status(), REPLICA_FAILURE),
        }
    }

    /// No event announces the end of a deadline, so it has to be looked for.
    fn next_deadline(&self) -> Option<Duration> {
        let deadline = self.progress_deadline()?;
        let condition = self.condition(PROGRESSING)?;
        if self.is_complete() || condition.reason.as_deref() == Some(TIMED_OUT) {
            return None;
        }
        let since = condition.last_update_time.as_ref()?.0.as_second();
        let left = (since + deadline - self.now.as_second()).max(0);
        Some(Duration::from_secs(left.unsigned_abs() + 1))
    }
}
