//! Device nodes of the host, for privileged containers.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use serde_json::{Value, json};

/// Directories of /dev that a container gets of its own.
const OWN: [&str; 8] = [
    "pts",
    "shm",
    "fd",
    "mqueue",
    ".lxc",
    ".lxd-mounts",
    ".udev",
    "console",
];

/// Every character and block device below /dev, as entries of the OCI spec.
pub(super) fn of_host() -> io::Result<Vec<Value>> {
    let mut found = Vec::new();
    collect(Path::new("/dev"), true, &mut found)?;
    found.sort_by(|a, b| a["path"].as_str().cmp(&b["path"].as_str()));
    Ok(found)
}

fn collect(directory: &Path, is_root: bool, found: &mut Vec<Value>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if is_root
            && entry
                .file_name()
                .to_str()
                .is_some_and(|name| OWN.contains(&name))
        {
            continue;
        }
        // A device that was unplugged in between is no error.
        let Ok(metadata) = fs::symlink_metadata(entry.path()) else {
            continue;
        };
        let kind = metadata.file_type();
        if kind.is_dir() {
            collect(&entry.path(), false, found)?;
        } else if kind.is_char_device() || kind.is_block_device() {
            let device = metadata.rdev();
            found.push(json!({
                "path": entry.path(),
                "type": if kind.is_char_device() { "c" } else { "b" },
                "major": nix::sys::stat::major(device),
                "minor": nix::sys::stat::minor(device),
                "fileMode": metadata.mode() & 0o7777,
                "uid": metadata.uid(),
                "gid": metadata.gid(),
            }));
        }
    }
    Ok(())
}
