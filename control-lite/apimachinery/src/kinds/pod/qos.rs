//! Quality of service class of a pod, from its requests and limits of CPU and memory.

use crate::quantity::Quantity;
use crate::value::{at, list_at, str_at};
use serde_json::Value;

/// `Guaranteed`, `Burstable` or `BestEffort`.
pub fn qos_class(pod: &Value) -> &'static str {
    let containers = || {
        list_at(pod, "spec.containers")
            .iter()
            .chain(list_at(pod, "spec.initContainers"))
    };
    let amount = |c: &Value, list: &str, resource: &str| {
        let text = at(c, "resources")
            .and_then(|r| r.get(list))
            .map_or("", |l| str_at(l, resource));
        Quantity::parse(text).ok().filter(|q| !q.is_zero())
    };
    let mut asks_for_something = false;
    let mut is_guaranteed = true;
    for container in containers() {
        for resource in ["cpu", "memory"] {
            let (request, limit) = (
                amount(container, "requests", resource),
                amount(container, "limits", resource),
            );
            asks_for_something |= request.is_some() || limit.is_some();
            is_guaranteed &= limit.is_some() && request.is_none_or(|r| Some(r) == limit);
        }
    }
    match (asks_for_something, is_guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_class_follows_requests_and_limits() {
        let pod = |resources: &[Value]| {
            let containers: Vec<Value> =
                resources.iter().map(|r| json!({"resources": r})).collect();
            json!({"spec": {"containers": containers}})
        };
        let full = json!({"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"cpu": "1000m", "memory": "1024Mi"}});
        assert_eq!(qos_class(&pod(&[json!({})])), "BestEffort");
        assert_eq!(
            qos_class(&pod(&[json!({"requests": {"cpu": "0"}})])),
            "BestEffort"
        );
        assert_eq!(qos_class(&pod(std::slice::from_ref(&full))), "Guaranteed");
        assert_eq!(qos_class(&pod(&[full, json!({})])), "Burstable");
        assert_eq!(
            qos_class(&pod(&[json!({"requests": {"memory": "1Mi"}})])),
            "Burstable"
        );
    }
}
