//! Which of the nodes that fit is the best: upstream's default plugins and weights.

use std::collections::HashMap;

use k8s_openapi::api::core::v1::Pod;
use tholepin_informer::Selector;

use crate::filter::{term_matches, tolerates, tolerations};
use crate::node_info::NodeInfo;
use crate::resources::Resources;

const MAX_SCORE: f64 = 100.0;
const ZONE: &str = "topology.kubernetes.io/zone";
const MIB: i64 = 1024 * 1024;

/// Scores of `nodes`, in their order. `siblings` selects the pods this one should be spread from
/// (those of the same Services and owners), within `namespace`.
pub(crate) fn score(
    pod: &Pod,
    siblings: Option<&Selector>,
    nodes: &[&NodeInfo],
    all_nodes: usize,
) -> Vec<f64> {
    let wanted = Resources::requested_for_score(pod);
    let affinity = normalized(
        nodes.iter().map(|n| preferred_affinity(pod, n)).collect(),
        false,
    );
    let taints = normalized(
        nodes.iter().map(|n| intolerable_taints(pod, n)).collect(),
        true,
    );
    let spread = spread(pod, siblings, nodes);
    let images = image_holders(nodes);
    nodes
        .iter()
        .enumerate()
        .map(|(i, node)| {
            least_allocated(&wanted, node)
                + balanced(&wanted, node)
                + image_locality(pod, node, &images, all_nodes)
                + 2.0 * affinity[i]
                + 2.0 * spread[i]
                + 3.0 * taints[i]
        })
        .collect()
}

fn used_fraction(wanted: &Resources, node: &NodeInfo, name: &str) -> Option<f64> {
    let total = node.allocatable.get(name);
    let used = node
        .requested_for_score
        .get(name)
        .saturating_add(wanted.get(name));
    (total > 0).then(|| (used as f64 / total as f64).min(1.0))
}

fn fractions(wanted: &Resources, node: &NodeInfo) -> Vec<f64> {
    ["cpu", "memory"]
        .iter()
        .filter_map(|name| used_fraction(wanted, node, name))
        .collect()
}

fn least_allocated(wanted: &Resources, node: &NodeInfo) -> f64 {
    let fractions = fractions(wanted, node);
    if fractions.is_empty() {
        return 0.0;
    }
    let free: f64 = fractions.iter().map(|used| 1.0 - used).sum();
    (free / fractions.len() as f64 * MAX_SCORE).floor()
}

fn balanced(wanted: &Resources, node: &NodeInfo) -> f64 {
    let deviation = match fractions(wanted, node).as_slice() {
        [a, b] => (a - b).abs() / 2.0,
        _ => 0.0,
    };
    ((1.0 - deviation) * MAX_SCORE).floor()
}

fn preferred_affinity(pod: &Pod, node: &NodeInfo) -> f64 {
    let preferred = pod
        .spec
        .as_ref()
        .and_then(|spec| spec.affinity.as_ref()?.node_affinity.as_ref())
        .and_then(|a| {
            a.preferred_during_scheduling_ignored_during_execution
                .as_ref()
        });
    let matching = preferred
        .into_iter()
        .flatten()
        .filter(|p| term_matches(&p.preference, &node.node));
    f64::from(matching.map(|preferred| preferred.weight).sum::<i32>())
}

fn intolerable_taints(pod: &Pod, node: &NodeInfo) -> f64 {
    let taints = node
        .node
        .spec
        .as_ref()
        .and_then(|spec| spec.taints.as_ref());
    let soft = taints
        .into_iter()
        .flatten()
        .filter(|taint| taint.effect == "PreferNoSchedule");
    soft.filter(|taint| !tolerates(tolerations(pod), taint))
        .count() as f64
}

/// To 0..100 by the highest; `reverse` makes the lowest the best.
fn normalized(mut scores: Vec<f64>, reverse: bool) -> Vec<f64> {
    let highest = scores.iter().copied().fold(0.0, f64::max);
    for score in &mut scores {
        let share = if highest > 0.0 {
            *score / highest * MAX_SCORE
        } else {
            0.0
        };
        *score = if reverse { MAX_SCORE - share } else { share };
    }
    scores
}

/// Upstream's default topology spread: over host names (skew 3) and zones (skew 5), as a preference.
fn spread(pod: &Pod, siblings: Option<&Selector>, nodes: &[&NodeInfo]) -> Vec<f64> {
    let Some(selector) = siblings else {
        return vec![0.0; nodes.len()];
    };
    let namespace = pod.metadata.namespace.as_deref();
    let matching = |node: &NodeInfo| {
        let counted = node.pods.iter().filter(|other| {
            other.metadata.namespace.as_deref() == namespace
                && other.metadata.deletion_timestamp.is_none()
                && selector.matches(other.metadata.labels.as_ref())
        });
        counted.count() as f64
    };
    let zone = |node: &NodeInfo| node.node.metadata.labels.as_ref()?.get(ZONE).cloned();
    let on_node: Vec<f64> = nodes.iter().map(|node| matching(node)).collect();
    let mut in_zone: HashMap<String, f64> = HashMap::new();
    for (node, count) in nodes.iter().zip(&on_node) {
        if let Some(zone) = zone(node) {
            *in_zone.entry(zone).or_default() += count;
        }
    }
    let weight = |domains: usize| ((domains + 2) as f64).ln();
    let raw: Vec<f64> = nodes
        .iter()
        .zip(&on_node)
        .map(|(node, count)| {
            let mut score = count * weight(nodes.len()) + 2.0;
            if let Some(pods) = zone(node).and_then(|zone| in_zone.get(&zone)) {
                score += pods * weight(in_zone.len()) + 4.0;
            }
            score.round()
        })
        .collect();
    let highest = raw.iter().copied().fold(f64::MIN, f64::max);
    let lowest = raw.iter().copied().fold(f64::MAX, f64::min);
    let normalize = |score: f64| {
        if highest <= 0.0 {
            MAX_SCORE
        } else {
            MAX_SCORE * (highest + lowest - score) / highest
        }
    };
    raw.into_iter()
        .map(|score| normalize(score).floor())
        .collect()
}

/// Size of every image and how many nodes hold it.
fn image_holders<'a>(nodes: &[&'a NodeInfo]) -> HashMap<&'a str, usize> {
    let mut holders = HashMap::new();
    for node in nodes {
        for image in node
            .node
            .status
            .iter()
            .flat_map(|status| status.images.iter().flatten())
        {
            for name in image.names.iter().flatten() {
                *holders.entry(name.as_str()).or_default() += 1;
            }
        }
    }
    holders
}

fn image_locality(
    pod: &Pod,
    node: &NodeInfo,
    holders: &HashMap<&str, usize>,
    all_nodes: usize,
) -> f64 {
    let containers = pod
        .spec
        .as_ref()
        .map(|spec| spec.containers.as_slice())
        .unwrap_or_default();
    let images = node
        .node
        .status
        .as_ref()
        .and_then(|status| status.images.as_ref());
    let mut sum = 0.0;
    for container in containers {
        let Some(wanted) = container.image.as_deref() else {
            continue;
        };
        let wanted = normalized_image(wanted);
        let held = images
            .into_iter()
            .flatten()
            .find(|image| image.names.iter().flatten().any(|name| *name == wanted));
        if let Some(size) = held.and_then(|image| image.size_bytes) {
            let count = holders.get(wanted.as_str()).copied().unwrap_or(0);
            sum += size as f64 * count as f64 / all_nodes.max(1) as f64;
        }
    }
    let least = (23 * MIB) as f64;
    let most = (1000 * MIB) as f64 * containers.len().max(1) as f64;
    (MAX_SCORE * (sum.clamp(least, most) - least) / (most - least)).floor()
}

/// An image without a tag is the `latest` one.
fn normalized_image(name: &str) -> String {
    let last = name.rsplit('/').next().unwrap_or(name);
    if last.contains(':') || last.contains('@') {
        name.to_owned()
    } else {
        format!("{name}:latest")
    }
}

#[cfg(test)]
mod tests;
