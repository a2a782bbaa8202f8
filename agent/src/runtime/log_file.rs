//! The log file of one container: appending, rotation by size, and going on after a full disk.
//!
//! A full file gets the time as a suffix (`0.log.20260102-030405.000000006`, as the kubelet's, with the
//! nanoseconds that a fast writer needs), and the oldest of them goes. Nothing is copied and nothing is
//! signalled: who follows the log reads the renamed file to its end.

use std::io;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use tokio::fs::File;
use tokio::io::AsyncWriteExt;
use tracing::{info, warn};

/// How much of a container's output stays on the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogLimits {
    /// Size at which a file is rotated.
    pub max_bytes: u64,
    /// Files of one container attempt, with the one that is written.
    pub max_files: usize,
}

impl Default for LogLimits {
    /// The kubelet's.
    fn default() -> Self {
        Self {
            max_bytes: 10 << 20,
            max_files: 5,
        }
    }
}

/// The file, re-opened after a failure and a rotation.
#[derive(Debug)]
pub(super) struct LogFile {
    path: PathBuf,
    limits: LogLimits,
    file: Option<Open>,
    lost_bytes: u64,
}

#[derive(Debug)]
struct Open {
    file: File,
    size: u64,
}

impl Open {
    /// A former agent may have written to it already.
    async fn at(path: &Path) -> io::Result<Self> {
        let file = open(path).await?;
        let size = file.metadata().await?.len();
        Ok(Self { file, size })
    }
}

impl LogFile {
    pub(super) fn new(path: PathBuf, limits: LogLimits) -> Self {
        Self {
            path,
            limits,
            file: None,
            lost_bytes: 0,
        }
    }

    /// Writes whole entries, or counts them as lost: a container never waits for a disk.
    pub(super) async fn append(&mut self, entries: &mut Vec<u8>) {
        if entries.is_empty() {
            return;
        }
        if let Err(error) = self.try_append(entries).await {
            if self.lost_bytes == 0 {
                warn!(path = %self.path.display(), %error, "cannot write the container log: output is being lost");
            }
            self.lost_bytes += entries.len() as u64;
        } else if self.lost_bytes > 0 {
            info!(path = %self.path.display(), lost_bytes = self.lost_bytes, "container log is written again");
            self.lost_bytes = 0;
        }
        entries.clear();
    }

    async fn try_append(&mut self, entries: &[u8]) -> io::Result<()> {
        let mut open = match self.file.take() {
            Some(open) => open,
            None => Open::at(&self.path).await?,
        };
        if open.size >= self.limits.max_bytes {
            self.rotate().await?;
            open = Open::at(&self.path).await?;
        }
        open.file.write_all(entries).await?;
        // tokio's file writes in the background: without this a failure would show up one write late.
        open.file.flush().await?;
        open.size += entries.len() as u64;
        self.file = Some(open);
        Ok(())
    }

    async fn rotate(&self) -> io::Result<()> {
        let (path, max_files) = (self.path.clone(), self.limits.max_files);
        super::containerd::blocking(move || {
            let suffix = Timestamp::now().strftime("%Y%m%d-%H%M%S.%9f").to_string();
            std::fs::rename(&path, with_suffix(&path, &suffix))?;
            let old = rotated(&path)?;
            let surplus = (old.len() + 1).saturating_sub(max_files);
            for path in &old[..surplus.min(old.len())] {
                std::fs::remove_file(path)?;
            }
            Ok(())
        })
        .await
    }

    pub(super) fn finish(&self) {
        if self.lost_bytes > 0 {
            warn!(path = %self.path.display(), lost_bytes = self.lost_bytes, "container output was lost");
        }
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".");
    name.push(suffix);
    name.into()
}

/// The rotated files of the log at `path`, oldest first.
pub fn rotated(path: &Path) -> io::Result<Vec<PathBuf>> {
    let (Some(directory), Some(name)) = (path.parent(), path.file_name()) else {
        return Ok(Vec::new());
    };
    let prefix = format!("{}.", name.to_string_lossy());
    let mut found = Vec::new();
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(&prefix) {
            found.push(entry.path());
        }
    }
    // The suffix is a time of fixed width.
    found.sort();
    Ok(found)
}

async fn open(path: &Path) -> io::Result<File> {
    tokio::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .mode(0o640)
        .open(path)
        .await
}

/// Makes the log file (and its directory), so that `kubectl logs` of a silent container finds it.
pub(super) async fn create(path: &Path) -> io::Result<()> {
    if let Some(parent) = path.parent() {
        tokio::fs::create_dir_all(parent).await?;
    }
    open(path).await.map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn full_files_are_renamed_and_only_the_newest_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        let other = dir.path().join("10.log");
        std::fs::write(&other, "x").unwrap();
        let limits = LogLimits {
            max_bytes: 20,
            max_files: 3,
        };
        let mut log = LogFile::new(path.clone(), limits);
        for number in 0..10 {
            log.append(&mut format!("entry {number:4}\n").into_bytes())
                .await;
        }
        // A later agent goes on with the size that is there.
        let mut log = LogFile::new(path.clone(), limits);
        for number in 10..15 {
            log.append(&mut format!("entry {number:4}\n").into_bytes())
                .await;
        }
        assert_eq!(log.lost_bytes, 0);
        let mut files = rotated(&path).unwrap();
        assert_eq!(files.len(), 2);
        files.push(path);
        let text: String = files
            .iter()
            .map(|path| std::fs::read_to_string(path).unwrap())
            .collect();
        let expected: String = (10..15)
            .map(|number| format!("entry {number:4}\n"))
            .collect();
        assert_eq!(text, expected, "two entries each, the last with one");
        assert!(other.exists());
    }

    #[tokio::test]
    async fn a_log_that_cannot_be_written_counts_and_goes_on() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("gone/0.log");
        let mut log = LogFile::new(path.clone(), LogLimits::default());
        log.append(&mut b"lost\n".to_vec()).await;
        assert_eq!(log.lost_bytes, 5);
        create(&path).await.unwrap();
        log.append(&mut b"kept\n".to_vec()).await;
        assert_eq!(log.lost_bytes, 0);
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "kept\n");
    }
}
