//! Watches on the wire: a line per event, until the client, the deadline or the server ends it.

use std::time::Duration;

use bytes::Bytes;
use futures::Stream;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, Response};
use jiff::Timestamp;
use rand::Rng as _;
use serde_json::{Value, json};
use tholepin_apimachinery::list::ListMeta;
use tholepin_apimachinery::table;
use tholepin_apimachinery::{ApiError, Kind};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::body::{self, Body, BodyError};
use super::encode::Shape;
use super::metrics::RunningWatch;
use super::negotiate::Form;
use super::objects::Call;
use crate::registry::{ApiResult, ObjectWatch, WatchEvent, WatchEventKind, WatchOptions};

/// Without a wish, a watch lasts between one and two of these, so that not all end at once.
const DEFAULT_TIMEOUT_SECS: std::ops::Range<u64> = 1800..3600;

pub(super) async fn serve(
    call: &Call<'_>,
    shape: Shape,
    options: WatchOptions,
) -> ApiResult<Response<Body>> {
    let timeout = call
        .query
        .timeout()?
        .unwrap_or_else(|| Duration::from_secs(rand::rng().random_range(DEFAULT_TIMEOUT_SECS)));
    let registry = &call.frontend.registry;
    let namespace = call.path.namespace;
    let watch = match registry
        .watch(&call.ctx, call.kind, namespace, &options)
        .await
    {
        Ok(watch) => watch,
        // As upstream: a revision that is gone is an event of a watch that did start. Clients (kube's
        // watcher among them) list again after such an event, and only try again after a failed request.
        Err(error) if error.is_expired() => {
            let event = futures::stream::iter([Ok(error_line(&error))]);
            return Ok(json_lines(body::streamed(event)));
        }
        Err(error) => return Err(error),
    };
    let lines = Lines {
        watch,
        _running: RunningWatch::begin(call.frontend, call.path),
        kind: call.kind,
        shape,
        sent_columns: false,
        deadline: Instant::now() + timeout,
        stopping: call.frontend.stopping.clone(),
        is_over: false,
    };
    Ok(json_lines(body::streamed(lines.into_stream())))
}

fn json_lines(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}

struct Lines {
    watch: ObjectWatch,
    /// Counts this watch as long as it is there.
    _running: RunningWatch,
    kind: &'static Kind,
    shape: Shape,
    sent_columns: bool,
    deadline: Instant,
    stopping: CancellationToken,
    is_over: bool,
}

impl Lines {
    fn into_stream(self) -> impl Stream<Item = Result<Bytes, BodyError>> + Send {
        // Dropping the body (the client left) drops the watch with it.
        futures::stream::unfold(self, |mut lines| async move {
            lines.next().await.map(|line| (Ok(line), lines))
        })
    }

    async fn next(&mut self) -> Option<Bytes> {
        if self.is_over {
            return None;
        }
        let event = tokio::select! {
            event = self.watch.next() => event,
            () = tokio::time::sleep_until(self.deadline) => {
                self.is_over = true;
                self.watch.final_bookmark().map(Ok)
            }
            () = self.stopping.cancelled() => None,
        };
        match event?.and_then(|event| self.line(&event)) {
            Ok(line) => Some(line),
            Err(error) => {
                self.is_over = true;
                Some(error_line(&error))
            }
        }
    }

    fn line(&mut self, event: &WatchEvent) -> ApiResult<Bytes> {
        let object = match self.shape.form {
            Form::Object => return event.line(),
            Form::Table => self.table(event)?,
            Form::Metadata | Form::MetadataList => {
                table::partial_metadata(&*event.object()?, "meta.k8s.io/v1")
            }
        };
        Ok(line(event.kind().as_str(), &object))
    }

    fn table(&mut self, event: &WatchEvent) -> ApiResult<Value> {
        // kubectl reads the columns from the first event only, as upstream sends them.
        let with_columns = !std::mem::replace(&mut self.sent_columns, true);
        let include = self.shape.include;
        let now = Timestamp::now();
        if event.kind() == WatchEventKind::Bookmark {
            let resource_version = event.resource_version();
            let meta = ListMeta {
                resource_version,
                ..ListMeta::default()
            };
            return Ok(table::table(
                self.kind,
                &meta,
                &[],
                include,
                with_columns,
                now,
            ));
        }
        Ok(table::single(
            self.kind,
            &*event.object()?,
            include,
            with_columns,
            now,
        ))
    }
}

fn line(kind: &str, object: &Value) -> Bytes {
    let mut line = json!({"type": kind, "object": object}).to_string();
    line.push('\n');
    line.into()
}

fn error_line(error: &ApiError) -> Bytes {
    line("ERROR", &error.to_status())
}
