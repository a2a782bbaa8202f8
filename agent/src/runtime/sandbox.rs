//! Pod sandboxes: namespaces, /dev/shm, cgroup and the record that lets a later agent find them.
//!
//! A sandbox is a directory `<run-dir>/pods/<uid>` with `sandbox.json`, `ns/{net,ipc,uts}`, `shm` and `io`.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use nix::mount::{MsFlags, mount};
use serde::{Deserialize, Serialize};

use super::cgroup::Cgroups;
use super::namespaces::{self, Wanted};
use super::{PodIdentity, RuntimeError, SandboxSpec, journal};

const SHM_OPTIONS: &str = "mode=1777,size=65536k";

/// Attempts at removing a cgroup whose last process is still being reaped by the kernel, which has no
/// event for it.
const CGROUP_REMOVAL_ATTEMPTS: u32 = 50;
const CGROUP_REMOVAL_PAUSE: Duration = Duration::from_millis(20);

/// What `sandbox.json` holds.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Sandbox {
    pub(super) uid: String,
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) hostname: String,
    pub(super) host_network: bool,
    pub(super) host_pid: bool,
    pub(super) host_ipc: bool,
    /// Absolute from the cgroup root, the parent included.
    pub(super) cgroup_path: String,
    pub(super) sysctls: BTreeMap<String, String>,
    pub(super) created_at: SystemTime,
}

impl Sandbox {
    pub(super) fn pod(&self) -> PodIdentity {
        PodIdentity {
            uid: self.uid.clone(),
            namespace: self.namespace.clone(),
            name: self.name.clone(),
        }
    }

    /// A pod in the host's network also keeps the host's name, as upstream has it.
    pub(super) fn wanted(&self) -> Wanted {
        Wanted {
            net: !self.host_network,
            ipc: !self.host_ipc,
            uts: !self.host_network,
        }
    }

    /// Sysctls of a new network namespace, the pod's own last. The two defaults are containerd 2.0's:
    /// low ports and ping without a capability.
    fn all_sysctls(&self) -> Vec<(String, String)> {
        let defaults = [
            ("net.ipv4.ip_unprivileged_port_start", "0"),
            ("net.ipv4.ping_group_range", "0 2147483647"),
        ];
        let defaults = defaults
            .into_iter()
            .filter(|(name, _)| !self.host_network && !self.sysctls.contains_key(*name))
            .map(|(name, value)| (name.to_owned(), value.to_owned()));
        defaults
            .chain(
                self.sysctls
                    .iter()
                    .map(|(name, value)| (name.clone(), value.clone())),
            )
            .collect()
    }
}

/// Directories of all sandboxes. Methods block for milliseconds: call them on the blocking pool.
#[derive(Clone, Debug)]
pub(super) struct Sandboxes {
    directory: PathBuf,
    cgroup_parent: String,
    cgroups: Cgroups,
}

impl Sandboxes {
    pub(super) fn open(run_dir: &Path, cgroup_parent: &str, cgroups: Cgroups) -> io::Result<Self> {
        let directory = run_dir.join("pods");
        fs::create_dir_all(&directory)?;
        Ok(Self {
            directory,
            cgroup_parent: cgroup_parent.trim_end_matches('/').into(),
            cgroups,
        })
    }

    pub(super) fn cgroups(&self) -> &Cgroups {
        &self.cgroups
    }

    pub(super) fn directory(&self, uid: &str) -> PathBuf {
        self.directory.join(uid)
    }

    pub(super) fn namespace_pin(&self, uid: &str, kind: &str) -> PathBuf {
        self.directory(uid).join("ns").join(kind)
    }

    pub(super) fn shm(&self, uid: &str) -> PathBuf {
        self.directory(uid).join("shm")
    }

    /// Where the FIFOs of one container are.
    pub(super) fn io(&self, uid: &str, container: &str) -> PathBuf {
        self.directory(uid).join("io").join(container)
    }

    /// Makes what is missing of the sandbox.
    pub(super) fn ensure(&self, spec: &SandboxSpec) -> Result<Sandbox, RuntimeError> {
        let pod = subject(&spec.pod);
        if !is_path_safe(&spec.pod.uid) {
            let message = format!("uid {:?} is not usable as a file name", spec.pod.uid);
            return Err(RuntimeError::InvalidSpec {
                subject: pod,
                message,
            });
        }
        let failed = |operation| operation_failed(operation, pod.clone());
        let directory = self.directory(&spec.pod.uid);
        fs::create_dir_all(&directory).map_err(failed("make the directory of"))?;
        let sandbox = match self
            .read(&spec.pod.uid)
            .map_err(failed("read the record of"))?
        {
            Some(sandbox) => sandbox,
            None => self.record(spec).map_err(failed("record"))?,
        };
        self.cgroups
            .ensure(&sandbox.cgroup_path, &spec.resources)
            .map_err(failed("make the cgroup of"))?;
        namespaces::ensure(
            &directory.join("ns"),
            sandbox.wanted(),
            &sandbox.hostname,
            &sandbox.all_sysctls(),
        )
        .map_err(failed("make the namespaces of"))?;
        if !sandbox.host_ipc {
            ensure_shm(&self.shm(&spec.pod.uid)).map_err(failed("mount /dev/shm of"))?;
        }
        Ok(sandbox)
    }

    fn record(&self, spec: &SandboxSpec) -> io::Result<Sandbox> {
        let sandbox = Sandbox {
            uid: spec.pod.uid.clone(),
            namespace: spec.pod.namespace.clone(),
            name: spec.pod.name.clone(),
            hostname: spec.hostname.clone(),
            host_network: spec.host_network,
            host_pid: spec.host_pid,
            host_ipc: spec.host_ipc,
            cgroup_path: format!(
                "{}/{}",
                self.cgroup_parent,
                spec.cgroup_path.trim_start_matches('/')
            ),
            sysctls: spec.sysctls.clone(),
            created_at: SystemTime::now(),
        };
        let path = self.directory(&spec.pod.uid).join("sandbox.json");
        journal::write_atomically(&path, &serde_json::to_vec(&sandbox)?, false)?;
        Ok(sandbox)
    }

    pub(super) fn read(&self, uid: &str) -> io::Result<Option<Sandbox>> {
        match fs::read(self.directory(uid).join("sandbox.json")) {
            Ok(bytes) => Ok(Some(serde_json::from_slice(&bytes)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Every sandbox with a record. One unreadable record must not hide the others: it is logged.
    pub(super) fn list(&self) -> io::Result<Vec<Sandbox>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.directory)? {
            let name = entry?.file_name();
            let Some(uid) = name.to_str() else {
                continue;
            };
            match self.read(uid) {
                Ok(sandbox) => found.extend(sandbox),
                Err(error) => tracing::warn!(pod_uid = uid, %error, "unreadable sandbox record"),
            }
        }
        Ok(found)
    }

    pub(super) fn is_ready(&self, sandbox: &Sandbox) -> bool {
        namespaces::are_alive(&self.directory(&sandbox.uid).join("ns"), sandbox.wanted())
            && (sandbox.host_ipc || is_mount_point(&self.shm(&sandbox.uid)))
    }

    /// Removes everything but the record's own directory if others keep files there. The record goes
    /// last, so that a removal that was interrupted is found again.
    pub(super) fn remove(&self, pod: &PodIdentity) -> Result<(), RuntimeError> {
        let failed = |operation| operation_failed(operation, subject(pod));
        if !is_path_safe(&pod.uid) {
            return Ok(());
        }
        let directory = self.directory(&pod.uid);
        let record = self.read(&pod.uid).map_err(failed("read the record of"))?;
        namespaces::remove(&directory.join("ns")).map_err(failed("unpin the namespaces of"))?;
        let shm = self.shm(&pod.uid);
        namespaces::unmount(&shm).map_err(failed("unmount /dev/shm of"))?;
        gone(fs::remove_dir(&shm)).map_err(failed("remove /dev/shm of"))?;
        gone(fs::remove_dir_all(directory.join("io"))).map_err(failed("remove the FIFOs of"))?;
        if let Some(sandbox) = record {
            self.remove_cgroup(&sandbox.cgroup_path)
                .map_err(failed("remove the cgroup of"))?;
        }
        gone(fs::remove_file(directory.join("sandbox.json")))
            .map_err(failed("remove the record of"))?;
        match fs::remove_dir(&directory) {
            Err(error) if error.kind() != io::ErrorKind::DirectoryNotEmpty => {
                gone(Err(error)).map_err(failed("remove the directory of"))
            }
            _ => Ok(()),
        }
    }

    fn remove_cgroup(&self, path: &str) -> io::Result<()> {
        let mut attempt = 0;
        loop {
            match self.cgroups.remove(path) {
                Err(error)
                    if error.kind() == io::ErrorKind::ResourceBusy
                        && attempt < CGROUP_REMOVAL_ATTEMPTS =>
                {
                    attempt += 1;
                    pause(CGROUP_REMOVAL_PAUSE);
                }
                outcome => return outcome,
            }
        }
    }
}

#[expect(
    clippy::disallowed_methods,
    reason = "runs on the blocking pool, never on a worker"
)]
fn pause(duration: Duration) {
    std::thread::sleep(duration);
}

fn ensure_shm(path: &Path) -> io::Result<()> {
    if is_mount_point(path) {
        return Ok(());
    }
    fs::create_dir_all(path)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    Ok(mount(
        Some("shm"),
        path,
        Some("tmpfs"),
        flags,
        Some(SHM_OPTIONS),
    )?)
}

/// Whether `path` is on another device than its parent. Enough for the tmpfs mounts made here.
fn is_mount_point(path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;
    let device = |path: &Path| fs::metadata(path).map(|metadata| metadata.dev()).ok();
    let own = device(path);
    own.is_some() && own != path.parent().and_then(device)
}

/// Uids are written by the API server (or are hashes of static pods): nothing else may become a path.
fn is_path_safe(uid: &str) -> bool {
    !uid.is_empty()
        && !uid.starts_with('.')
        && uid
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

pub(super) fn subject(pod: &PodIdentity) -> String {
    format!("sandbox of pod {}/{}", pod.namespace, pod.name)
}

/// Wraps an I/O failure of one step.
pub(super) fn operation_failed(
    operation: &'static str,
    subject: String,
) -> impl FnOnce(io::Error) -> RuntimeError {
    move |error| RuntimeError::Operation {
        operation,
        subject,
        source: Box::new(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_names_become_paths() {
        assert!(is_path_safe("4b1c6d1e-0f5c-4b0e-9a7e-1d2c3b4a5f60"));
        for bad in ["", "..", ".hidden", "a/b", "a b"] {
            assert!(!is_path_safe(bad), "{bad:?}");
        }
    }
}
