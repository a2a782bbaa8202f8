//! Moves a case of kube-proxy from upstream's addresses to those of the stage, in either family.
//!
//! The stage's routes and devices are fixed, so a case is renamed before it is run: pods of the node
//! become pods of the stage's node, others pods of the other node, and so on. Outcomes are renamed
//! likewise, so nothing is compared that is not the case's.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use serde_json::Value;

use crate::cases::{NODE, addresses};
use crate::reference::{Prefix, Service, Slice, Style, World};
use crate::stage::{NODES, in_v6};

/// The names of one case.
#[derive(Clone, Debug)]
pub struct AddressPlan {
    v6: bool,
    pods: BTreeMap<IpAddr, IpAddr>,
    local: Vec<IpAddr>,
}

/// Second addresses of the stage's node.
pub const SECOND_ADDRESSES: [&str; 2] = ["172.17.0.1", "fd00:172:17::1"];
/// Pods of a case are numbered from here.
const FIRST_POD: usize = 10;

impl AddressPlan {
    /// Names everything in `case`; an IPv4 case is moved to IPv6 if asked for.
    pub fn of(case: &Value, v6: bool) -> Self {
        let mut plan = Self {
            v6,
            pods: BTreeMap::new(),
            local: Vec::new(),
        };
        let mut endpoints = Vec::new();
        find(case, "endpoints", &mut endpoints);
        let mut placed: BTreeMap<IpAddr, bool> = BTreeMap::new();
        for endpoint in endpoints
            .iter()
            .filter_map(|list| list.as_array())
            .flatten()
        {
            let address = endpoint["addresses"][0].as_str();
            let address = address.expect("an endpoint").parse().expect("an address");
            let node = case["node"].as_str().unwrap_or(NODE);
            *placed.entry(address).or_default() |= endpoint["nodeName"] == node;
        }
        // Clients that are nobody's endpoint are pods of this node, what they ask a pod of another.
        for (key, here) in [("from", true), ("to", false)] {
            let mut texts = Vec::new();
            find(case, key, &mut texts);
            for text in texts.iter().filter_map(|text| text.as_str()) {
                let ip = text
                    .parse()
                    .or_else(|_| text.parse().map(|s: SocketAddr| s.ip()));
                let ip = ip.expect("an address");
                if is_pod(ip) {
                    placed.entry(ip).or_insert(here);
                }
            }
        }
        for (index, (address, here)) in placed.into_iter().enumerate() {
            let text = match here {
                true => format!("10.244.1.{}", FIRST_POD + index),
                false => format!("10.244.2.{}", FIRST_POD + index),
            };
            let renamed = plan.family(&text, address);
            if here {
                plan.local.push(renamed);
            }
            plan.pods.insert(address, renamed);
        }
        plan
    }

    /// Pods of this node.
    pub fn local(&self) -> &[IpAddr] {
        &self.local
    }

    /// `text` in the family that `from` has after the move.
    fn family(&self, text: &str, from: IpAddr) -> IpAddr {
        let text = match self.v6 || from.is_ipv6() {
            true => in_v6(text),
            false => text.to_owned(),
        };
        text.parse().expect("an address")
    }

    /// The stage's name of an address.
    pub fn ip(&self, ip: IpAddr) -> IpAddr {
        if ip.is_loopback() {
            return ip;
        }
        if let Some(pod) = self.pods.get(&ip) {
            return *pod;
        }
        let text = match ip {
            IpAddr::V4(v4) => v4_name(v4),
            IpAddr::V6(v6) => v6_name(v6),
        };
        self.family(&text, ip)
    }

    /// The stage's name of an address with a port.
    pub fn socket(&self, at: SocketAddr) -> SocketAddr {
        SocketAddr::new(self.ip(at.ip()), at.port())
    }

    fn text(&self, text: &str) -> String {
        if let Ok(ip) = text.parse::<IpAddr>() {
            return self.ip(ip).to_string();
        }
        if let Ok(at) = text.parse::<SocketAddr>() {
            return self.socket(at).to_string();
        }
        let range = text.trim().split_once('/');
        let parsed = range.and_then(|(ip, length)| Some((ip.parse().ok()?, length)));
        match (parsed, self.v6) {
            (Some((ip, length)), false) => {
                text.replace(text.trim(), &format!("{}/{length}", self.ip(ip)))
            }
            // Halves of 256 addresses become halves of what their last numbers look like.
            (Some((ip, "25")), true) => format!("{}/120", self.ip(ip)),
            (Some((ip, _)), true) => format!("{}/64", self.ip(ip)),
            (None, true) if text == "IPv4" => "IPv6".to_owned(),
            (None, _) => text.to_owned(),
        }
    }

    /// Objects with every address in them renamed.
    pub fn objects(&self, value: &Value) -> Value {
        match value {
            Value::String(text) => Value::String(self.text(text)),
            Value::Array(list) => list.iter().map(|one| self.objects(one)).collect(),
            Value::Object(fields) => {
                let renamed = fields
                    .iter()
                    .map(|(key, one)| (key.clone(), self.objects(one)));
                Value::Object(renamed.collect())
            }
            other => other.clone(),
        }
    }

    /// The stage's node with these objects, which have been renamed.
    pub fn world(&self, services: &Value, slices: &Value, node_ports: &[IpAddr]) -> World {
        let every = |value: &Value| value.as_array().cloned().unwrap_or_default();
        World {
            style: Style::Tholepin,
            node: NODE.to_owned(),
            zone: None,
            node_addresses: addresses(&[NODES, SECOND_ADDRESSES].concat()),
            node_port_addresses: node_ports.to_vec(),
            pod_ranges: vec![
                Prefix::parse("10.244.0.0/16"),
                Prefix::parse("fd00:10:244::/48"),
            ],
            service_ranges: vec![
                Prefix::parse("10.96.0.0/16"),
                Prefix::parse("fd00:10:96::/48"),
            ],
            services: every(services).iter().map(Service::read).collect(),
            slices: every(slices).iter().map(Slice::read).collect(),
        }
    }
}

/// What upstream's tests use as addresses of pods.
fn is_pod(ip: IpAddr) -> bool {
    match ip {
        IpAddr::V4(v4) => v4.octets()[0] == 10,
        IpAddr::V6(v6) => v6.segments()[..2] == [0xfd00, 0x10],
    }
}

/// The stage's name of an IPv4 address of upstream's tests that is no pod's.
fn v4_name(v4: Ipv4Addr) -> String {
    match v4.octets() {
        [172, 30, c, d] => format!("10.96.{c}.{d}"),
        [192, 168, 0, 2] => NODES[0].to_owned(),
        [192, 168, 1, 2] => SECOND_ADDRESSES[0].to_owned(),
        [192, 168, 0, 0] => "172.30.0.0".to_owned(),
        [192, 168, 99, d] => format!("198.51.100.{d}"),
        [203, 0, 113, d] => format!("192.168.7.{d}"),
        // Load balancers' addresses count up: 1.2.3.4, 5.6.7.8, 9.10.11.12.
        [_, _, _, d] => format!("198.51.101.{d}"),
    }
}

/// The same of IPv6; written as the IPv4 address that it is the IPv6 form of.
fn v6_name(v6: Ipv6Addr) -> String {
    match v6.segments() {
        [0xfd00, 0x172, 0x30, .., d] => format!("10.96.0.{d:x}"),
        [0x2001, 0xdb8, 0, ..] => NODES[0].to_owned(),
        [0x2001, 0xdb8, 1, ..] => SECOND_ADDRESSES[0].to_owned(),
        [0x2600, ..] => "192.168.7.2".to_owned(),
        _ => panic!("{v6} has no name on the stage"),
    }
}

/// Every value of that key.
fn find<'a>(value: &'a Value, key: &str, found: &mut Vec<&'a Value>) {
    match value {
        Value::Array(list) => list.iter().for_each(|one| find(one, key, found)),
        Value::Object(fields) => {
            for (name, one) in fields {
                if name == key {
                    found.push(one);
                }
                find(one, key, found);
            }
        }
        _ => {}
    }
}
