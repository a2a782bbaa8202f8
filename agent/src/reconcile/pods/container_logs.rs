//! Log files of containers and the links by which log collectors find them. Blocking, short.

use std::path::{Path, PathBuf};

use super::worker::Worker;
use crate::runtime::RealizedContainer;

impl Worker {
    /// `/var/log/containers/<pod>_<namespace>_<container>-<id>.log`, where log collectors look.
    pub(super) fn link_log(&self, container: &RealizedContainer, log: &Path) {
        let directory = &self.context.config.container_log_dir;
        let name = format!(
            "{}_{}_{}-{}.log",
            self.identity.name, self.identity.namespace, container.name, container.id
        );
        let link = directory.join(name);
        let made =
            std::fs::create_dir_all(directory).and_then(|()| {
                match std::os::unix::fs::symlink(log, &link) {
                    Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
                    other => other,
                }
            });
        if let Err(error) = made {
            tracing::warn!(link = %link.display(), %error, "log link not made");
        }
    }
}

/// Removes one attempt's log, its rotated parts and its links.
pub(super) fn remove_log(log: &Path, links: &Path) {
    let (Some(directory), Some(name)) = (log.parent(), log.file_name()) else {
        return;
    };
    let prefix = name.to_string_lossy().into_owned();
    for path in entries(directory) {
        let file = path
            .file_name()
            .map(|name| name.to_string_lossy().into_owned());
        if file.is_some_and(|file| file == prefix || file.starts_with(&format!("{prefix}."))) {
            // Best effort: the whole directory goes with the pod.
            std::fs::remove_file(&path).ok();
        }
    }
    remove_links(links, |target| target == log);
}

/// Removes the log directory of a pod and the links into it.
pub(super) fn remove_logs(directory: &Path, links: &Path) {
    remove_links(links, |target| target.starts_with(directory));
    if let Err(error) = std::fs::remove_dir_all(directory)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(directory = %directory.display(), %error, "logs not removed");
    }
}

fn remove_links(links: &Path, of: impl Fn(&Path) -> bool) {
    for link in entries(links) {
        if std::fs::read_link(&link).is_ok_and(|target| of(&target)) {
            std::fs::remove_file(&link).ok();
        }
    }
}

fn entries(directory: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(directory)
        .map(|entries| entries.flatten().map(|entry| entry.path()).collect())
        .unwrap_or_default()
}
