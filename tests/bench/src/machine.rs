//! What the machine is and how busy it was, for the record next to the figures.

use std::fs;
use std::process::Command;

use serde_json::{Value, json};
use tholepin_harness::command;

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

/// Gives this thread, and those it starts from now on, the lowest real-time priority or takes it back, so
/// that what is timed is not the machine's other work.
pub(crate) fn realtime(on: bool) {
    let own = std::process::id().to_string();
    let policy = if on { ["--rr", "1"] } else { ["--other", "0"] };
    let [policy, priority] = policy;
    if let Err(error) = command::run(Command::new("chrt").args([policy, "--pid", priority, &own])) {
        eprintln!("warning: no real-time priority, figures are more noisy: {error:#}");
    }
}
