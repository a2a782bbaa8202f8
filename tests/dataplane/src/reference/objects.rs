//! Kubernetes objects as the reference model reads them, from their JSON.

use std::collections::BTreeSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};

use serde_json::Value;

/// Transport protocols of Services.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    /// From its name in objects; TCP is the default.
    pub fn named(value: &Value) -> Self {
        match value.as_str() {
            Some("UDP") => Self::Udp,
            Some("SCTP") => Self::Sctp,
            Some("TCP") | None => Self::Tcp,
            Some(other) => panic!("`{other}` is no protocol of a Service"),
        }
    }
}

/// A range of addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prefix {
    address: IpAddr,
    length: u32,
}

impl Prefix {
    /// From `address/length`; blanks around it do not matter.
    pub fn parse(text: &str) -> Self {
        let (address, length) = text.trim().split_once('/').expect("address/length");
        Self {
            address: address.parse().expect("an address"),
            length: length.parse().expect("a length"),
        }
    }

    pub fn contains(&self, other: IpAddr) -> bool {
        let bits = |address: IpAddr| match address {
            IpAddr::V4(v4) => (u128::from(u32::from(v4)) << 96, true),
            IpAddr::V6(v6) => (u128::from(v6), false),
        };
        let ((ours, v4), (theirs, other_v4)) = (bits(self.address), bits(other));
        let shift = 128 - self.length;
        v4 == other_v4 && (self.length == 0 || ours >> shift == theirs >> shift)
    }
}

/// A port of a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Port {
    pub name: String,
    pub protocol: Protocol,
    pub port: u16,
    pub node_port: Option<u16>,
}

/// A Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    pub namespace: String,
    pub name: String,
    kind: String,
    foreign: bool,
    pub cluster_ips: Vec<IpAddr>,
    pub external_ips: Vec<IpAddr>,
    pub load_balancer_ips: Vec<IpAddr>,
    pub source_ranges: Vec<Prefix>,
    pub external_local: bool,
    pub internal_local: bool,
    pub health_check_node_port: Option<u16>,
    pub affinity_timeout: Option<u64>,
    pub ports: Vec<Port>,
}

impl fmt::Display for Service {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn list(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn number(value: &Value) -> Option<u16> {
    let number = value.as_u64().filter(|number| *number != 0)?;
    Some(u16::try_from(number).expect("a port"))
}

impl Service {
    /// From its JSON.
    pub fn read(object: &Value) -> Self {
        let (meta, spec) = (&object["metadata"], &object["spec"]);
        let addresses = |value: &Value| -> Vec<IpAddr> {
            let texts = list(value).filter_map(Value::as_str);
            texts.filter_map(|text| text.parse().ok()).collect()
        };
        let ingress = list(&object["status"]["loadBalancer"]["ingress"]);
        let port = |port: &Value| Port {
            name: text(&port["name"]),
            protocol: Protocol::named(&port["protocol"]),
            port: number(&port["port"]).expect("a Service port"),
            node_port: number(&port["nodePort"]),
        };
        let ranges = list(&spec["loadBalancerSourceRanges"]).filter_map(Value::as_str);
        let affine = spec["sessionAffinity"] == "ClientIP";
        let timeout = spec["sessionAffinityConfig"]["clientIP"]["timeoutSeconds"].as_u64();
        Self {
            namespace: text(&meta["namespace"]),
            name: text(&meta["name"]),
            kind: text(&spec["type"]),
            foreign: !meta["labels"]["service.kubernetes.io/service-proxy-name"].is_null(),
            cluster_ips: addresses(&spec["clusterIPs"]),
            external_ips: addresses(&spec["externalIPs"]),
            load_balancer_ips: ingress
                .filter_map(|one| one["ip"].as_str()?.parse().ok())
                .collect(),
            source_ranges: ranges.map(Prefix::parse).collect(),
            external_local: spec["externalTrafficPolicy"] == "Local",
            internal_local: spec["internalTrafficPolicy"] == "Local",
            health_check_node_port: number(&spec["healthCheckNodePort"]),
            affinity_timeout: affine.then_some(timeout.unwrap_or(10_800)),
            ports: list(&spec["ports"]).map(port).collect(),
        }
    }

    /// Whether this proxy has to do with it: not headless, no alias, not another proxy's.
    pub fn is_ours(&self) -> bool {
        !self.cluster_ips.is_empty() && self.kind != "ExternalName" && !self.foreign
    }

    /// Whether a port can be reached by another address than a cluster IP.
    pub fn is_external(&self, port: usize) -> bool {
        self.ports[port].node_port.is_some()
            || !self.external_ips.is_empty()
            || !self.load_balancer_ips.is_empty()
    }
}

/// A port of an EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    name: String,
    protocol: Protocol,
    pub port: u16,
}

impl Target {
    /// Whether it is what a Service's port leads to: name and protocol are the same.
    pub fn matches(&self, port: &Port) -> bool {
        self.name == port.name && self.protocol == port.protocol
    }
}

/// An endpoint; the port of `at` is set for one port of its slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub at: SocketAddr,
    pub ready: bool,
    pub serving: bool,
    pub terminating: bool,
    pub node: Option<String>,
    pub local: bool,
    pub zone_hints: BTreeSet<String>,
    pub node_hints: BTreeSet<String>,
}

impl Endpoint {
    /// From its JSON; conditions that are not said have upstream's defaults.
    pub fn read(object: &Value) -> Self {
        let conditions = &object["conditions"];
        let ready = conditions["ready"].as_bool().unwrap_or(true);
        let names = |value: &Value| list(value).map(|hint| text(&hint["name"])).collect();
        let address: IpAddr = object["addresses"][0]
            .as_str()
            .expect("an endpoint has an address")
            .parse()
            .expect("an address");
        Self {
            at: SocketAddr::new(address, 0),
            ready,
            serving: conditions["serving"].as_bool().unwrap_or(ready),
            terminating: conditions["terminating"].as_bool().unwrap_or(false),
            node: object["nodeName"].as_str().map(str::to_owned),
            local: false,
            zone_hints: names(&object["hints"]["forZones"]),
            node_hints: names(&object["hints"]["forNodes"]),
        }
    }
}

/// An EndpointSlice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slice {
    pub namespace: String,
    pub service: String,
    pub ports: Vec<Target>,
    pub endpoints: Vec<Endpoint>,
}

impl Slice {
    /// From its JSON.
    pub fn read(object: &Value) -> Self {
        let meta = &object["metadata"];
        let target = |port: &Value| Target {
            name: text(&port["name"]),
            protocol: Protocol::named(&port["protocol"]),
            port: number(&port["port"]).expect("the port of an endpoint"),
        };
        Self {
            namespace: text(&meta["namespace"]),
            service: text(&meta["labels"]["kubernetes.io/service-name"]),
            ports: list(&object["ports"]).map(target).collect(),
            endpoints: list(&object["endpoints"]).map(Endpoint::read).collect(),
        }
    }

    /// Whether it is a slice of that Service.
    pub fn is_of(&self, service: &Service) -> bool {
        self.namespace == service.namespace && self.service == service.name
    }
}
