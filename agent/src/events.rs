//! Events about pods and this node: aggregated, rate limited, never in anybody's way.
//!
//! Workers hand events to a bounded queue; one task posts them, and patches the count when the same
//! thing happens again. A full queue drops events and counts them.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use k8s_openapi::api::core::v1::Event as ApiEvent;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::observe::metrics::Metrics;
use crate::time::rfc3339;

/// What an event is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Subject {
    pub kind: &'static str,
    pub namespace: String,
    pub name: String,
    pub uid: String,
    /// `spec.containers{app}` for events about one container.
    pub field_path: Option<String>,
}

impl Subject {
    #[must_use]
    pub fn pod(pod: &crate::runtime::PodIdentity) -> Self {
        Self {
            kind: "Pod",
            namespace: pod.namespace.clone(),
            name: pod.name.clone(),
            uid: pod.uid.clone(),
            field_path: None,
        }
    }

    #[must_use]
    pub fn container(pod: &crate::runtime::PodIdentity, container: &str) -> Self {
        Self {
            field_path: Some(format!("spec.containers{{{container}}}")),
            ..Self::pod(pod)
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Severity {
    Normal,
    Warning,
}

/// One thing that happened.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Event {
    pub subject: Subject,
    pub severity: Severity,
    pub reason: &'static str,
    pub message: String,
}

/// Where events go. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Recorder {
    queue: mpsc::Sender<(Event, SystemTime)>,
    metrics: Metrics,
}

impl Recorder {
    /// The recorder and the queue that [`run`] (or a test) empties.
    #[must_use]
    pub fn new(metrics: Metrics) -> (Self, mpsc::Receiver<(Event, SystemTime)>) {
        let (queue, receiver) = mpsc::channel(512);
        (Self { queue, metrics }, receiver)
    }

    pub fn record(
        &self,
        subject: Subject,
        severity: Severity,
        reason: &'static str,
        message: impl Into<String>,
    ) {
        let event = Event {
            subject,
            severity,
            reason,
            message: message.into(),
        };
        tracing::debug!(reason, subject = %event.subject.name, message = %event.message, "event");
        if self.queue.try_send((event, SystemTime::now())).is_err() {
            self.metrics.event_dropped();
        }
    }
}

/// How long two equal events count as one.
const SAME_EVENT: Duration = Duration::from_secs(600);
/// The kubelet's spam filter: 25 at once per object, then one in 5 minutes.
const BURST: f64 = 25.0;
const REFILL_PER_SEC: f64 = 1.0 / 300.0;
const KNOWN_LIMIT: usize = 2048;
const ATTEMPTS: u32 = 6;

struct Known {
    name: String,
    count: i32,
    last: SystemTime,
}

struct Bucket {
    tokens: f64,
    filled: SystemTime,
}

/// Posts events until cancelled.
pub async fn run(
    client: Client,
    node_name: String,
    mut queue: mpsc::Receiver<(Event, SystemTime)>,
    cancel: CancellationToken,
) {
    let mut poster = Poster {
        client,
        node_name,
        known: HashMap::new(),
        buckets: HashMap::new(),
    };
    loop {
        let next = tokio::select! {
            () = cancel.cancelled() => return,
            next = queue.recv() => next,
        };
        let Some((event, at)) = next else { return };
        if !poster.admit(&event, at) {
            tracing::debug!(
                reason = event.reason,
                "event over the rate limit, not posted"
            );
            continue;
        }
        let mut delay = Duration::from_millis(200);
        for attempt in 1..=ATTEMPTS {
            let result = poster.post(&event, at).await;
            let Err(error) = result else { break };
            if !is_transient(&error) || attempt == ATTEMPTS {
                tracing::warn!(
                    reason = event.reason, subject = %event.subject.name,
                    error = %crate::errors::chain(&error), "an event could not be posted"
                );
                break;
            }
            tokio::select! {
                () = cancel.cancelled() => return,
                () = tokio::time::sleep(delay) => delay *= 2,
            }
        }
    }
}

/// Whether the API server may answer differently next time.
#[must_use]
pub fn is_transient(error: &kube::Error) -> bool {
    match error {
        kube::Error::Api(status) => status.code >= 500 || status.code == 429,
        _ => true,
    }
}

struct Poster {
    client: Client,
    node_name: String,
    known: HashMap<Event, Known>,
    buckets: HashMap<Subject, Bucket>,
}

impl Poster {
    fn admit(&mut self, event: &Event, at: SystemTime) -> bool {
        if self.buckets.len() > KNOWN_LIMIT {
            self.buckets.retain(|_, bucket| {
                at.duration_since(bucket.filled).unwrap_or_default() < SAME_EVENT * 12
            });
        }
        let bucket = self.buckets.entry(event.subject.clone()).or_insert(Bucket {
            tokens: BURST,
            filled: at,
        });
        let elapsed = at
            .duration_since(bucket.filled)
            .unwrap_or_default()
            .as_secs_f64();
        bucket.tokens = (bucket.tokens + elapsed * REFILL_PER_SEC).min(BURST);
        bucket.filled = at;
        if bucket.tokens < 1.0 {
            return false;
        }
        bucket.tokens -= 1.0;
        true
    }

    async fn post(&mut self, event: &Event, at: SystemTime) -> Result<(), kube::Error> {
        if self.known.len() > KNOWN_LIMIT {
            self.known
                .retain(|_, known| at.duration_since(known.last).unwrap_or_default() < SAME_EVENT);
        }
        let api: Api<ApiEvent> = Api::namespaced(self.client.clone(), namespace(&event.subject));
        if let Some(known) = self.known.get_mut(event)
            && at.duration_since(known.last).unwrap_or_default() < SAME_EVENT
        {
            let patch = json!({"count": known.count + 1, "lastTimestamp": rfc3339(at)});
            match api
                .patch(&known.name, &PatchParams::default(), &Patch::Merge(&patch))
                .await
            {
                Ok(_) => {
                    known.count += 1;
                    known.last = at;
                    return Ok(());
                }
                // Expired on the server: post it anew.
                Err(kube::Error::Api(status)) if status.code == 404 => {}
                Err(error) => return Err(error),
            }
        }
        let object = self.object(event, at);
        let name = object.metadata.name.clone().unwrap_or_default();
        match api.create(&PostParams::default(), &object).await {
            Ok(_) => {}
            // A retry whose first answer was lost.
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            Err(error) => return Err(error),
        }
        self.known.insert(
            event.clone(),
            Known {
                name,
                count: 1,
                last: at,
            },
        );
        Ok(())
    }

    fn object(&self, event: &Event, at: SystemTime) -> ApiEvent {
        let nanos = at
            .duration_since(SystemTime::UNIX_EPOCH)
            .unwrap_or_default()
            .as_nanos();
        let subject = &event.subject;
        let object = json!({
            "metadata": {
                "name": format!("{}.{nanos:x}", subject.name),
                "namespace": namespace(subject),
            },
            "involvedObject": {
                "apiVersion": match subject.kind {
                    "NetworkPolicy" => "networking.k8s.io/v1",
                    _ => "v1",
                },
                "kind": subject.kind,
                "namespace": (!subject.namespace.is_empty()).then_some(&subject.namespace),
                "name": subject.name,
                "uid": subject.uid,
                "fieldPath": subject.field_path,
            },
            "reason": event.reason,
            "message": shortened(&event.message),
            "type": match event.severity {
                Severity::Normal => "Normal",
                Severity::Warning => "Warning",
            },
            "source": {"component": "kubelet", "host": self.node_name},
            "reportingComponent": "kubelet",
            "reportingInstance": self.node_name,
            "firstTimestamp": rfc3339(at),
            "lastTimestamp": rfc3339(at),
            "count": 1,
        });
        serde_json::from_value(object).expect("an event of our own making is valid")
    }
}

/// Cluster-scoped subjects have their events in `default`.
fn namespace(subject: &Subject) -> &str {
    if subject.namespace.is_empty() {
        "default"
    } else {
        &subject.namespace
    }
}

/// The API server's limit is 1024 bytes.
fn shortened(message: &str) -> &str {
    let mut end = message.len().min(1024);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    &message[..end]
}
