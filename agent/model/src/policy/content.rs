//! What is allowed in one direction of the pods that the same policies select.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::{IpNet, Ipv6Net};

use super::groups::{Group, GroupId, GroupKey, Pods};
use super::{
    Direction, NamedPort, NetworkPolicy, ObjectName, Peer, PortName, PortRange, PortRule, PortSet,
    Rule, host,
};

/// What makes contents equal: pods with equal keys share one.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ContentKey {
    pub(super) direction: Direction,
    /// Those that select the pod and speak of the direction.
    pub(super) policies: BTreeSet<ObjectName>,
    /// Ingress: what the names that the policies use mean in this pod.
    pub(super) own_ports: BTreeSet<NamedPort>,
}

/// Prefixes with the ports of all ranges that cover them.
pub(super) type Entries = BTreeMap<IpNet, PortSet>;

#[derive(Debug)]
pub(super) struct Content {
    pub(super) direction: Direction,
    rules: Vec<Compiled>,
    /// Prefixes that blocks name.
    blocks: BTreeSet<IpNet>,
    pub(super) entries: Entries,
    /// Pods of this node that have it.
    pub(super) users: BTreeSet<ObjectName>,
}

#[derive(Debug)]
struct Compiled {
    /// Empty: everybody.
    peers: Vec<CompiledPeer>,
    ports: PortSet,
    /// Egress: names to be looked up in each destination pod.
    names: Vec<PortName>,
}

#[derive(Debug)]
enum CompiledPeer {
    Group(GroupId),
    Block { cidr: IpNet, except: Vec<IpNet> },
}

/// What a content is compiled from, besides the policies.
pub(super) struct Sources<'a> {
    pub(super) groups: &'a BTreeMap<GroupId, Group>,
    pub(super) pods: &'a Pods,
}

/// The names that rules use.
pub(super) fn names_of(policy: &NetworkPolicy, direction: Direction) -> BTreeSet<&PortName> {
    let rules = policy.rules(direction).unwrap_or_default();
    let ports = rules.iter().flat_map(|rule| &rule.ports);
    let names = ports.filter_map(|port| match port {
        PortRule::Named(name) => Some(name),
        PortRule::Range(_) => None,
    });
    names.collect()
}

impl Content {
    /// Without entries yet: see [`Self::fill`]. `group` gives each group of peers its id.
    pub(super) fn new<'a>(
        key: &ContentKey,
        policies: impl Iterator<Item = &'a NetworkPolicy>,
        mut group: impl FnMut(GroupKey) -> GroupId,
    ) -> Self {
        let mut content = Self {
            direction: key.direction,
            rules: Vec::new(),
            blocks: BTreeSet::new(),
            entries: Entries::new(),
            users: BTreeSet::new(),
        };
        for policy in policies {
            for rule in policy.rules(key.direction).unwrap_or_default() {
                content.add(rule, &key.own_ports, &mut group);
            }
        }
        content
    }

    fn add(
        &mut self,
        rule: &Rule,
        own_ports: &BTreeSet<NamedPort>,
        group: &mut impl FnMut(GroupKey) -> GroupId,
    ) {
        let mut compiled = Compiled {
            peers: Vec::new(),
            ports: PortSet::none(),
            names: Vec::new(),
        };
        if rule.ports.is_empty() {
            compiled.ports = PortSet::all();
        }
        for port in &rule.ports {
            match port {
                PortRule::Range(range) => compiled.ports.insert(*range),
                PortRule::Named(name) if self.direction == Direction::Egress => {
                    compiled.names.push(name.clone());
                }
                PortRule::Named(name) => {
                    for own in own_ports.iter().filter(|own| own.name == *name) {
                        compiled
                            .ports
                            .insert(PortRange::one(own.name.protocol, own.port));
                    }
                }
            }
        }
        for peer in &rule.peers {
            compiled.peers.push(match peer {
                Peer::Pods(pods) => CompiledPeer::Group(group(GroupKey::Peers(pods.clone()))),
                Peer::Block { cidr, except } => {
                    self.blocks.insert(*cidr);
                    self.blocks.extend(except);
                    CompiledPeer::Block {
                        cidr: *cidr,
                        except: except.clone(),
                    }
                }
            });
        }
        if rule.peers.is_empty() {
            self.blocks.extend(everything());
        }
        // Every pod with the name is a prefix of its own then, because its number may differ.
        for name in &compiled.names {
            group(GroupKey::Named(name.clone()));
        }
        self.rules.push(compiled);
    }

    /// Computes all entries.
    pub(super) fn fill(&mut self, groups: &BTreeSet<GroupId>, sources: &Sources<'_>) {
        let mut prefixes = self.blocks.clone();
        for id in groups {
            prefixes.extend(sources.groups[id].addresses().map(host));
        }
        if prefixes.iter().any(covers_mapped) {
            prefixes.extend(everything().into_iter().filter(|one| one.addr().is_ipv4()));
        }
        self.entries = prefixes
            .into_iter()
            .map(|prefix| (prefix, self.ports_at(&prefix, sources)))
            .collect();
    }

    /// Computes the entry of one address anew; whether it is different now.
    pub(super) fn refresh(
        &mut self,
        address: IpAddr,
        groups: &BTreeSet<GroupId>,
        sources: &Sources<'_>,
    ) -> bool {
        let prefix = host(address);
        let mentioned = self.blocks.contains(&prefix)
            || groups.iter().any(|id| sources.groups[id].has(address));
        if !mentioned {
            return self.entries.remove(&prefix).is_some();
        }
        let ports = self.ports_at(&prefix, sources);
        if self.entries.get(&prefix) == Some(&ports) {
            return false;
        }
        self.entries.insert(prefix, ports);
        true
    }

    /// The union of what all rules allow a prefix that no other lies within.
    fn ports_at(&self, prefix: &IpNet, sources: &Sources<'_>) -> PortSet {
        let mut ports = PortSet::none();
        for rule in &self.rules {
            let is_peer =
                rule.peers.is_empty() || rule.peers.iter().any(|peer| peer.covers(prefix, sources));
            if !is_peer {
                continue;
            }
            ports.extend(&rule.ports);
            for port in sources.pods.ports_named(&rule.names, prefix) {
                ports.insert(port);
            }
        }
        ports
    }
}

impl CompiledPeer {
    fn covers(&self, prefix: &IpNet, sources: &Sources<'_>) -> bool {
        match self {
            Self::Group(id) => {
                prefix.prefix_len() == prefix.max_prefix_len()
                    && sources.groups[id].has(prefix.addr())
            }
            Self::Block { cidr, except } => {
                cidr.contains(prefix) && !except.iter().any(|cut| cut.contains(prefix))
            }
        }
    }
}

/// All addresses of both families.
fn everything() -> [IpNet; 2] {
    ["0.0.0.0/0", "::/0"].map(|range| range.parse().expect("a constant range parses"))
}

/// Whether a range of IPv6 holds the mapped IPv4 addresses. The map has them in that form, so IPv4
/// needs an entry of its own there, or it would find this one.
fn covers_mapped(prefix: &IpNet) -> bool {
    match prefix {
        IpNet::V6(range) => {
            let mapped: Ipv6Net = "::ffff:0:0/96".parse().expect("a constant range parses");
            range.contains(&mapped)
        }
        IpNet::V4(_) => false,
    }
}
