//! Scaling without a change of template: one set takes all of it, several share it in proportion.

use k8s_openapi::api::apps::v1::ReplicaSet;

use super::round::{
    DESIRED_REPLICAS, MAX_REPLICAS, Round, Which, available, number_annotation, size,
};

impl Round {
    /// Whether `spec.replicas` changed since the sets were last scaled.
    pub(super) fn is_scaling_event(&self) -> bool {
        let wanted = self.replicas();
        self.all().filter(|set| size(set) > 0).any(|set| {
            number_annotation::<i32>(set, DESIRED_REPLICAS).is_some_and(|desired| desired != wanted)
        })
    }

    /// Brings the sets to the wanted total.
    pub(super) fn scale_all(&mut self) {
        let active: Vec<Which> = self.active();
        match active.as_slice() {
            [only] => return self.scale(*only, self.replicas()),
            [] => {
                if let Some(which) = self.newest() {
                    self.scale(which, self.replicas());
                }
                return;
            }
            _ => (),
        }
        if self.is_saturated() {
            for index in 0..self.old.len() {
                if size(&self.old[index]) > 0 {
                    self.scale(Which::Old(index), 0);
                }
            }
            return;
        }
        if !self.is_recreate() {
            self.scale_in_proportion(active);
        }
    }

    fn get(&self, which: Which) -> Option<&ReplicaSet> {
        match which {
            Which::New => self.new.as_ref(),
            Which::Old(index) => self.old.get(index),
        }
    }

    fn active(&self) -> Vec<Which> {
        let old = (0..self.old.len()).map(Which::Old);
        let new = self.new.is_some().then_some(Which::New);
        old.chain(new)
            .filter(|which| self.get(*which).is_some_and(|set| size(set) > 0))
            .collect()
    }

    fn newest(&self) -> Option<Which> {
        if self.new.is_some() {
            return Some(Which::New);
        }
        // `old` is sorted by age.
        self.old.len().checked_sub(1).map(Which::Old)
    }

    /// The new set is complete and does not need the old ones any more.
    fn is_saturated(&self) -> bool {
        let wanted = self.replicas();
        self.new.as_ref().is_some_and(|set| {
            number_annotation::<i32>(set, DESIRED_REPLICAS) == Some(wanted)
                && size(set) == wanted
                && available(set) == wanted
        })
    }

    fn scale_in_proportion(&mut self, mut sets: Vec<Which>) {
        let sizes = |round: &Self, which: Which| round.get(which).map_or(0, size);
        let total: i32 = sets.iter().map(|which| sizes(self, *which)).sum();
        let wanted = self.replicas();
        let allowed = if wanted > 0 {
            wanted + self.max_surge()
        } else {
            0
        };
        let to_add = allowed - total;
        // Largest first; the newer of equals gets more, the older one loses more.
        let age = |round: &Self, which: Which| {
            round.get(which).map(|set| {
                (
                    set.metadata.creation_timestamp.clone(),
                    set.metadata.name.clone(),
                )
            })
        };
        sets.sort_by(|a, b| {
            let by_age = if to_add > 0 {
                age(self, *b).cmp(&age(self, *a))
            } else {
                age(self, *a).cmp(&age(self, *b))
            };
            sizes(self, *b).cmp(&sizes(self, *a)).then(by_age)
        });
        let status_replicas = self
            .deployment
            .status
            .as_ref()
            .and_then(|status| status.replicas)
            .unwrap_or(0);
        let mut added = 0;
        let mut targets = Vec::new();
        for which in sets {
            let Some(set) = self.get(which) else { continue };
            let mut target = size(set);
            if to_add != 0 {
                let share = proportion(
                    set,
                    wanted,
                    wanted + self.max_surge(),
                    status_replicas,
                    (to_add, added),
                );
                target += share;
                added += share;
            }
            targets.push((which, target));
        }
        if let Some((_, first)) = targets.first_mut()
            && to_add != 0
        {
            *first = (*first + to_add - added).max(0);
        }
        for (which, target) in targets {
            self.scale(which, target);
        }
    }
}

/// A set's part of what is to be added (or, negative, removed).
fn proportion(
    set: &ReplicaSet,
    wanted: i32,
    max_replicas: i32,
    status_replicas: i32,
    (to_add, added): (i32, i32),
) -> i32 {
    if size(set) == 0 || to_add == 0 || to_add == added {
        return 0;
    }
    let fraction = fraction(set, wanted, max_replicas, status_replicas);
    let allowed = to_add - added;
    if to_add > 0 {
        fraction.min(allowed)
    } else {
        fraction.max(allowed)
    }
}

fn fraction(set: &ReplicaSet, wanted: i32, max_replicas: i32, status_replicas: i32) -> i32 {
    if wanted == 0 {
        return -size(set);
    }
    let before = match number_annotation::<i32>(set, MAX_REPLICAS) {
        Some(before) if before != 0 => before,
        // Made before the annotation existed.
        _ if status_replicas != 0 => status_replicas,
        _ => return 0,
    };
    let exact = f64::from(size(set)) * f64::from(max_replicas) / f64::from(before);
    exact.round() as i32 - size(set)
}
