//! `policies`: what NetworkPolicies let in and out of each pod of this node, from the live maps.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::process::ExitCode;

use anyhow::Result;
use ipnet::IpNet;
use serde_json::{Value, json};
use tholepin_ebpf_abi::WorkloadValue;
use tholepin_ebpf_abi::policy::{PORTS_ALL, PORTS_NONE};
use tholepin_ebpf_abi::workload::POLICY_DENY_ALL;

use crate::Place;
use crate::maps::{Live, PolicyPeer, PolicyPort};
use crate::names::{Names, protocol_name};
use crate::output::{self, Format};

/// Show what NetworkPolicies allow each pod of this node, as it is enforced
///
/// Each direction of a pod is `open` (no policy selects it), `closed` (nothing is allowed), or a list of
/// peers with the ports they may use. The longest prefix that covers a peer decides; `nothing` is an
/// `except` cut out of a larger range.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Only pods whose name or address contains this
    filter: Option<String>,
    /// Also pods that no policy selects
    #[arg(long)]
    all: bool,
}

/// What a policy id stands for: each prefix with its ports.
type Rules = BTreeMap<u32, Vec<(IpNet, String)>>;

pub(crate) fn run(place: &Place, options: &Options) -> Result<ExitCode> {
    let live = Live::open(place)?;
    let names = place.names();
    let rules = rules(&live.policy_peers()?, &live.policy_ports()?);
    let workloads = live.workloads()?;
    let selected = workloads.iter().filter(|(address, workload)| {
        let isolated = workload.ingress_policy != 0 || workload.egress_policy != 0;
        let matches = options.filter.as_ref().is_none_or(|filter| {
            address.to_string().contains(filter)
                || names
                    .pod(**address)
                    .is_some_and(|name| name.contains(filter))
        });
        matches && (isolated || options.all)
    });
    match place.output {
        Format::Json => {
            let rows: Vec<Value> = selected
                .map(|(address, one)| describe_json(*address, one, &names, &rules))
                .collect();
            output::print_json(&json!(rows))?;
        }
        Format::Table => {
            let rows: Vec<_> = selected
                .flat_map(|(address, one)| cells(*address, one, &names, &rules))
                .collect();
            if rows.is_empty() {
                output::print("no policy selects a pod of this node\n")?;
            } else {
                let head = ["POD", "ADDRESS", "DIRECTION", "PEER", "PORTS"];
                output::print(&output::table(&head, &rows))?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

fn rules(peers: &[(u32, PolicyPeer, u32)], ports: &[(u32, PolicyPort)]) -> Rules {
    let mut rules = Rules::new();
    for (bits, peer, port_set) in peers {
        // 32 bits are the policy's id.
        if let Some(range) = range(peer.address.to_ip(), bits.saturating_sub(32)) {
            let ports = port_list(*port_set, ports);
            rules
                .entry(peer.policy_id)
                .or_default()
                .push((range, ports));
        }
    }
    for list in rules.values_mut() {
        list.sort_unstable();
    }
    rules
}

/// A prefix of mapped addresses as it is written. One that is shorter than the mapping is of IPv6.
fn range(address: IpAddr, bits: u32) -> Option<IpNet> {
    let bits = match address {
        IpAddr::V4(_) => bits.checked_sub(96)?,
        IpAddr::V6(_) => bits,
    };
    IpNet::new(address, u8::try_from(bits).ok()?).ok()
}

fn port_list(set: u32, ports: &[(u32, PolicyPort)]) -> String {
    match set {
        PORTS_NONE => return "nothing".to_owned(),
        PORTS_ALL => return "everything".to_owned(),
        _ => {}
    }
    let mut ranges: Vec<(u8, u32, u32)> = Vec::new();
    for (bits, port) in ports.iter().filter(|(_, port)| port.port_set == set) {
        // 48 bits are the set and the protocol.
        let free = 16 - bits.saturating_sub(48).min(16);
        let first = u32::from(port.port.get());
        ranges.push((port.protocol, first, first + (1 << free) - 1));
    }
    ranges.sort_unstable();
    let mut joined: Vec<(u8, u32, u32)> = Vec::new();
    for (protocol, first, last) in ranges {
        match joined.last_mut() {
            // A range of ports is a few prefixes; people wrote the range.
            Some(before) if before.0 == protocol && before.2 + 1 == first => before.2 = last,
            _ => joined.push((protocol, first, last)),
        }
    }
    let words: Vec<String> = joined
        .into_iter()
        .map(|(protocol, first, last)| {
            let protocol = protocol_name(protocol);
            match (first, last) {
                (0, 65_535) => protocol,
                _ if first == last => format!("{first}/{protocol}"),
                _ => format!("{first}-{last}/{protocol}"),
            }
        })
        .collect();
    if words.is_empty() {
        "nothing".to_owned()
    } else {
        words.join(", ")
    }
}

/// Peer and ports of one direction.
fn direction(policy: u32, rules: &Rules) -> Vec<(String, String)> {
    match policy {
        0 => vec![("open".to_owned(), "everything".to_owned())],
        POLICY_DENY_ALL => vec![("closed".to_owned(), "nothing".to_owned())],
        id => match rules.get(&id) {
            Some(list) => list
                .iter()
                .map(|(range, ports)| (range.to_string(), ports.clone()))
                .collect(),
            None => vec![("closed".to_owned(), "nothing".to_owned())],
        },
    }
}

fn cells(
    address: IpAddr,
    workload: &WorkloadValue,
    names: &Names,
    rules: &Rules,
) -> Vec<Vec<String>> {
    let mut rows = Vec::new();
    for (name, policy) in [
        ("in", workload.ingress_policy),
        ("out", workload.egress_policy),
    ] {
        for (peer, ports) in direction(policy, rules) {
            rows.push(vec![
                names.pod(address).unwrap_or("-").to_owned(),
                address.to_string(),
                name.to_owned(),
                peer,
                ports,
            ]);
        }
    }
    rows
}

fn describe_json(address: IpAddr, workload: &WorkloadValue, names: &Names, rules: &Rules) -> Value {
    let side = |policy: u32| {
        let state = match policy {
            0 => "open",
            POLICY_DENY_ALL => "closed",
            _ => "restricted",
        };
        let allowed: Vec<Value> = rules
            .get(&policy)
            .into_iter()
            .flatten()
            .map(|(range, ports)| json!({ "peer": range, "ports": ports }))
            .collect();
        json!({ "state": state, "policyId": policy, "rules": allowed })
    };
    json!({
        "pod": names.pod(address),
        "address": address,
        "generation": workload.policy_generation,
        "ingress": side(workload.ingress_policy),
        "egress": side(workload.egress_policy),
    })
}

#[cfg(test)]
mod tests {
    use tholepin_ebpf_abi::{Address, Be16};

    use super::*;

    fn peer(policy_id: u32, range: &str, port_set: u32) -> (u32, PolicyPeer, u32) {
        let range: IpNet = range.parse().expect("a range");
        let mapped = if range.addr().is_ipv4() { 96 } else { 0 };
        let address = Address::from(range.network());
        (
            32 + mapped + u32::from(range.prefix_len()),
            PolicyPeer { policy_id, address },
            port_set,
        )
    }

    fn port(port_set: u32, protocol: u8, port: u16, bits: u32) -> (u32, PolicyPort) {
        (
            48 + bits,
            PolicyPort {
                port_set,
                pad: 0,
                protocol,
                port: Be16::new(port),
            },
        )
    }

    #[test]
    fn a_pod_s_two_directions_are_shown_with_peers_and_joined_ports() {
        let peers = [
            peer(3, "10.244.0.0/16", 9),
            peer(3, "10.244.7.0/24", PORTS_NONE),
            peer(3, "::/0", PORTS_ALL),
            peer(4, "10.0.0.0/8", PORTS_ALL),
        ];
        // 80; 8080-8083 as 8080/15 and 8082/15; all of UDP.
        let ports = [
            port(9, 6, 80, 16),
            port(9, 6, 8080, 15),
            port(9, 6, 8082, 15),
            port(9, 17, 0, 0),
            port(8, 6, 1, 16),
        ];
        let rules = rules(&peers, &ports);
        let workload = WorkloadValue {
            ingress_policy: 3,
            egress_policy: POLICY_DENY_ALL,
            ..WorkloadValue::default()
        };
        let names = Names::of(&[], &[("10.244.0.5", "default/web")]);
        let address = "10.244.0.5".parse().expect("an address");
        let rows = cells(address, &workload, &names, &rules);
        let shown: Vec<_> = rows.iter().map(|row| row[2..].join(" ")).collect();
        assert_eq!(
            shown,
            [
                "in 10.244.0.0/16 80/tcp, 8080-8083/tcp, udp",
                "in 10.244.7.0/24 nothing",
                "in ::/0 everything",
                "out closed nothing",
            ]
        );
        assert_eq!(rows[0][0], "default/web");
    }

    #[test]
    fn a_policy_without_a_prefix_allows_nothing() {
        assert_eq!(direction(7, &Rules::new())[0].0, "closed");
        assert_eq!(direction(0, &Rules::new())[0].0, "open");
    }
}
