//! Options about Services.

use std::net::IpAddr;

use ipnet::IpNet;
use tholepin_model::service::Forwarding;

use super::ConfigError;

/// `dsr` or `snat`.
pub(super) fn external_forwarding(given: Option<&str>) -> Result<Forwarding, ConfigError> {
    match given {
        None | Some("dsr") => Ok(Forwarding::Direct),
        Some("snat") => Ok(Forwarding::Masquerade),
        Some(other) => Err(ConfigError::Value {
            option: "external-forwarding",
            value: other.to_owned(),
            message: "it is dsr or snat".to_owned(),
        }),
    }
}

/// The ranges of `--nodeport-addresses`; `primary` alone is no range and stands for the node's own.
pub(super) fn node_port_ranges(given: &[String]) -> Result<Vec<IpNet>, ConfigError> {
    if given == ["primary"] {
        return Ok(Vec::new());
    }
    let parse = |text: &String| {
        text.parse::<IpNet>().map_err(|_| ConfigError::Value {
            option: "nodeport-addresses",
            value: text.clone(),
            message: "it is an IP range like 192.0.2.0/24, or primary".to_owned(),
        })
    };
    given.iter().map(parse).collect()
}

/// The addresses of this node's interfaces that are in one of the ranges. Loopback is never one:
/// nothing arrives there by a hook of ours.
#[must_use]
pub fn node_port_addresses(ranges: &[IpNet]) -> Vec<IpAddr> {
    let interfaces = match nix::ifaddrs::getifaddrs() {
        Ok(interfaces) => interfaces,
        Err(error) => {
            tracing::error!(%error, "cannot list this node's addresses; NodePorts are at --node-ip");
            return Vec::new();
        }
    };
    let address = |storage: nix::sys::socket::SockaddrStorage| {
        let v4 = storage.as_sockaddr_in().map(|v4| IpAddr::from(v4.ip()));
        v4.or_else(|| storage.as_sockaddr_in6().map(|v6| IpAddr::from(v6.ip())))
    };
    let all = interfaces.filter_map(|interface| address(interface.address?));
    let mut wanted: Vec<IpAddr> = all
        .filter(|address| !address.is_loopback())
        .filter(|address| ranges.iter().any(|range| range.contains(address)))
        .collect();
    wanted.sort_unstable();
    wanted.dedup();
    wanted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranges_and_forwarding_are_read_and_wrong_ones_are_named() {
        let ranges = |texts: &[&str]| {
            let texts: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
            node_port_ranges(&texts)
        };
        assert_eq!(ranges(&["192.0.2.0/24", "::/0"]).unwrap().len(), 2);
        assert_eq!(ranges(&["primary"]).unwrap(), []);
        let error = ranges(&["192.0.2.1"]).unwrap_err().to_string();
        assert!(
            error.contains("nodeport-addresses") && error.contains("192.0.2.1"),
            "{error}"
        );
        assert_eq!(
            external_forwarding(Some("snat")).unwrap(),
            Forwarding::Masquerade
        );
        assert!(external_forwarding(Some("nat")).is_err());
    }

    #[test]
    fn loopback_is_no_node_port_address() {
        let all = ["0.0.0.0/0", "::/0"].map(|range| range.parse().unwrap());
        assert!(
            node_port_addresses(&all)
                .iter()
                .all(|address| !address.is_loopback())
        );
    }
}
