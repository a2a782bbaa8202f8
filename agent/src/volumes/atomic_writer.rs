//! Files of a volume replaced all at once: a timestamped directory behind the `..data` link.
//!
//! A reader sees the old set or the new one, never a mixture. Blocking.

use std::collections::BTreeSet;
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use super::render::Files;

const DATA: &str = "..data";
const NEW_DATA: &str = "..data_tmp";

/// Makes `directory` hold exactly `files`. Returns whether anything changed.
pub fn write(directory: &Path, files: &Files, group: Option<i64>) -> std::io::Result<bool> {
    let data = directory.join(DATA);
    let current = std::fs::read_link(&data)
        .ok()
        .map(|target| directory.join(target));
    if let Some(current) = &current
        && is_same(current, files)?
    {
        return Ok(false);
    }
    let fresh = new_directory(directory)?;
    for (path, file) in files {
        let target = fresh.join(path);
        if let Some(parent) = target.parent() {
            std::fs::create_dir_all(parent)?;
        }
        let mut open = std::fs::OpenOptions::new();
        let mut handle = open
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&target)?;
        handle.write_all(&file.contents)?;
        let mut mode = file.mode;
        if let Some(gid) = group.and_then(|group| u32::try_from(group).ok()) {
            std::os::unix::fs::chown(&target, None, Some(gid))?;
            mode |= 0o040; // Upstream's rule: the group may read.
        }
        // Explicitly, because the umask must not decide.
        handle.set_permissions(std::fs::Permissions::from_mode(mode))?;
    }
    let new_data = directory.join(NEW_DATA);
    remove_link(&new_data)?;
    symlink(
        fresh.file_name().expect("the directory was just named"),
        &new_data,
    )?;
    std::fs::rename(&new_data, &data)?;
    link_names(directory, files)?;
    if let Some(old) = current {
        std::fs::remove_dir_all(old)?;
    }
    Ok(true)
}

fn new_directory(directory: &Path) -> std::io::Result<PathBuf> {
    let stamp = jiff::Timestamp::now()
        .strftime("..%Y_%m_%d_%H_%M_%S.%9f")
        .to_string();
    let path = directory.join(stamp);
    std::fs::create_dir(&path)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755))?;
    Ok(path)
}

/// Links of the first path components, and none of removed ones.
fn link_names(directory: &Path, files: &Files) -> std::io::Result<()> {
    let wanted: BTreeSet<&str> = files
        .keys()
        .map(|path| path.split('/').next().unwrap_or(path))
        .collect();
    for name in &wanted {
        let link = directory.join(name);
        if std::fs::symlink_metadata(&link).is_err() {
            symlink(Path::new(DATA).join(name), link)?;
        }
    }
    for entry in std::fs::read_dir(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        let Some(name) = name.to_str() else { continue };
        if !name.starts_with("..") && !wanted.contains(name) {
            remove_link(&entry.path())?;
        }
    }
    Ok(())
}

fn remove_link(path: &Path) -> std::io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

fn is_same(current: &Path, files: &Files) -> std::io::Result<bool> {
    let mut seen = 0;
    let mut pending = vec![current.to_path_buf()];
    while let Some(directory) = pending.pop() {
        let entries = match std::fs::read_dir(&directory) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
            Err(error) => return Err(error),
        };
        for entry in entries {
            let path = entry?.path();
            if path.is_dir() {
                pending.push(path);
                continue;
            }
            let relative = path.strip_prefix(current).ok().and_then(Path::to_str);
            let Some(wanted) = relative.and_then(|relative| files.get(relative)) else {
                return Ok(false);
            };
            if std::fs::read(&path)? != wanted.contents {
                return Ok(false);
            }
            seen += 1;
        }
    }
    Ok(seen == files.len())
}

#[cfg(test)]
mod tests {
    use super::super::render::File;
    use super::*;

    fn files(entries: &[(&str, &str)]) -> Files {
        entries
            .iter()
            .map(|(path, contents)| {
                let contents = contents.as_bytes().to_vec();
                (
                    (*path).to_owned(),
                    File {
                        contents,
                        mode: 0o640,
                    },
                )
            })
            .collect()
    }

    #[test]
    fn an_update_swaps_everything_at_once_and_removes_what_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path();
        assert!(write(root, &files(&[("a", "1"), ("d/b", "2")]), None).unwrap());
        assert_eq!(std::fs::read_to_string(root.join("d/b")).unwrap(), "2");
        let mode = std::fs::metadata(root.join("a"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o640);
        let first = std::fs::read_link(root.join(DATA)).unwrap();
        assert!(!write(root, &files(&[("a", "1"), ("d/b", "2")]), None).unwrap());
        assert_eq!(std::fs::read_link(root.join(DATA)).unwrap(), first);
        assert!(write(root, &files(&[("a", "3")]), None).unwrap());
        assert_eq!(std::fs::read_to_string(root.join("a")).unwrap(), "3");
        assert!(std::fs::symlink_metadata(root.join("d")).is_err());
        assert!(!root.join(first).exists());
    }

    #[test]
    fn an_empty_volume_still_has_its_data_link() {
        let directory = tempfile::tempdir().unwrap();
        assert!(write(directory.path(), &Files::new(), None).unwrap());
        assert!(directory.path().join(DATA).is_dir());
        assert!(!write(directory.path(), &Files::new(), None).unwrap());
    }
}
