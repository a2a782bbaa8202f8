//! The record of what a cluster started, written before and after every start so that another program,
//! or a later one after a crash, can end exactly that.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use crate::layout::{ClusterId, Layout, run_dir_of};
use crate::process::ProcessRef;

/// What is known about a cluster.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ClusterState {
    /// The process that removes it at its end; none for a cluster that was left running on purpose.
    pub owner: Option<ProcessRef>,
    /// The workspace that started it.
    pub workspace: PathBuf,
    /// Where its large state is.
    pub state_dir: PathBuf,
    /// The loopback port of the API server.
    pub api_port: u16,
    /// How many nodes it has.
    pub nodes: u8,
    /// Whether everything was started and was Ready once.
    pub complete: bool,
    /// Whether the cluster mounted `/sys/fs/bpf`, which was not there.
    pub mounted_bpffs: bool,
    /// What was started, in this order.
    pub processes: Vec<ProcessRef>,
}

impl ClusterState {
    /// Reads the state of a cluster; `None` when there is none.
    pub fn read(id: &ClusterId) -> Result<Option<Self>> {
        let path = run_dir_of(id).join("cluster.json");
        match fs::read(&path) {
            Ok(bytes) => {
                Ok(Some(serde_json::from_slice(&bytes).with_context(|| {
                    format!("cannot read {}", path.display())
                })?))
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
        }
    }

    /// Writes the state, whole or not at all.
    pub fn write(&self, layout: &Layout) -> Result<()> {
        fs::create_dir_all(&layout.run_dir)
            .with_context(|| format!("cannot create {}", layout.run_dir.display()))?;
        let path = layout.state_file();
        let temporary = path.with_extension("json.new");
        fs::write(&temporary, serde_json::to_vec_pretty(self)?)?;
        fs::rename(&temporary, &path).with_context(|| format!("cannot write {}", path.display()))
    }

    /// The processes that no longer run.
    #[must_use]
    pub fn dead_processes(&self) -> Vec<&ProcessRef> {
        // A restarted process is recorded again under its name; only the last record counts.
        let superseded = |index: usize, name: &str| {
            self.processes[index + 1..]
                .iter()
                .any(|later| later.name == name)
        };
        let all = self.processes.iter().enumerate();
        all.filter(|(index, process)| !superseded(*index, &process.name) && !process.is_alive())
            .map(|(_, process)| process)
            .collect()
    }
}

/// The ids of all clusters that left something in `/run`.
pub fn known_clusters() -> Vec<ClusterId> {
    let Ok(entries) = fs::read_dir("/run") else {
        return Vec::new();
    };
    let names = entries
        .flatten()
        .filter_map(|entry| entry.file_name().into_string().ok());
    names
        .filter_map(|name| name.strip_prefix("tholepin-")?.parse().ok())
        .collect()
}
