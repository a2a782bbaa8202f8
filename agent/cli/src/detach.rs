//! `detach-all`: takes the dataplane off this node and puts back what the agent had changed.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use serde_json::json;
use tholepin_agent::dataplane::attach;
use tholepin_agent::netlink::Netlink;
use tholepin_agent::netlink::sysctl::journal::Journal;
use tholepin_agent::network::names::{HOST_DEVICE, HOST_PEER, OVERLAY_DEVICE, is_host_interface};
use tholepin_agent::network::node::boot_id;
use tholepin_ebpf_abi::names;

use crate::Place;
use crate::output::{self, Format};

/// Remove the dataplane from this node: programs, maps, devices, and changed settings
///
/// Stop the agent first. Without --yes the command only says what it would remove. Pods that still run
/// lose their network; Services stop working on this node. What is removed: pinned links and maps of every
/// version (with them the programs on interfaces and cgroups), clsact filters of ours on all interfaces, the
/// devices thp_host, thp_net, thp_vxlan and those of pods with their routes, and the sysctls that the agent
/// has changed get their former values. Address leases stay. A second run finds nothing.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Do it
    #[arg(long)]
    yes: bool,
}

/// One thing to remove or to put back.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Item {
    /// A pin of a link; the program comes off with it.
    Link(PathBuf),
    /// Our filter on an interface's clsact qdisc.
    Filter {
        program: &'static str,
        interface: String,
    },
    Device(String),
    Map(PathBuf),
    /// An emptied directory of pins.
    Directory(PathBuf),
    Setting {
        name: String,
        value: String,
    },
}

impl std::fmt::Display for Item {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Link(path) => write!(f, "link       {}", path.display()),
            Self::Filter { program, interface } => write!(f, "filter     {program} on {interface}"),
            Self::Device(name) => write!(f, "device     {name}"),
            Self::Map(path) => write!(f, "map        {}", path.display()),
            Self::Directory(path) => write!(f, "directory  {}", path.display()),
            Self::Setting { name, value } => write!(f, "sysctl     {name} back to `{value}`"),
        }
    }
}

pub(crate) fn run(place: &Place, options: &Options) -> Result<ExitCode> {
    if UnixStream::connect(place.run_dir.join("agent.sock")).is_ok() {
        bail!("the agent is running and would put everything back: stop it first");
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let items = runtime.block_on(find(place))?;
    let mut failures = 0;
    if options.yes {
        for item in &items {
            if let Err(error) = runtime.block_on(remove(item, place)) {
                eprintln!("error: {item}: {error:#}");
                failures += 1;
            }
        }
    }
    if options.yes && failures == 0 {
        Journal::at(&place.state_dir)
            .forget()
            .context("cannot remove the journal of sysctls")?;
    }
    let done = if options.yes {
        "removed"
    } else {
        "would remove"
    };
    match place.output {
        Format::Json => {
            let list: Vec<String> = items.iter().map(ToString::to_string).collect();
            output::print_json(
                &json!({ "done": options.yes, "items": list, "failures": failures }),
            )?;
        }
        Format::Table if items.is_empty() => {
            output::print("nothing of Tholepin is on this node\n")?
        }
        Format::Table => {
            let lines: String = items
                .iter()
                .map(|item| format!("{done} {item}\n"))
                .collect();
            output::print(&lines)?;
            if !options.yes {
                output::print("\nnothing was changed: run it again with --yes\n")?;
            }
        }
    }
    Ok(if failures == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Everything, in the order of removal: programs come off before what they use goes away.
async fn find(place: &Place) -> Result<Vec<Item>> {
    let netlink = Netlink::open()?;
    let links = netlink.links().await?;
    let (mut pins, mut maps, mut directories) = (Vec::new(), Vec::new(), Vec::new());
    let root = &place.bpffs_root;
    for version in entries(root)?.into_iter().filter(|path| is_version(path)) {
        for link in entries(&version.join("links"))? {
            pins.push(Item::Link(link));
        }
        for entry in entries(&version)? {
            if !entry.is_dir() {
                maps.push(Item::Map(entry));
            }
        }
        for directory in [version.join("links"), version] {
            if directory.is_dir() {
                directories.push(Item::Directory(directory));
            }
        }
    }
    if root.is_dir() {
        directories.push(Item::Directory(root.clone()));
    }
    let ours =
        |name: &str| [HOST_DEVICE, OVERLAY_DEVICE].contains(&name) || is_host_interface(name);
    let mut items = pins;
    let foreign = links
        .iter()
        .filter(|link| !ours(&link.name) && link.name != HOST_PEER);
    for link in foreign {
        if netlink
            .has_ingress_filter(link.index, attach::UNDERLAY_PRIORITY)
            .await?
        {
            items.push(Item::Filter {
                program: names::UNDERLAY_IN,
                interface: link.name.clone(),
            });
        }
    }
    let devices: BTreeSet<String> = links
        .into_iter()
        .map(|link| link.name)
        .filter(|name| ours(name))
        .collect();
    items.extend(devices.into_iter().map(Item::Device));
    items.extend(maps);
    items.extend(directories);
    let changed = Journal::at(&place.state_dir).changed(&boot_id()?);
    items.extend(
        changed
            .into_iter()
            .map(|(name, value)| Item::Setting { name, value }),
    );
    Ok(items)
}

async fn remove(item: &Item, place: &Place) -> Result<()> {
    match item {
        Item::Link(path) | Item::Map(path) => gone(fs::remove_file(path))?,
        Item::Directory(path) => gone(fs::remove_dir(path))?,
        Item::Filter { program, interface } => attach::remove_filter(program, interface)?,
        Item::Device(name) => Netlink::open()?.delete_link(name).await?,
        Item::Setting { name, value } => Journal::at(&place.state_dir).restore(name, value)?,
    }
    Ok(())
}

/// What is not there any more has been removed.
fn gone(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn entries(directory: &Path) -> Result<Vec<PathBuf>> {
    let listing = match fs::read_dir(directory) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.with_context(|| format!("cannot list {}", directory.display()))?,
    };
    let mut paths: Vec<PathBuf> = listing.flatten().map(|entry| entry.path()).collect();
    paths.sort();
    Ok(paths)
}

/// `v1`, `v2`, …: the pins of one ABI version.
fn is_version(path: &Path) -> bool {
    let name = path
        .file_name()
        .and_then(|name| name.to_str())
        .unwrap_or_default();
    name.strip_prefix('v')
        .is_some_and(|number| number.parse::<u32>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_directories_of_an_abi_version_are_taken_for_pins() {
        assert!(is_version(Path::new("/sys/fs/bpf/tholepin/v2")));
        for other in ["v", "vx", "links", "2"] {
            assert!(!is_version(Path::new(other)), "{other}");
        }
    }

    #[test]
    fn what_is_not_there_is_no_failure() {
        assert!(
            entries(Path::new("/no/such/directory"))
                .expect("empty")
                .is_empty()
        );
        assert!(gone(fs::remove_file("/no/such/file")).is_ok());
    }
}
