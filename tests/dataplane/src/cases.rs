//! kube-proxy's own test cases, carried over as data under their names: objects, packets, outcomes.
//!
//! The tables are those of pkg/proxy (Kubernetes 1.34): nftables/proxier_test.go,
//! iptables/proxier_test.go, topology_test.go and conntrack/cleanup_test.go. Addresses are upstream's.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use serde_json::Value;

use crate::reference::{Prefix, Protocol, Question, Service, Slice, Style, World};

/// The node of upstream's cases, and its addresses.
pub const NODE: &str = "test-node";
pub const NODE_ADDRESSES: [&str; 5] = [
    "192.168.0.2",
    "192.168.1.2",
    "192.168.99.11",
    "2001:db8::1",
    "2001:db8:1::2",
];

/// The cases of a file.
pub fn load(file: &str) -> Vec<Value> {
    let text = match file {
        "packet_flows" => include_str!("../cases/packet_flows.json"),
        "categorize_endpoints" => include_str!("../cases/categorize_endpoints.json"),
        "service_map" => include_str!("../cases/service_map.json"),
        "stale_flows" => include_str!("../cases/stale_flows.json"),
        "update_endpoints_map" => include_str!("../cases/update_endpoints_map.json"),
        other => panic!("no cases `{other}`"),
    };
    let mut file: Value = serde_json::from_str(text).expect("the cases are JSON");
    match file["cases"].take() {
        Value::Array(cases) => cases,
        other => panic!("cases are {other}"),
    }
}

/// Name of a case: the test's, and the row's.
pub fn name(case: &Value) -> String {
    let parts = [&case["test"], &case["case"], &case["name"]];
    let parts: Vec<_> = parts.into_iter().filter_map(Value::as_str).collect();
    parts.join("/")
}

/// The node of upstream's cases with these objects.
pub fn world(style: Style, services: &Value, slices: &Value) -> World {
    let every = |value: &Value| value.as_array().cloned().unwrap_or_default();
    World {
        style,
        node: NODE.to_owned(),
        zone: None,
        node_addresses: addresses(&NODE_ADDRESSES),
        node_port_addresses: addresses(&[NODE_ADDRESSES[0], NODE_ADDRESSES[3]]),
        pod_ranges: vec![
            Prefix::parse("10.0.0.0/8"),
            Prefix::parse("fd00:10::/64"),
            Prefix::parse("fd00:10:180::/64"),
        ],
        service_ranges: vec![
            Prefix::parse("172.30.0.0/16"),
            Prefix::parse("fd00:172:30::/112"),
        ],
        services: every(services).iter().map(Service::read).collect(),
        slices: every(slices).iter().map(Slice::read).collect(),
    }
}

/// Addresses from texts.
pub fn addresses(texts: &[&str]) -> Vec<IpAddr> {
    let parse = |text: &&str| text.parse().expect("an address");
    texts.iter().map(parse).collect()
}

/// A packet of a case and what must become of it.
#[derive(Clone, Debug)]
pub struct Flow {
    pub name: String,
    pub question: Question,
    pub expected: Expected,
    /// Only for one of kube-proxy's modes.
    pub only: Option<String>,
}

/// What upstream expects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expected {
    To(BTreeSet<SocketAddr>, bool),
    Drop,
    Reject,
    Untouched,
}

impl Flow {
    /// From its JSON.
    pub fn read(flow: &Value) -> Self {
        let text = |key: &str| flow[key].as_str().expect("every flow has it");
        let expected = match flow["output"].as_str() {
            Some("DROP") => Expected::Drop,
            Some("REJECT") => Expected::Reject,
            Some("UNTOUCHED") => Expected::Untouched,
            Some(other) => panic!("`{other}` is no outcome"),
            None => Expected::To(
                sockets(&flow["output"]),
                flow["masq"].as_bool().unwrap_or(false),
            ),
        };
        Self {
            name: text("name").to_owned(),
            question: Question {
                from: text("from").parse().expect("an address"),
                protocol: Protocol::named(&flow["protocol"]),
                to: text("to").parse().expect("an address and a port"),
            },
            expected,
            only: flow["only"].as_str().map(str::to_owned),
        }
    }
}

/// A list of addresses with ports.
pub fn sockets(list: &Value) -> BTreeSet<SocketAddr> {
    let texts = list.as_array().into_iter().flatten();
    texts
        .filter_map(Value::as_str)
        .map(|text| text.parse().expect("an address and a port"))
        .collect()
}
