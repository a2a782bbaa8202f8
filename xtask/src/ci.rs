//! `ci`: everything a change must pass, in the order in which it is cheapest to fail.

use std::process::ExitCode;
use std::time::Duration;

use anyhow::Result;
use clap::Args;

use crate::setup;
use crate::shell::{cargo, human, show, step};
use crate::{test, tidy};

/// Everything a change must pass: formatting, lints, tidy, licences, all tests
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Leave out the tests
    #[arg(long)]
    no_tests: bool,
}

pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    let mut times: Vec<(&str, Duration)> = Vec::new();
    let mut timed = |name: &'static str, work: &mut dyn FnMut() -> Result<()>| -> Result<()> {
        let ((), time) = step(name, work)?;
        times.push((name, time));
        Ok(())
    };
    timed("setup --ci", &mut || {
        setup::run(&setup::Options {
            check: false,
            ci: true,
        })
    })?;
    timed("format", &mut || {
        show(cargo().args(["fmt", "--all", "--check"]))
    })?;
    timed("tidy", &mut || tidy::run(&tidy::Options {}))?;
    timed("deny", &mut || {
        show(cargo().args([
            "deny",
            "--log-level",
            "error",
            "check",
            "licenses",
            "bans",
            "sources",
        ]))
    })?;
    timed("clippy", &mut || {
        show(cargo().args([
            "clippy",
            "--locked",
            "--all-targets",
            "--",
            "--deny",
            "warnings",
        ]))
    })?;
    let mut code = ExitCode::SUCCESS;
    if !options.no_tests {
        timed("tests", &mut || {
            code = test::run_all_in_ci()?;
            Ok(())
        })?;
    }
    println!();
    for (name, time) in &times {
        println!("{name:<12} {}", human(*time));
    }
    let total: Duration = times.iter().map(|(_, time)| *time).sum();
    println!("{:<12} {}", "total", human(total));
    Ok(code)
}
