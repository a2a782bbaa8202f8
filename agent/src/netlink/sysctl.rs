//! The few kernel switches the pod network needs, in the namespace of the calling thread.

use std::io;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use super::NetlinkError;

pub mod journal;

fn path(name: &str) -> PathBuf {
    Path::new("/proc/sys/net").join(name)
}

fn read(name: &str) -> Option<String> {
    std::fs::read_to_string(path(name))
        .ok()
        .map(|text| text.trim().to_owned())
}

/// Writes a value unless it is set already, so that a read-only /proc/sys that is right is enough.
fn ensure(name: &str, value: &str) -> Result<(), NetlinkError> {
    if read(name).as_deref() == Some(value) {
        return Ok(());
    }
    std::fs::write(path(name), value).map_err(|source| NetlinkError::Sysctl {
        path: path(name),
        value: value.to_owned(),
        source,
    })
}

/// Like `ensure`, for switches of an address family the kernel may not have.
fn ensure_if_present(name: &str, value: &str) -> Result<(), NetlinkError> {
    match ensure(name, value) {
        Err(NetlinkError::Sysctl { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            Ok(())
        }
        other => other,
    }
}

/// Routing between pods and the world.
pub fn enable_forwarding(v4: bool, v6: bool) -> Result<(), NetlinkError> {
    if v4 {
        ensure("ipv4/ip_forward", "1")?;
    }
    if v6 {
        // Forwarding switches off the routes an uplink learns from router advertisements, except
        // where they are asked for explicitly.
        for interface in interfaces("ipv6") {
            let name = format!("ipv6/conf/{interface}/accept_ra");
            if interface != "all" && read(&name).as_deref() == Some("1") {
                ensure_if_present(&name, "2")?;
            }
        }
        ensure("ipv6/conf/all/forwarding", "1")?;
    }
    Ok(())
}

/// The reverse path of a pod's packet is `thp_host`, not the interface it came from, so strict
/// filtering must be off on our devices. The kernel uses the stricter of `all` and the device's own
/// value: where `all` is strict, the other interfaces get it as their own and `all` is relaxed.
pub fn relax_reverse_path_filter(ours: &[&str]) -> Result<(), NetlinkError> {
    if read("ipv4/conf/all/rp_filter").as_deref() == Some("1") {
        for interface in interfaces("ipv4") {
            if interface != "all" && !ours.contains(&interface.as_str()) {
                ensure_if_present(&format!("ipv4/conf/{interface}/rp_filter"), "1")?;
            }
        }
        ensure("ipv4/conf/all/rp_filter", "0")?;
    }
    for interface in ours {
        ensure(&format!("ipv4/conf/{interface}/rp_filter"), "0")?;
    }
    Ok(())
}

/// The node's own packets come back in on this device with a local source address.
pub fn accept_local(interface: &str) -> Result<(), NetlinkError> {
    ensure(&format!("ipv4/conf/{interface}/accept_local"), "1")
}

/// Distributions switch IPv6 off by default here and there; a device that must have an address says so.
pub fn enable_ipv6(interface: &str) -> Result<(), NetlinkError> {
    ensure_if_present(&format!("ipv6/conf/{interface}/disable_ipv6"), "0")
}

/// Keeps `ports` from sockets that leave the choice to the kernel, besides those that are kept already.
pub fn reserve_ports(ports: RangeInclusive<u16>) -> Result<(), NetlinkError> {
    const NAME: &str = "ipv4/ip_local_reserved_ports";
    match with_range(&read(NAME).unwrap_or_default(), &ports) {
        Some(list) => ensure(NAME, &list),
        None => Ok(()),
    }
}

/// The kernel's list of ranges with `ports` added; `None` if it has them.
fn with_range(list: &str, ports: &RangeInclusive<u16>) -> Option<String> {
    let covers = |range: &str| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (Ok(first), Ok(last)) = (first.parse::<u16>(), last.parse::<u16>()) else {
            return false;
        };
        first <= *ports.start() && last >= *ports.end()
    };
    // The kernel joins ranges that touch, so one of them covers all or none does.
    if list.split(',').any(covers) {
        return None;
    }
    let ours = format!("{}-{}", ports.start(), ports.end());
    Some(if list.is_empty() {
        ours
    } else {
        format!("{list},{ours}")
    })
}

/// Nothing in a pod network advertises routes.
pub fn ignore_router_advertisements(interface: &str) -> Result<(), NetlinkError> {
    ensure_if_present(&format!("ipv6/conf/{interface}/accept_ra"), "0")
}

/// Duplicate detection would delay the first packet; addresses are leased by the agent.
pub fn disable_duplicate_detection(interface: &str) -> Result<(), NetlinkError> {
    ensure_if_present(&format!("ipv6/conf/{interface}/accept_dad"), "0")
}

fn interfaces(family: &str) -> Vec<String> {
    let directory = path(family).join("conf");
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_added_to_those_reserved_already_and_only_once() {
        let ports = 61_440..=65_535;
        assert_eq!(with_range("", &ports).as_deref(), Some("61440-65535"));
        assert_eq!(
            with_range("8080,9000-9010", &ports).as_deref(),
            Some("8080,9000-9010,61440-65535")
        );
        assert_eq!(with_range("8080,61440-65535", &ports), None);
        assert_eq!(with_range("60000-65535", &ports), None);
        assert_eq!(
            with_range("62000", &ports).as_deref(),
            Some("62000,61440-65535")
        );
    }
}
