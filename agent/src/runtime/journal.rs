//! What containerd forgets: when a container started and how it ended, one small file per container.
//!
//! containerd drops the exit code with the task, and keeps no start time at all. An exit is fsync'd
//! before the task is deleted, so that no crash can lose it.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

/// The life of one container as far as it is known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) started_at: Option<SystemTime>,
    pub(super) exit: Option<Exit>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Exit {
    pub(super) exit_code: i32,
    pub(super) oom_killed: bool,
    pub(super) finished_at: SystemTime,
}

/// Directory of [`Record`]s named by container id.
#[derive(Clone, Debug)]
pub(super) struct Journal {
    directory: PathBuf,
}

impl Journal {
    pub(super) fn open(directory: PathBuf) -> io::Result<Self> {
        fs::create_dir_all(&directory)?;
        Ok(Self { directory })
    }

    /// The record, empty when there is none. A record that cannot be read is reported, not guessed.
    pub(super) fn read(&self, id: &str) -> io::Result<Record> {
        match fs::read(self.path(id)) {
            Ok(bytes) => Ok(serde_json::from_slice(&bytes)?),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Record::default()),
            Err(error) => Err(error),
        }
    }

    /// Replaces the record at once. `durable` also survives a power cut.
    pub(super) fn write(&self, id: &str, record: &Record, durable: bool) -> io::Result<()> {
        write_atomically(&self.path(id), &serde_json::to_vec(record)?, durable)
    }

    pub(super) fn remove(&self, id: &str) -> io::Result<()> {
        match fs::remove_file(self.path(id)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn path(&self, id: &str) -> PathBuf {
        self.directory.join(format!("{id}.json"))
    }
}

/// Writes beside the target and renames, so that a reader sees the old or the new whole.
pub(super) fn write_atomically(path: &Path, bytes: &[u8], durable: bool) -> io::Result<()> {
    let parent = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(parent)?;
    file.write_all(bytes)?;
    if durable {
        file.as_file().sync_all()?;
    }
    file.persist(path).map_err(|error| error.error)?;
    if durable {
        fs::File::open(parent)?.sync_all()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_exit_is_read_back_and_removing_twice_is_fine() {
        let directory = tempfile::tempdir().expect("tempdir");
        let journal = Journal::open(directory.path().join("exits")).expect("open");
        assert_eq!(journal.read("a").expect("empty"), Record::default());
        let record = Record {
            started_at: Some(SystemTime::UNIX_EPOCH),
            exit: Some(Exit {
                exit_code: 3,
                oom_killed: true,
                finished_at: SystemTime::now(),
            }),
        };
        journal.write("a", &record, true).expect("write");
        assert_eq!(journal.read("a").expect("read"), record);
        journal.remove("a").expect("remove");
        journal.remove("a").expect("remove again");
        assert_eq!(journal.read("a").expect("empty again"), Record::default());
    }
}
