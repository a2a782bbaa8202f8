//! Pod namespaces: made on a thread of their own and kept alive by bind mounts, with no process in them.
//!
//! `unshare` moves the calling *thread*, so that thread is never one of tokio's. The pins must be made
//! in the mount namespace that containerd and its shims live in: run the agent without private mounts.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::statfs::{FsType, statfs};

const NSFS_MAGIC: FsType = FsType(0x6e73_6673);

/// Which namespaces a pod has of its own.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    pub(super) net: bool,
    pub(super) ipc: bool,
    pub(super) uts: bool,
}

impl Wanted {
    fn kinds(self) -> impl Iterator<Item = (&'static str, CloneFlags)> {
        [
            (self.net, "net", CloneFlags::CLONE_NEWNET),
            (self.ipc, "ipc", CloneFlags::CLONE_NEWIPC),
            (self.uts, "uts", CloneFlags::CLONE_NEWUTS),
        ]
        .into_iter()
        .filter_map(|(wanted, name, flag)| wanted.then_some((name, flag)))
    }
}

/// Makes and pins the namespaces under `directory`, or keeps them when all are alive. One that is not
/// (a plain file after a reboot) means all are made anew: a pod never gets half of an old set.
/// `sysctls` are written from inside. Blocks for a few milliseconds.
pub(super) fn ensure(
    directory: &Path,
    wanted: Wanted,
    hostname: &str,
    sysctls: &[(String, String)],
) -> io::Result<()> {
    if are_alive(directory, wanted) {
        return Ok(());
    }
    remove(directory)?;
    fs::create_dir_all(directory)?;
    std::thread::scope(|scope| {
        scope
            .spawn(|| make(directory, wanted, hostname, sysctls))
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("the namespace thread panicked")))
    })
    .inspect_err(|_| drop(remove(directory)))
}

/// Whether every wanted pin is a live namespace.
pub(super) fn are_alive(directory: &Path, wanted: Wanted) -> bool {
    wanted
        .kinds()
        .all(|(name, _)| is_alive(&directory.join(name)))
}

/// Whether `path` is a pinned namespace and not the plain file a reboot leaves.
pub(super) fn is_alive(path: &Path) -> bool {
    statfs(path).is_ok_and(|stat| stat.filesystem_type() == NSFS_MAGIC)
}

/// Unpins everything under `directory` and removes it. Nothing there is fine.
pub(super) fn remove(directory: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        unmount(&path)?;
        fs::remove_file(&path)?;
    }
    fs::remove_dir(directory)
}

/// Unmounts every layer on `path`. Not being a mount point is fine.
pub(super) fn unmount(path: &Path) -> io::Result<()> {
    loop {
        match umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
            Ok(()) => {}
            Err(Errno::EINVAL | Errno::ENOENT) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

fn make(
    directory: &Path,
    wanted: Wanted,
    hostname: &str,
    sysctls: &[(String, String)],
) -> io::Result<()> {
    let flags = wanted
        .kinds()
        .fold(CloneFlags::empty(), |all, (_, flag)| all | flag);
    if flags.is_empty() {
        return Ok(());
    }
    unshare(flags)?;
    if wanted.uts {
        nix::unistd::sethostname(hostname)?;
    }
    for (name, value) in sysctls {
        let path = Path::new("/proc/sys").join(name.replace('.', "/"));
        fs::write(&path, value).map_err(|error| {
            io::Error::new(
                error.kind(),
                format!("cannot set sysctl {name}={value}: {error}"),
            )
        })?;
    }
    for (name, _) in wanted.kinds() {
        let pin = directory.join(name);
        File::create(&pin)?;
        let own = PathBuf::from(format!("/proc/thread-self/ns/{name}"));
        mount(
            Some(&own),
            &pin,
            None::<&str>,
            MsFlags::MS_BIND,
            None::<&str>,
        )?;
    }
    Ok(())
}
