//! Policies as the API has them, to the domain's: what is kept, what is refused and how it is said.

use serde_json::{Value, json};

use super::*;

fn parse(spec: Value) -> NetworkPolicy {
    let metadata = json!({"name": "p", "namespace": "x", "uid": "u"});
    let object = json!({"metadata": metadata, "spec": spec});
    policy_of(&serde_json::from_value(object).unwrap())
}

fn directions(spec: Value) -> (bool, bool) {
    let policy = parse(spec);
    (policy.ingress.is_some(), policy.egress.is_some())
}

#[test]
fn directions_follow_policy_types_or_the_rules_there_are() {
    assert_eq!(directions(json!({})), (true, false));
    assert_eq!(directions(json!({"egress": [{}]})), (true, true));
    assert_eq!(
        directions(json!({"policyTypes": ["Egress"]})),
        (false, true)
    );
    let only_ingress = json!({"egress": [{}], "policyTypes": ["Ingress"]});
    assert_eq!(directions(only_ingress), (true, false));
}

#[test]
fn absent_and_empty_lists_of_a_rule_allow_all_and_an_absent_rule_nothing() {
    let rule = |policy: NetworkPolicy| policy.ingress.unwrap();
    let all = Rule {
        peers: Vec::new(),
        ports: Vec::new(),
    };
    let missing = parse(json!({"ingress": [{}]}));
    assert_eq!(rule(missing)[..], *std::slice::from_ref(&all));
    let empty = json!({"ingress": [{"from": [], "ports": []}]});
    assert_eq!(rule(parse(empty)), [all]);
    assert_eq!(rule(parse(json!({"ingress": []}))), []);
    assert_eq!(rule(parse(json!({}))), []);
}

#[test]
fn selectors_of_a_peer_mean_the_own_namespace_or_those_selected() {
    let peers = json!([{"podSelector": {}}, {"namespaceSelector": {}}]);
    let policy = parse(json!({"ingress": [{"from": peers}]}));
    let pods = |namespaces| {
        Peer::Pods(PodPeers {
            namespaces,
            pods: Selector::all(),
        })
    };
    assert_eq!(
        policy.ingress.unwrap()[0].peers,
        [
            pods(Namespaces::Only("x".into())),
            pods(Namespaces::Matching(Selector::all()))
        ]
    );
}

#[test]
fn ports_are_numbers_ranges_names_or_whole_protocols() {
    let ports = json!([
        {"port": 80}, {"port": 80, "endPort": 90, "protocol": "UDP"}, {"port": "web"},
        {"protocol": "SCTP"},
    ]);
    let policy = parse(json!({"ingress": [{"ports": ports}]}));
    let expected = [
        PortRule::Range(PortRange::one(Protocol::Tcp, 80)),
        PortRule::Range(PortRange {
            protocol: Protocol::Udp,
            first: 80,
            last: 90,
        }),
        PortRule::Named(PortName {
            name: "web".into(),
            protocol: Protocol::Tcp,
        }),
        PortRule::Range(PortRange::whole(Protocol::Sctp)),
    ];
    assert_eq!(policy.ingress.unwrap()[0].ports, expected);
    assert_eq!(policy.problems, Vec::<String>::new());
}

#[test]
fn what_is_not_understood_allows_nothing_and_is_named() {
    // Dropping the only peer would turn "these" into "everybody".
    let cases = [
        (
            json!({"from": [{"ipBlock": {"cidr": "10.0.0.0/40"}}]}),
            "spec.ingress[0]: ipBlock \"10.0.0.0/40\" is not an address range",
        ),
        (
            json!({"from": [{}]}),
            "spec.ingress[0]: a peer names nobody",
        ),
        (
            json!({"ports": [{"port": 80, "protocol": "ICMP"}]}),
            "spec.ingress[0]: protocol \"ICMP\" is not known",
        ),
        (
            json!({"ports": [{"port": 90, "endPort": 80}]}),
            "spec.ingress[0]: endPort 80 needs a lower port by number",
        ),
        (
            json!({"from": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["11.0.0.0/8"]}}]}),
            "spec.ingress[0]: except 11.0.0.0/8 is not within ipBlock 10.0.0.0/8",
        ),
    ];
    for (rule, problem) in cases {
        let policy = parse(json!({"ingress": [rule]}));
        assert_eq!(policy.ingress, Some(Vec::new()));
        assert_eq!(policy.problems, [problem]);
    }
}

#[test]
fn a_selector_that_is_not_understood_isolates_the_whole_namespace() {
    let expression = json!({"key": "a", "operator": "Near", "values": ["b"]});
    let selector = json!({"matchExpressions": [expression]});
    let policy = parse(json!({"podSelector": selector, "ingress": [{}]}));
    assert_eq!(policy.pods, Selector::all());
    assert_eq!(policy.ingress, Some(Vec::new()), "and allows nothing");
    assert_eq!(
        policy.problems,
        ["spec.podSelector: operator \"Near\" of the selector for a is not known"]
    );
    assert_eq!(
        directions(json!({"policyTypes": ["Sideways"]})),
        (true, true)
    );
}
