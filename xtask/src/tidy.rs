//! `tidy`: the house rules that a machine can check and no lint does. The rules are pure functions over
//! a file's text, in `tidy/rules.rs` and `tidy/documents.rs`; this file finds the files.

mod documents;
mod rules;

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};
use clap::Args;
use tholepin_harness::{command, workspace_root};

/// Check the house rules that no lint checks
///
/// File headers and lengths, inherited lints, reasons for exceptions, machine-local paths, links in
/// documents, licences. CONTRIBUTING.md says why each rule is there.
#[derive(Debug, Args)]
pub(crate) struct Options {}

/// A tracked file.
#[derive(Debug)]
struct SourceFile {
    /// Relative to the workspace's root.
    path: String,
    text: String,
}

/// A broken rule.
#[derive(Debug, PartialEq, Eq)]
struct Problem {
    path: String,
    line: usize,
    rule: String,
}

impl Problem {
    fn new(file: &SourceFile, line: usize, rule: impl Into<String>) -> Self {
        Self {
            path: file.path.clone(),
            line,
            rule: rule.into(),
        }
    }
}

pub(crate) fn run(_: &Options) -> Result<()> {
    let files = files()?;
    let mut problems = Vec::new();
    for file in &files {
        problems.extend(rules::check(file));
        problems.extend(documents::check(file, |path| {
            workspace_root().join(path).exists()
        }));
    }
    problems.extend(documents::missing(|path| {
        workspace_root().join(path).is_file()
    }));
    for problem in &problems {
        eprintln!("{}:{}: {}", problem.path, problem.line, problem.rule);
    }
    if !problems.is_empty() {
        bail!(
            "{} broken rules; CONTRIBUTING.md says why they are there",
            problems.len()
        );
    }
    println!("tidy: {} files, nothing to complain about", files.len());
    Ok(())
}

/// What git tracks or would track, as far as it is text.
fn files() -> Result<Vec<SourceFile>> {
    let root = workspace_root();
    let mut git = Command::new("git");
    git.current_dir(&root)
        .args(["ls-files", "--cached", "--others", "--exclude-standard"]);
    let listing = command::run(&mut git).context("tidy asks git which files there are")?;
    let mut files = Vec::new();
    for path in listing.lines() {
        let full: PathBuf = root.join(path);
        // Deleted, but not yet committed as such.
        if !full.is_file() {
            continue;
        }
        if let Ok(text) = String::from_utf8(fs::read(&full)?) {
            files.push(SourceFile {
                path: path.to_owned(),
                text,
            });
        }
    }
    Ok(files)
}
