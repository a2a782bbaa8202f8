//! Writes Events: same ones are counted up, and an object that makes too many is cut off for a while.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde_json::json;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::client::{Client, ClientError, Subresource};
use crate::kind::{Kind, kinds};
use crate::time;

/// Waiting Events; more than that are dropped and the loss logged.
const QUEUE_LENGTH: usize = 4096;
/// How many different Events are remembered to be counted up.
const REMEMBERED: usize = 4096;
/// Upstream's spam filter: so many Events per object at once …
const BURST: f64 = 25.0;
/// … and one more in so many seconds.
const REFILL_SECS: f64 = 300.0;

/// Event type.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum EventType {
    /// Expected.
    Normal,
    /// Something to look at.
    Warning,
}

impl EventType {
    fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

/// The object an Event is about.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ObjectRef {
    kind: Kind,
    namespace: String,
    name: String,
    uid: String,
    resource_version: String,
}

impl ObjectRef {
    /// A reference to the object of `kind` with this metadata.
    #[must_use]
    pub fn of(kind: Kind, meta: &ObjectMeta) -> Self {
        Self {
            kind,
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
            uid: meta.uid.clone().unwrap_or_default(),
            resource_version: meta.resource_version.clone().unwrap_or_default(),
        }
    }

    /// A reference to a Node the way the kubelet makes them: the uid is the name, which `kubectl describe
    /// node` looks for as well.
    #[must_use]
    pub fn node(name: &str) -> Self {
        Self {
            kind: kinds::NODE,
            namespace: String::new(),
            name: name.to_owned(),
            uid: name.to_owned(),
            resource_version: String::new(),
        }
    }
}

#[derive(Debug)]
struct Entry {
    about: ObjectRef,
    component: &'static str,
    type_: EventType,
    reason: &'static str,
    message: String,
    at: Time,
}

/// Hands Events to the recorder's task. Cheap to clone; one per component.
#[derive(Clone, Debug)]
pub struct Recorder {
    component: &'static str,
    sender: mpsc::Sender<Entry>,
}

impl Recorder {
    /// A recorder and its task.
    pub fn new(
        client: Arc<dyn Client>,
        cancel: CancellationToken,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (sender, receiver) = mpsc::channel(QUEUE_LENGTH);
        let task = RecorderTask {
            client,
            known: HashMap::new(),
            order: VecDeque::new(),
            buckets: HashMap::new(),
            sequence: 0,
        };
        (
            Self {
                component: "tholepin-control",
                sender,
            },
            task.run(receiver, cancel),
        )
    }

    /// The same recorder for another component.
    #[must_use]
    pub fn component(&self, component: &'static str) -> Self {
        Self {
            component,
            sender: self.sender.clone(),
        }
    }

    /// Records an Event. Never waits: when the queue is full it is dropped, which the log says.
    pub fn record(
        &self,
        about: ObjectRef,
        type_: EventType,
        reason: &'static str,
        message: impl Into<String>,
    ) {
        let entry = Entry {
            about,
            component: self.component,
            type_,
            reason,
            message: message.into(),
            at: time::now(),
        };
        if let Err(error) = self.sender.try_send(entry) {
            tracing::warn!(reason, %error, "event dropped");
        }
    }
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Sameness {
    component: &'static str,
    about: (Kind, String, String, String),
    type_: EventType,
    reason: &'static str,
    message: String,
}

struct Known {
    name: String,
    count: i32,
}

struct Bucket {
    tokens: f64,
    at: Timestamp,
}

struct RecorderTask {
    client: Arc<dyn Client>,
    known: HashMap<Sameness, Known>,
    order: VecDeque<Sameness>,
    buckets: HashMap<(&'static str, String), Bucket>,
    sequence: u64,
}

impl RecorderTask {
    async fn run(mut self, mut receiver: mpsc::Receiver<Entry>, cancel: CancellationToken) {
        loop {
            let entry = tokio::select! {
                () = cancel.cancelled() => return,
                entry = receiver.recv() => entry,
            };
            let Some(entry) = entry else { return };
            if !self.admit(&entry) {
                continue;
            }
            if let Err(error) = self.write(&entry).await {
                // An Event in a namespace that goes away is refused, and nobody misses it.
                let reason = entry.reason;
                tracing::debug!(reason, about = entry.about.name, %error, "event not written");
            }
        }
    }

    /// Takes a token of the object's bucket.
    fn admit(&mut self, entry: &Entry) -> bool {
        if self.buckets.len() > REMEMBERED {
            self.buckets.retain(|_, bucket| bucket.tokens < BURST - 1.0);
        }
        let now = Timestamp::now();
        let key = (
            entry.component,
            format!("{}/{}", entry.about.uid, entry.about.name),
        );
        let bucket = self.buckets.entry(key).or_insert(Bucket {
            tokens: BURST,
            at: now,
        });
        let passed_secs = (now.as_millisecond() - bucket.at.as_millisecond()) as f64 / 1000.0;
        bucket.tokens = (bucket.tokens + passed_secs / REFILL_SECS).min(BURST);
        bucket.at = now;
        if bucket.tokens < 1.0 {
            return false;
        }
        bucket.tokens -= 1.0;
        true
    }

    async fn write(&mut self, entry: &Entry) -> Result<(), ClientError> {
        let namespace = if entry.about.namespace.is_empty() {
            "default".to_owned()
        } else {
            entry.about.namespace.clone()
        };
        let sameness = Sameness {
            component: entry.component,
            about: (
                entry.about.kind,
                entry.about.namespace.clone(),
                entry.about.name.clone(),
                entry.about.uid.clone(),
            ),
            type_: entry.type_,
            reason: entry.reason,
            message: entry.message.clone(),
        };
        if let Some(known) = self.known.get_mut(&sameness) {
            let patch = json!({"count": known.count + 1, "lastTimestamp": entry.at});
            let outcome = self
                .client
                .patch(
                    kinds::EVENT,
                    &namespace,
                    &known.name,
                    Subresource::Main,
                    patch,
                )
                .await;
            match outcome {
                Ok(_) => {
                    known.count += 1;
                    return Ok(());
                }
                Err(error) if error.is_not_found() => drop(self.known.remove(&sameness)),
                Err(error) => return Err(error),
            }
        }
        self.sequence += 1;
        let stamp = Timestamp::now().as_nanosecond().unsigned_abs() + u128::from(self.sequence);
        let name = format!("{}.{stamp:x}", entry.about.name);
        let event = event(entry, &namespace, &name);
        let value = serde_json::to_value(&event).expect("an Event has only string keys");
        self.client.create(kinds::EVENT, &namespace, value).await?;
        self.remember(sameness, name);
        Ok(())
    }

    fn remember(&mut self, sameness: Sameness, name: String) {
        while self.order.len() >= REMEMBERED {
            if let Some(oldest) = self.order.pop_front() {
                self.known.remove(&oldest);
            }
        }
        self.order.push_back(sameness.clone());
        self.known.insert(sameness, Known { name, count: 1 });
    }
}

fn event(entry: &Entry, namespace: &str, name: &str) -> Event {
    let about = &entry.about;
    let present = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    Event {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(namespace.to_owned()),
            ..Default::default()
        },
        involved_object: ObjectReference {
            api_version: Some(about.kind.api_version()),
            kind: Some(about.kind.kind.to_owned()),
            name: Some(about.name.clone()),
            namespace: present(&about.namespace),
            uid: present(&about.uid),
            resource_version: present(&about.resource_version),
            field_path: None,
        },
        reason: Some(entry.reason.to_owned()),
        message: Some(entry.message.clone()),
        type_: Some(entry.type_.as_str().to_owned()),
        count: Some(1),
        first_timestamp: Some(entry.at.clone()),
        last_timestamp: Some(entry.at.clone()),
        source: Some(EventSource {
            component: Some(entry.component.to_owned()),
            host: None,
        }),
        reporting_component: Some(entry.component.to_owned()),
        reporting_instance: Some(String::new()),
        ..Default::default()
    }
}
