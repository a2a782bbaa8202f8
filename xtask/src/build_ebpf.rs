//! `build-ebpf`: builds the eBPF object alone and says what came out.

use std::path::PathBuf;
use std::process::Stdio;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Args;
use serde_json::Value;

use crate::setup::{self, Needs};
use crate::shell::{cargo, human};

/// Build the eBPF object, and print where it is and how large
#[derive(Debug, Args)]
pub(crate) struct Options {}

pub(crate) fn run(_: &Options) -> Result<()> {
    setup::ensure(Needs::Build)?;
    let started = Instant::now();
    let output = cargo()
        .args([
            "build",
            "-p",
            "tholepin-ebpf-object",
            "--message-format=json-render-diagnostics",
        ])
        .stderr(Stdio::inherit())
        .output()?;
    if !output.status.success() {
        bail!("the eBPF programs do not build ({})", output.status);
    }
    let object = out_dir(&String::from_utf8_lossy(&output.stdout))
        .context("cargo did not say where the object is")?
        .join("tholepin-ebpf.o");
    let size = std::fs::metadata(&object)
        .with_context(|| format!("no object at {}", object.display()))?
        .len();
    println!(
        "{} ({size} bytes, {})",
        object.display(),
        human(started.elapsed())
    );
    Ok(())
}

/// The build script's output folder in cargo's messages.
fn out_dir(messages: &str) -> Option<PathBuf> {
    messages
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line).ok())
        .find_map(|message| {
            let is_ours = message["reason"] == "build-script-executed"
                && message["package_id"]
                    .as_str()
                    .is_some_and(|id| id.contains("ebpf/object"));
            is_ours
                .then(|| message["out_dir"].as_str().map(PathBuf::from))
                .flatten()
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_output_folder_is_that_of_our_build_script_and_no_other() {
        let other =
            r#"{"reason":"build-script-executed","package_id":"registry+x#ring@1","out_dir":"/a"}"#;
        let ours = r#"{"reason":"build-script-executed","package_id":"path+file:///w/ebpf/object#tholepin-ebpf-object@0.1.0","out_dir":"/b"}"#;
        assert_eq!(
            out_dir(&format!("{other}\n{ours}\n")),
            Some(PathBuf::from("/b"))
        );
        assert_eq!(out_dir(other), None);
    }
}
