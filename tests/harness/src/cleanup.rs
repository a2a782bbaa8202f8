//! Removing every trace of a cluster, whatever state a crash left it in: processes, mounts, cgroups,
//! pins, namespaces, files. Works from what is on the machine, not from what was meant to be there.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::command::{self, pause};
use crate::containerd;
use crate::layout::{ClusterId, Layout, run_dir_of};
use crate::netns::NETNS_DIR;
use crate::process::ProcessRef;
use crate::state::{ClusterState, known_clusters};

const BPFFS: &str = "/sys/fs/bpf";

/// One line of `/proc/self/mountinfo`.
#[derive(Debug, PartialEq, Eq)]
struct Mount {
    root: String,
    target: PathBuf,
    kind: String,
}

/// Removes what clusters left whose owner has died without doing so. Clusters that were left running on
/// purpose have no owner and stay.
pub fn sweep() -> Result<Vec<ClusterId>> {
    // Tests start clusters at the same time; two sweeps must not trip over each other.
    let file = fs::File::create("/run/lock/tholepin-sweep.lock")
        .or_else(|_| fs::File::create(std::env::temp_dir().join("tholepin-sweep.lock")))?;
    file.lock()?;
    let mut removed = Vec::new();
    for id in known_clusters() {
        let owner = ClusterState::read(&id)?.and_then(|state| state.owner);
        if owner.is_some_and(|owner| !owner.is_alive()) {
            remove(&id)?;
            removed.push(id);
        }
    }
    Ok(removed)
}

/// Removes a cluster, and says what could not be removed.
pub fn remove(id: &ClusterId) -> Result<()> {
    let state = ClusterState::read(id).unwrap_or_default_logged();
    let run_dir = run_dir_of(id);
    let state_dir = state.as_ref().map_or_else(
        || Layout::new(id).state_dir,
        |state| state.state_dir.clone(),
    );
    let shims = ShimTraces::collect(&run_dir);
    if let Some(state) = &state {
        end_recorded(&state.processes)?;
    }
    end_found(id, &run_dir)?;
    unmount_below(&[&run_dir, &state_dir])?;
    shims.remove();
    remove_cgroups(id)?;
    for pins in entries_with_prefix(Path::new(BPFFS), &id.prefix()) {
        fs::remove_dir_all(&pins).with_context(|| format!("cannot remove {}", pins.display()))?;
    }
    for path in entries_with_prefix(Path::new(NETNS_DIR), &id.prefix()) {
        let name = path.file_name().expect("a directory entry has a name");
        command::run(Command::new("ip").args(["netns", "delete"]).arg(name))?;
    }
    if state.is_some_and(|state| state.mounted_bpffs) {
        release_bpffs();
    }
    for dir in [&state_dir, &run_dir] {
        match fs::remove_dir_all(dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("cannot remove {}", dir.display()));
            }
            _ => {}
        }
    }
    match leftovers(id)? {
        left if left.is_empty() => Ok(()),
        left => bail!("cluster {id} left behind:\n  {}", left.join("\n  ")),
    }
}

trait OrLogged<T> {
    fn unwrap_or_default_logged(self) -> Option<T>;
}

impl<T> OrLogged<T> for Result<Option<T>> {
    /// A damaged record must not keep the rest from being removed: all but it is found on the machine.
    fn unwrap_or_default_logged(self) -> Option<T> {
        self.unwrap_or_else(|error| {
            eprintln!("warning: {error:#}");
            None
        })
    }
}

/// Everything on the machine that belongs to the cluster.
pub fn leftovers(id: &ClusterId) -> Result<Vec<String>> {
    let run_dir = run_dir_of(id);
    let prefix = id.prefix();
    let mut left = Vec::new();
    left.extend(
        victims(id, &run_dir)?
            .into_iter()
            .map(|pid| format!("process {pid}")),
    );
    for mount in mounts()? {
        if mount.target.starts_with(&run_dir) {
            left.push(format!("mount {}", mount.target.display()));
        }
    }
    let mut dirs = cgroup_mounts()?;
    dirs.extend([PathBuf::from(BPFFS), PathBuf::from(NETNS_DIR)]);
    for dir in dirs {
        left.extend(
            entries_with_prefix(&dir, &prefix)
                .iter()
                .map(|path| path.display().to_string()),
        );
    }
    if run_dir.exists() {
        left.push(run_dir.display().to_string());
    }
    Ok(left)
}

/// Agents first, so that nothing is started again while the rest ends.
fn end_recorded(processes: &[ProcessRef]) -> Result<()> {
    let (agents, others): (Vec<_>, Vec<_>) = processes
        .iter()
        .partition(|process| process.name.ends_with("-agent"));
    for process in agents.into_iter().chain(others) {
        process.signal(Signal::SIGKILL)?;
    }
    Ok(())
}

/// Ends what runs in the cluster's namespaces and cgroups, and its shims, until nothing is left.
fn end_found(id: &ClusterId, run_dir: &Path) -> Result<()> {
    // The end of a process that is not our child has no event that covers a whole set of them.
    for _ in 0..500 {
        let victims = victims(id, run_dir)?;
        if victims.is_empty() {
            return Ok(());
        }
        for pid in victims {
            match kill(Pid::from_raw(pid), Signal::SIGKILL) {
                Ok(()) | Err(nix::errno::Errno::ESRCH) => {}
                Err(error) => {
                    return Err(error).with_context(|| format!("cannot end process {pid}"));
                }
            }
        }
        pause(Duration::from_millis(10));
    }
    bail!(
        "processes of cluster {id} do not end: {:?}",
        victims(id, run_dir)?
    )
}

/// Pids of processes that belong to the cluster by their network namespace, cgroup or sockets.
fn victims(id: &ClusterId, run_dir: &Path) -> Result<Vec<i32>> {
    let namespaces = namespace_inodes(id, run_dir)?;
    let cgroup = format!(":/{}", id.prefix());
    let sockets = format!("{}/", run_dir.display());
    let own = std::process::id().cast_signed();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")?.flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse::<i32>().ok())
        else {
            continue;
        };
        if pid == own || pid == 1 || crate::process::start_time(pid).is_none() {
            continue;
        }
        let dir = entry.path();
        let in_namespace =
            fs::metadata(dir.join("ns/net")).is_ok_and(|meta| namespaces.contains(&meta.ino()));
        let in_cgroup =
            || fs::read_to_string(dir.join("cgroup")).is_ok_and(|text| text.contains(&cgroup));
        let is_shim = || {
            let comm = fs::read_to_string(dir.join("comm")).unwrap_or_default();
            let line = fs::read(dir.join("cmdline")).unwrap_or_default();
            comm.starts_with("containerd") && String::from_utf8_lossy(&line).contains(&sockets)
        };
        if in_namespace || in_cgroup() || is_shim() {
            found.push(pid);
        }
    }
    Ok(found)
}

/// Inodes of the cluster's network namespaces: the named ones, and those of pods, which are mounted
/// below the run directory.
fn namespace_inodes(id: &ClusterId, run_dir: &Path) -> Result<BTreeSet<u64>> {
    let named = entries_with_prefix(Path::new(NETNS_DIR), &id.prefix());
    let mut inodes: BTreeSet<u64> = named
        .iter()
        .filter_map(|path| fs::metadata(path).ok())
        .map(|meta| meta.ino())
        .collect();
    for mount in mounts()? {
        if mount.kind == "nsfs" && mount.target.starts_with(run_dir) {
            inodes.extend(
                mount
                    .root
                    .strip_prefix("net:[")
                    .and_then(|rest| rest.strip_suffix(']')?.parse::<u64>().ok()),
            );
        }
    }
    Ok(inodes)
}

fn unmount_below(dirs: &[&Path]) -> Result<()> {
    // Later mounts may lie on earlier ones.
    for mount in mounts()?.into_iter().rev() {
        if dirs.iter().any(|dir| mount.target.starts_with(dir)) {
            match umount2(&mount.target, MntFlags::MNT_DETACH) {
                Ok(()) | Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOENT) => {}
                Err(error) => {
                    return Err(error)
                        .with_context(|| format!("cannot unmount {}", mount.target.display()));
                }
            }
        }
    }
    Ok(())
}

/// What shims and runc leave outside the cluster's folders when they are killed: listening sockets, and
/// runc's state of each container. Both are named in the bundles.
#[derive(Debug, Default)]
pub struct ShimTraces(Vec<PathBuf>);

impl ShimTraces {
    /// Those of the nodes of a cluster.
    fn collect(run_dir: &Path) -> Self {
        let of_nodes = read_dir(run_dir)
            .into_iter()
            .flat_map(|node| Self::of_containerd(&node.join("containerd")).0);
        Self(of_nodes.collect())
    }

    /// Those of one containerd, by its state folder, as long as its bundles are there.
    #[must_use]
    pub fn of_containerd(state: &Path) -> Self {
        let mut traces = Self::default();
        let bundles = state
            .join("io.containerd.runtime.v2.task")
            .join(containerd::NAMESPACE);
        for bundle in read_dir(&bundles) {
            for file in ["address", "bootstrap.json"] {
                let text = fs::read_to_string(bundle.join(file)).unwrap_or_default();
                traces.0.extend(shim_sockets(&text));
            }
            let name = bundle.file_name().expect("a directory entry has a name");
            traces.0.push(
                Path::new("/run/containerd/runc")
                    .join(containerd::NAMESPACE)
                    .join(name),
            );
        }
        traces
    }

    /// Removes them; only after the shims have ended.
    pub fn remove(&self) {
        for path in &self.0 {
            let outcome = if path.is_dir() {
                fs::remove_dir_all(path)
            } else {
                fs::remove_file(path)
            };
            if let Err(error) = outcome
                && error.kind() != std::io::ErrorKind::NotFound
            {
                eprintln!("warning: cannot remove {}: {error}", path.display());
            }
        }
    }
}

/// The unix socket paths in a shim's address file (1.6) or bootstrap record (2.x).
fn shim_sockets(text: &str) -> Vec<PathBuf> {
    let pieces = text.split("unix://").skip(1);
    pieces
        .map(|rest| rest.split(['"', '\n', ' ']).next().unwrap_or_default())
        .filter(|path| path.starts_with("/run/containerd/s/"))
        .map(PathBuf::from)
        .collect()
}

fn remove_cgroups(id: &ClusterId) -> Result<()> {
    for mount in cgroup_mounts()? {
        for cgroup in entries_with_prefix(&mount, &id.prefix()) {
            remove_cgroup(&cgroup)
                .with_context(|| format!("cannot remove cgroup {}", cgroup.display()))?;
        }
    }
    Ok(())
}

/// Removes a cgroup and those below it. A cgroup stays busy for a moment after its last process.
fn remove_cgroup(path: &Path) -> std::io::Result<()> {
    for child in read_dir(path).into_iter().filter(|child| child.is_dir()) {
        remove_cgroup(&child)?;
    }
    for _ in 0..200 {
        match fs::remove_dir(path) {
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
                pause(Duration::from_millis(10));
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            outcome => return outcome,
        }
    }
    fs::remove_dir(path)
}

fn cgroup_mounts() -> Result<Vec<PathBuf>> {
    let all = mounts()?.into_iter();
    Ok(all
        .filter(|mount| mount.kind == "cgroup" || mount.kind == "cgroup2")
        .map(|mount| mount.target)
        .collect())
}

/// Mounts `/sys/fs/bpf` unless it is; whether this call did.
pub fn ensure_bpffs() -> Result<bool> {
    if mounts()?
        .iter()
        .any(|mount| mount.kind == "bpf" && mount.target == Path::new(BPFFS))
    {
        return Ok(false);
    }
    command::run(Command::new("mount").args(["-t", "bpf", "bpf", BPFFS]))
        .context("cannot mount the BPF file system")?;
    Ok(true)
}

/// Unmounts `/sys/fs/bpf` when nothing is pinned there any more.
fn release_bpffs() {
    if read_dir(Path::new(BPFFS)).is_empty() {
        // Busy means that somebody uses it after all.
        umount2(BPFFS, MntFlags::empty()).ok();
    }
}

fn mounts() -> Result<Vec<Mount>> {
    let text = fs::read_to_string("/proc/self/mountinfo")?;
    Ok(text.lines().filter_map(parse_mount).collect())
}

fn parse_mount(line: &str) -> Option<Mount> {
    let (left, right) = line.split_once(" - ")?;
    let mut fields = left.split(' ').skip(3);
    let (root, target) = (fields.next()?, fields.next()?);
    let kind = right.split(' ').next()?.to_owned();
    Some(Mount {
        root: unescape(root),
        target: unescape(target).into(),
        kind,
    })
}

/// Undoes the kernel's octal escapes of blanks and backslashes.
fn unescape(text: &str) -> String {
    [
        ("\\040", " "),
        ("\\011", "\t"),
        ("\\012", "\n"),
        ("\\134", "\\"),
    ]
    .iter()
    .fold(text.to_owned(), |text, (escape, plain)| {
        text.replace(escape, plain)
    })
}

fn entries_with_prefix(dir: &Path, prefix: &str) -> Vec<PathBuf> {
    let matches = |path: &PathBuf| {
        path.file_name()
            .and_then(|name| name.to_str())
            .is_some_and(|name| name.starts_with(prefix))
    };
    read_dir(dir).into_iter().filter(matches).collect()
}

fn read_dir(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).map_or_else(
        |_| Vec::new(),
        |all| all.flatten().map(|e| e.path()).collect(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mount_is_read_with_its_optional_fields_and_escapes() {
        let line = "36 35 0:4 net:[40265] /run/a\\040b rw shared:1 master:2 - nsfs nsfs rw";
        let mount = parse_mount(line).unwrap();
        let target = PathBuf::from("/run/a b");
        assert_eq!(
            mount,
            Mount {
                root: "net:[40265]".into(),
                target,
                kind: "nsfs".into()
            }
        );
    }

    #[test]
    fn shim_sockets_are_found_in_both_forms_of_record() {
        let path = vec![PathBuf::from("/run/containerd/s/abc")];
        assert_eq!(shim_sockets("unix:///run/containerd/s/abc"), path);
        let json = r#"{"version":3,"address":"unix:///run/containerd/s/abc","protocol":"ttrpc"}"#;
        assert_eq!(shim_sockets(json), path);
        assert_eq!(shim_sockets("unix:///etc/passwd"), Vec::<PathBuf>::new());
    }

    #[test]
    fn this_process_is_never_a_victim_and_an_unknown_cluster_has_none() {
        let id = ClusterId::random();
        assert_eq!(victims(&id, &run_dir_of(&id)).unwrap(), Vec::<i32>::new());
    }
}
