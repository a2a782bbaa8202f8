//! Names and addresses of pod interfaces that follow from what they belong to.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use sha2::{Digest, Sha256};

use super::AttachmentKey;

/// The node's end of its own pair into the pod network.
pub const HOST_DEVICE: &str = "thp_host";
/// The other end: what the host programs pass comes back into the node's stack here.
pub const HOST_PEER: &str = "thp_net";
/// The overlay device.
pub const OVERLAY_DEVICE: &str = "thp_vxlan";
/// Where the node's packets to its own addresses pass.
pub const LOOPBACK: &str = "lo";
/// What a pod's IPv4 default route points at. No device has it; a permanent neighbour entry does.
pub const GATEWAY_V4: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
/// What a pod's IPv6 default route points at.
pub const GATEWAY_V6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 1);

/// Name of the host side of an attachment: `thp` and 11 hexadecimal digits, 14 of the kernel's 15.
#[must_use]
pub fn host_interface(key: &AttachmentKey) -> String {
    let digest = Sha256::new()
        .chain_update(&key.container_id)
        .chain_update([0])
        .chain_update(&key.interface)
        .finalize();
    format!("thp{}", &hex::encode(digest)[..11])
}

/// Whether a device name is one [`host_interface`] makes.
#[must_use]
pub fn is_host_interface(name: &str) -> bool {
    let digits = name.strip_prefix("thp").unwrap_or_default();
    digits.len() == 11
        && digits
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// MAC of a pod's interface: follows from its first address, so a restarted agent knows it.
#[must_use]
pub fn pod_mac(address: IpAddr) -> [u8; 6] {
    let digest = match address {
        IpAddr::V4(address) => Sha256::digest(address.octets()),
        IpAddr::V6(address) => Sha256::digest(address.octets()),
    };
    // 0x0a: locally administered, unicast, and never the prefix of the host-side devices.
    [0x0a, digest[0], digest[1], digest[2], digest[3], digest[4]]
}

/// What the default route of a pod points at, for the family of `address`.
#[must_use]
pub fn gateway_of(address: IpAddr) -> IpAddr {
    match address {
        IpAddr::V4(_) => GATEWAY_V4.into(),
        IpAddr::V6(_) => GATEWAY_V6.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_interface_name_is_stable_fits_the_kernel_and_is_recognised() {
        let key = AttachmentKey {
            container_id: "uid".to_owned(),
            interface: "eth0".to_owned(),
        };
        let name = host_interface(&key);
        assert_eq!(name, host_interface(&key));
        assert_eq!(name.len(), 14);
        assert!(is_host_interface(&name));
        for other in [
            HOST_DEVICE,
            HOST_PEER,
            OVERLAY_DEVICE,
            "thp",
            "thpABCDEF01234",
        ] {
            assert!(!is_host_interface(other), "{other}");
        }
    }

    #[test]
    fn a_key_is_not_confused_with_one_whose_halves_are_cut_elsewhere() {
        let key = |id: &str, interface: &str| AttachmentKey {
            container_id: id.to_owned(),
            interface: interface.to_owned(),
        };
        assert_ne!(
            host_interface(&key("a", "beth0")),
            host_interface(&key("ab", "eth0"))
        );
    }

    #[test]
    fn a_pod_mac_is_unicast_and_locally_administered() {
        let mac = pod_mac("10.244.1.2".parse().unwrap());
        assert_eq!(mac[0] & 0b11, 0b10);
    }
}
