//! What a pod asks for and what a node has, in the units the filters compare.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use tholepin_apimachinery::quantity;

/// Amounts by resource: cpu in thousandths, everything else in whole units.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Resources(pub(crate) BTreeMap<String, i64>);

/// For scoring, a container that asks for nothing counts as this much.
const DEFAULT_CPU_MILLI: i64 = 100;
const DEFAULT_MEMORY_BYTES: i64 = 200 * 1024 * 1024;

impl Resources {
    pub(crate) fn get(&self, name: &str) -> i64 {
        self.0.get(name).copied().unwrap_or(0)
    }

    pub(crate) fn add(&mut self, other: &Self) {
        for (name, amount) in &other.0 {
            let held = self.0.entry(name.clone()).or_default();
            *held = held.saturating_add(*amount);
        }
    }

    fn raise_to(&mut self, other: &Self) {
        for (name, amount) in &other.0 {
            let held = self.0.entry(name.clone()).or_default();
            *held = (*held).max(*amount);
        }
    }

    fn of(list: Option<&BTreeMap<String, Quantity>>) -> Self {
        let amount = |name: &str, text: &Quantity| {
            // The API admits only what parses.
            let parsed = quantity::Quantity::parse(&text.0).unwrap_or(quantity::Quantity::ZERO);
            if name == "cpu" {
                parsed.millis()
            } else {
                parsed.units()
            }
        };
        let list = list.into_iter().flatten();
        Self(
            list.map(|(name, quantity)| (name.clone(), amount(name, quantity)))
                .collect(),
        )
    }

    /// What a node offers to pods.
    pub(crate) fn allocatable(node: &Node) -> Self {
        let status = node.status.as_ref();
        let list = status.and_then(|s| s.allocatable.as_ref().or(s.capacity.as_ref()));
        Self::of(list)
    }

    /// The sum of a pod's containers, or its largest init container if that is more, plus overhead.
    /// Init containers that restart always (sidecars) run beside everything after them.
    pub(crate) fn requested(pod: &Pod) -> Self {
        Self::request(pod, false)
    }

    /// The same for scoring, where asking for nothing is not the same as needing nothing.
    pub(crate) fn requested_for_score(pod: &Pod) -> Self {
        Self::request(pod, true)
    }

    fn request(pod: &Pod, non_zero: bool) -> Self {
        let Some(spec) = pod.spec.as_ref() else {
            return Self::default();
        };
        let of = |resources: Option<&BTreeMap<String, Quantity>>| {
            let mut list = Self::of(resources);
            if non_zero {
                list.0.entry("cpu".to_owned()).or_insert(DEFAULT_CPU_MILLI);
                list.0
                    .entry("memory".to_owned())
                    .or_insert(DEFAULT_MEMORY_BYTES);
            }
            list
        };
        let mut total = Self::default();
        for container in &spec.containers {
            total.add(&of(container
                .resources
                .as_ref()
                .and_then(|r| r.requests.as_ref())));
        }
        let (mut sidecars, mut initial) = (Self::default(), Self::default());
        for container in spec.init_containers.iter().flatten() {
            let mut wanted = of(container
                .resources
                .as_ref()
                .and_then(|r| r.requests.as_ref()));
            if container.restart_policy.as_deref() == Some("Always") {
                total.add(&wanted);
                sidecars.add(&wanted);
                initial.raise_to(&sidecars);
            } else {
                wanted.add(&sidecars);
                initial.raise_to(&wanted);
            }
        }
        total.raise_to(&initial);
        total.add(&Self::of(spec.overhead.as_ref()));
        total
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn init_containers_count_by_their_largest_and_sidecars_always() {
        let asks = |cpu: &str| json!({"requests": {"cpu": cpu}});
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {}, "spec": {
                "overhead": {"cpu": "50m"},
                "containers": [{"name": "a", "resources": asks("100m")}, {"name": "b", "resources": asks("200m")}],
                "initContainers": [
                    {"name": "i", "resources": asks("400m")},
                    {"name": "s", "restartPolicy": "Always", "resources": asks("300m")},
                    {"name": "j", "resources": asks("500m")},
                ],
            }
        })).expect("a pod");
        // Running: 100 + 200 + 300 sidecar = 600; starting: 500 + 300 sidecar = 800.
        assert_eq!(Resources::requested(&pod).get("cpu"), 850);
    }
}
