//! Attaches the socket programs to a cgroup, replaces a former agent's in place, and detaches them.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use aya::programs::links::FdLink;
use aya::programs::{CgroupAttachMode, CgroupSockAddr};
use tholepin_ebpf_abi::names::{
    SOCKET_CONNECT, SOCKET_GETPEERNAME, SOCKET_PROGRAMS, SOCKET_RECVMSG, SOCKET_SENDMSG,
};

use super::attach::AttachError;
use super::bpf_link;
use super::loader::Programs;
use super::pin::PinDirectory;

/// Stands for the interface in the names of link pins.
const PLACE: &str = "cgroup";

/// Which sockets are balanced when they connect or send.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SocketLb {
    /// None: every packet is translated.
    #[default]
    Off,
    /// TCP sockets.
    Tcp,
    /// TCP sockets, and datagrams of UDP sockets that are not connected.
    All,
}

/// The text is not one of the modes.
#[derive(Debug, thiserror::Error)]
#[error("expected `off`, `tcp` or `all`")]
pub struct InvalidSocketLb;

impl FromStr for SocketLb {
    type Err = InvalidSocketLb;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "off" => Ok(Self::Off),
            "tcp" => Ok(Self::Tcp),
            "all" => Ok(Self::All),
            _ => Err(InvalidSocketLb),
        }
    }
}

impl SocketLb {
    /// The programs of this mode, in the order in which they are attached: what shows the Service's
    /// address again comes before what hides it.
    fn programs(self) -> Vec<&'static str> {
        match self {
            Self::Off => Vec::new(),
            Self::Tcp => [SOCKET_GETPEERNAME, SOCKET_CONNECT].concat(),
            Self::All => [
                SOCKET_GETPEERNAME,
                SOCKET_RECVMSG,
                SOCKET_CONNECT,
                SOCKET_SENDMSG,
            ]
            .concat(),
        }
    }
}

/// Attaches the programs of `mode` to `cgroup` and takes off those of another mode. What sockets have
/// been told already stays so for as long as they live.
pub fn ensure_attached(
    programs: &mut Programs,
    pins: &PinDirectory,
    mode: SocketLb,
    cgroup: &Path,
) -> Result<(), AttachError> {
    let wanted = mode.programs();
    for name in SOCKET_PROGRAMS {
        if !wanted.contains(&name) {
            forget(pins, name)?;
        }
    }
    if wanted.is_empty() {
        return Ok(());
    }
    let open = |source| AttachError::Cgroup {
        path: cgroup.to_owned(),
        source,
    };
    let directory = File::open(cgroup).map_err(open)?;
    let id = directory.metadata().map_err(open)?.ino();
    for name in wanted {
        let pin = pins.link(PLACE, name);
        let program = programs.socket(name)?;
        if !replace(program, &pin, id)? {
            attach(program, &pin, name, &directory, cgroup)?;
        }
    }
    Ok(())
}

/// Takes all of them off.
pub fn detach(pins: &PinDirectory) -> Result<(), AttachError> {
    SOCKET_PROGRAMS
        .iter()
        .try_for_each(|name| forget(pins, name))
}

fn forget(pins: &PinDirectory, program: &str) -> Result<(), AttachError> {
    super::attach::forget(pins, program, PLACE)
}

/// Whether a pinned link to the cgroup was there and now runs the new program. One to another cgroup,
/// or to one that is gone, is removed.
fn replace(program: &CgroupSockAddr, pin: &Path, cgroup: u64) -> Result<bool, AttachError> {
    let failed = |source| AttachError::LinkCall {
        path: pin.to_owned(),
        source,
    };
    let link = match bpf_link::open(pin) {
        Ok(link) => link,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(source) => return Err(failed(source)),
    };
    let alive = cgroup_of(&link).map_err(failed)? == Some(cgroup);
    if alive {
        let fd = program
            .fd()
            .expect("`Programs::socket` loads what it returns");
        match bpf_link::update(link.as_fd(), fd.as_fd()) {
            Ok(()) => return Ok(true),
            // The cgroup is going.
            Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => {}
            Err(source) => return Err(failed(source)),
        }
    }
    match fs::remove_file(pin) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(failed(source)),
        _ => Ok(false),
    }
}

/// Id of the cgroup a link is on; 0 for one that is gone, as the kernel says.
fn cgroup_of(link: &OwnedFd) -> io::Result<Option<u64>> {
    let text = fs::read_to_string(format!("/proc/self/fdinfo/{}", link.as_raw_fd()))?;
    Ok(text
        .lines()
        .find_map(|line| line.strip_prefix("cgroup_id:"))
        .and_then(|id| id.trim().parse().ok()))
}

fn attach(
    program: &mut CgroupSockAddr,
    pin: &Path,
    name: &'static str,
    directory: &File,
    cgroup: &Path,
) -> Result<(), AttachError> {
    let failed = |source| AttachError::Attach {
        program: name,
        interface: cgroup.display().to_string(),
        source,
    };
    let id = program
        .attach(directory, CgroupAttachMode::Single)
        .map_err(failed)?;
    let link = program.take_link(id).map_err(failed)?;
    let link = FdLink::try_from(link).map_err(|source| AttachError::Link {
        path: pin.to_owned(),
        source,
    })?;
    // If pinning fails the link is dropped, which detaches it: nothing half-made stays.
    link.pin(pin).map_err(|source| AttachError::Pin {
        path: pin.to_owned(),
        source,
    })?;
    Ok(())
}

/// The pods' cgroup in the cgroup v2 tree, which is where socket programs are attached on machines
/// with cgroup v1 too; made if it is not there. `None` without such a tree.
pub fn ensure_pods_cgroup(cgroup_parent: &str) -> io::Result<Option<PathBuf>> {
    let mounts = fs::read_to_string("/proc/self/mountinfo")?;
    let Some(root) = unified_mount(&mounts) else {
        return Ok(None);
    };
    let cgroup = root.join(cgroup_parent.trim_start_matches('/'));
    fs::create_dir_all(&cgroup)?;
    Ok(Some(cgroup))
}

fn unified_mount(mountinfo: &str) -> Option<PathBuf> {
    mountinfo.lines().find_map(|line| {
        let (head, tail) = line.split_once(" - ")?;
        let mount_point = head.split(' ').nth(4)?;
        tail.starts_with("cgroup2 ")
            .then(|| PathBuf::from(mount_point))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cgroup_v2_tree_is_found_beside_the_controllers_and_alone() {
        let hybrid = "25 30 0:23 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
                      26 25 0:24 / /sys/fs/cgroup/unified rw,nosuid shared:5 - cgroup2 cgroup2 rw\n\
                      27 25 0:25 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n";
        let found = unified_mount(hybrid);
        assert_eq!(found, Some(PathBuf::from("/sys/fs/cgroup/unified")));
        let unified = "26 25 0:24 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n";
        assert_eq!(
            unified_mount(unified),
            Some(PathBuf::from("/sys/fs/cgroup"))
        );
        let v1 = "27 25 0:25 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n";
        assert_eq!(unified_mount(v1), None);
    }

    #[test]
    fn modes_are_read_by_their_names_only() {
        assert_eq!("all".parse::<SocketLb>().unwrap(), SocketLb::All);
        let error = "on".parse::<SocketLb>().unwrap_err();
        assert_eq!(error.to_string(), "expected `off`, `tcp` or `all`");
    }

    #[test]
    fn every_mode_shows_what_it_hides() {
        assert_eq!(SocketLb::All.programs().len(), SOCKET_PROGRAMS.len());
        let tcp = SocketLb::Tcp.programs();
        assert!(tcp.contains(&SOCKET_GETPEERNAME[0]) && !tcp.contains(&SOCKET_SENDMSG[0]));
        assert!(SocketLb::Off.programs().is_empty());
    }
}
