//! A containerd of a node's own: its own root, state, socket and configuration, without the CRI plugin
//! (the agent uses containerd's native API).

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::command;
use crate::layout::NodeLayout;
use crate::process::Process;
use crate::tools::Versioned;

/// containerd's namespace for everything of ours.
pub const NAMESPACE: &str = "tholepin";

/// Plugins that are not used here, by their names in containerd 1.6 and 2.x: CRI (it would look for CNI
/// configuration and a default pause image), NRI and snapshotters whose file systems may be missing.
const DISABLED: [&str; 10] = [
    "io.containerd.grpc.v1.cri",
    "io.containerd.cri.v1.images",
    "io.containerd.cri.v1.runtime",
    "io.containerd.podsandbox.controller.v1.podsandbox",
    "io.containerd.nri.v1.nri",
    "io.containerd.snapshotter.v1.aufs",
    "io.containerd.snapshotter.v1.btrfs",
    "io.containerd.snapshotter.v1.devmapper",
    "io.containerd.snapshotter.v1.zfs",
    "io.containerd.internal.v1.tracing",
];

/// The configuration of a node's containerd; version 2 is read by 1.6 and by 2.x.
fn configuration(node: &NodeLayout) -> String {
    let disabled: Vec<String> = DISABLED.iter().map(|name| format!("\"{name}\"")).collect();
    format!(
        "version = 2\n\
         root = \"{root}\"\n\
         state = \"{state}\"\n\
         disabled_plugins = [{disabled}]\n\
         [grpc]\n\
         address = \"{socket}\"\n\
         [ttrpc]\n\
         address = \"{socket}.ttrpc\"\n",
        root = root_dir(node).display(),
        state = state_dir(node).display(),
        disabled = disabled.join(", "),
        socket = node.containerd_socket().display(),
    )
}

/// containerd's root: content, snapshots, its database.
#[must_use]
pub fn root_dir(node: &NodeLayout) -> PathBuf {
    node.state_dir.join("containerd")
}

/// containerd's state: the bundles of running containers.
#[must_use]
pub fn state_dir(node: &NodeLayout) -> PathBuf {
    node.run_dir.join("containerd")
}

/// Starts containerd in the node's namespace and waits until it answers.
pub fn start(node: &NodeLayout, containerd: &Versioned) -> Result<Process> {
    fs::create_dir_all(root_dir(node))?;
    fs::create_dir_all(&node.run_dir)?;
    let file = node.state_dir.join("containerd.toml");
    fs::write(&file, configuration(node))
        .with_context(|| format!("cannot write {}", file.display()))?;
    let mut command = Command::new(&containerd.path);
    command.arg("--config").arg(&file);
    // Its own shim first: containerd looks shims up on PATH.
    let own = containerd
        .path
        .parent()
        .unwrap_or(Path::new("/usr/bin"))
        .to_owned();
    let path = std::env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"].map(PathBuf::from);
    let dirs = std::iter::once(own)
        .chain(std::env::split_paths(&path))
        .chain(system);
    command.env("PATH", std::env::join_paths(dirs)?);
    let name = format!("{}-containerd", node.name);
    let mut process = Process::start(
        &name,
        command,
        Some(&node.namespace),
        &node.log("containerd"),
    )?;
    let socket = node.containerd_socket();
    process.wait_until("its socket", Duration::from_secs(60), || {
        UnixStream::connect(&socket).is_ok()
    })?;
    Ok(process)
}

/// `ctr` against the node's containerd, in our containerd namespace.
#[must_use]
pub fn ctr(node: &NodeLayout, containerd: &Versioned) -> Command {
    let mut command = Command::new(containerd.path.with_file_name("ctr"));
    command
        .arg("--address")
        .arg(node.containerd_socket())
        .args(["--namespace", NAMESPACE]);
    command
}

/// Loads an OCI archive into the node's containerd.
pub fn import(node: &NodeLayout, containerd: &Versioned, archive: &Path) -> Result<()> {
    command::run(
        ctr(node, containerd)
            .args(["images", "import"])
            .arg(archive),
    )
    .with_context(|| format!("cannot load {} into {}", archive.display(), node.name))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::layout::Layout;

    #[test]
    fn the_configuration_keeps_nodes_apart_and_cri_off() {
        let layout = Layout::new(&"demo".parse().unwrap());
        let (one, two) = (
            configuration(&layout.node(1)),
            configuration(&layout.node(2)),
        );
        assert!(
            one.contains("/run/tholepin-demo/n1/containerd.sock"),
            "{one}"
        );
        assert!(
            two.contains("/run/tholepin-demo/n2/containerd.sock"),
            "{two}"
        );
        assert!(one.contains("io.containerd.grpc.v1.cri"));
    }
}
