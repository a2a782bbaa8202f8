//! What the machine is and how busy it was, for the record next to the figures.

use std::fs;

use serde_json::{Value, json};

/// Facts that a reader of the figures needs.
pub(crate) fn facts() -> Value {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let cpuinfo = read("/proc/cpuinfo");
    let model = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name")?.split_once(": "))
        .map_or("unknown", |(_, model)| model);
    json!({
        "kernel": read("/proc/sys/kernel/osrelease").trim(),
        "processor": model,
        "processors": std::thread::available_parallelism().map_or(1, usize::from),
    })
}

/// Load averages over 1, 5 and 15 minutes.
pub(crate) fn load_average() -> [f64; 3] {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let mut parts = text.split(' ').map(|part| part.parse().unwrap_or(0.0));
    std::array::from_fn(|_| parts.next().unwrap_or(0.0))
}
