//! One round, decided without I/O.

use std::time::Duration;

use super::round::Round;

impl Round {
    /// Decides everything. `old_pods_run` tells whether any pod of an old set is still running, which
    /// only Recreate asks. Returns when to look again without an event.
    pub(super) fn decide(&mut self, old_pods_run: bool) -> Option<Duration> {
        if self.deployment.metadata.deletion_timestamp.is_some() {
            self.count_status();
            return None;
        }
        self.check_pause();
        let before = self.deployment.status.clone().unwrap_or_default();
        let paused = self.spec().paused == Some(true);
        if paused || self.is_scaling_event() {
            self.ensure_new_set(false);
            self.scale_all();
            if paused {
                self.expire_old();
            }
            self.count_status();
            return None;
        }
        if self.is_recreate() {
            return self.recreate(old_pods_run, &before);
        }
        self.ensure_new_set(true);
        if self.create_new || self.reconcile_new() || self.reconcile_old() {
            return self.rollout_status(&before);
        }
        self.finish(&before)
    }

    fn recreate(
        &mut self,
        old_pods_run: bool,
        before: &k8s_openapi::api::apps::v1::DeploymentStatus,
    ) -> Option<Duration> {
        self.ensure_new_set(false);
        if self.stop_old() || self.old_pods_reported() || old_pods_run {
            return self.rollout_status(before);
        }
        if self.new.is_none() {
            self.ensure_new_set(true);
        } else {
            self.scale(super::round::Which::New, self.replicas());
        }
        self.finish(before)
    }

    fn finish(
        &mut self,
        before: &k8s_openapi::api::apps::v1::DeploymentStatus,
    ) -> Option<Duration> {
        let again = self.rollout_status(before);
        if self.is_complete() {
            self.expire_old();
        }
        again
    }
}
