//! Counters and gauges in Prometheus' text format, under the kubelet's names where they mean the same.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use super::proxy_metrics::ProxyMetrics;

/// Upper bounds in seconds.
const BUCKETS: [f64; 10] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0, 30.0];

#[derive(Debug, Default)]
struct Histogram {
    counts: [u64; BUCKETS.len()],
    count: u64,
    sum: f64,
}

impl Histogram {
    fn observe(&mut self, seconds: f64) {
        for (bound, count) in BUCKETS.iter().zip(&mut self.counts) {
            *count += u64::from(seconds <= *bound);
        }
        self.count += 1;
        self.sum += seconds;
    }
}

#[derive(Debug, Default)]
struct State {
    dropped_events: AtomicU64,
    running_pods: AtomicU64,
    running_containers: AtomicU64,
    runtime_operations: Mutex<BTreeMap<&'static str, (Histogram, u64)>>,
    pod_start: Mutex<Histogram>,
    proxy: ProxyMetrics,
}

/// All metrics of the agent. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    state: Arc<State>,
}

impl Metrics {
    pub fn event_dropped(&self) {
        self.state.dropped_events.fetch_add(1, Ordering::Relaxed);
    }

    pub fn set_running(&self, pods: u64, containers: u64) {
        self.state.running_pods.store(pods, Ordering::Relaxed);
        self.state
            .running_containers
            .store(containers, Ordering::Relaxed);
    }

    /// One call to the container runtime.
    pub fn runtime_operation(&self, operation: &'static str, took: Duration, failed: bool) {
        let mut operations = self
            .state
            .runtime_operations
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let (histogram, errors) = operations.entry(operation).or_default();
        histogram.observe(took.as_secs_f64());
        *errors += u64::from(failed);
    }

    /// From the pod's first sight to all its containers running.
    pub fn pod_started(&self, took: Duration) {
        self.state
            .pod_start
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .observe(took.as_secs_f64());
    }

    /// Those of Services.
    #[must_use]
    pub fn proxy(&self) -> ProxyMetrics {
        self.state.proxy.clone()
    }

    /// The whole exposition.
    #[must_use]
    pub fn render(&self) -> String {
        let mut text = String::new();
        self.state.proxy.render(&mut text);
        let load = |value: &AtomicU64| value.load(Ordering::Relaxed);
        simple(
            &mut text,
            "kubelet_running_pods",
            "gauge",
            "Number of pods that have a running pod sandbox",
            load(&self.state.running_pods),
        );
        simple(
            &mut text,
            "kubelet_running_containers",
            "gauge",
            "Number of containers currently running",
            load(&self.state.running_containers),
        );
        simple(
            &mut text,
            "tholepin_events_dropped_total",
            "counter",
            "Events that were not posted because the queue was full",
            load(&self.state.dropped_events),
        );
        {
            let name = "kubelet_pod_start_sli_duration_seconds";
            head(
                &mut text,
                name,
                "histogram",
                "Duration to start a pod, from its first sight",
            );
            let pod_start = self
                .state
                .pod_start
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            histogram(&mut text, name, "", &pod_start);
        }
        let operations = self
            .state
            .runtime_operations
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let name = "kubelet_runtime_operations_duration_seconds";
        head(
            &mut text,
            name,
            "histogram",
            "Duration of runtime operations",
        );
        for (operation, (values, _)) in operations.iter() {
            histogram(
                &mut text,
                name,
                &format!("operation_type=\"{operation}\""),
                values,
            );
        }
        let name = "kubelet_runtime_operations_errors_total";
        head(&mut text, name, "counter", "Failed runtime operations");
        for (operation, (_, errors)) in operations.iter() {
            line(
                &mut text,
                name,
                &format!("operation_type=\"{operation}\""),
                *errors as f64,
            );
        }
        drop(operations);
        process(&mut text);
        text
    }
}

fn head(text: &mut String, name: &str, kind: &str, help: &str) {
    writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}").expect("writing to a string");
}

fn line(text: &mut String, name: &str, labels: &str, value: f64) {
    let labels = if labels.is_empty() {
        String::new()
    } else {
        format!("{{{labels}}}")
    };
    writeln!(text, "{name}{labels} {value}").expect("writing to a string");
}

fn simple(text: &mut String, name: &str, kind: &str, help: &str, value: u64) {
    head(text, name, kind, help);
    line(text, name, "", value as f64);
}

fn histogram(text: &mut String, name: &str, labels: &str, values: &Histogram) {
    let separator = if labels.is_empty() { "" } else { "," };
    for (bound, count) in BUCKETS.iter().zip(values.counts) {
        let labels = format!("{labels}{separator}le=\"{bound}\"");
        line(text, &format!("{name}_bucket"), &labels, count as f64);
    }
    let infinite = format!("{labels}{separator}le=\"+Inf\"");
    line(
        text,
        &format!("{name}_bucket"),
        &infinite,
        values.count as f64,
    );
    line(text, &format!("{name}_sum"), labels, values.sum);
    line(text, &format!("{name}_count"), labels, values.count as f64);
}

/// The usual process metrics, from `/proc/self`.
fn process(text: &mut String) {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: Option<u64> = statm
        .split_whitespace()
        .nth(1)
        .and_then(|pages| pages.parse().ok());
    let unit = |variable| nix::unistd::sysconf(variable).ok().flatten().unwrap_or(0);
    if let Some(pages) = pages {
        let size = u64::try_from(unit(nix::unistd::SysconfVar::PAGE_SIZE)).unwrap_or(4096);
        let name = "process_resident_memory_bytes";
        simple(
            text,
            name,
            "gauge",
            "Resident memory size in bytes.",
            pages * size,
        );
    }
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    let fields: Vec<&str> = after_name.split_whitespace().collect();
    let ticks = |index: usize| {
        fields
            .get(index)
            .and_then(|field| field.parse::<f64>().ok())
    };
    if let (Some(user), Some(system)) = (ticks(11), ticks(12)) {
        let name = "process_cpu_seconds_total";
        head(
            text,
            name,
            "counter",
            "Total user and system CPU time spent in seconds.",
        );
        let per_second = unit(nix::unistd::SysconfVar::CLK_TCK).max(1) as f64;
        line(text, name, "", (user + system) / per_second);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histograms_are_cumulative_and_labelled() {
        let metrics = Metrics::default();
        metrics.runtime_operation("start_container", Duration::from_millis(30), false);
        metrics.runtime_operation("start_container", Duration::from_secs(2), true);
        let text = metrics.render();
        for expected in [
            "kubelet_runtime_operations_duration_seconds_bucket{operation_type=\"start_container\",le=\"0.05\"} 1",
            "kubelet_runtime_operations_duration_seconds_bucket{operation_type=\"start_container\",le=\"+Inf\"} 2",
            "kubelet_runtime_operations_errors_total{operation_type=\"start_container\"} 1",
        ] {
            assert!(text.contains(expected), "{text}");
        }
    }
}
