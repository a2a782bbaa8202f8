//! Metrics of Services, under kube-proxy's names.

use std::fmt::Write;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// Upper bounds in seconds: upstream's, and finer ones below, where ours are.
const SYNC_BUCKETS: [f64; 14] = [
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.002, 0.004, 0.016, 0.064, 0.256, 1.024, 4.096, 8.192,
    16.384, 60.0,
];
const NETWORK_BUCKETS: [f64; 12] = [
    0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 60.0, 300.0,
];

#[derive(Clone, Debug)]
struct Histogram<const N: usize> {
    bounds: [f64; N],
    counts: [u64; N],
    count: u64,
    sum: f64,
}

impl<const N: usize> Histogram<N> {
    const fn new(bounds: [f64; N]) -> Self {
        Self {
            bounds,
            counts: [0; N],
            count: 0,
            sum: 0.0,
        }
    }

    fn observe(&mut self, took: Duration) {
        let seconds = took.as_secs_f64();
        for (bound, count) in self.bounds.iter().zip(&mut self.counts) {
            *count += u64::from(seconds <= *bound);
        }
        self.count += 1;
        self.sum += seconds;
    }

    fn render(&self, text: &mut String, name: &str) {
        for (bound, count) in self.bounds.iter().zip(self.counts) {
            writeln!(text, "{name}_bucket{{le=\"{bound}\"}} {count}").ok();
        }
        writeln!(text, "{name}_bucket{{le=\"+Inf\"}} {}", self.count).ok();
        writeln!(text, "{name}_sum {}", self.sum).ok();
        writeln!(text, "{name}_count {}", self.count).ok();
    }
}

#[derive(Clone, Debug)]
struct State {
    sync: Histogram<14>,
    network: Histogram<12>,
    last_programmed: Option<SystemTime>,
    service_changes: u64,
    endpoint_changes: u64,
    service_pending: u64,
    endpoint_pending: u64,
    no_local: [u64; 2],
}

/// All of them. Cheap to clone.
#[derive(Clone, Debug)]
pub struct ProxyMetrics(Arc<Mutex<State>>);

impl Default for ProxyMetrics {
    fn default() -> Self {
        Self(Arc::new(Mutex::new(State {
            sync: Histogram::new(SYNC_BUCKETS),
            network: Histogram::new(NETWORK_BUCKETS),
            last_programmed: None,
            service_changes: 0,
            endpoint_changes: 0,
            service_pending: 0,
            endpoint_pending: 0,
            no_local: [0; 2],
        })))
    }
}

impl ProxyMetrics {
    fn state(&self) -> std::sync::MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// So many changes were taken and are not programmed yet.
    pub fn taken(&self, services: usize, slices: usize) {
        let mut state = self.state();
        let (services, slices) = (count(services), count(slices));
        state.service_changes += services;
        state.endpoint_changes += slices;
        state.service_pending += services;
        state.endpoint_pending += slices;
    }

    /// Everything that was taken is in the maps. `triggers` say since when endpoints were different.
    pub fn programmed(&self, took: Duration, triggers: &[SystemTime]) {
        let now = SystemTime::now();
        let mut state = self.state();
        state.sync.observe(took);
        state.last_programmed = Some(now);
        (state.service_pending, state.endpoint_pending) = (0, 0);
        for trigger in triggers {
            state
                .network
                .observe(now.duration_since(*trigger).unwrap_or_default());
        }
    }

    /// How many Services have a Local policy and no endpoint here: internal and external traffic.
    pub fn set_no_local(&self, internal: usize, external: usize) {
        self.state().no_local = [count(internal), count(external)];
    }

    /// Adds them to an exposition.
    pub fn render(&self, text: &mut String) {
        let state = self.state().clone();
        let head = |text: &mut String, name: &str, kind: &str, help: &str| {
            writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}").ok();
        };
        let name = "kubeproxy_sync_proxy_rules_duration_seconds";
        head(text, name, "histogram", "SyncProxyRules latency in seconds");
        state.sync.render(text, name);
        let name = "kubeproxy_network_programming_duration_seconds";
        head(
            text,
            name,
            "histogram",
            "In Cluster Network Programming Latency in seconds",
        );
        state.network.render(text, name);
        let last = state
            .last_programmed
            .and_then(|at| at.duration_since(UNIX_EPOCH).ok());
        let name = "kubeproxy_sync_proxy_rules_last_timestamp_seconds";
        head(
            text,
            name,
            "gauge",
            "The last time proxy rules were successfully synced",
        );
        writeln!(text, "{name} {}", last.unwrap_or_default().as_secs_f64()).ok();
        for (name, kind, help, value) in [
            (
                "kubeproxy_sync_proxy_rules_service_changes_total",
                "counter",
                "Cumulative proxy rules Service changes",
                state.service_changes,
            ),
            (
                "kubeproxy_sync_proxy_rules_service_changes_pending",
                "gauge",
                "Pending proxy rules Service changes",
                state.service_pending,
            ),
            (
                "kubeproxy_sync_proxy_rules_endpoint_changes_total",
                "counter",
                "Cumulative proxy rules Endpoint changes",
                state.endpoint_changes,
            ),
            (
                "kubeproxy_sync_proxy_rules_endpoint_changes_pending",
                "gauge",
                "Pending proxy rules Endpoint changes",
                state.endpoint_pending,
            ),
        ] {
            head(text, name, kind, help);
            writeln!(text, "{name} {value}").ok();
        }
        let name = "kubeproxy_sync_proxy_rules_no_local_endpoints_total";
        let help = "Number of services with a Local traffic policy and no endpoints";
        head(text, name, "gauge", help);
        for (policy, value) in ["internal", "external"].into_iter().zip(state.no_local) {
            writeln!(text, "{name}{{traffic_policy=\"{policy}\"}} {value}").ok();
        }
    }
}

fn count(number: usize) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_happened_is_shown_under_kube_proxys_names() {
        let metrics = ProxyMetrics::default();
        metrics.taken(2, 5);
        let trigger = SystemTime::now() - Duration::from_secs(3);
        let mut text = String::new();
        metrics.render(&mut text);
        assert!(
            text.contains("kubeproxy_sync_proxy_rules_endpoint_changes_pending 5\n"),
            "{text}"
        );
        metrics.programmed(Duration::from_micros(200), &[trigger]);
        metrics.set_no_local(1, 0);
        text.clear();
        metrics.render(&mut text);
        for line in [
            "kubeproxy_sync_proxy_rules_duration_seconds_bucket{le=\"0.0001\"} 0",
            "kubeproxy_sync_proxy_rules_duration_seconds_bucket{le=\"0.00025\"} 1",
            "kubeproxy_network_programming_duration_seconds_bucket{le=\"2\"} 0",
            "kubeproxy_network_programming_duration_seconds_bucket{le=\"5\"} 1",
            "kubeproxy_sync_proxy_rules_service_changes_total 2",
            "kubeproxy_sync_proxy_rules_endpoint_changes_pending 0",
            "kubeproxy_sync_proxy_rules_no_local_endpoints_total{traffic_policy=\"internal\"} 1",
        ] {
            assert!(
                text.lines().any(|found| found == line),
                "{line} is not in:\n{text}"
            );
        }
    }
}
