//! What a guest's lines mean: results of tests, what the kernel lacks, how the run ended. Pure.

use std::collections::BTreeMap;
use std::process::ExitCode;

use super::guest::Ended;
use super::initramfs::MARK;
use crate::test::count::{self, Count};

/// Before a line by which a test names a feature: `tcx: yes`, `netkit: no`.
const FEATURE: &str = "FEATURE ";

/// The run of one kernel.
#[derive(Debug)]
pub(super) struct Report {
    name: String,
    version: String,
    jobs: Vec<String>,
    count: Count,
    /// Programs that have ended, by number.
    exits: BTreeMap<usize, i32>,
    running: Option<usize>,
    features: BTreeMap<String, String>,
    skipped: Vec<String>,
    problems: Vec<String>,
    finished: bool,
}

impl Report {
    pub(super) fn new(name: &str, version: &str, jobs: impl Iterator<Item = String>) -> Self {
        Self {
            name: name.to_owned(),
            version: version.to_owned(),
            jobs: jobs.collect(),
            count: Count::default(),
            exits: BTreeMap::new(),
            running: None,
            features: BTreeMap::new(),
            skipped: Vec::new(),
            problems: Vec::new(),
            finished: false,
        }
    }

    /// Takes a line of the guest into account. What a failed test says is printed at once.
    pub(super) fn line(&mut self, line: &str) {
        if let Some(words) = line.strip_prefix(MARK) {
            self.marked(words);
            return;
        }
        if let Some((name, value)) = feature(line) {
            self.features.insert(name.to_owned(), value.to_owned());
            return;
        }
        self.count.line(line);
        if self.running.is_some() && !count::is_noise(line) && !line.ends_with(" ... ok") {
            println!("    {line}");
        }
    }

    fn marked(&mut self, words: &str) {
        let (word, rest) = words.split_once(' ').unwrap_or((words, ""));
        match word {
            "begin" => self.running = rest.parse().ok(),
            "end" => {
                self.running = None;
                let mut numbers = rest.split(' ').map(str::parse);
                if let (Some(Ok(job)), Some(Ok(code))) = (numbers.next(), numbers.next()) {
                    self.exits
                        .insert(usize::try_from(job).unwrap_or(usize::MAX), code);
                }
            }
            "skip" => self.skipped.push(rest.to_owned()),
            "kernel" => rest.clone_into(&mut self.version),
            "no-module" => self
                .problems
                .push(format!("the module {rest} cannot be loaded")),
            "kernel-log" => self.problems.push(format!("the kernel complained: {rest}")),
            "done" => self.finished = true,
            _ => {}
        }
    }

    /// What is only known at the end.
    pub(super) fn ended(&mut self, how: &Ended) {
        if let Ended::TimedOut(limit) = how {
            let minutes = limit.as_secs() / 60;
            self.problems
                .push(format!("ended after {minutes} minutes without a result"));
        } else if !self.finished {
            self.problems
                .push("the guest ended before the tests did".to_owned());
        }
        for (number, name) in self.jobs.iter().enumerate() {
            match self.exits.get(&number) {
                Some(0) => {}
                // Failed tests are in the count.
                Some(101) if self.count.failed > 0 => {}
                Some(code) => self.problems.push(format!("{name} ended with code {code}")),
                None => self.problems.push(format!("{name} did not run to its end")),
            }
        }
    }

    fn failed(&self) -> bool {
        self.count.failed > 0 || !self.problems.is_empty() || self.count.passed == 0
    }

    fn lacks(&self) -> Vec<&str> {
        let lacks = self
            .features
            .iter()
            .filter(|(_, value)| value.starts_with("no"));
        lacks.map(|(name, _)| name.as_str()).collect()
    }
}

/// `test x ... FEATURE tcx: yes` too: libtest prints a test's name before what it prints.
fn feature(line: &str) -> Option<(&str, &str)> {
    let at = line.find(FEATURE)?;
    line[at + FEATURE.len()..].split_once(": ")
}

/// Prints the tables and decides the exit code.
pub(super) fn summary(reports: &[Report]) -> ExitCode {
    println!();
    let mut names: Vec<&String> = reports
        .iter()
        .flat_map(|report| report.features.keys())
        .collect();
    names.sort_unstable();
    names.dedup();
    let head: String = reports
        .iter()
        .map(|report| format!(" {:<10}", report.name))
        .collect();
    println!("{:<34}{head}", "feature");
    for name in names {
        let cells: String = reports
            .iter()
            .map(|report| report.features.get(name).map_or("?", String::as_str))
            .map(|value| format!(" {value:<10}"))
            .collect();
        println!("{name:<34}{cells}");
    }
    println!();
    for report in reports {
        let skipped = report.skipped.len() as u64;
        println!(
            "{:<7} {:<28} {:>4} passed {:>3} failed {:>3} skipped; lacks: {}",
            report.name,
            report.version,
            report.count.passed.saturating_sub(skipped),
            report.count.failed,
            skipped + report.count.ignored,
            none_or(&report.lacks().join(", ")),
        );
        for line in &report.skipped {
            println!("skipped  {} {line}", report.name);
        }
        for name in &report.count.failures {
            println!("FAILED   {} {name}", report.name);
        }
        for problem in &report.problems {
            println!("FAILED   {} {problem}", report.name);
        }
    }
    if reports.iter().any(Report::failed) {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    }
}

fn none_or(text: &str) -> &str {
    if text.is_empty() { "nothing" } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(lines: &[&str]) -> Report {
        let mut report = Report::new("6.1", "", ["a".to_owned(), "b".to_owned()].into_iter());
        for line in lines {
            report.line(line);
        }
        report.ended(&Ended::Off);
        report
    }

    #[test]
    fn a_run_to_the_end_is_counted_with_features_and_skips() {
        let report = report(&[
            "@@ kernel 6.1.0-50-cloud-amd64",
            "@@ begin 0",
            "test features ... FEATURE tcx: no",
            "FEATURE sctp: yes",
            "test result: ok. 3 passed; 0 failed; 0 ignored",
            "@@ skip a: needs netkit",
            "@@ end 0 0",
            "@@ begin 1",
            "test result: ok. 2 passed; 0 failed; 0 ignored",
            "@@ end 1 0",
            "@@ done",
        ]);
        assert!(!report.failed(), "{report:?}");
        assert_eq!((report.count.passed, report.lacks()), (5, vec!["tcx"]));
        assert_eq!(report.skipped, ["a: needs netkit"]);
        assert_eq!(report.version, "6.1.0-50-cloud-amd64");
    }

    #[test]
    fn a_guest_that_ends_early_has_failed_by_the_names_of_what_did_not_run() {
        let report = report(&[
            "@@ begin 0",
            "test result: ok. 3 passed; 0 failed; 0 ignored",
            "@@ end 0 0",
            "@@ begin 1",
        ]);
        assert!(report.failed());
        assert!(
            report
                .problems
                .contains(&"b did not run to its end".to_owned())
        );
    }

    #[test]
    fn a_crashed_program_is_a_failure_without_a_failed_test() {
        let report = report(&[
            "test result: ok. 3 passed; 0 failed; 0 ignored",
            "@@ end 0 0",
            "@@ end 1 139",
            "@@ done",
        ]);
        assert_eq!(report.problems, ["b ended with code 139"]);
    }
}
