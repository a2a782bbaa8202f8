//! The pin directory on the bpffs: where maps and links outlive the agent.
//!
//! aya takes whatever is at a pin path without looking, so a pinned map is compared with the ABI here
//! before the programs are loaded.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use aya::maps::{MapInfo, MapType};
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, statfs};
use tholepin_ebpf_abi as abi;
use tholepin_ebpf_abi::names;

/// Why the pins cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PinError {
    #[error("failed to {operation} {}", path.display())]
    Io {
        operation: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("{} is not on a bpffs; mount one there, or choose a directory below /sys/fs/bpf", path.display())]
    NotBpffs { path: PathBuf },
    #[error("failed to inspect the pinned map {}", path.display())]
    Inspect {
        path: PathBuf,
        source: aya::maps::MapError,
    },
    #[error(
        "the pinned map {} has another layout than this agent's: found {found}, expected {expected}; \
         remove it (established connections through Services are lost) or run the agent that made it",
        path.display()
    )]
    Layout {
        path: PathBuf,
        found: MapLayout,
        expected: MapLayout,
    },
}

/// What must agree before a pinned map is used.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct MapLayout {
    pub map_type: MapType,
    pub key_size: u32,
    pub value_size: u32,
    pub max_entries: u32,
    pub flags: u32,
}

impl std::fmt::Display for MapLayout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            map_type,
            key_size,
            value_size,
            max_entries,
            flags,
        } = self;
        write!(
            f,
            "{map_type:?} with {key_size}-byte keys, {value_size}-byte values, \
             {max_entries} entries, flags {flags:#x}"
        )
    }
}

/// Layout of a map of this ABI; `None` for a name that is not one.
#[must_use]
pub fn expected_layout(name: &str) -> Option<MapLayout> {
    const NO_PREALLOC: u32 = 1;
    fn layout<K, V>(map_type: MapType, entries: usize, flags: u32) -> MapLayout {
        let size = |bytes: usize| u32::try_from(bytes).expect("keys and values are small");
        MapLayout {
            map_type,
            key_size: size(size_of::<K>()),
            value_size: size(size_of::<V>()),
            max_entries: size(entries),
            flags,
        }
    }
    use MapType::{Array, Hash, LpmTrie, LruHash, PerCpuArray, RingBuf, SkStorage};
    Some(match name {
        names::FRONTENDS => layout::<abi::FrontendKey, abi::FrontendValue>(
            Hash,
            names::FRONTENDS_CAPACITY,
            NO_PREALLOC,
        ),
        names::BACKEND_SLOTS => {
            layout::<u32, abi::SlotValue>(Array, names::BACKEND_SLOTS_CAPACITY, 0)
        }
        names::BACKENDS => layout::<u32, abi::BackendValue>(Array, names::BACKENDS_CAPACITY, 0),
        names::CONNTRACK => {
            layout::<abi::FlowKey, abi::ConntrackEntry>(LruHash, names::CONNTRACK_CAPACITY, 0)
        }
        names::WORKLOADS => layout::<u32, abi::WorkloadValue>(Array, names::WORKLOADS_CAPACITY, 0),
        names::POD_ROUTES => layout::<abi::RouteKey, abi::RouteValue>(
            LpmTrie,
            names::POD_ROUTES_CAPACITY,
            NO_PREALLOC,
        ),
        names::FRAGMENTS => {
            layout::<abi::FragmentKey, abi::FragmentValue>(LruHash, names::FRAGMENTS_CAPACITY, 0)
        }
        names::AFFINITY => {
            layout::<abi::AffinityKey, abi::AffinityValue>(LruHash, names::AFFINITY_CAPACITY, 0)
        }
        names::SOURCE_RANGES => layout::<abi::SourceRangeKey, abi::SourceRangeValue>(
            LpmTrie,
            names::SOURCE_RANGES_CAPACITY,
            NO_PREALLOC,
        ),
        names::POLICY_PEERS => layout::<abi::PolicyPeerKey, abi::PolicyPeerValue>(
            LpmTrie,
            names::POLICY_PEERS_CAPACITY,
            NO_PREALLOC,
        ),
        names::POLICY_PORTS => layout::<abi::PolicyPortKey, abi::PolicyPortValue>(
            LpmTrie,
            names::POLICY_PORTS_CAPACITY,
            NO_PREALLOC,
        ),
        names::SOCKETS => layout::<u32, abi::SocketValue>(SkStorage, 0, NO_PREALLOC),
        names::SOCKET_NETNS => layout::<abi::SocketNetnsKey, abi::SocketNetnsValue>(
            Hash,
            names::SOCKET_NETNS_CAPACITY,
            NO_PREALLOC,
        ),
        names::DROPS => {
            layout::<u32, u64>(PerCpuArray, abi::drop_reason::DROP_REASON_SLOTS as usize, 0)
        }
        names::EVENTS => layout::<(), ()>(RingBuf, abi::event::EVENTS_BYTES, 0),
        names::EVENT_SWITCH => layout::<u32, abi::EventSwitch>(Array, 1, 0),
        _ => return None,
    })
}

/// The directory of this ABI version.
#[derive(Clone, Debug)]
pub struct PinDirectory {
    root: PathBuf,
}

impl PinDirectory {
    /// Mounts a bpffs at `/sys/fs/bpf` if nothing is there, makes the directories, and refuses pinned
    /// maps this agent would misread.
    pub fn prepare(bpffs_root: &Path) -> Result<Self, PinError> {
        ensure_bpffs(bpffs_root)?;
        let directory = Self::at(bpffs_root);
        let links = directory.root.join("links");
        fs::create_dir_all(&links).map_err(io_error("create", &links))?;
        for name in names::MAPS {
            directory.check_map(name)?;
        }
        Ok(directory)
    }

    /// The directory as it is, for readers that come after [`PinDirectory::prepare`].
    #[must_use]
    pub fn at(bpffs_root: &Path) -> Self {
        Self {
            root: bpffs_root.join(format!("v{}", abi::ABI_VERSION)),
        }
    }

    /// Where the map is pinned.
    #[must_use]
    pub fn map(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// Where the link of `program` on `interface` is pinned.
    #[must_use]
    pub fn link(&self, interface: &str, program: &str) -> PathBuf {
        self.root
            .join("links")
            .join(format!("{interface}-{program}"))
    }

    /// Interface and program of every pinned link.
    pub fn links(&self) -> Result<Vec<(String, String)>, PinError> {
        let directory = self.root.join("links");
        let entries = fs::read_dir(&directory).map_err(io_error("list", &directory))?;
        let names = entries
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok());
        Ok(names
            .filter_map(|name| {
                name.rsplit_once('-')
                    .map(|(link, program)| (link.to_owned(), program.to_owned()))
            })
            .collect())
    }

    fn check_map(&self, name: &str) -> Result<(), PinError> {
        let path = self.map(name);
        if !path.exists() {
            return Ok(());
        }
        let inspect = |source| PinError::Inspect {
            path: path.clone(),
            source,
        };
        let info = MapInfo::from_pin(&path).map_err(inspect)?;
        let found = MapLayout {
            map_type: info.map_type().map_err(inspect)?,
            key_size: info.key_size(),
            value_size: info.value_size(),
            max_entries: info.max_entries(),
            flags: info.map_flags(),
        };
        let mut expected = expected_layout(name).expect("every name of `MAPS` has a layout");
        if name == names::CONNTRACK {
            // How many flows there is room for is the operator's choice, at the time of the first start:
            // to change it under running flows would forget them.
            expected.max_entries = found.max_entries;
        }
        if found == expected {
            return Ok(());
        }
        Err(PinError::Layout {
            path,
            found,
            expected,
        })
    }
}

fn io_error<'a>(
    operation: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> PinError + 'a {
    move |source| PinError::Io {
        operation,
        path: path.to_owned(),
        source,
    }
}

fn ensure_bpffs(root: &Path) -> Result<(), PinError> {
    const DEFAULT_MOUNT: &str = "/sys/fs/bpf";
    if is_bpffs(root)? {
        return Ok(());
    }
    if !root.starts_with(DEFAULT_MOUNT) {
        return Err(PinError::NotBpffs {
            path: root.to_owned(),
        });
    }
    tracing::info!(path = DEFAULT_MOUNT, "mounting a bpffs");
    mount(
        Some("bpf"),
        DEFAULT_MOUNT,
        Some("bpf"),
        MsFlags::empty(),
        Some("mode=0700"),
    )
    .map_err(|errno| io_error("mount a bpffs at", Path::new(DEFAULT_MOUNT))(errno.into()))?;
    if is_bpffs(root)? {
        Ok(())
    } else {
        Err(PinError::NotBpffs {
            path: root.to_owned(),
        })
    }
}

/// Whether the nearest existing ancestor is on a bpffs.
fn is_bpffs(path: &Path) -> Result<bool, PinError> {
    let existing = path
        .ancestors()
        .find(|ancestor| ancestor.exists())
        .unwrap_or(Path::new("/"));
    let stat = statfs(existing).map_err(|errno| io_error("inspect", existing)(errno.into()))?;
    Ok(stat.filesystem_type() == BPF_FS_MAGIC)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_map_of_the_abi_has_an_expected_layout() {
        assert!(
            names::MAPS
                .iter()
                .all(|name| expected_layout(name).is_some())
        );
        assert!(expected_layout("OTHER").is_none());
    }

    #[test]
    fn a_directory_off_the_bpffs_is_refused_by_name() {
        let directory = tempfile::tempdir().unwrap();
        let error = PinDirectory::prepare(directory.path()).unwrap_err();
        assert!(error.to_string().contains("is not on a bpffs"), "{error}");
    }

    #[test]
    fn a_layout_error_names_the_map_and_both_layouts() {
        let expected = expected_layout(names::FRONTENDS).unwrap();
        let found = MapLayout {
            value_size: 8,
            ..expected
        };
        let path = PathBuf::from("/sys/fs/bpf/x/v1/FRONTENDS");
        let text = PinError::Layout {
            path,
            found,
            expected,
        }
        .to_string();
        assert!(
            text.contains("FRONTENDS") && text.contains("8-byte values"),
            "{text}"
        );
        assert!(
            text.contains(&format!("{}-byte values", expected.value_size)),
            "{text}"
        );
    }
}
