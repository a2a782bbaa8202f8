//! The truth tables of upstream's NetworkPolicy tests that are about egress or ranges of addresses.
//!
//! Where upstream asks for one protocol and port and the policy speaks of none, all are asked for.

use serde_json::json;

use crate::world::{ALL, TCP, Table, case, namespaces, pods};

const PORTS: [u16; 2] = [80, 81];

#[test]
fn should_allow_egress_access_on_one_named_port() {
    case(|world| {
        let rule = json!({"ports": [{"port": "serve-80-tcp"}]});
        let spec = json!({"podSelector": {}, "egress": [rule], "policyTypes": ["Egress"]});
        world.apply("x", "allow-egress", &spec);
        world.expect(&TCP, &[80], &Table::default());
        world.expect(&TCP, &[81], &Table::default().peer("x/*", "*", false));
    });
}

#[test]
fn should_deny_egress_from_pods_based_on_pod_selector() {
    case(|world| {
        let spec = json!({"podSelector": pods("a"), "policyTypes": ["Egress"]});
        world.apply("x", "deny-egress-pod-a", &spec);
        world.expect(&ALL, &PORTS, &Table::default().all_egress("x/a", false));
    });
}

#[test]
fn should_deny_egress_from_all_pods_in_a_namespace() {
    case(|world| {
        world.apply(
            "x",
            "deny-egress-ns-x",
            &json!({"podSelector": {}, "policyTypes": ["Egress"]}),
        );
        world.expect(&ALL, &PORTS, &Table::default().peer("x/*", "*", false));
    });
}

#[test]
fn should_work_with_ingress_egress_specified_together() {
    case(|world| {
        let spec = json!({
            "podSelector": pods("a"), "policyTypes": ["Egress", "Ingress"],
            "ingress": [{"from": [{"podSelector": pods("b")}]}], "egress": [{"ports": [{"port": 80}]}],
        });
        world.apply("x", "allow-client-a-via-pod-selector", &spec);
        let on_80 = Table::default()
            .all_ingress("x/a", false)
            .peer("x/b", "x/a", true);
        world.expect(&TCP, &[80], &on_80);
        let on_81 = Table::default()
            .all_ingress("x/a", false)
            .all_egress("x/a", false);
        world.expect(&TCP, &[81], &on_81.peer("x/b", "x/a", true));
    });
}

#[test]
fn should_support_denying_of_egress_traffic_on_the_client_side_even_if_the_server_explicitly_allows_this_traffic()
 {
    case(|world| {
        let to = json!([{"namespaceSelector": namespaces("y"), "podSelector": pods("a")}]);
        let egress =
            json!({"podSelector": pods("a"), "egress": [{"to": to}], "policyTypes": ["Egress"]});
        world.apply("x", "allow-to-ns-y-pod-a", &egress);
        let from = json!([{"namespaceSelector": namespaces("x"), "podSelector": pods("a")}]);
        for pod in ["a", "b"] {
            let ingress = json!({"podSelector": pods(pod), "ingress": [{"from": from}]});
            world.apply(
                "y",
                &format!("allow-from-xa-on-y{pod}-match-selector"),
                &ingress,
            );
        }
        let table = Table::default()
            .peer("x/a", "*", false)
            .peer("*", "y/a", false);
        let table = table.peer("x/a", "y/a", true).peer("*", "y/b", false);
        world.expect(&ALL, &PORTS, &table);
    });
}

#[test]
fn should_enforce_egress_policy_allowing_traffic_to_a_server_in_a_different_namespace_based_on_pod_selector_and_namespace_selector()
 {
    case(|world| {
        let to = json!([{"namespaceSelector": namespaces("y"), "podSelector": pods("a")}]);
        let spec =
            json!({"podSelector": pods("a"), "egress": [{"to": to}], "policyTypes": ["Egress"]});
        world.apply("x", "allow-to-ns-y-pod-a", &spec);
        let table = Table::default()
            .all_egress("x/a", false)
            .peer("x/a", "y/a", true);
        world.expect(&ALL, &PORTS, &table);
    });
}

#[test]
fn should_enforce_multiple_egress_policies_with_egress_allow_all_policy_taking_precedence() {
    case(|world| {
        let spec = |rule| json!({"podSelector": {}, "egress": [rule], "policyTypes": ["Egress"]});
        world.apply(
            "x",
            "allow-egress-port-80",
            &spec(json!({"ports": [{"port": 80}]})),
        );
        world.expect(&TCP, &[81], &Table::default().peer("x/*", "*", false));
        world.apply("x", "allow-egress", &spec(json!({})));
        world.expect(&ALL, &PORTS, &Table::default());
    });
}

#[test]
fn should_allow_egress_access_to_server_in_cidr_block() {
    case(|world| {
        world.apply_at("x", "allow-client-a-via-cidr-egress-rule", |address| {
            let cidr = host_range(&address("y/b"));
            let to = json!([{"ipBlock": {"cidr": cidr}}]);
            json!({"podSelector": pods("a"), "egress": [{"to": to}], "policyTypes": ["Egress"]})
        });
        let table = Table::default()
            .all_egress("x/a", false)
            .peer("x/a", "y/b", true);
        world.expect(&ALL, &PORTS, &table);
    });
}

#[test]
fn should_enforce_except_clause_while_egress_access_to_server_in_cidr_block() {
    case(|world| {
        world.apply_at("x", "allow-client-a-via-cidr-egress-rule", |address| {
            let address = address("x/b");
            let block = json!({"cidr": large_range(&address), "except": [host_range(&address)]});
            let to = json!([{"ipBlock": block}]);
            json!({"podSelector": pods("a"), "egress": [{"to": to}], "policyTypes": ["Egress"]})
        });
        world.expect(&ALL, &PORTS, &Table::default().peer("x/a", "x/b", false));
    });
}

#[test]
fn should_ensure_an_ip_overlapping_both_ip_block_cidr_and_ip_block_except_is_allowed() {
    case(|world| {
        let spec = |block| {
            let to = json!([{"ipBlock": block}]);
            json!({"podSelector": pods("a"), "egress": [{"to": to}], "policyTypes": ["Egress"]})
        };
        let all_but = |address: &str| {
            spec(json!({"cidr": large_range(address), "except": [host_range(address)]}))
        };
        let name = "allow-client-a-via-cidr-egress-rule";
        world.apply_at("x", name, |address| all_but(&address("x/b")));
        world.expect(&ALL, &PORTS, &Table::default().peer("x/a", "x/b", false));
        let only = |address: &str| spec(json!({"cidr": host_range(address)}));
        world.apply_at("x", name, |address| only(&address("x/b")));
        let table = Table::default()
            .all_egress("x/a", false)
            .peer("x/a", "x/b", true);
        world.expect(&ALL, &PORTS, &table);
        // What the name says: two policies at once.
        world.apply_at("x", "all-but", |address| all_but(&address("x/b")));
        world.expect(&ALL, &PORTS, &Table::default());
    });
}

#[test]
fn should_enforce_policies_to_check_ingress_and_egress_policies_can_be_controlled_independently_based_on_pod_selector()
 {
    case(|world| {
        let allow = json!({"podSelector": pods("a"), "egress": [{}], "policyTypes": ["Egress"]});
        world.apply("x", "allow-egress-for-target", &allow);
        world.expect(&ALL, &PORTS, &Table::default());
        let deny = json!({"podSelector": pods("a"), "ingress": []});
        world.apply("x", "deny-ingress-via-label-selector", &deny);
        world.expect(&ALL, &PORTS, &Table::default().all_ingress("x/a", false));
    });
}

fn host_range(address: &str) -> String {
    let len = if address.contains(':') { 128 } else { 32 };
    format!("{address}/{len}")
}

/// The /4 an address is in.
fn large_range(address: &str) -> String {
    let range: ipnet::IpNet = format!("{address}/4").parse().expect("a range");
    range.trunc().to_string()
}
