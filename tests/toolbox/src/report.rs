//! What a load client saw, as one JSON object: how many answers came from which host, what failed
//! and how long the answers took. Pure.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::Duration;

/// Counts and times of one run.
#[derive(Debug, Default)]
pub(crate) struct Report {
    hosts: BTreeMap<String, u64>,
    errors: BTreeMap<String, u64>,
    times: Vec<Duration>,
}

impl Report {
    /// Counts an answer.
    pub(crate) fn answered(&mut self, host: &str, time: Duration) {
        *self.hosts.entry(host.to_owned()).or_default() += 1;
        self.times.push(time);
    }

    /// Counts a failure by its text.
    pub(crate) fn failed(&mut self, error: String) {
        *self.errors.entry(error).or_default() += 1;
    }

    /// Adds what another thread saw.
    pub(crate) fn merge(&mut self, other: Self) {
        for (host, count) in other.hosts {
            *self.hosts.entry(host).or_default() += count;
        }
        for (error, count) in other.errors {
            *self.errors.entry(error).or_default() += count;
        }
        self.times.extend(other.times);
    }

    pub(crate) fn failures(&self) -> u64 {
        self.errors.values().sum()
    }

    /// The JSON object, on one line.
    pub(crate) fn json(&self, elapsed: Duration) -> String {
        let mut times = self.times.clone();
        times.sort_unstable();
        let answered: u64 = self.hosts.values().sum();
        format!(
            "{{\"requests\":{},\"answered\":{answered},\"failures\":{},\"hosts\":{},\"errors\":{},\"p50_ms\":{:.3},\"p99_ms\":{:.3},\"max_ms\":{:.3},\"seconds\":{:.3}}}",
            answered + self.failures(),
            self.failures(),
            object(&self.hosts),
            object(&self.errors),
            millis(percentile(&times, 50)),
            millis(percentile(&times, 99)),
            millis(times.last().copied().unwrap_or_default()),
            elapsed.as_secs_f64(),
        )
    }
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

/// The smallest time that `percent` of all are not above.
fn percentile(sorted: &[Duration], percent: usize) -> Duration {
    let rank = (sorted.len() * percent).div_ceil(100);
    rank.checked_sub(1)
        .and_then(|index| sorted.get(index))
        .copied()
        .unwrap_or_default()
}

fn object(counts: &BTreeMap<String, u64>) -> String {
    let entries: Vec<String> = counts
        .iter()
        .map(|(key, count)| format!("{}:{count}", quoted(key)))
        .collect();
    format!("{{{}}}", entries.join(","))
}

/// A JSON string.
pub(crate) fn quoted(text: &str) -> String {
    let mut out = String::from("\"");
    for character in text.chars() {
        match character {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            control if u32::from(control) < 0x20 => {
                write!(out, "\\u{:04x}", u32::from(control)).expect("a String takes all");
            }
            other => out.push(other),
        }
    }
    out.push('"');
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_counted_by_host_and_failures_by_text() {
        let mut report = Report::default();
        report.answered("a", Duration::from_millis(1));
        let mut other = Report::default();
        other.answered("a", Duration::from_millis(3));
        other.failed("refused \"x\"".to_owned());
        report.merge(other);
        assert_eq!(
            report.json(Duration::from_secs(2)),
            r#"{"requests":3,"answered":2,"failures":1,"hosts":{"a":2},"errors":{"refused \"x\"":1},"p50_ms":1.000,"p99_ms":3.000,"max_ms":3.000,"seconds":2.000}"#
        );
    }

    #[test]
    fn percentiles_of_nothing_are_zero() {
        assert_eq!(percentile(&[], 99), Duration::ZERO);
    }
}
