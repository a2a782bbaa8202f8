//! Deletes pods from nodes with NoExecute taints they do not tolerate, at once or when their time is up.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod, Taint, Toleration};
use tholepin_informer::{
    DeleteOptions, EventType, ObjectKey, ObjectRef, Recorder, WorkQueue, is_pod_terminal, kinds,
};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::context::{Context, ReconcileError};
use crate::runner::{self, Reconciler};

#[derive(Debug)]
struct TaintEviction {
    context: Context,
    recorder: Recorder,
}

/// Registers handlers and starts the worker. Keys are pods.
pub(crate) fn spawn(context: &Context, tasks: &mut JoinSet<()>, cancel: &CancellationToken) {
    let queue = Arc::new(WorkQueue::<ObjectKey>::new());
    let (add, pods) = (queue.clone(), context.caches.pods.clone());
    context.caches.nodes.on_change(move |change| {
        let taints = |node: &Option<Arc<Node>>| node.as_deref().map(no_execute).unwrap_or_default();
        if let Some(node) = &change.new
            && taints(&change.old) != taints(&change.new)
        {
            for pod in pods.by_index(node.metadata.name.as_deref().unwrap_or_default()) {
                add.add(ObjectKey::of(&pod.metadata));
            }
        }
    });
    let (add, nodes) = (queue.clone(), context.caches.nodes.clone());
    context.caches.pods.on_change(move |change| {
        let Some(pod) = &change.new else { return };
        let node = pod
            .spec
            .as_ref()
            .and_then(|spec| spec.node_name.clone())
            .unwrap_or_default();
        let tainted = |node: Arc<Node>| !no_execute(&node).is_empty();
        if nodes.get(&ObjectKey::new("", node)).is_some_and(tainted) {
            add.add(ObjectKey::of(&pod.metadata));
        }
    });
    let controller = Arc::new(TaintEviction {
        context: context.clone(),
        recorder: context.recorder.component("taint-eviction-controller"),
    });
    runner::spawn(context, tasks, cancel, queue, controller, 2);
}

fn no_execute(node: &Node) -> Vec<Taint> {
    let taints = node
        .spec
        .iter()
        .flat_map(|spec| spec.taints.iter().flatten());
    taints
        .filter(|taint| taint.effect == "NoExecute")
        .cloned()
        .collect()
}

/// When a pod has to go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Stays,
    GoesNow,
    GoesIn(Duration),
}

fn judge(taints: &[Taint], tolerations: &[Toleration], now: Timestamp) -> Verdict {
    let mut soonest: Option<i64> = None;
    for taint in taints {
        let matching: Vec<&Toleration> = tolerations
            .iter()
            .filter(|toleration| tolerates(toleration, taint))
            .collect();
        if matching.is_empty() {
            return Verdict::GoesNow;
        }
        // The shortest of the tolerations that have a limit counts.
        if let Some(limit) = matching.iter().filter_map(|t| t.toleration_seconds).min() {
            let since = taint.time_added.as_ref().map_or(now, |time| time.0);
            let left = since.as_second() + limit.max(0) - now.as_second();
            soonest = Some(soonest.map_or(left, |known| known.min(left)));
        }
    }
    match soonest {
        None => Verdict::Stays,
        Some(left) if left <= 0 => Verdict::GoesNow,
        Some(left) => Verdict::GoesIn(Duration::from_secs(left.unsigned_abs())),
    }
}

fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let is_any = |text: Option<&String>, wanted: &str| {
        text.is_none_or(|text| text.is_empty() || text == wanted)
    };
    let exists = toleration.operator.as_deref() == Some("Exists");
    let same_value = toleration.value.as_deref().unwrap_or_default()
        == taint.value.as_deref().unwrap_or_default();
    is_any(toleration.effect.as_ref(), &taint.effect)
        && is_any(toleration.key.as_ref(), &taint.key)
        && (exists || same_value)
}

impl Reconciler for TaintEviction {
    type Key = ObjectKey;
    const NAME: &'static str = "taint-eviction";

    async fn reconcile(&self, key: &ObjectKey) -> Result<Option<Duration>, ReconcileError> {
        let caches = &self.context.caches;
        let Some(pod) = caches.pods.get(key) else {
            return Ok(None);
        };
        if pod.metadata.deletion_timestamp.is_some() || is_pod_terminal(&pod) {
            return Ok(None);
        }
        let Some(spec) = pod.spec.as_ref() else {
            return Ok(None);
        };
        let node = spec.node_name.clone().unwrap_or_default();
        let Some(node) = caches.nodes.get(&ObjectKey::new("", node)) else {
            return Ok(None);
        };
        let tolerations = spec.tolerations.as_deref().unwrap_or_default();
        match judge(&no_execute(&node), tolerations, Timestamp::now()) {
            Verdict::Stays => Ok(None),
            Verdict::GoesIn(delay) => Ok(Some(delay)),
            Verdict::GoesNow => self.evict(key, &pod).await,
        }
    }
}

impl TaintEviction {
    async fn evict(&self, key: &ObjectKey, pod: &Pod) -> Result<Option<Duration>, ReconcileError> {
        let about = ObjectRef::of(kinds::POD, &pod.metadata);
        let message = format!("Marking for deletion Pod {key}");
        self.recorder
            .record(about, EventType::Normal, "TaintManagerEviction", message);
        let options = DeleteOptions {
            uid: pod.metadata.uid.clone(),
            ..Default::default()
        };
        match self.context.caches.pods.delete(pod, options).await {
            Err(error) if !error.is_not_found() => Err(ReconcileError::of("evict pod", key)(error)),
            _ => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    fn taint() -> Taint {
        Taint {
            key: "node.kubernetes.io/unreachable".into(),
            effect: "NoExecute".into(),
            value: None,
            time_added: Some(Time(Timestamp::UNIX_EPOCH)),
        }
    }

    fn toleration(seconds: Option<i64>) -> Toleration {
        Toleration {
            key: Some("node.kubernetes.io/unreachable".into()),
            operator: Some("Exists".into()),
            toleration_seconds: seconds,
            ..Default::default()
        }
    }

    #[test]
    fn a_pod_stays_as_long_as_its_shortest_toleration() {
        let at = |secs| Timestamp::from_second(secs).expect("in range");
        let judge = |tolerations: &[Toleration], secs| judge(&[taint()], tolerations, at(secs));
        assert_eq!(judge(&[], 0), Verdict::GoesNow);
        assert_eq!(judge(&[toleration(None)], 9999), Verdict::Stays);
        let limited = [toleration(Some(300))];
        assert_eq!(
            judge(&limited, 100),
            Verdict::GoesIn(Duration::from_secs(200))
        );
        assert_eq!(judge(&limited, 300), Verdict::GoesNow);
        let both = [toleration(Some(300)), toleration(Some(30))];
        assert_eq!(judge(&both, 0), Verdict::GoesIn(Duration::from_secs(30)));
        assert_eq!(
            super::judge(&[], &[], at(0)),
            Verdict::Stays,
            "no taint, no eviction"
        );
    }
}
