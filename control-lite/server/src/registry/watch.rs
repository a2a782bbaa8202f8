//! Watches: store events turned into what a client with its selectors sees.
//!
//! An event is decoded once and its JSON line is encoded once, however many watchers there are
//! (both live in the store event's memo). An object that starts or stops matching a selector is
//! ADDED or DELETED for that watcher.

use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use serde_json::{Value, json};
use tholepin_apimachinery::{ApiError, Kind};
use tholepin_store::{Event, KeyValue, Stored, Watch, WatchEnd};
use tokio::time::{Instant, Interval, MissedTickBehavior};

use super::list::parse_version;
use super::selection::Selection;
use super::{
    ApiResult, ListOptions, Registry, RequestContext, Resource, WatchOptions, folder, key,
    store_error, stored,
};

/// How often an idle watcher learns that nothing happened.
const BOOKMARK_INTERVAL: Duration = Duration::from_secs(60);

/// The type of a watch event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchEventKind {
    /// The object is new to this watcher.
    Added,
    /// The object changed.
    Modified,
    /// The object is gone, or no longer matches the selector.
    Deleted,
    /// Nothing changed up to this revision.
    Bookmark,
}

impl WatchEventKind {
    /// The word on the wire.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Added => "ADDED",
            Self::Modified => "MODIFIED",
            Self::Deleted => "DELETED",
            Self::Bookmark => "BOOKMARK",
        }
    }
}

/// One event of a watch.
#[derive(Clone, Debug)]
pub struct WatchEvent {
    kind: WatchEventKind,
    resource_version: u64,
    source: Source,
}

#[derive(Clone, Debug)]
enum Source {
    /// An object that was there when the watch began.
    Initial { value: Bytes },
    /// A change.
    Change {
        event: Arc<Event>,
        decoded: Arc<Decoded>,
        convert: Option<&'static Kind>,
    },
    /// No object.
    Bookmark { object: Arc<Value> },
}

impl WatchEvent {
    /// Its type.
    #[must_use]
    pub fn kind(&self) -> WatchEventKind {
        self.kind
    }

    /// Where a watch that begins again goes on.
    #[must_use]
    pub fn resource_version(&self) -> u64 {
        self.resource_version
    }

    /// Whether this is the bookmark that ends the initial events.
    #[must_use]
    pub fn ends_initial_events(&self) -> bool {
        matches!(&self.source, Source::Bookmark { object }
            if object["metadata"].get("annotations").is_some())
    }

    /// The object; for a deletion its last state. Changes share one decoded object.
    pub fn object(&self) -> ApiResult<Arc<Value>> {
        match &self.source {
            Source::Initial { value } => {
                Ok(Arc::new(stored::decode(value, self.resource_version)?))
            }
            Source::Change {
                event,
                decoded,
                convert,
            } => {
                let object = match self.kind {
                    WatchEventKind::Deleted => decoded.last(event)?,
                    _ => decoded.object(event)?.ok_or_else(|| {
                        ApiError::internal("a watch event that is no deletion has no object")
                    })?,
                };
                Ok(match convert {
                    Some(kind) => Arc::new(kind.from_storage(Value::clone(&object))),
                    None => object,
                })
            }
            Source::Bookmark { object } => Ok(Arc::clone(object)),
        }
    }

    /// The event as a line of JSON, shared by all watchers that see the same.
    pub fn line(&self) -> ApiResult<Bytes> {
        match &self.source {
            Source::Initial { value } => line_of_stored(self.kind, value, self.resource_version),
            Source::Change {
                event,
                decoded,
                convert: None,
            } => decoded.line(event, self.kind),
            Source::Change {
                convert: Some(_), ..
            }
            | Source::Bookmark { .. } => {
                let object = self.object()?;
                let event = json!({"type": self.kind.as_str(), "object": *object});
                let mut line = serde_json::to_vec(&event).map_err(ApiError::internal)?;
                line.push(b'\n');
                Ok(line.into())
            }
        }
    }
}

/// What is derived from a store event, once for all watchers.
#[derive(Debug, Default)]
struct Decoded {
    object: OnceLock<Result<Option<Arc<Value>>, ApiError>>,
    /// The previous object with the resourceVersion of the event, as DELETED shows it.
    last: OnceLock<Result<Arc<Value>, ApiError>>,
    added: OnceLock<Result<Bytes, ApiError>>,
    modified: OnceLock<Result<Bytes, ApiError>>,
    deleted: OnceLock<Result<Bytes, ApiError>>,
}

impl Decoded {
    fn object(&self, event: &Event) -> ApiResult<Option<Arc<Value>>> {
        let decode = || {
            let value = event.value.as_ref();
            value
                .map(|value| Ok(Arc::new(stored::decode(value, event.revision)?)))
                .transpose()
        };
        self.object.get_or_init(decode).clone()
    }

    fn last(&self, event: &Event) -> ApiResult<Arc<Value>> {
        let decode = || {
            Ok(Arc::new(stored::decode(
                &previous(event)?.value,
                event.revision,
            )?))
        };
        self.last.get_or_init(decode).clone()
    }

    fn line(&self, event: &Event, kind: WatchEventKind) -> ApiResult<Bytes> {
        let (slot, value) = match kind {
            WatchEventKind::Added => (&self.added, event.value.as_ref()),
            WatchEventKind::Modified => (&self.modified, event.value.as_ref()),
            _ => (
                &self.deleted,
                event.previous.as_ref().map(|previous| &previous.value),
            ),
        };
        let value = value.ok_or_else(no_previous)?;
        slot.get_or_init(|| line_of_stored(kind, value, event.revision))
            .clone()
    }
}

fn previous(event: &Event) -> ApiResult<&Stored> {
    event.previous.as_ref().ok_or_else(no_previous)
}

fn no_previous() -> ApiError {
    ApiError::internal("a watch event lacks the object it is about")
}

fn line_of_stored(kind: WatchEventKind, value: &Bytes, revision: u64) -> ApiResult<Bytes> {
    let mut line = BytesMut::with_capacity(value.len() + 96);
    line.put_slice(b"{\"type\":\"");
    line.put_slice(kind.as_str().as_bytes());
    line.put_slice(b"\",\"object\":");
    stored::write_json(&mut line, value, revision)?;
    line.put_slice(b"}\n");
    Ok(line.freeze())
}

/// A watch of one kind.
#[derive(Debug)]
pub struct ObjectWatch {
    kind: &'static Kind,
    selection: Selection,
    initial: VecDeque<KeyValue>,
    /// The revision of `initial`, until its closing bookmark was sent.
    initial_end: Option<u64>,
    watch: Watch,
    registry: Registry,
    bookmarks: Option<Interval>,
    is_over: bool,
}

impl Registry {
    /// Watches the objects of a namespace, or of all (`namespace` empty).
    pub async fn watch(
        &self,
        _ctx: &RequestContext,
        resource: impl Resource,
        namespace: &str,
        options: &WatchOptions,
    ) -> ApiResult<ObjectWatch> {
        let kind = resource.kind()?;
        let selection = Selection::parse(kind, &options.label_selector, &options.field_selector)?;
        let asked = options
            .resource_version
            .as_deref()
            .filter(|version| !version.is_empty());
        let version = asked
            .map(parse_version)
            .transpose()?
            .filter(|version| *version > 0);
        let (initial, after) = if version.is_none() || options.send_initial_events {
            let list = ListOptions {
                label_selector: options.label_selector.clone(),
                field_selector: options.field_selector.clone(),
                resource_version: version.map(|version| version.to_string()),
                ..ListOptions::default()
            };
            let list = self.list_stored(kind, namespace, &list).await?;
            (list.items, list.resource_version)
        } else {
            (Vec::new(), version.unwrap_or_default())
        };
        let prefix = match selection.only_name() {
            Some(name) if !namespace.is_empty() || !kind.is_namespaced => {
                key(kind, namespace, name)
            }
            _ => folder(kind, namespace),
        };
        let watch = self
            .shared
            .store
            .watch(&prefix, after)
            .await
            .map_err(store_error)?;
        Ok(ObjectWatch {
            kind,
            selection,
            initial: initial.into(),
            initial_end: (options.send_initial_events && options.bookmarks).then_some(after),
            watch,
            registry: self.clone(),
            bookmarks: options.bookmarks.then(bookmark_interval),
            is_over: false,
        })
    }
}

fn bookmark_interval() -> Interval {
    let mut interval =
        tokio::time::interval_at(Instant::now() + BOOKMARK_INTERVAL, BOOKMARK_INTERVAL);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

impl ObjectWatch {
    /// The next event; `None` after an error and when the server stops. An error of reason
    /// `Expired` means: list again. Cancel safe.
    pub async fn next(&mut self) -> Option<ApiResult<WatchEvent>> {
        loop {
            if self.is_over {
                return None;
            }
            if let Some(item) = self.initial.pop_front() {
                return Some(self.initial_event(item));
            }
            if let Some(revision) = self.initial_end.take() {
                return Some(Ok(self.bookmark(revision, true)));
            }
            let outcome = tokio::select! {
                biased;
                outcome = self.watch.next() => outcome,
                () = tick(&mut self.bookmarks) => match self.progress() {
                    Progress::Event(outcome) => outcome,
                    Progress::Revision(revision) => {
                        return Some(Ok(self.bookmark(revision, false)));
                    }
                },
            };
            if let Some(event) = self.translate(outcome) {
                return Some(event);
            }
            if self.is_over {
                return None;
            }
        }
    }

    /// A bookmark for right now, if every event before it was delivered: the goodbye of a watch
    /// that ends by its deadline.
    pub fn final_bookmark(&mut self) -> Option<WatchEvent> {
        self.bookmarks.as_ref()?;
        if !self.initial.is_empty() || self.initial_end.is_some() || self.is_over {
            return None;
        }
        let revision = self.registry.current_revision();
        match self.watch.try_next() {
            // This event is lost to the client, which resumes after its last one: no bookmark.
            Some(_) => None,
            None => Some(self.bookmark(revision, false)),
        }
    }

    fn progress(&mut self) -> Progress {
        // First the revision, then the queue: an empty queue now proves that all is delivered.
        let revision = self.registry.current_revision();
        match self.watch.try_next() {
            Some(outcome) => Progress::Event(outcome),
            None => Progress::Revision(revision),
        }
    }

    fn initial_event(&self, item: KeyValue) -> ApiResult<WatchEvent> {
        let resource_version = item.revision;
        let kind = WatchEventKind::Added;
        if self.kind.strategy.conversion.is_some() {
            let object = self
                .kind
                .from_storage(stored::decode(&item.value, item.revision)?);
            let value = stored::encode(&object)?;
            return Ok(WatchEvent {
                kind,
                resource_version,
                source: Source::Initial { value },
            });
        }
        Ok(WatchEvent {
            kind,
            resource_version,
            source: Source::Initial { value: item.value },
        })
    }

    fn translate(
        &mut self,
        outcome: Result<Arc<Event>, WatchEnd>,
    ) -> Option<ApiResult<WatchEvent>> {
        match outcome {
            Ok(event) => match self.select(event) {
                Ok(event) => event.map(Ok),
                Err(error) => {
                    self.is_over = true;
                    Some(Err(error))
                }
            },
            Err(WatchEnd::Overflow) => {
                self.is_over = true;
                Some(Err(ApiError::expired(
                    "too old resource version: this watch did not keep up with the changes",
                )))
            }
            Err(WatchEnd::Closed) => {
                self.is_over = true;
                None
            }
        }
    }

    fn select(&self, event: Arc<Event>) -> ApiResult<Option<WatchEvent>> {
        let decoded = event.memo(|_| Decoded::default());
        let (was, is) = if self.selection.is_everything() {
            (event.previous.is_some(), event.value.is_some())
        } else {
            let was = event.previous.is_some() && self.selection.matches(&*decoded.last(&event)?);
            let is = decoded
                .object(&event)?
                .is_some_and(|object| self.selection.matches(&object));
            (was, is)
        };
        let kind = match (was, is) {
            (false, false) => return Ok(None),
            (false, true) => WatchEventKind::Added,
            (true, true) => WatchEventKind::Modified,
            (true, false) => WatchEventKind::Deleted,
        };
        let resource_version = event.revision;
        let convert = self.kind.strategy.conversion.is_some().then_some(self.kind);
        let source = Source::Change {
            event,
            decoded,
            convert,
        };
        Ok(Some(WatchEvent {
            kind,
            resource_version,
            source,
        }))
    }

    fn bookmark(&self, revision: u64, ends_initial_events: bool) -> WatchEvent {
        let mut metadata = json!({"resourceVersion": revision.to_string()});
        if ends_initial_events {
            metadata["annotations"] = json!({"k8s.io/initial-events-end": "true"});
        }
        let object = Arc::new(json!({
            "kind": self.kind.kind, "apiVersion": self.kind.api_version(), "metadata": metadata,
        }));
        WatchEvent {
            kind: WatchEventKind::Bookmark,
            resource_version: revision,
            source: Source::Bookmark { object },
        }
    }
}

enum Progress {
    Event(Result<Arc<Event>, WatchEnd>),
    Revision(u64),
}

async fn tick(bookmarks: &mut Option<Interval>) {
    match bookmarks {
        Some(interval) => drop(interval.tick().await),
        None => std::future::pending().await,
    }
}
