//! Reading single files of an unpacked image, without leaving a mount behind.
//!
//! The snapshot is mounted in a mount namespace of a thread that ends at once: the kernel unmounts it
//! with the thread, also when the agent is killed in the middle.

use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::AsFd;
use std::path::Path;

use containerd_client::types::Mount;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};

use super::spec::UserDatabase;

/// An image's passwd file is not trusted to be small.
const MAX_FILE: u64 = 4 << 20;

/// Reads /etc/passwd and /etc/group of a read-only view. `mount_point` is an existing directory; it is
/// covered only in the thread's own mount namespace.
pub(super) fn read_user_database(mounts: &[Mount], mount_point: &Path) -> io::Result<UserDatabase> {
    fs::create_dir_all(mount_point)?;
    std::thread::scope(|scope| {
        scope
            .spawn(|| {
                unshare(CloneFlags::CLONE_NEWNS)?;
                let all = MsFlags::MS_REC | MsFlags::MS_SLAVE;
                mount(None::<&str>, "/", None::<&str>, all, None::<&str>)?;
                for wanted in mounts {
                    mount_read_only(wanted, mount_point)?;
                }
                let root = File::open(mount_point)?;
                Ok(UserDatabase {
                    passwd: read(&root, "etc/passwd")?,
                    group: read(&root, "etc/group")?,
                })
            })
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the mount thread panicked")))
    })
}

fn mount_read_only(wanted: &Mount, target: &Path) -> io::Result<()> {
    let mut flags = MsFlags::MS_RDONLY | MsFlags::MS_NODEV | MsFlags::MS_NOSUID;
    let mut data = Vec::new();
    for option in &wanted.options {
        match option.as_str() {
            "ro" | "rw" => {}
            "bind" => flags |= MsFlags::MS_BIND,
            "rbind" => flags |= MsFlags::MS_BIND | MsFlags::MS_REC,
            other => data.push(shorten(other)?),
        }
    }
    let data = data.join(",");
    Ok(mount(
        Some(wanted.source.as_str()),
        target,
        Some(wanted.r#type.as_str()),
        flags,
        Some(data.as_str()),
    )?)
}

/// Mount data is limited to a page, which the lower directories of some 50 layers exceed: they are
/// given relative to what they have in common. The thread's working directory is its own.
fn shorten(option: &str) -> io::Result<String> {
    let Some(directories) = option.strip_prefix("lowerdir=") else {
        return Ok(option.into());
    };
    let common = common_directory(directories);
    if common.is_empty() {
        return Ok(option.into());
    }
    nix::unistd::chdir(common.as_str())?;
    let relative: Vec<_> = directories
        .split(':')
        .map(|directory| &directory[common.len()..])
        .collect();
    Ok(format!("lowerdir={}", relative.join(":")))
}

/// Longest prefix that ends in `/` and is shorter than every directory.
fn common_directory(directories: &str) -> String {
    let mut all = directories.split(':');
    let first = all.next().unwrap_or_default();
    let mut length = first.len().saturating_sub(1);
    for other in all {
        let same = first
            .bytes()
            .zip(other.bytes())
            .take_while(|(a, b)| a == b)
            .count();
        length = length.min(same).min(other.len().saturating_sub(1));
    }
    match first.as_bytes()[..length]
        .iter()
        .rposition(|&byte| byte == b'/')
    {
        Some(slash) => first[..=slash].into(),
        None => String::new(),
    }
}

/// Links are followed inside the image only. A missing file is empty.
fn read(root: &File, path: &str) -> io::Result<String> {
    let how = OpenHow::new()
        .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)
        .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
    let file = match openat2(root.as_fd(), path, how) {
        Ok(descriptor) => File::from(descriptor),
        Err(nix::errno::Errno::ENOENT | nix::errno::Errno::ENOTDIR) => return Ok(String::new()),
        Err(error) => return Err(error.into()),
    };
    let mut bytes = Vec::new();
    file.take(MAX_FILE).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::common_directory;

    #[test]
    fn lower_directories_are_shortened_by_what_they_share() {
        assert_eq!(
            common_directory("/s/snapshots/12/fs:/s/snapshots/1/fs"),
            "/s/snapshots/"
        );
        assert_eq!(common_directory("/a/b:/c/d"), "/");
        assert_eq!(common_directory("/a/fs"), "/a/");
        assert_eq!(common_directory("a"), "");
    }
}
