//! Names, addresses and paths of a cluster and its nodes, all derived from the cluster's short id.
//! Pure; nothing here touches the machine.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Port of the API server inside the fabric.
pub const API_PORT: u16 = 6443;
/// Port of the image registry inside the fabric.
pub const REGISTRY_PORT: u16 = 5000;

/// The short name that keeps clusters on one machine apart. At most 8 of `a-z0-9`: it is part of
/// unix socket paths, which the kernel limits to 107 bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterId(String);

impl ClusterId {
    /// An id no other test has.
    #[must_use]
    pub fn random() -> Self {
        // Six hex digits of a random UUID; begins with a letter so that it is never a number.
        Self(format!(
            "t{}",
            &uuid::Uuid::new_v4().simple().to_string()[..6]
        ))
    }

    /// What every namespace, cgroup and bpffs directory of the cluster begins with.
    #[must_use]
    pub fn prefix(&self) -> String {
        format!("thp-{}-", self.0)
    }

    /// Name of the namespace with the bridge, the control plane and the registry.
    #[must_use]
    pub fn fabric(&self) -> String {
        format!("{}fabric", self.prefix())
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.0)
    }
}

/// Why a text cannot be a cluster id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InvalidClusterId(String);

impl fmt::Display for InvalidClusterId {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "`{}` cannot be a cluster id: 1 to 8 of a-z and 0-9 are wanted",
            self.0
        )
    }
}

impl std::error::Error for InvalidClusterId {}

impl FromStr for ClusterId {
    type Err = InvalidClusterId;

    fn from_str(text: &str) -> Result<Self, InvalidClusterId> {
        let fits = (1..=8).contains(&text.len())
            && text
                .bytes()
                .all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit());
        if fits {
            Ok(Self(text.to_owned()))
        } else {
            Err(InvalidClusterId(text.to_owned()))
        }
    }
}

/// Where a cluster keeps its things.
#[derive(Debug, Clone)]
pub struct Layout {
    /// The cluster.
    pub id: ClusterId,
    /// Everything large or worth reading afterwards: stores, containerd roots, logs.
    pub state_dir: PathBuf,
    /// Sockets and what must not outlive a reboot. Short, because of unix socket paths.
    pub run_dir: PathBuf,
}

impl Layout {
    /// The layout of cluster `id`, with its state in this workspace's target folder.
    #[must_use]
    pub fn new(id: &ClusterId) -> Self {
        Self {
            id: id.clone(),
            state_dir: target_dir().join("tholepin").join(&id.0),
            run_dir: run_dir_of(id),
        }
    }

    /// The file that says what was started, read by `down` and by the sweep.
    #[must_use]
    pub fn state_file(&self) -> PathBuf {
        self.run_dir.join("cluster.json")
    }

    /// Logs of every process of the cluster.
    #[must_use]
    pub fn log_dir(&self) -> PathBuf {
        self.state_dir.join("logs")
    }

    /// The administrator's kubeconfig.
    #[must_use]
    pub fn kubeconfig(&self) -> PathBuf {
        self.state_dir.join("kubeconfig")
    }

    /// control-lite's data directory.
    #[must_use]
    pub fn control_dir(&self) -> PathBuf {
        self.state_dir.join("control")
    }

    /// Node `number`, counted from 1.
    #[must_use]
    pub fn node(&self, number: u8) -> NodeLayout {
        let name = format!("n{number}");
        NodeLayout {
            number,
            namespace: format!("{}{name}", self.id.prefix()),
            state_dir: self.state_dir.join(&name),
            run_dir: self.run_dir.join(&name),
            log_dir: self.log_dir(),
            name,
        }
    }
}

/// The run directory of a cluster, whichever workspace started it.
#[must_use]
pub fn run_dir_of(id: &ClusterId) -> PathBuf {
    PathBuf::from(format!("/run/tholepin-{id}"))
}

/// IPv4 address of the bridge: control plane and registry.
pub const FABRIC_IPV4: Ipv4Addr = Ipv4Addr::new(172, 30, 0, 1);
/// IPv6 address of the bridge.
pub const FABRIC_IPV6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0x30, 0, 0, 0, 0, 0, 1);

/// Names, addresses and paths of one node.
#[derive(Debug, Clone)]
pub struct NodeLayout {
    /// Counted from 1.
    pub number: u8,
    /// The Kubernetes node name, `n1`.
    pub name: String,
    /// The network namespace, also the name of the bpffs directory and of the cgroup subtree.
    pub namespace: String,
    /// Stores and container roots.
    pub state_dir: PathBuf,
    /// Sockets.
    pub run_dir: PathBuf,
    log_dir: PathBuf,
}

impl NodeLayout {
    /// `172.30.0.11` for the first node.
    #[must_use]
    pub fn ipv4(&self) -> Ipv4Addr {
        Ipv4Addr::new(172, 30, 0, 10 + self.number)
    }

    /// `fd00:30::11` for the first node: the same digits as the IPv4 address ends in.
    #[must_use]
    pub fn ipv6(&self) -> Ipv6Addr {
        let digits = u16::from(10 + self.number);
        let hex = (digits / 100 * 256) + (digits / 10 % 10 * 16) + digits % 10;
        Ipv6Addr::new(0xfd00, 0x30, 0, 0, 0, 0, 0, hex)
    }

    /// containerd's socket.
    #[must_use]
    pub fn containerd_socket(&self) -> PathBuf {
        self.run_dir.join("containerd.sock")
    }

    /// The agent's pins.
    #[must_use]
    pub fn bpffs_root(&self) -> PathBuf {
        Path::new("/sys/fs/bpf").join(&self.namespace)
    }

    /// Parent of every cgroup of the node's pods.
    #[must_use]
    pub fn cgroup_parent(&self) -> String {
        format!("/{}", self.namespace)
    }

    /// Where `node-credentials` writes.
    #[must_use]
    pub fn credentials_dir(&self) -> PathBuf {
        self.state_dir.join("credentials")
    }

    /// The agent's state.
    #[must_use]
    pub fn agent_dir(&self) -> PathBuf {
        self.state_dir.join("agent")
    }

    /// The agent's sockets and pod namespaces.
    #[must_use]
    pub fn agent_run_dir(&self) -> PathBuf {
        self.run_dir.join("agent")
    }

    /// The log of one of the node's processes.
    #[must_use]
    pub fn log(&self, process: &str) -> PathBuf {
        self.log_dir.join(format!("{}-{process}.log", self.name))
    }
}

/// Root of the workspace this program was built from.
#[must_use]
pub fn workspace_root() -> PathBuf {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest
        .ancestors()
        .nth(2)
        .expect("tests/harness is two folders below the root")
        .to_owned()
}

/// The workspace's target folder, as cargo would choose it.
#[must_use]
pub fn target_dir() -> PathBuf {
    match std::env::var_os("CARGO_TARGET_DIR") {
        Some(dir) => workspace_root().join(dir),
        None => workspace_root().join("target"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_short_and_plain() {
        assert!("demo".parse::<ClusterId>().is_ok());
        for wrong in ["", "Demo", "a-b", "toolongid", "../x"] {
            assert!(wrong.parse::<ClusterId>().is_err(), "{wrong}");
        }
        assert!(ClusterId::random().0.parse::<ClusterId>().is_ok());
    }

    #[test]
    fn a_nodes_two_addresses_end_in_the_same_digits() {
        let layout = Layout::new(&"demo".parse().unwrap());
        assert_eq!(layout.node(1).ipv4().to_string(), "172.30.0.11");
        assert_eq!(layout.node(1).ipv6().to_string(), "fd00:30::11");
        assert_eq!(layout.node(12).ipv6().to_string(), "fd00:30::22");
    }

    #[test]
    fn socket_paths_stay_below_the_kernels_limit() {
        let layout = Layout::new(&"abcdefgh".parse().unwrap());
        let longest = layout
            .node(99)
            .agent_run_dir()
            .join("a-file-name-of-thirty-two-chars!");
        assert!(longest.as_os_str().len() < 108);
    }
}
