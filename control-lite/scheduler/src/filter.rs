//! Which nodes a pod can run on, and in upstream's words why it cannot run on the others.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    Node, NodeSelectorRequirement, NodeSelectorTerm, Pod, Taint, Toleration,
};

use crate::node_info::{HostPort, NodeInfo, host_ports};
use crate::resources::Resources;

const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// Why a node is out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Rejection {
    pub(crate) reasons: Vec<String>,
    /// Whether removing pods from the node could not help either.
    pub(crate) unresolvable: bool,
}

fn because(reason: impl Into<String>, unresolvable: bool) -> Result<(), Rejection> {
    Err(Rejection {
        reasons: vec![reason.into()],
        unresolvable,
    })
}

/// Runs every filter in upstream's order; the first that refuses decides.
pub(crate) fn filter(pod: &Pod, info: &NodeInfo) -> Result<(), Rejection> {
    node_unschedulable(pod, &info.node)?;
    node_name(pod, info)?;
    taints(pod, &info.node)?;
    node_affinity(pod, &info.node)?;
    ports(pod, info)?;
    fit(pod, info)
}

fn node_unschedulable(pod: &Pod, node: &Node) -> Result<(), Rejection> {
    let marked = node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true);
    let taint = Taint {
        key: UNSCHEDULABLE.to_owned(),
        effect: "NoSchedule".to_owned(),
        ..Default::default()
    };
    if marked && !tolerates(tolerations(pod), &taint) {
        return because("node(s) were unschedulable", true);
    }
    Ok(())
}

fn node_name(pod: &Pod, info: &NodeInfo) -> Result<(), Rejection> {
    let wanted = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.node_name.as_deref())
        .unwrap_or_default();
    if !wanted.is_empty() && wanted != info.name() {
        return because("node(s) didn't match the requested node name", true);
    }
    Ok(())
}

fn taints(pod: &Pod, node: &Node) -> Result<(), Rejection> {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_ref());
    let refused = taints.into_iter().flatten().find(|taint| {
        matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute")
            && !tolerates(tolerations(pod), taint)
    });
    match refused {
        Some(taint) => {
            let value = taint.value.as_deref().unwrap_or_default();
            because(
                format!("node(s) had untolerated taint {{{}: {value}}}", taint.key),
                true,
            )
        }
        None => Ok(()),
    }
}

pub(crate) fn tolerations(pod: &Pod) -> &[Toleration] {
    let spec = pod.spec.as_ref();
    spec.and_then(|spec| spec.tolerations.as_deref())
        .unwrap_or_default()
}

/// Whether any of the tolerations covers the taint.
pub(crate) fn tolerates(tolerations: &[Toleration], taint: &Taint) -> bool {
    tolerations.iter().any(|toleration| {
        let same = |wanted: Option<&str>, found: &str| wanted.unwrap_or_default() == found;
        let effect = toleration.effect.as_deref().unwrap_or_default();
        if !effect.is_empty() && effect != taint.effect {
            return false;
        }
        let key = toleration.key.as_deref().unwrap_or_default();
        if !key.is_empty() && key != taint.key {
            return false;
        }
        match toleration.operator.as_deref() {
            Some("Exists") => true,
            // An empty key with Equal matches only an empty key; validation refuses it.
            _ => {
                !key.is_empty()
                    && same(
                        toleration.value.as_deref(),
                        taint.value.as_deref().unwrap_or_default(),
                    )
            }
        }
    })
}

fn node_affinity(pod: &Pod, node: &Node) -> Result<(), Rejection> {
    let Some(spec) = pod.spec.as_ref() else {
        return Ok(());
    };
    let none = BTreeMap::new();
    let labels = node.metadata.labels.as_ref().unwrap_or(&none);
    let selected = spec
        .node_selector
        .iter()
        .flatten()
        .all(|(key, value)| labels.get(key) == Some(value));
    let required = spec
        .affinity
        .as_ref()
        .and_then(|affinity| affinity.node_affinity.as_ref())
        .and_then(|affinity| {
            affinity
                .required_during_scheduling_ignored_during_execution
                .as_ref()
        });
    let admitted = required.is_none_or(|required| {
        required
            .node_selector_terms
            .iter()
            .any(|term| term_matches(term, node))
    });
    if selected && admitted {
        return Ok(());
    }
    because("node(s) didn't match Pod's node affinity/selector", true)
}

/// Whether a term matches. An empty one matches nothing.
pub(crate) fn term_matches(term: &NodeSelectorTerm, node: &Node) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    let label = |key: &str| node.metadata.labels.as_ref()?.get(key).map(String::as_str);
    let field = |key: &str| (key == "metadata.name").then_some(node.metadata.name.as_deref())?;
    expressions
        .iter()
        .all(|requirement| requirement_holds(requirement, label(&requirement.key)))
        && fields
            .iter()
            .all(|requirement| requirement_holds(requirement, field(&requirement.key)))
}

fn requirement_holds(requirement: &NodeSelectorRequirement, found: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let listed = found.is_some_and(|found| values.iter().any(|value| value == found));
    let compared = || {
        let found: i64 = found?.parse().ok()?;
        let wanted: i64 = values.first()?.parse().ok()?;
        Some(found.cmp(&wanted))
    };
    match requirement.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => found.is_some(),
        "DoesNotExist" => found.is_none(),
        "Gt" => compared() == Some(std::cmp::Ordering::Greater),
        "Lt" => compared() == Some(std::cmp::Ordering::Less),
        _ => false,
    }
}

fn ports(pod: &Pod, info: &NodeInfo) -> Result<(), Rejection> {
    let clash = host_ports(pod)
        .iter()
        .any(|wanted| info.host_ports.iter().any(|held| ports_clash(wanted, held)));
    if clash {
        return because(
            "node(s) didn't have free ports for the requested pod ports",
            false,
        );
    }
    Ok(())
}

fn ports_clash(a: &HostPort, b: &HostPort) -> bool {
    let everywhere = |address: &str| address == "0.0.0.0" || address == "::";
    a.0 == b.0 && a.2 == b.2 && (a.1 == b.1 || everywhere(&a.1) || everywhere(&b.1))
}

fn fit(pod: &Pod, info: &NodeInfo) -> Result<(), Rejection> {
    let mut reasons = Vec::new();
    let room = info.allocatable.get("pods");
    if i64::try_from(info.pods.len()).unwrap_or(i64::MAX) + 1 > room {
        reasons.push("Too many pods".to_owned());
    }
    let mut unresolvable = false;
    let wanted = Resources::requested(pod);
    // Upstream's order: cpu, memory, ephemeral storage, then the others.
    let first = ["cpu", "memory", "ephemeral-storage"];
    let others = wanted
        .0
        .keys()
        .map(String::as_str)
        .filter(|name| !first.contains(name));
    for name in first.into_iter().chain(others) {
        let (amount, total) = (wanted.get(name), info.allocatable.get(name));
        if amount > 0 && amount > total - info.requested.get(name) {
            reasons.push(format!("Insufficient {name}"));
            unresolvable |= amount > total;
        }
    }
    if reasons.is_empty() {
        Ok(())
    } else {
        Err(Rejection {
            reasons,
            unresolvable,
        })
    }
}

#[cfg(test)]
mod tests;
