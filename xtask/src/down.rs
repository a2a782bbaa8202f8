//! `down`: removes a cluster that `up` started, whoever started it and whatever state it is in.

use anyhow::Result;
use clap::Args;
use tholepin_harness::{ClusterId, cleanup};

/// Remove the cluster: every process, namespace, mount, cgroup, pin and file of it
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// The cluster's id
    #[arg(long, default_value = "demo")]
    pub(crate) id: ClusterId,
}

pub(crate) fn run(options: &Options) -> Result<()> {
    tholepin_harness::skip::root()?;
    let id = &options.id;
    if cleanup::leftovers(id)?.is_empty() {
        println!("cluster {id} is not running, and nothing of it is left");
        return Ok(());
    }
    cleanup::remove(id)?;
    println!("cluster {id} is gone");
    Ok(())
}
