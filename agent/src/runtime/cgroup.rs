//! Pod cgroups on v1, v1-hybrid and v2: made before the first container, removed after the last.
//!
//! Container cgroups below them are runc's. Paths are absolute from the cgroup root, as runc takes them.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::ResourceLimits;

/// Controllers whose pod-level files we write; runc makes the others' directories itself.
const V1_WRITTEN: [&str; 3] = ["cpu", "memory", "pids"];

/// Controllers that pods and their containers get.
const V2_ENABLED: [&str; 6] = ["cpu", "cpuset", "hugetlb", "io", "memory", "pids"];

/// The hierarchies of this machine, found once.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Cgroups {
    /// One mount per controller set; `unified` is the controller-less v2 tree of hybrid mode.
    V1 {
        hierarchies: Vec<Hierarchy>,
        unified: Option<PathBuf>,
    },
    V2 {
        root: PathBuf,
    },
}

/// One v1 mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hierarchy {
    controllers: Vec<String>,
    mount_point: PathBuf,
}

impl Cgroups {
    /// Looks at what is mounted.
    pub(super) fn detect() -> io::Result<Self> {
        Self::parse(&fs::read_to_string("/proc/self/mountinfo")?).ok_or_else(|| {
            io::Error::new(io::ErrorKind::NotFound, "no cgroup file system is mounted")
        })
    }

    fn parse(mountinfo: &str) -> Option<Self> {
        let mut hierarchies: Vec<Hierarchy> = Vec::new();
        let mut unified = None;
        for line in mountinfo.lines() {
            let (head, tail) = line.split_once(" - ")?;
            let mount_point = PathBuf::from(head.split(' ').nth(4)?);
            let mut tail = tail.split(' ');
            match tail.next()? {
                "cgroup2" if unified.is_none() => unified = Some(mount_point),
                "cgroup" => {
                    let controllers: Vec<String> = tail
                        .nth(1)
                        .unwrap_or_default()
                        .split(',')
                        .filter(|option| !matches!(*option, "rw" | "ro"))
                        .map(Into::into)
                        .collect();
                    // The same hierarchy may be mounted more than once (`ip netns exec` does).
                    if !hierarchies
                        .iter()
                        .any(|known| known.controllers == controllers)
                    {
                        hierarchies.push(Hierarchy {
                            controllers,
                            mount_point,
                        });
                    }
                }
                _ => {}
            }
        }
        match (hierarchies.is_empty(), unified) {
            (true, Some(root)) => Some(Self::V2 { root }),
            (true, None) => None,
            (false, unified) => Some(Self::V1 {
                hierarchies,
                unified,
            }),
        }
    }

    pub(super) fn is_v2(&self) -> bool {
        matches!(self, Self::V2 { .. })
    }

    /// Whether a memory limit can be given a swap limit too.
    pub(super) fn has_swap_limit(&self) -> bool {
        match self {
            Self::V1 { .. } => self
                .controller("memory")
                .is_some_and(|mount| mount.join("memory.memsw.limit_in_bytes").exists()),
            // The root has no such file; any first-level group with the controller does.
            Self::V2 { root } => fs::read_dir(root).is_ok_and(|entries| {
                entries
                    .flatten()
                    .any(|entry| entry.path().join("memory.swap.max").exists())
            }),
        }
    }

    /// Makes the pod's cgroup and sets its limits. Idempotent.
    pub(super) fn ensure(&self, path: &str, limits: &ResourceLimits) -> io::Result<()> {
        match self {
            Self::V1 {
                hierarchies,
                unified,
            } => {
                for hierarchy in hierarchies
                    .iter()
                    .filter(|hierarchy| hierarchy.is_written())
                {
                    fs::create_dir_all(join(&hierarchy.mount_point, path))?;
                }
                if let Some(unified) = unified {
                    fs::create_dir_all(join(unified, path))?;
                }
                self.set_v1(path, limits)
            }
            Self::V2 { root } => {
                enable_controllers(root, path)?;
                set_v2(&join(root, path), limits)
            }
        }
    }

    fn set_v1(&self, path: &str, limits: &ResourceLimits) -> io::Result<()> {
        if let Some(mount) = self.controller("cpu") {
            let directory = join(mount, path);
            if limits.cpu_shares > 0 {
                set(&directory, "cpu.shares", limits.cpu_shares)?;
            }
            if limits.cpu_period_us > 0 {
                set(&directory, "cpu.cfs_period_us", limits.cpu_period_us)?;
            }
            if limits.cpu_quota_us != 0 {
                set(&directory, "cpu.cfs_quota_us", limits.cpu_quota_us)?;
            }
        }
        match self.controller("memory") {
            Some(mount) if limits.memory_limit_bytes > 0 => set(
                &join(mount, path),
                "memory.limit_in_bytes",
                limits.memory_limit_bytes,
            ),
            _ => Ok(()),
        }
    }

    /// Removes the pod's cgroup and what is left below it, in every hierarchy. Fails with
    /// `ResourceBusy` while a process is still leaving.
    pub(super) fn remove(&self, path: &str) -> io::Result<()> {
        // The root itself must survive a mistake in the path.
        if path.trim_matches('/').is_empty() {
            return Ok(());
        }
        for mount in self.mounts() {
            remove_tree(&join(mount, path))?;
        }
        Ok(())
    }

    /// How often the kernel killed something in this cgroup for memory. `None` when it cannot be told.
    pub(super) fn oom_kills(&self, path: &str) -> Option<u64> {
        let file = match self {
            Self::V1 { .. } => join(self.controller("memory")?, path).join("memory.oom_control"),
            Self::V2 { root } => join(root, path).join("memory.events"),
        };
        let text = fs::read_to_string(file).ok()?;
        text.lines()
            .find_map(|line| line.strip_prefix("oom_kill ")?.parse().ok())
    }

    fn controller(&self, name: &str) -> Option<&Path> {
        match self {
            Self::V1 { hierarchies, .. } => hierarchies
                .iter()
                .find(|hierarchy| {
                    hierarchy
                        .controllers
                        .iter()
                        .any(|controller| controller == name)
                })
                .map(|hierarchy| hierarchy.mount_point.as_path()),
            Self::V2 { root } => Some(root),
        }
    }

    fn mounts(&self) -> Vec<&Path> {
        match self {
            Self::V1 {
                hierarchies,
                unified,
            } => hierarchies
                .iter()
                .map(|hierarchy| hierarchy.mount_point.as_path())
                .chain(unified.as_deref())
                .collect(),
            Self::V2 { root } => vec![root],
        }
    }
}

impl Hierarchy {
    fn is_written(&self) -> bool {
        self.controllers
            .iter()
            .any(|controller| V1_WRITTEN.contains(&controller.as_str()))
    }
}

/// cgroup v2 weight of a number of v1 shares, as runc and the kubelet convert.
fn cpu_weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9_999 / 262_142
}

/// Makes every level and hands the controllers of the one above down to it.
fn enable_controllers(root: &Path, path: &str) -> io::Result<()> {
    let mut directory = root.to_path_buf();
    for component in path.split('/').filter(|component| !component.is_empty()) {
        // Read at every level: one that is not available there makes the kernel refuse all of them.
        let available = fs::read_to_string(directory.join("cgroup.controllers"))?;
        let wanted: Vec<String> = available
            .split_whitespace()
            .filter(|name| V2_ENABLED.contains(name))
            .map(|name| format!("+{name}"))
            .collect();
        if !wanted.is_empty() {
            set(&directory, "cgroup.subtree_control", wanted.join(" "))?;
        }
        directory.push(component);
        fs::create_dir_all(&directory)?;
    }
    Ok(())
}

fn set_v2(directory: &Path, limits: &ResourceLimits) -> io::Result<()> {
    if limits.cpu_shares > 0 {
        set(directory, "cpu.weight", cpu_weight(limits.cpu_shares))?;
    }
    if limits.cpu_quota_us > 0 && limits.cpu_period_us > 0 {
        set(
            directory,
            "cpu.max",
            format!("{} {}", limits.cpu_quota_us, limits.cpu_period_us),
        )?;
    }
    if limits.memory_limit_bytes > 0 {
        set(directory, "memory.max", limits.memory_limit_bytes)?;
    }
    Ok(())
}

fn set(directory: &Path, file: &str, value: impl std::fmt::Display) -> io::Result<()> {
    let path = directory.join(file);
    fs::write(&path, value.to_string()).map_err(|error| {
        io::Error::new(
            error.kind(),
            format!("cannot write {value} to {}: {error}", path.display()),
        )
    })
}

fn join(mount: &Path, path: &str) -> PathBuf {
    mount.join(path.trim_start_matches('/'))
}

fn remove_tree(directory: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            remove_tree(&entry.path())?;
        }
    }
    match fs::remove_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory that looks like a cgroup2 tree. The kernel makes the files of a new group; here the
    /// test has to, before.
    struct FakeV2 {
        root: tempfile::TempDir,
    }

    impl FakeV2 {
        fn new(levels: &[(&str, &str)]) -> (Self, Cgroups) {
            let root = tempfile::tempdir().unwrap();
            for (path, controllers) in levels {
                let directory = join(root.path(), path);
                fs::create_dir_all(&directory).unwrap();
                fs::write(directory.join("cgroup.controllers"), controllers).unwrap();
            }
            let cgroups = Cgroups::V2 {
                root: root.path().into(),
            };
            (Self { root }, cgroups)
        }

        fn read(&self, path: &str) -> Option<String> {
            fs::read_to_string(join(self.root.path(), path)).ok()
        }
    }

    const POD: &str = "/kubepods/burstable/podx";
    const LIMITS: ResourceLimits = ResourceLimits {
        cpu_shares: 1024,
        cpu_quota_us: 50_000,
        cpu_period_us: 100_000,
        memory_limit_bytes: 64 << 20,
        oom_score_adj: 0,
    };

    #[test]
    fn v2_pods_get_every_controller_that_each_level_has_and_their_limits() {
        let (tree, cgroups) = FakeV2::new(&[
            ("/", "cpuset cpu io memory pids rdma\n"),
            ("/kubepods", "cpu memory\n"),
            ("/kubepods/burstable", "\n"),
        ]);
        for _ in 0..2 {
            cgroups.ensure(POD, &LIMITS).unwrap();
        }
        let enabled = |path: &str| tree.read(&format!("{path}/cgroup.subtree_control"));
        assert_eq!(enabled("").unwrap(), "+cpuset +cpu +io +memory +pids");
        assert_eq!(enabled("/kubepods").unwrap(), "+cpu +memory");
        assert_eq!(enabled("/kubepods/burstable"), None, "nothing to hand down");
        assert_eq!(enabled(POD), None, "runc's, with the first container");
        let read = |file: &str| tree.read(&format!("{POD}/{file}")).unwrap();
        assert_eq!(read("cpu.weight"), "39");
        assert_eq!(read("cpu.max"), "50000 100000");
        assert_eq!(read("memory.max"), "67108864");
    }

    #[test]
    fn v2_limits_that_are_not_set_are_not_written() {
        let (tree, cgroups) = FakeV2::new(&[("/", "cpu"), ("/kubepods", "cpu")]);
        cgroups
            .ensure("/kubepods/podx", &ResourceLimits::default())
            .unwrap();
        let left = fs::read_dir(join(tree.root.path(), "/kubepods/podx")).unwrap();
        assert_eq!(left.count(), 0);
    }

    #[test]
    fn a_v2_failure_names_the_file_and_the_value() {
        let (tree, cgroups) = FakeV2::new(&[("/", "memory")]);
        fs::create_dir(tree.root.path().join("cgroup.subtree_control")).unwrap();
        let error = cgroups.ensure("/podx", &LIMITS).unwrap_err().to_string();
        assert!(
            error.starts_with("cannot write +memory to ") && error.contains("subtree_control"),
            "{error}"
        );
    }

    #[test]
    fn v2_oom_kills_and_swap_are_read_and_pods_removed_but_never_the_root() {
        let (tree, cgroups) = FakeV2::new(&[("/", "memory"), ("/kubepods/podx/c", "memory")]);
        assert!(cgroups.is_v2() && !cgroups.has_swap_limit());
        fs::write(tree.root.path().join("kubepods/memory.swap.max"), "max").unwrap();
        assert!(cgroups.has_swap_limit());
        let container = tree.root.path().join("kubepods/podx/c");
        assert_eq!(cgroups.oom_kills("/kubepods/podx/c"), None);
        let events = "low 0\noom 5\noom_kill 3\noom_group_kill 0\n";
        fs::write(container.join("memory.events"), events).unwrap();
        assert_eq!(cgroups.oom_kills("/kubepods/podx/c"), Some(3));
        // The kernel's files vanish with their group; these have to be taken away first.
        fs::remove_file(container.join("memory.events")).unwrap();
        fs::remove_file(container.join("cgroup.controllers")).unwrap();
        for _ in 0..2 {
            cgroups.remove("/kubepods/podx").unwrap();
        }
        assert!(!tree.root.path().join("kubepods/podx").exists());
        for root in ["", "/", "//"] {
            cgroups.remove(root).unwrap();
        }
        assert!(tree.root.path().join("kubepods").exists());
    }

    const HYBRID: &str = "\
30 25 0:26 / /sys/fs/cgroup rw shared:9 - tmpfs tmpfs rw,mode=755
31 30 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
32 30 0:28 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
33 30 0:29 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd
34 30 0:30 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
90 30 0:28 / /other/memory rw - cgroup cgroup rw,memory";

    #[test]
    fn hybrid_mode_is_v1_with_a_unified_tree() {
        let cgroups = Cgroups::parse(HYBRID).expect("parsed");
        assert!(!cgroups.is_v2());
        assert_eq!(
            cgroups.controller("cpuacct"),
            Some(Path::new("/sys/fs/cgroup/cpu,cpuacct"))
        );
        assert_eq!(
            cgroups.controller("memory"),
            Some(Path::new("/sys/fs/cgroup/memory"))
        );
        assert_eq!(cgroups.mounts().len(), 4);
    }

    #[test]
    fn a_lone_cgroup2_mount_is_v2_and_none_is_an_error() {
        let text = "30 25 0:26 / /sys/fs/cgroup rw shared:9 - cgroup2 cgroup2 rw,nsdelegate";
        assert_eq!(
            Cgroups::parse(text),
            Some(Cgroups::V2 {
                root: "/sys/fs/cgroup".into()
            })
        );
        assert_eq!(Cgroups::parse("1 1 0:1 / / rw - ext4 /dev/vda rw"), None);
    }

    #[test]
    fn shares_convert_to_weights_as_the_kubelet_converts_them() {
        assert_eq!([2, 1024, 262_144].map(cpu_weight), [1, 39, 10_000]);
    }
}
