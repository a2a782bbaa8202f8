//! Prometheus metrics under the API server's usual names.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::{Method, Request};

use super::Frontend;
use super::query::Query;
use super::route::{self, ResourcePath, Route};
use crate::registry::Registry;

/// Upper bounds of the duration histogram, in seconds: a part of upstream's.
const BUCKETS: [f64; 12] = [
    0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 1.0, 2.0, 5.0, 15.0, 60.0,
];

/// What a request is counted under.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct RequestLabels {
    verb: &'static str,
    group: String,
    version: String,
    resource: String,
    subresource: String,
    scope: &'static str,
}

impl RequestLabels {
    pub(super) fn of<B>(request: &Request<B>) -> Self {
        let query = Query::parse(request.uri().query());
        let Route::Resource(path) = route::parse(request.uri().path()) else {
            return Self {
                verb: other_verb(request.method()),
                ..Self::default()
            };
        };
        // Only what is served: a label per nonsense path would be memory for the asking.
        let known =
            tholepin_apimachinery::kinds::by_resource(path.group, path.version, path.resource);
        if known.is_none_or(|kind| {
            !path.subresource.is_empty() && kind.subresource(path.subresource).is_none()
        }) {
            return Self {
                verb: other_verb(request.method()),
                ..Self::default()
            };
        }
        let verb = match *request.method() {
            Method::GET | Method::HEAD if query.flag("watch") => "WATCH",
            _ if matches!(path.subresource, "log" | "exec" | "attach") => "CONNECT",
            Method::GET | Method::HEAD if path.name.is_empty() => "LIST",
            Method::DELETE if path.name.is_empty() => "DELETECOLLECTION",
            _ => other_verb(request.method()),
        };
        Self::at(verb, &path)
    }

    fn at(verb: &'static str, path: &ResourcePath<'_>) -> Self {
        let scope = match (path.name.is_empty(), path.namespace.is_empty()) {
            (false, _) => "resource",
            (true, false) => "namespace",
            (true, true) => "cluster",
        };
        Self {
            verb,
            group: path.group.to_owned(),
            version: path.version.to_owned(),
            resource: path.resource.to_owned(),
            subresource: path.subresource.to_owned(),
            scope,
        }
    }

    fn is_long_running(&self) -> bool {
        matches!(self.verb, "WATCH" | "CONNECT")
    }

    fn text(&self) -> String {
        format!(
            "component=\"apiserver\",group=\"{}\",resource=\"{}\",scope=\"{}\",subresource=\"{}\",\
             verb=\"{}\",version=\"{}\"",
            self.group, self.resource, self.scope, self.subresource, self.verb, self.version
        )
    }
}

fn other_verb(method: &Method) -> &'static str {
    match *method {
        Method::GET | Method::HEAD => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        _ => "OTHER",
    }
}

#[derive(Debug, Default)]
struct Durations {
    buckets: [u64; BUCKETS.len()],
    sum_secs: f64,
    count: u64,
}

#[derive(Debug, Default)]
struct Counts {
    requests: BTreeMap<(RequestLabels, u16), u64>,
    durations: BTreeMap<RequestLabels, Durations>,
    watches: BTreeMap<RequestLabels, u64>,
}

/// The server's counters.
#[derive(Debug, Default)]
pub(super) struct Metrics {
    counts: Mutex<Counts>,
    reading: AtomicI64,
    mutating: AtomicI64,
}

/// A request that is being answered. Dropped early (the client left), it is only no longer
/// in flight.
#[derive(Debug)]
pub(super) struct InFlight<'a> {
    metrics: &'a Metrics,
    gauge: &'a AtomicI64,
}

impl InFlight<'_> {
    pub(super) fn end(self, labels: &RequestLabels, code: u16, took: Duration) {
        self.metrics.record(labels, code, took);
    }
}

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.gauge.fetch_sub(1, Ordering::Relaxed);
    }
}

/// A watch that is being served, until it is dropped.
#[derive(Debug)]
pub(super) struct RunningWatch {
    frontend: Arc<Frontend>,
    labels: RequestLabels,
}

impl RunningWatch {
    pub(super) fn begin(frontend: &Arc<Frontend>, path: &ResourcePath<'_>) -> Self {
        let labels = RequestLabels::at("WATCH", path);
        *frontend
            .metrics
            .locked()
            .watches
            .entry(labels.clone())
            .or_default() += 1;
        let frontend = Arc::clone(frontend);
        Self { frontend, labels }
    }
}

impl Drop for RunningWatch {
    fn drop(&mut self) {
        if let Some(count) = self.frontend.metrics.locked().watches.get_mut(&self.labels) {
            *count = count.saturating_sub(1);
        }
    }
}

impl Metrics {
    fn locked(&self) -> std::sync::MutexGuard<'_, Counts> {
        self.counts.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn begin(&self, labels: &RequestLabels) -> InFlight<'_> {
        let is_read = matches!(labels.verb, "GET" | "LIST" | "WATCH" | "CONNECT");
        let gauge = if is_read {
            &self.reading
        } else {
            &self.mutating
        };
        gauge.fetch_add(1, Ordering::Relaxed);
        InFlight {
            metrics: self,
            gauge,
        }
    }

    fn record(&self, labels: &RequestLabels, code: u16, took: Duration) {
        let mut counts = self.locked();
        *counts.requests.entry((labels.clone(), code)).or_default() += 1;
        // A watch lasts as long as the client likes: that says nothing about the server.
        if labels.is_long_running() {
            return;
        }
        let durations = counts.durations.entry(labels.clone()).or_default();
        let secs = took.as_secs_f64();
        for (bucket, bound) in durations.buckets.iter_mut().zip(BUCKETS) {
            *bucket += u64::from(secs <= bound);
        }
        durations.sum_secs += secs;
        durations.count += 1;
    }

    /// The exposition text.
    pub(super) fn render(&self, registry: &Registry) -> String {
        let mut out = String::new();
        // Writing to a String cannot fail.
        self.render_into(&mut out, registry)
            .expect("a String takes all text");
        out
    }

    fn render_into(&self, out: &mut String, registry: &Registry) -> std::fmt::Result {
        let counts = self.locked();
        writeln!(
            out,
            "# HELP apiserver_request_total Counter of apiserver requests."
        )?;
        writeln!(out, "# TYPE apiserver_request_total counter")?;
        for ((labels, code), count) in &counts.requests {
            let labels = labels.text();
            writeln!(
                out,
                "apiserver_request_total{{code=\"{code}\",{labels}}} {count}"
            )?;
        }
        let name = "apiserver_request_duration_seconds";
        writeln!(
            out,
            "# HELP {name} Response latency in seconds, without long-running requests."
        )?;
        writeln!(out, "# TYPE {name} histogram")?;
        for (labels, durations) in &counts.durations {
            let labels = labels.text();
            for (bucket, bound) in durations.buckets.iter().zip(BUCKETS) {
                writeln!(out, "{name}_bucket{{{labels},le=\"{bound}\"}} {bucket}")?;
            }
            writeln!(
                out,
                "{name}_bucket{{{labels},le=\"+Inf\"}} {}",
                durations.count
            )?;
            writeln!(out, "{name}_sum{{{labels}}} {}", durations.sum_secs)?;
            writeln!(out, "{name}_count{{{labels}}} {}", durations.count)?;
        }
        let name = "apiserver_longrunning_requests";
        writeln!(out, "# HELP {name} Watches that are being served.")?;
        writeln!(out, "# TYPE {name} gauge")?;
        for (labels, count) in &counts.watches {
            writeln!(out, "{name}{{{}}} {count}", labels.text())?;
        }
        let name = "apiserver_current_inflight_requests";
        writeln!(
            out,
            "# HELP {name} Requests that wait for the head of their answer."
        )?;
        writeln!(out, "# TYPE {name} gauge")?;
        let reading = self.reading.load(Ordering::Relaxed);
        let mutating = self.mutating.load(Ordering::Relaxed);
        writeln!(out, "{name}{{request_kind=\"readOnly\"}} {reading}")?;
        writeln!(out, "{name}{{request_kind=\"mutating\"}} {mutating}")?;
        writeln!(
            out,
            "# HELP tholepin_store_revision Revision of the last change."
        )?;
        writeln!(out, "# TYPE tholepin_store_revision gauge")?;
        writeln!(
            out,
            "tholepin_store_revision {}",
            registry.current_revision()
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(method: &str, uri: &str) -> RequestLabels {
        RequestLabels::of(&Request::builder().method(method).uri(uri).body(()).unwrap())
    }

    #[test]
    fn requests_are_counted_under_their_verb_and_scope() {
        let list = labels("GET", "/api/v1/namespaces/a/pods?limit=500");
        assert_eq!(
            (list.verb, list.scope, list.resource.as_str()),
            ("LIST", "namespace", "pods")
        );
        assert_eq!(labels("GET", "/api/v1/pods?watch=true").verb, "WATCH");
        assert_eq!(
            labels("DELETE", "/api/v1/namespaces/a/pods").verb,
            "DELETECOLLECTION"
        );
        assert_eq!(
            labels("GET", "/api/v1/namespaces/a/pods/p").scope,
            "resource"
        );
    }

    #[test]
    fn nonsense_paths_get_no_labels_of_their_own() {
        assert_eq!(
            labels("GET", "/api/v1/namespaces/a/nonsense/x").resource,
            ""
        );
        assert_eq!(
            labels("GET", "/api/v1/namespaces/a/pods/p/nonsense").resource,
            ""
        );
    }

    #[test]
    fn a_request_is_in_every_bucket_it_is_not_slower_than() {
        let metrics = Metrics::default();
        let list = labels("GET", "/api/v1/pods");
        metrics.record(&list, 200, Duration::from_millis(30));
        let counts = metrics.counts.lock().unwrap();
        assert_eq!(counts.durations[&list].buckets[..4], [0, 0, 1, 1]);
        assert_eq!(counts.requests[&(list, 200)], 1);
    }
}
