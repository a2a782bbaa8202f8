//! A containerd of the test's own with the driver over it, and the removal of every trace of both.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use tholepin_agent::runtime::containerd::{ContainerdRuntime, RuntimeConfig};
use tholepin_agent::runtime::log_file;
use tholepin_agent::runtime::{
    ContainerExit, ContainerSpec, ContainerState, PodIdentity, RealizedContainer, ResourceLimits,
    Runtime, SandboxSpec,
};
use tholepin_harness::cleanup::ShimTraces;
use tholepin_harness::image::{Image, Recipe};
use tholepin_harness::{Process, skip, tools};

pub(crate) const BUSYBOX: &str = "tholepin.test/busybox:1";
/// Generous: a test of a loaded machine must not fail because the machine is loaded.
const LIMIT: Duration = Duration::from_secs(60);

/// One containerd, its directories and its cgroup.
pub(crate) struct World {
    pub(crate) containerd: Option<Process>,
    pub(crate) cgroup: String,
    version: tools::Versioned,
    dir: TempDir,
}

impl World {
    /// `None` after the skip was reported.
    pub(crate) fn start() -> Option<Self> {
        skip::unless(skip::root())?;
        let wanted = std::env::var("THOLEPIN_CONTAINERD").ok();
        let version = skip::unless(tools::containerd(wanted.as_deref()))?;
        // Short, because the path of a unix socket is limited.
        let dir = tempfile::Builder::new()
            .prefix("thprt-")
            .tempdir_in("/tmp")
            .unwrap();
        let id = dir.path().file_name().unwrap().to_str().unwrap().to_owned();
        let mut world = Self {
            containerd: None,
            cgroup: format!("/{id}"),
            version,
            dir,
        };
        world.start_containerd();
        world.import(
            &Recipe::new(&[], &["sh"])
                .with_busybox()
                .unwrap()
                .build(BUSYBOX)
                .unwrap(),
        );
        Some(world)
    }

    pub(crate) fn start_containerd(&mut self) {
        let config = self.path("containerd.toml");
        let text = format!(
            "version = 2\nroot = \"{root}\"\nstate = \"{state}\"\n\
             disabled_plugins = [\"io.containerd.grpc.v1.cri\", \"io.containerd.cri.v1.images\", \
             \"io.containerd.cri.v1.runtime\", \"io.containerd.nri.v1.nri\", \
             \"io.containerd.podsandbox.controller.v1.podsandbox\"]\n\
             [grpc]\naddress = \"{socket}\"\n[ttrpc]\naddress = \"{socket}.ttrpc\"\n",
            root = self.path("root").display(),
            state = self.path("state").display(),
            socket = self.socket().display(),
        );
        fs::write(&config, text).unwrap();
        let mut command = Command::new(&self.version.path);
        command.arg("--config").arg(&config);
        let own = self.version.path.parent().unwrap().display().to_string();
        command.env("PATH", format!("{own}:/usr/sbin:/usr/bin:/sbin:/bin"));
        let log = self.path("containerd.log");
        let mut process = Process::start("containerd", command, None, &log).unwrap();
        let socket = self.socket();
        process
            .wait_until("its socket", LIMIT, || UnixStream::connect(&socket).is_ok())
            .unwrap();
        self.containerd = Some(process);
    }

    pub(crate) fn kill_containerd(&mut self) {
        self.containerd.take().unwrap().kill().unwrap();
    }

    pub(crate) fn import(&self, image: &Image) {
        let archive = self.path("image.tar");
        fs::write(&archive, image.archive().unwrap()).unwrap();
        self.ctr(&["images", "import", archive.to_str().unwrap()]);
    }

    pub(crate) fn ctr(&self, args: &[&str]) -> String {
        let output = Command::new(self.version.path.with_file_name("ctr"))
            .arg("--address")
            .arg(self.socket())
            .args(["--namespace", "tholepin"])
            .args(args)
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "ctr {args:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.path("c.sock")
    }

    pub(crate) fn config(&self) -> RuntimeConfig {
        RuntimeConfig {
            socket: self.socket(),
            run_dir: self.path("run"),
            state_dir: self.path("lib"),
            cgroup_parent: self.cgroup.clone(),
            holder: Some(env!("CARGO_BIN_EXE_tholepin-holder").into()),
            ..RuntimeConfig::default()
        }
    }

    pub(crate) fn runtime(&self) -> ContainerdRuntime {
        ContainerdRuntime::new(self.config()).unwrap()
    }

    pub(crate) fn sandbox(&self, name: &str) -> SandboxSpec {
        SandboxSpec {
            pod: pod(name),
            hostname: name.into(),
            host_network: false,
            host_pid: false,
            host_ipc: false,
            cgroup_path: format!("/kubepods/besteffort/poduid-{name}"),
            resources: ResourceLimits::default(),
            sysctls: BTreeMap::new(),
        }
    }

    /// A container that runs `script` in busybox's shell.
    pub(crate) fn shell(&self, pod_name: &str, name: &str, script: &str) -> ContainerSpec {
        ContainerSpec {
            pod: pod(pod_name),
            name: name.into(),
            attempt: 0,
            image: BUSYBOX.into(),
            command: vec!["/bin/sh".into(), "-c".into(), script.into()],
            args: Vec::new(),
            working_dir: None,
            env: Vec::new(),
            mounts: Vec::new(),
            run_as_user: None,
            run_as_group: None,
            run_as_non_root: false,
            supplemental_groups: Vec::new(),
            privileged: false,
            read_only_root: false,
            allow_privilege_escalation: true,
            added_capabilities: Vec::new(),
            dropped_capabilities: Vec::new(),
            resources: ResourceLimits {
                oom_score_adj: 1000,
                ..ResourceLimits::default()
            },
            stdin: false,
            stdin_once: false,
            tty: false,
            log_path: self.path("log").join(pod_name).join(name).join("0.log"),
            labels: BTreeMap::from([("hash".into(), "abc".into())]),
        }
    }

    /// The log's messages, rotated parts first, with their stream and tag, without the times.
    pub(crate) fn log(&self, spec: &ContainerSpec) -> Vec<String> {
        // A silent container has none yet.
        let mut files = log_file::rotated(&spec.log_path).unwrap_or_default();
        files.push(spec.log_path.clone());
        let text: String = files
            .iter()
            .map(|path| fs::read_to_string(path).unwrap_or_default())
            .collect();
        text.lines()
            .map(|line| line.split_once(' ').unwrap().1.to_owned())
            .collect()
    }

    pub(crate) fn pids_of_shims(&self) -> Vec<i32> {
        let socket = self.socket().display().to_string();
        processes(|cmdline| cmdline.contains("containerd-shim") && cmdline.contains(&socket))
    }

    /// Processes that hold the output of containers for when no agent runs.
    pub(crate) fn pids_of_holders(&self) -> Vec<i32> {
        let run = self.path("run").display().to_string();
        processes(|cmdline| cmdline.contains("hold-output") && cmdline.contains(&run))
    }

    fn mounts(&self) -> Vec<PathBuf> {
        let own = self.dir.path().display().to_string();
        let text = fs::read_to_string("/proc/self/mountinfo").unwrap();
        let points = text.lines().filter_map(|line| line.split(' ').nth(4));
        points
            .filter(|point| point.starts_with(&own))
            .map(PathBuf::from)
            .collect()
    }

    fn cgroups(&self) -> Vec<PathBuf> {
        let trees = fs::read_dir("/sys/fs/cgroup")
            .unwrap()
            .flatten()
            .map(|tree| tree.path());
        trees
            .chain([PathBuf::from("/sys/fs/cgroup")])
            .map(|tree| tree.join(self.cgroup.trim_start_matches('/')))
            .filter(|path| path.is_dir())
            .collect()
    }

    /// Panics if a pod that was removed left a mount, a cgroup or a process behind.
    pub(crate) async fn assert_clean(&self, pod_name: &str) {
        let run = self.path("run").display().to_string();
        let left: Vec<_> = self
            .mounts()
            .into_iter()
            .filter(|mount| mount.starts_with(&run))
            .collect();
        assert!(left.is_empty(), "mounts left: {left:?}");
        for cgroup in self.cgroups() {
            let pod = cgroup.join(format!("kubepods/besteffort/poduid-{pod_name}"));
            assert!(!pod.exists(), "cgroup left: {}", pod.display());
        }
        assert!(
            !self
                .path("run/pods")
                .join(format!("uid-{pod_name}"))
                .exists(),
            "directory left"
        );
        eventually("the shim ends", || self.pids_of_shims().is_empty()).await;
        eventually("the holder ends", || self.pids_of_holders().is_empty()).await;
        assert_eq!(self.ctr(&["containers", "ls", "-q"]), "");
        assert_eq!(
            fs::read_dir(self.path("lib/containers")).unwrap().count(),
            0,
            "journal left"
        );
        let snapshots = self.ctr(&["snapshots", "ls"]);
        assert!(!snapshots.contains(" Active"), "snapshot left: {snapshots}");
        assert!(!snapshots.contains(" View"), "view left: {snapshots}");
    }
}

/// Ends what the test started, by pid, whatever state it failed in.
impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let log = fs::read_to_string(self.path("containerd.log")).unwrap_or_default();
            let tail: Vec<_> = log.lines().rev().take(15).collect();
            eprintln!("the end of containerd's log:");
            tail.iter().rev().for_each(|line| eprintln!("  {line}"));
        }
        let end = Instant::now() + LIMIT;
        let traces = ShimTraces::of_containerd(&self.path("state"));
        let kill_all = |pids: Vec<i32>| {
            pids.iter()
                .for_each(|pid| _ = kill(Pid::from_raw(*pid), Signal::SIGKILL).ok());
            pids.is_empty()
        };
        if let Some(mut containerd) = self.containerd.take() {
            containerd.kill().ok();
        }
        loop {
            let shims = kill_all(self.pids_of_shims());
            kill_all(self.pids_of_holders());
            let mut pids = Vec::new();
            self.cgroups()
                .iter()
                .for_each(|cgroup| pids_below(cgroup, &mut pids));
            if (shims && kill_all(pids)) || Instant::now() > end {
                break;
            }
            pause();
        }
        for mount in self.mounts().into_iter().rev() {
            umount2(&mount, MntFlags::MNT_DETACH).ok();
        }
        while !self.cgroups().is_empty() && Instant::now() < end {
            self.cgroups()
                .iter()
                .for_each(|cgroup| remove_cgroup(cgroup));
            pause();
        }
        traces.remove();
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "in a destructor, where nothing can be awaited"
)]
fn pause() {
    std::thread::sleep(Duration::from_millis(10));
}

fn processes(matches: impl Fn(&str) -> bool) -> Vec<i32> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            let cmdline = fs::read(entry.path().join("cmdline")).ok()?;
            matches(&String::from_utf8_lossy(&cmdline)).then_some(pid)
        })
        .collect()
}

fn pids_below(cgroup: &Path, pids: &mut Vec<i32>) {
    let text = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            pids_below(&entry.path(), pids);
        }
    }
}

fn remove_cgroup(cgroup: &Path) {
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.path().is_dir() {
            remove_cgroup(&entry.path());
        }
    }
    fs::remove_dir(cgroup).ok();
}

pub(crate) fn pod(name: &str) -> PodIdentity {
    PodIdentity {
        uid: format!("uid-{name}"),
        namespace: "default".into(),
        name: name.into(),
    }
}

/// Waits for something that has no event to wait for.
pub(crate) async fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + LIMIT;
    while !holds() {
        assert!(Instant::now() < end, "not within {LIMIT:?}: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// The only container called `name`, as the driver lists it.
pub(crate) async fn container(runtime: &dyn Runtime, name: &str) -> RealizedContainer {
    let found = runtime.list().await.unwrap();
    let mut containers = found.into_iter().flat_map(|sandbox| sandbox.containers);
    containers
        .find(|container| container.name == name)
        .expect("listed")
}

/// Waits by `changes()` alone until the container has ended.
pub(crate) async fn exit_of(runtime: &dyn Runtime, name: &str) -> ContainerExit {
    let mut changes = runtime.changes();
    let waiting = async {
        loop {
            changes.borrow_and_update();
            if let ContainerState::Exited(exit) = container(runtime, name).await.state {
                return exit;
            }
            changes.changed().await.unwrap();
        }
    };
    tokio::time::timeout(LIMIT, waiting).await.expect("an exit")
}
