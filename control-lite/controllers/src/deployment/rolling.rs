//! The two strategies: RollingUpdate moves step by step within maxSurge and maxUnavailable, Recreate stops
//! everything first.

use super::round::{Round, Which, actual, available, size};

impl Round {
    /// How large the new set may be now.
    pub(super) fn new_set_size(&self) -> i32 {
        let wanted = self.replicas();
        let current = self
            .new
            .as_ref()
            .filter(|_| !self.create_new)
            .map_or(0, size);
        if self.is_recreate() {
            return wanted;
        }
        let total: i32 = self.old.iter().map(size).sum::<i32>() + current;
        let most = wanted + self.max_surge();
        if total >= most {
            return current;
        }
        current + (most - total).min(wanted - current)
    }

    /// Scales the new set; `true` if it changed.
    pub(super) fn reconcile_new(&mut self) -> bool {
        let Some(current) = self.new.as_ref().map(size) else {
            return false;
        };
        let wanted = self.replicas();
        let target = if current > wanted {
            wanted
        } else {
            self.new_set_size()
        };
        self.scale(Which::New, target);
        target != current
    }

    /// Scales old sets down as far as enough pods stay available; `true` if any changed.
    pub(super) fn reconcile_old(&mut self) -> bool {
        let old_total: i32 = self.old.iter().map(size).sum();
        if old_total == 0 {
            return false;
        }
        let (new_size, new_available) = self
            .new
            .as_ref()
            .map_or((0, 0), |n| (size(n), available(n)));
        let min_available = self.replicas() - self.max_unavailable();
        let new_unavailable = new_size - new_available;
        let max_scaled_down = old_total + new_size - min_available - new_unavailable;
        if max_scaled_down <= 0 {
            return false;
        }
        let cleaned = self.remove_unhealthy(max_scaled_down);
        let scaled = self.scale_down_available(min_available);
        cleaned + scaled > 0
    }

    /// Pods of old sets that are not available go first: they serve nobody.
    fn remove_unhealthy(&mut self, most: i32) -> i32 {
        let mut removed = 0;
        for index in 0..self.old.len() {
            let (size, available) = (size(&self.old[index]), available(&self.old[index]));
            let down = (most - removed).min(size - available);
            if down <= 0 {
                continue;
            }
            self.scale(Which::Old(index), size - down);
            removed += down;
        }
        removed
    }

    fn scale_down_available(&mut self, min_available: i32) -> i32 {
        let total_available: i32 = self.all().map(available).sum();
        let most = total_available - min_available;
        let mut removed = 0;
        for index in 0..self.old.len() {
            let size = size(&self.old[index]);
            let down = (most - removed).min(size);
            if down <= 0 {
                continue;
            }
            self.scale(Which::Old(index), size - down);
            removed += down;
        }
        removed
    }

    /// Recreate: scales every old set to nothing; `true` if any changed.
    pub(super) fn stop_old(&mut self) -> bool {
        let mut changed = false;
        for index in 0..self.old.len() {
            if size(&self.old[index]) > 0 {
                self.scale(Which::Old(index), 0);
                changed = true;
            }
        }
        changed
    }

    /// Whether old sets still report pods.
    pub(super) fn old_pods_reported(&self) -> bool {
        self.old.iter().map(actual).sum::<i32>() > 0
    }
}
