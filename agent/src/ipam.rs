//! Address leases of this node's pods: a pool per pod range and a journal that is written before an
//! address is given away.
//!
//! One file per lease, named like the host-side interface. A lease made before the last reboot is void.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use tholepin_ebpf_abi::workload::WORKLOAD_HOSTS;

use crate::network::AttachmentKey;

/// Who asked for an attachment; CNI's garbage collection must not touch the agent's own pods.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Owner {
    Agent,
    Cni,
}

/// An address lease as journalled.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lease {
    pub container_id: String,
    pub interface: String,
    pub netns: PathBuf,
    /// `namespace/name` of the pod, for people and logs.
    pub pod: String,
    pub owner: Owner,
    /// One per family, primary first.
    pub addresses: Vec<IpAddr>,
    pub host_interface: String,
    /// Whether the pod's sockets may be balanced when they connect.
    #[serde(default = "yes")]
    pub socket_lb: bool,
    boot_id: String,
    /// Grows with every lease; the newest tells where the search goes on after a restart.
    sequence: u64,
}

/// Leases of agents that did not ask.
fn yes() -> bool {
    true
}

impl Lease {
    #[must_use]
    pub fn key(&self) -> AttachmentKey {
        AttachmentKey {
            container_id: self.container_id.clone(),
            interface: self.interface.clone(),
        }
    }
}

/// Why a lease could not be made, read or given back.
#[derive(Debug, thiserror::Error)]
pub enum IpamError {
    #[error("no free {family} address in {range}")]
    Exhausted { family: &'static str, range: IpNet },
    #[error("pod range {range} is too small: it has no room for a gateway and a pod")]
    RangeTooSmall { range: IpNet },
    #[error("{host_interface} already belongs to {owner}")]
    NameCollision {
        host_interface: String,
        owner: String,
    },
    #[error("failed to {operation} {}", path.display())]
    Journal {
        operation: &'static str,
        path: PathBuf,
        source: io::Error,
    },
}

/// What a new lease is for.
#[derive(Clone, Debug)]
pub struct LeaseRequest {
    pub key: AttachmentKey,
    pub netns: PathBuf,
    pub pod: String,
    pub owner: Owner,
    pub host_interface: String,
    pub socket_lb: bool,
}

/// The pool. Not shared: the owner of the pod network has the only one.
#[derive(Debug)]
pub struct Ipam {
    directory: PathBuf,
    boot_id: String,
    ranges: Vec<Range>,
    leases: BTreeMap<(String, String), Lease>,
    next_sequence: u64,
}

#[derive(Debug)]
struct Range {
    net: IpNet,
    /// Offset from the network address where the search starts: just freed addresses come last, so
    /// that a client with a stale address does not reach another pod at once.
    cursor: u128,
}

impl Range {
    fn has(&self, offset: u128) -> bool {
        offsets(&self.net).is_some_and(|(first, last)| (first..=last).contains(&offset))
    }

    /// The first free address after the cursor.
    fn search(&self, taken: &BTreeSet<IpAddr>) -> Result<IpAddr, IpamError> {
        let exhausted = || IpamError::Exhausted {
            family: if self.net.addr().is_ipv4() {
                "IPv4"
            } else {
                "IPv6"
            },
            range: self.net,
        };
        let (first, last) = offsets(&self.net).ok_or_else(exhausted)?;
        let start = if self.cursor < first || self.cursor >= last {
            first
        } else {
            self.cursor + 1
        };
        let size = last - first + 1;
        // One more candidate than there are leases is enough: at least one of them is free.
        let attempts = size.min(taken.len() as u128 + 1);
        (0..attempts)
            .map(|step| address_at(&self.net, first + (start - first + step) % size))
            .find(|address| !taken.contains(address))
            .ok_or_else(exhausted)
    }
}

impl Ipam {
    /// Reads the journal. Leases of an earlier boot and unreadable files are removed and returned.
    pub fn open(
        directory: &Path,
        boot_id: &str,
        ranges: &[IpNet],
    ) -> Result<(Self, Vec<String>), IpamError> {
        fs::create_dir_all(directory).map_err(journal("create", directory))?;
        for range in ranges {
            if offsets(range).is_none() {
                return Err(IpamError::RangeTooSmall { range: *range });
            }
        }
        let mut ipam = Self {
            directory: directory.to_owned(),
            boot_id: boot_id.to_owned(),
            ranges: ranges
                .iter()
                .map(|net| Range {
                    net: net.trunc(),
                    cursor: 0,
                })
                .collect(),
            leases: BTreeMap::new(),
            next_sequence: 0,
        };
        let mut void = Vec::new();
        for entry in fs::read_dir(directory).map_err(journal("list", directory))? {
            let path = entry.map_err(journal("list", directory))?.path();
            let lease = match path.extension().and_then(|extension| extension.to_str()) {
                Some("json") => read_lease(&path)?,
                _ => None,
            };
            match lease {
                Some(lease) if lease.boot_id == boot_id => ipam.adopt(lease),
                other => {
                    void.push(other.map_or_else(|| path.display().to_string(), |l| l.pod));
                    fs::remove_file(&path).map_err(journal("remove", &path))?;
                }
            }
        }
        Ok((ipam, void))
    }

    fn adopt(&mut self, lease: Lease) {
        if lease.sequence >= self.next_sequence {
            self.next_sequence = lease.sequence + 1;
            for range in &mut self.ranges {
                let own = lease
                    .addresses
                    .iter()
                    .find(|address| range.net.contains(*address));
                if let Some(address) = own {
                    range.cursor = offset_of(&range.net, *address);
                }
            }
        }
        self.leases
            .insert((lease.container_id.clone(), lease.interface.clone()), lease);
    }

    /// The address of the node itself in each range: the first one.
    #[must_use]
    pub fn gateways(ranges: &[IpNet]) -> Vec<IpAddr> {
        ranges
            .iter()
            .map(|range| address_at(&range.trunc(), 1))
            .collect()
    }

    /// Leases one address per range, or returns the lease the key already has. Durable on return.
    pub fn lease(&mut self, request: LeaseRequest) -> Result<Lease, IpamError> {
        if let Some(lease) = self.get(&request.key) {
            return Ok(lease.clone());
        }
        let name = &request.host_interface;
        if let Some(other) = self
            .leases
            .values()
            .find(|lease| lease.host_interface == *name)
        {
            let owner = other.pod.clone();
            return Err(IpamError::NameCollision {
                host_interface: name.clone(),
                owner,
            });
        }
        let picked = self.pick()?;
        let lease = Lease {
            container_id: request.key.container_id,
            interface: request.key.interface,
            netns: request.netns,
            pod: request.pod,
            owner: request.owner,
            addresses: picked,
            host_interface: request.host_interface,
            socket_lb: request.socket_lb,
            boot_id: self.boot_id.clone(),
            sequence: self.next_sequence,
        };
        self.write(&lease)?;
        self.adopt(lease.clone());
        Ok(lease)
    }

    /// One free address per range, with the same host part in all of them where that is free: it is
    /// easier to read for people.
    fn pick(&self) -> Result<Vec<IpAddr>, IpamError> {
        let taken: BTreeSet<IpAddr> = self
            .leases
            .values()
            .flat_map(|lease| lease.addresses.iter().copied())
            .collect();
        let mut picked: Vec<IpAddr> = Vec::new();
        let mut shared = None;
        for range in &self.ranges {
            let same = shared
                .filter(|offset| range.has(*offset))
                .map(|offset| address_at(&range.net, offset))
                .filter(|address| !taken.contains(address));
            let address = match same {
                Some(address) => address,
                None => range.search(&taken)?,
            };
            shared.get_or_insert(offset_of(&range.net, address));
            picked.push(address);
        }
        Ok(picked)
    }

    /// Gives the addresses back. Call it when nothing uses them any more.
    pub fn release(&mut self, key: &AttachmentKey) -> Result<(), IpamError> {
        let index = (key.container_id.clone(), key.interface.clone());
        let Some(lease) = self.leases.get(&index) else {
            return Ok(());
        };
        let path = self.path(lease);
        match fs::remove_file(&path) {
            Ok(()) => (),
            Err(error) if error.kind() == io::ErrorKind::NotFound => (),
            Err(source) => {
                return Err(IpamError::Journal {
                    operation: "remove",
                    path,
                    source,
                });
            }
        }
        self.sync_directory()?;
        self.leases.remove(&index);
        Ok(())
    }

    /// The lease of that key.
    #[must_use]
    pub fn get(&self, key: &AttachmentKey) -> Option<&Lease> {
        self.leases
            .get(&(key.container_id.clone(), key.interface.clone()))
    }

    /// Every lease.
    pub fn leases(&self) -> impl Iterator<Item = &Lease> {
        self.leases.values()
    }

    fn path(&self, lease: &Lease) -> PathBuf {
        self.directory
            .join(format!("{}.json", lease.host_interface))
    }

    fn write(&self, lease: &Lease) -> Result<(), IpamError> {
        let text = serde_json::to_vec_pretty(lease).expect("a lease is representable in JSON");
        write_durably(&self.path(lease), &text)
    }

    fn sync_directory(&self) -> Result<(), IpamError> {
        let directory = File::open(&self.directory).map_err(journal("open", &self.directory))?;
        directory
            .sync_all()
            .map_err(journal("flush", &self.directory))
    }
}

/// Replaces `path` with `content` so that a crash leaves either the old or the new one.
pub fn write_durably(path: &Path, content: &[u8]) -> Result<(), IpamError> {
    let temporary = path.with_extension("tmp");
    let mut file = File::create(&temporary).map_err(journal("create", &temporary))?;
    file.write_all(content)
        .map_err(journal("write", &temporary))?;
    file.sync_all().map_err(journal("flush", &temporary))?;
    fs::rename(&temporary, path).map_err(journal("replace", path))?;
    let parent = path.parent().unwrap_or(Path::new("/"));
    let directory = File::open(parent).map_err(journal("open", parent))?;
    directory.sync_all().map_err(journal("flush", parent))
}

fn journal<'a>(
    operation: &'static str,
    path: &'a Path,
) -> impl FnOnce(io::Error) -> IpamError + 'a {
    move |source| IpamError::Journal {
        operation,
        path: path.to_owned(),
        source,
    }
}

/// `None` for a file that is not a lease: it was never completed, so nothing uses it.
fn read_lease(path: &Path) -> Result<Option<Lease>, IpamError> {
    let text = fs::read(path).map_err(journal("read", path))?;
    Ok(serde_json::from_slice(&text).ok())
}

/// First and last offset a pod may have: network address and gateway are reserved, and for IPv4 the
/// broadcast address. Of a large range only the first part is used, because `WORKLOADS` has a place
/// for that many host parts.
fn offsets(range: &IpNet) -> Option<(u128, u128)> {
    let host_bits = u32::from(range.max_prefix_len() - range.prefix_len());
    let size = 1_u128.checked_shl(host_bits).unwrap_or(u128::MAX);
    let last = if range.addr().is_ipv4() {
        size.checked_sub(2)?
    } else {
        size.checked_sub(1)?
    };
    let last = last.min(u128::from(WORKLOAD_HOSTS) - 1);
    (last >= 2).then_some((2, last))
}

fn address_at(range: &IpNet, offset: u128) -> IpAddr {
    match range.network() {
        IpAddr::V4(base) => {
            let offset = u32::try_from(offset).expect("offsets of an IPv4 range fit 32 bits");
            IpAddr::V4((u32::from(base) + offset).into())
        }
        IpAddr::V6(base) => IpAddr::V6((u128::from(base) + offset).into()),
    }
}

fn offset_of(range: &IpNet, address: IpAddr) -> u128 {
    match (range.network(), address) {
        (IpAddr::V4(base), IpAddr::V4(address)) => {
            u128::from(u32::from(address).saturating_sub(u32::from(base)))
        }
        (IpAddr::V6(base), IpAddr::V6(address)) => {
            u128::from(address).saturating_sub(u128::from(base))
        }
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(id: &str) -> LeaseRequest {
        LeaseRequest {
            key: AttachmentKey {
                container_id: id.to_owned(),
                interface: "eth0".to_owned(),
            },
            netns: PathBuf::from("/run/netns/x"),
            pod: format!("default/{id}"),
            owner: Owner::Agent,
            host_interface: format!("thp{id}"),
            socket_lb: true,
        }
    }

    fn ranges(ranges: &[&str]) -> Vec<IpNet> {
        ranges.iter().map(|range| range.parse().unwrap()).collect()
    }

    fn open(directory: &Path, boot_id: &str, nets: &[&str]) -> Ipam {
        Ipam::open(directory, boot_id, &ranges(nets)).unwrap().0
    }

    #[test]
    fn one_address_per_family_beginning_after_the_gateway() {
        let directory = tempfile::tempdir().unwrap();
        let mut ipam = open(
            directory.path(),
            "b",
            &["10.244.1.0/24", "fd00:10:244:1::/64"],
        );
        let lease = ipam.lease(request("a")).unwrap();
        assert_eq!(lease.addresses[0].to_string(), "10.244.1.2");
        assert_eq!(lease.addresses[1].to_string(), "fd00:10:244:1::2");
        let gateways = Ipam::gateways(&ranges(&["10.244.1.0/24", "fd00:10:244:1::/64"]));
        assert_eq!(gateways[0].to_string(), "10.244.1.1");
        assert_eq!(gateways[1].to_string(), "fd00:10:244:1::1");
    }

    #[test]
    fn host_parts_stay_below_what_the_dataplane_has_places_for() {
        let net: IpNet = "fd00:10:244:1::/64".parse().unwrap();
        assert_eq!(offsets(&net), Some((2, 4095)));
        assert_eq!(offsets(&"10.0.0.0/8".parse().unwrap()), Some((2, 4095)));
        assert_eq!(offsets(&"10.244.1.0/24".parse().unwrap()), Some((2, 254)));
    }

    #[test]
    fn families_differ_in_the_host_part_only_where_they_must() {
        let directory = tempfile::tempdir().unwrap();
        let nets = ["10.244.1.0/24", "fd00:10:244:1::/64"];
        let mut v6 = open(directory.path(), "b", &nets[1..]);
        v6.lease(request("a")).unwrap();
        let mut both = open(directory.path(), "b", &nets);
        let texts = |lease: Lease| {
            lease
                .addresses
                .iter()
                .map(IpAddr::to_string)
                .collect::<Vec<_>>()
        };
        let second = texts(both.lease(request("b")).unwrap());
        assert_eq!(second, ["10.244.1.2", "fd00:10:244:1::3"]);
        let third = texts(both.lease(request("c")).unwrap());
        assert_eq!(third, ["10.244.1.3", "fd00:10:244:1::4"]);
        let fourth = texts(both.lease(request("d")).unwrap());
        assert_eq!(fourth, ["10.244.1.4", "fd00:10:244:1::5"]);
    }

    #[test]
    fn a_repeated_request_gets_the_same_address_also_after_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let first = open(directory.path(), "b", &["10.244.1.0/24"])
            .lease(request("a"))
            .unwrap();
        let mut ipam = open(directory.path(), "b", &["10.244.1.0/24"]);
        assert_eq!(ipam.lease(request("a")).unwrap(), first);
        assert_ne!(ipam.lease(request("b")).unwrap().addresses, first.addresses);
    }

    #[test]
    fn a_freed_address_is_not_the_next_one_given_out_even_across_a_restart() {
        let directory = tempfile::tempdir().unwrap();
        let mut ipam = open(directory.path(), "b", &["10.244.1.0/29"]);
        let first = ipam.lease(request("a")).unwrap();
        let second = ipam.lease(request("b")).unwrap();
        ipam.release(&first.key()).unwrap();
        let mut ipam = open(directory.path(), "b", &["10.244.1.0/29"]);
        let third = ipam.lease(request("c")).unwrap();
        assert!(third.addresses != first.addresses && third.addresses != second.addresses);
    }

    #[test]
    fn an_exhausted_range_is_named_and_a_release_makes_room() {
        let directory = tempfile::tempdir().unwrap();
        let mut ipam = open(directory.path(), "b", &["10.244.1.0/29"]);
        let leases: Vec<_> = (0..5)
            .map(|i| ipam.lease(request(&i.to_string())).unwrap())
            .collect();
        let error = ipam.lease(request("x")).unwrap_err();
        assert_eq!(error.to_string(), "no free IPv4 address in 10.244.1.0/29");
        ipam.release(&leases[2].key()).unwrap();
        assert_eq!(
            ipam.lease(request("x")).unwrap().addresses,
            leases[2].addresses
        );
    }

    #[test]
    fn a_reboot_voids_every_lease() {
        let directory = tempfile::tempdir().unwrap();
        open(directory.path(), "boot-1", &["10.244.1.0/24"])
            .lease(request("a"))
            .unwrap();
        let (ipam, void) =
            Ipam::open(directory.path(), "boot-2", &ranges(&["10.244.1.0/24"])).unwrap();
        assert_eq!(void, ["default/a"]);
        assert_eq!(ipam.leases().count(), 0);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_torn_journal_file_is_void_and_reported() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("thpx.json"), b"{\"container_id\":").unwrap();
        let (ipam, void) = Ipam::open(directory.path(), "b", &ranges(&["10.244.1.0/24"])).unwrap();
        assert_eq!((ipam.leases().count(), void.len()), (0, 1));
    }

    #[test]
    fn a_range_without_room_for_a_pod_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let error = Ipam::open(directory.path(), "b", &ranges(&["10.244.1.0/31"])).unwrap_err();
        assert!(matches!(error, IpamError::RangeTooSmall { .. }));
    }
}
