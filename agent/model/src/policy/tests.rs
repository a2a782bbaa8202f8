//! The compiler against the reference, change by change.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use proptest::prelude::*;
use proptest::sample::select;

use super::reference::Cluster;
use super::table::{ContentId, PolicyTable};
use super::*;

/// The compiler, the reference, and what somebody who only follows the changes has.
#[derive(Default)]
struct World {
    table: PolicyTable,
    cluster: Cluster,
    local: BTreeSet<ObjectName>,
    followed: BTreeMap<ContentId, BTreeMap<IpNet, PortSet>>,
}

#[derive(Clone, Debug)]
enum Step {
    Policy(ObjectName, Option<Arc<NetworkPolicy>>),
    Namespace(Arc<str>, Option<Labels>),
    Pod(ObjectName, Option<Arc<Pod>>),
    Local(ObjectName, bool),
}

impl World {
    fn apply(&mut self, step: Step) {
        match step {
            Step::Policy(name, policy) => {
                self.table.set_policy(&name, policy.clone());
                put(&mut self.cluster.policies, name, policy);
            }
            Step::Namespace(name, labels) => {
                self.table.set_namespace(&name, labels.clone());
                put(&mut self.cluster.namespaces, name, labels);
            }
            Step::Pod(name, pod) => {
                self.table.set_pod(&name, pod.clone());
                put(&mut self.cluster.pods, name, pod);
            }
            Step::Local(name, true) => {
                self.table.set_subject(&name, Some(Vec::new()));
                self.local.insert(name);
            }
            Step::Local(name, false) => {
                self.table.set_subject(&name, None);
                self.local.remove(&name);
            }
        }
        self.follow();
    }

    fn follow(&mut self) {
        for (id, prefixes) in self.table.take_changes().contents {
            let Some(content) = self.table.content(id) else {
                self.followed.remove(&id);
                continue;
            };
            let followed = self.followed.entry(id).or_default();
            for prefix in prefixes {
                put(followed, prefix, content.get(&prefix).cloned());
            }
        }
    }

    /// What the programs would find.
    fn evaluate(&self, id: ContentId, other: IpAddr, target: Option<(Protocol, u16)>) -> bool {
        // IPv4 is looked up in its mapped form, and prefixes of IPv6 lie above it.
        let lies_within = |prefix: &IpNet| match (prefix, other) {
            (IpNet::V6(range), IpAddr::V4(v4)) => range.contains(&v4.to_ipv6_mapped()),
            _ => prefix.contains(&other),
        };
        let bits = |prefix: &IpNet| match prefix {
            IpNet::V4(range) => 96 + u32::from(range.prefix_len()),
            IpNet::V6(range) => u32::from(range.prefix_len()),
        };
        let entries = self.followed.get(&id).into_iter().flatten();
        let longest = entries
            .filter(|(prefix, _)| lies_within(prefix))
            .max_by_key(|(prefix, _)| bits(prefix));
        longest.is_some_and(|(_, ports)| ports.contains(target))
    }

    fn check(&self) -> Result<(), TestCaseError> {
        let ids: BTreeSet<_> = self.table.content_ids().collect();
        let followed: BTreeSet<_> = self.followed.keys().copied().collect();
        prop_assert_eq!(&ids, &followed, "changes name every content");
        for id in ids {
            let content = self.table.content(id).expect("listed");
            prop_assert_eq!(content, &self.followed[&id], "changes name every prefix");
            prop_assert!(
                self.table.users(id).next().is_some(),
                "nothing is kept for nobody"
            );
        }
        for name in &self.local {
            if !self.cluster.pods.contains_key(name) {
                continue;
            }
            let isolation = self.table.subjects()[name]
                .isolation
                .expect("its labels are known");
            for other in ADDRESSES.iter().map(|text| text.parse().unwrap()) {
                for target in targets() {
                    for (direction, id) in [
                        (Direction::Ingress, isolation.ingress),
                        (Direction::Egress, isolation.egress),
                    ] {
                        let found = id.is_none_or(|id| self.evaluate(id, other, target));
                        let expected = self.cluster.allows(name, direction, other, target);
                        prop_assert_eq!(
                            found,
                            expected,
                            "{} {:?} {} {:?} by {:#?}",
                            name,
                            direction,
                            other,
                            target,
                            self.cluster.policies
                        );
                    }
                }
            }
        }
        Ok(())
    }
}

fn put<K: Ord, V>(table: &mut BTreeMap<K, V>, key: K, value: Option<V>) {
    match value {
        Some(value) => drop(table.insert(key, value)),
        None => drop(table.remove(&key)),
    }
}

const ADDRESSES: [&str; 9] = [
    "10.0.0.1",
    "10.0.0.2",
    "10.0.1.1",
    "10.0.1.2",
    "192.168.0.1",
    "fd00::1",
    "fd00::2",
    "fd00::1:1",
    "2001:db8::1",
];
const RANGES: [&str; 11] = [
    "0.0.0.0/0",
    "10.0.0.0/8",
    "10.0.0.0/24",
    "10.0.0.0/31",
    "10.0.0.1/32",
    "10.0.1.0/24",
    "::/0",
    "::/64",
    "fd00::/64",
    "fd00::/112",
    "fd00::1/128",
];

fn targets() -> impl Iterator<Item = Option<(Protocol, u16)>> {
    let ports = Protocol::ALL
        .into_iter()
        .flat_map(|protocol| [79, 80, 81, 8080].map(|port| Some((protocol, port))));
    ports.chain([None])
}

fn a_name() -> impl Strategy<Value = ObjectName> {
    (select(vec!["x", "y"]), select(vec!["a", "b", "c"]))
        .prop_map(|(namespace, name)| ObjectName::new(namespace, name))
}

fn some_labels() -> impl Strategy<Value = Labels> {
    let pairs = vec![("pod", "a"), ("pod", "b"), ("ns", "x"), ("ns", "y")];
    proptest::sample::subsequence(pairs, 0..3).prop_map(Labels::from_iter)
}

fn a_selector() -> impl Strategy<Value = Selector> {
    let key = || select(vec!["pod", "ns"]).prop_map(Arc::<str>::from);
    let values = || proptest::sample::subsequence(vec!["a", "b", "x"], 1..3);
    let values = move || values().prop_map(|all| all.into_iter().map(Arc::from).collect());
    let requirement = prop_oneof![
        (key(), values()).prop_map(|(key, values)| Requirement::In(key, values)),
        (key(), values()).prop_map(|(key, values)| Requirement::NotIn(key, values)),
        key().prop_map(Requirement::Exists),
        key().prop_map(Requirement::DoesNotExist),
    ];
    proptest::collection::vec(requirement, 0..2).prop_map(Selector::from_iter)
}

fn a_protocol() -> impl Strategy<Value = Protocol> {
    select(Protocol::ALL.to_vec())
}

fn a_port_name() -> impl Strategy<Value = PortName> {
    (select(vec!["web", "dns"]), a_protocol()).prop_map(|(name, protocol)| PortName {
        name: name.into(),
        protocol,
    })
}

fn a_port() -> impl Strategy<Value = PortRule> {
    let ranges = vec![(0, u16::MAX), (80, 80), (80, 81), (81, 9000), (79, 79)];
    prop_oneof![
        (a_protocol(), select(ranges)).prop_map(|(protocol, (first, last))| {
            PortRule::Range(PortRange {
                protocol,
                first,
                last,
            })
        }),
        a_port_name().prop_map(PortRule::Named),
    ]
}

fn a_range() -> impl Strategy<Value = IpNet> {
    select(RANGES.to_vec()).prop_map(|text| text.parse().expect("a range"))
}

fn a_peer() -> impl Strategy<Value = Peer> {
    let namespaces = prop_oneof![
        select(vec!["x", "y"]).prop_map(|name| Namespaces::Only(name.into())),
        a_selector().prop_map(Namespaces::Matching),
    ];
    let pods = (namespaces, a_selector())
        .prop_map(|(namespaces, pods)| Peer::Pods(PodPeers { namespaces, pods }));
    let block =
        (a_range(), proptest::collection::vec(a_range(), 0..3)).prop_map(|(cidr, mut except)| {
            except.retain(|cut| cidr.contains(cut) && *cut != cidr);
            Peer::Block { cidr, except }
        });
    prop_oneof![pods, block]
}

fn some_rules() -> impl Strategy<Value = Option<Vec<Rule>>> {
    let rule = (
        proptest::collection::vec(a_peer(), 0..3),
        proptest::collection::vec(a_port(), 0..3),
    )
        .prop_map(|(peers, ports)| Rule { peers, ports });
    proptest::option::of(proptest::collection::vec(rule, 0..3))
}

fn a_policy() -> impl Strategy<Value = Arc<NetworkPolicy>> {
    (a_name(), a_selector(), some_rules(), some_rules()).prop_map(
        |(name, pods, ingress, egress)| {
            Arc::new(NetworkPolicy {
                name,
                uid: String::new(),
                pods,
                ingress,
                egress,
                problems: Vec::new(),
            })
        },
    )
}

fn a_pod() -> impl Strategy<Value = Arc<Pod>> {
    let addresses = proptest::sample::subsequence(ADDRESSES.to_vec(), 0..3);
    let port =
        (a_port_name(), select(vec![79, 80, 81])).prop_map(|(name, port)| NamedPort { name, port });
    (
        some_labels(),
        addresses,
        proptest::collection::vec(port, 0..3),
    )
        .prop_map(|(labels, addresses, named_ports)| {
            Arc::new(Pod {
                labels,
                addresses: addresses.iter().map(|text| text.parse().unwrap()).collect(),
                named_ports: named_ports.into(),
            })
        })
}

fn a_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => a_policy().prop_map(|policy| Step::Policy(policy.name.clone(), Some(policy))),
        1 => a_name().prop_map(|name| Step::Policy(name, None)),
        2 => (select(vec!["x", "y"]), proptest::option::weighted(0.8, some_labels()))
            .prop_map(|(name, labels)| Step::Namespace(name.into(), labels)),
        5 => (a_name(), proptest::option::weighted(0.8, a_pod()))
            .prop_map(|(name, pod)| Step::Pod(name, pod)),
        3 => (a_name(), proptest::bool::weighted(0.8)).prop_map(|(name, here)| Step::Local(name, here)),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]
    #[test]
    fn what_is_compiled_allows_exactly_what_the_policies_say(
        steps in proptest::collection::vec(a_step(), 1..24)
    ) {
        let mut world = World::default();
        for step in steps {
            world.apply(step);
            world.check()?;
        }
    }
}

fn pod(labels: &str, address: &str) -> Arc<Pod> {
    Arc::new(Pod {
        labels: labels
            .split(',')
            .filter_map(|one| one.split_once('='))
            .collect(),
        addresses: [address.parse().unwrap()].into(),
        named_ports: [].into(),
    })
}

fn policy(name: &str, ingress: Vec<Rule>) -> Arc<NetworkPolicy> {
    Arc::new(NetworkPolicy {
        name: ObjectName::new("x", name),
        uid: String::new(),
        pods: Selector::all(),
        ingress: Some(ingress),
        egress: None,
        problems: Vec::new(),
    })
}

/// A node with two pods and a policy that lets every pod of `x` in.
fn small() -> PolicyTable {
    let mut table = PolicyTable::default();
    let peers = Peer::Pods(PodPeers {
        namespaces: Namespaces::Only("x".into()),
        pods: Selector::all(),
    });
    let rule = Rule {
        peers: vec![peers],
        ports: Vec::new(),
    };
    let policy = policy("p", vec![rule]);
    table.set_policy(&policy.name.clone(), Some(policy));
    for (name, address) in [("a", "10.0.0.1"), ("b", "10.0.0.2")] {
        let name = ObjectName::new("x", name);
        table.set_pod(&name, Some(pod("pod=a", address)));
        table.set_subject(&name, Some(vec![address.parse().unwrap()]));
    }
    table.take_changes();
    table
}

#[test]
fn pods_that_the_same_policies_select_share_a_content() {
    let table = small();
    let ids: BTreeSet<_> = table
        .subjects()
        .values()
        .map(|one| one.isolation)
        .collect::<Vec<_>>()
        .into_iter()
        .flatten()
        .map(|one| (one.ingress, one.egress))
        .collect();
    assert_eq!(ids.len(), 1);
    assert_eq!(table.content_ids().count(), 1);
}

#[test]
fn a_new_peer_changes_one_prefix() {
    let mut table = small();
    table.set_pod(&ObjectName::new("x", "c"), Some(pod("", "10.0.0.3")));
    let changes = table.take_changes();
    assert_eq!(changes.subjects, BTreeSet::new());
    let prefixes: Vec<_> = changes.contents.into_values().flatten().collect();
    assert_eq!(prefixes, [host("10.0.0.3".parse().unwrap())]);
    table.set_pod(&ObjectName::new("y", "c"), Some(pod("", "10.0.1.3")));
    assert_eq!(table.take_changes(), super::table::Changes::default());
}

#[test]
fn an_address_that_has_moved_stays_when_its_old_pod_goes() {
    let mut table = small();
    let (old, new) = (ObjectName::new("x", "c"), ObjectName::new("x", "d"));
    table.set_pod(&old, Some(pod("", "10.0.0.3")));
    table.set_pod(&new, Some(pod("", "10.0.0.3")));
    table.take_changes();
    table.set_pod(&old, None);
    assert_eq!(table.take_changes(), super::table::Changes::default());
}

#[test]
fn a_pod_whose_labels_are_unknown_is_undecided_only_where_there_are_policies() {
    let mut table = small();
    for namespace in ["x", "y"] {
        table.set_subject(&ObjectName::new(namespace, "new"), Some(Vec::new()));
    }
    assert_eq!(
        table.subjects()[&ObjectName::new("x", "new")].isolation,
        None
    );
    assert!(
        table.subjects()[&ObjectName::new("y", "new")]
            .isolation
            .is_some()
    );
}
