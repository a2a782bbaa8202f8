//! What the node must remember of a pod across restarts of agent, containerd and machine.
//!
//! Per pod three files in its directory, each replaced atomically and fsync'd, mode 0600:
//! `pod.json` (the admitted API object), `state.json` (attempts, exits, back-off, addresses) and
//! `sources.json` (resolved ConfigMaps and Secrets).

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::net::IpAddr;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use tholepin_model::pod::{ContainerRecord, Exit, ExitKind, RecordState};

use crate::watch::objects::ObjectData;

/// Why the journal could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    #[error("failed to {operation} {path}")]
    Io {
        operation: &'static str,
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{path} is damaged")]
    Damaged {
        path: PathBuf,
        source: serde_json::Error,
    },
}

/// Contents of `state.json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct PodMemory {
    pub start_time: Option<SystemTime>,
    pub containers: Vec<ContainerMemory>,
    /// Back-off by key: delay and the wall-clock time it was set.
    pub backoff: BTreeMap<String, (Duration, SystemTime)>,
    /// An attach was begun and no detach has succeeded since.
    pub attached: bool,
    pub addresses: Vec<IpAddr>,
    /// Features the pod does not get, of which an event told.
    pub warned: BTreeSet<String>,
    /// Reason and message of a failure decided by the node.
    pub failure: Option<(String, String)>,
    /// Termination has begun, with the grace period; there is no way back.
    pub terminating: Option<Duration>,
}

/// One attempt of a container.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ContainerMemory {
    pub name: String,
    pub id: String,
    pub attempt: u32,
    pub image: String,
    pub image_id: String,
    pub started_at: Option<SystemTime>,
    pub exit: Option<ExitMemory>,
}

/// How an attempt ended.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ExitMemory {
    pub exit_code: i32,
    pub signal: i32,
    pub oom_killed: bool,
    pub started_at: SystemTime,
    pub finished_at: SystemTime,
    pub message: String,
    pub kind: u8,
}

impl From<&ContainerRecord> for ContainerMemory {
    fn from(record: &ContainerRecord) -> Self {
        let (started_at, exit) = match &record.state {
            RecordState::Created => (None, None),
            RecordState::Running { started_at } => (Some(*started_at), None),
            RecordState::Exited(exit) => (Some(exit.started_at), Some(exit)),
        };
        Self {
            name: record.name.clone(),
            id: record.id.clone(),
            attempt: record.attempt,
            image: record.image.clone(),
            image_id: record.image_id.clone(),
            started_at,
            exit: exit.map(|exit| ExitMemory {
                exit_code: exit.exit_code,
                signal: exit.signal,
                oom_killed: exit.oom_killed,
                started_at: exit.started_at,
                finished_at: exit.finished_at,
                message: exit.message.clone(),
                kind: match exit.kind {
                    ExitKind::Process => 0,
                    ExitKind::StartError => 1,
                    ExitKind::Unknown => 2,
                },
            }),
        }
    }
}

impl From<&ContainerMemory> for ContainerRecord {
    fn from(memory: &ContainerMemory) -> Self {
        let state = match (&memory.exit, memory.started_at) {
            (Some(exit), _) => RecordState::Exited(Exit {
                exit_code: exit.exit_code,
                signal: exit.signal,
                oom_killed: exit.oom_killed,
                started_at: exit.started_at,
                finished_at: exit.finished_at,
                message: exit.message.clone(),
                kind: match exit.kind {
                    0 => ExitKind::Process,
                    1 => ExitKind::StartError,
                    _ => ExitKind::Unknown,
                },
            }),
            (None, Some(started_at)) => RecordState::Running { started_at },
            (None, None) => RecordState::Created,
        };
        Self {
            name: memory.name.clone(),
            id: memory.id.clone(),
            attempt: memory.attempt,
            image: memory.image.clone(),
            image_id: memory.image_id.clone(),
            state,
        }
    }
}

/// Resolved sources by `kind/name`.
pub type Sources = BTreeMap<String, ObjectData>;

/// One pod's directory.
#[derive(Clone, Debug)]
pub struct PodJournal {
    directory: PathBuf,
}

impl PodJournal {
    #[must_use]
    pub fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    pub fn write_pod(&self, pod: &k8s_openapi::api::core::v1::Pod) -> Result<(), JournalError> {
        self.write("pod.json", pod)
    }

    pub fn read_pod(&self) -> Result<Option<k8s_openapi::api::core::v1::Pod>, JournalError> {
        self.read("pod.json")
    }

    pub fn write_memory(&self, memory: &PodMemory) -> Result<(), JournalError> {
        self.write("state.json", memory)
    }

    pub fn read_memory(&self) -> Result<Option<PodMemory>, JournalError> {
        self.read("state.json")
    }

    pub fn write_sources(&self, sources: &Sources) -> Result<(), JournalError> {
        self.write("sources.json", sources)
    }

    pub fn read_sources(&self) -> Result<Option<Sources>, JournalError> {
        self.read("sources.json")
    }

    fn write<T: Serialize>(&self, name: &str, value: &T) -> Result<(), JournalError> {
        let path = self.directory.join(name);
        let failed = |operation: &'static str| {
            let path = path.clone();
            move |source| JournalError::Io {
                operation,
                path,
                source,
            }
        };
        make_private_dir(&self.directory).map_err(failed("create the directory of"))?;
        let bytes = serde_json::to_vec(value).expect("journal types always serialize");
        write_atomically(&path, &bytes, 0o600).map_err(failed("write"))
    }

    fn read<T: DeserializeOwned>(&self, name: &str) -> Result<Option<T>, JournalError> {
        let path = self.directory.join(name);
        match std::fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .map(Some)
                .map_err(|source| JournalError::Damaged { path, source }),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(JournalError::Io {
                operation: "read",
                path,
                source,
            }),
        }
    }
}

/// Directory with mode 0750, parents included.
pub fn make_private_dir(path: &Path) -> std::io::Result<()> {
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o750)
        .create(path)
}

/// Replaces a file so that a reader (or a crash) sees the old or the new one, never a part.
pub fn write_atomically(path: &Path, bytes: &[u8], mode: u32) -> std::io::Result<()> {
    let temporary = path.with_extension("tmp");
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(mode)
        .open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)?;
    if let Some(parent) = path.parent() {
        std::fs::File::open(parent)?.sync_all()?;
    }
    Ok(())
}

/// UIDs that have a directory below `pods`.
pub fn known_pods(pods: &Path) -> Result<Vec<String>, JournalError> {
    let failed = |source| JournalError::Io {
        operation: "list",
        path: pods.to_path_buf(),
        source,
    };
    let entries = match std::fs::read_dir(pods) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(failed(error)),
    };
    let mut uids = Vec::new();
    for entry in entries {
        let entry = entry.map_err(failed)?;
        if entry.file_type().map_err(failed)?.is_dir()
            && let Ok(uid) = entry.file_name().into_string()
        {
            uids.push(uid);
        }
    }
    Ok(uids)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn secrets_in_the_journal_are_for_root_only_and_survive_a_rewrite() {
        let directory = tempfile::tempdir().unwrap();
        let journal = PodJournal::new(directory.path().join("uid"));
        assert_eq!(journal.read_sources().unwrap(), None);
        for value in [b"one".to_vec(), b"two".to_vec()] {
            let data = ObjectData {
                entries: BTreeMap::from([("k".to_owned(), value.clone())]),
            };
            let sources = Sources::from([("Secret/s".to_owned(), data)]);
            journal.write_sources(&sources).unwrap();
            assert_eq!(journal.read_sources().unwrap(), Some(sources));
        }
        let file = directory.path().join("uid/sources.json");
        assert_eq!(
            std::fs::metadata(file).unwrap().permissions().mode() & 0o777,
            0o600
        );
        assert_eq!(known_pods(directory.path()).unwrap(), ["uid"]);
    }

    #[test]
    fn a_damaged_file_is_an_error_that_names_it() {
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("state.json"), "{").unwrap();
        let error = PodJournal::new(directory.path().into())
            .read_memory()
            .unwrap_err();
        assert!(error.to_string().ends_with("state.json is damaged"));
    }
}
