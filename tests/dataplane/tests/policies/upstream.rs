//! The truth tables of upstream's NetworkPolicy tests, under their names.
//!
//! Where upstream asks for one protocol and port and the policy speaks of none, all are asked for.

use serde_json::json;
use tholepin_model::policy::Protocol;

use crate::world::{ALL, TCP, Table, case, expression, namespaces, pods};

const PORTS: [u16; 2] = [80, 81];
const DEFAULT_LABEL: &str = "kubernetes.io/metadata.name";

#[test]
fn should_support_a_default_deny_ingress_policy() {
    case(|world| {
        world.apply(
            "x",
            "deny-ingress",
            &json!({"podSelector": {}, "policyTypes": ["Ingress"]}),
        );
        world.expect(&ALL, &PORTS, &Table::default().peer("*", "x/*", false));
    });
}

#[test]
fn should_support_a_default_deny_all_policy() {
    case(|world| {
        let spec = json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]});
        world.apply("x", "deny-all", &spec);
        let table = Table::default()
            .peer("*", "x/*", false)
            .peer("x/*", "*", false);
        world.expect(&ALL, &PORTS, &table);
    });
}

#[test]
fn should_enforce_policy_to_allow_traffic_from_pods_within_server_namespace_based_on_pod_selector()
{
    case(|world| {
        let spec =
            json!({"podSelector": pods("a"), "ingress": [{"from": [{"podSelector": pods("b")}]}]});
        world.apply("x", "x-a-allows-x-b", &spec);
        let table = Table::default()
            .all_ingress("x/a", false)
            .peer("x/b", "x/a", true);
        world.expect(&ALL, &PORTS, &table);
    });
}

#[test]
fn should_enforce_policy_to_allow_ingress_traffic_for_a_target() {
    case(|world| {
        world.apply("x", "deny-all", &json!({"podSelector": {}}));
        let everybody = json!({"podSelector": {}, "namespaceSelector": {}});
        let spec = json!({"podSelector": pods("a"), "ingress": [{"from": [everybody]}]});
        world.apply("x", "allow-all-to-a", &spec);
        let table = Table::default()
            .peer("*", "x/*", false)
            .all_ingress("x/a", true);
        world.expect(&ALL, &PORTS, &table);
    });
}

#[test]
fn should_enforce_policy_to_allow_ingress_traffic_from_pods_in_all_namespaces() {
    case(|world| {
        let spec =
            json!({"podSelector": pods("a"), "ingress": [{"from": [{"namespaceSelector": {}}]}]});
        world.apply("x", "allow-from-another-ns", &spec);
        world.expect(&ALL, &PORTS, &Table::default());
    });
}

#[test]
fn should_enforce_policy_to_allow_traffic_only_from_a_different_namespace_based_on_namespace_selector()
 {
    case(|world| {
        let from = json!([{"namespaceSelector": namespaces("y")}]);
        let spec = json!({"podSelector": pods("a"), "ingress": [{"from": from}]});
        world.apply("x", "allow-client-a-via-ns-selector", &spec);
        let table = Table::default()
            .peer("x/*", "x/a", false)
            .peer("z/*", "x/a", false);
        world.expect(&ALL, &PORTS, &table);
    });
}

#[test]
fn should_enforce_policy_based_on_pod_selector_with_match_expressions() {
    case(|world| {
        let from = json!([{"podSelector": expression("pod", "In", &["b"])}]);
        let spec = json!({"podSelector": pods("a"), "ingress": [{"from": from}]});
        world.apply("x", "x-a-allows-x-b", &spec);
        let table = Table::default()
            .all_ingress("x/a", false)
            .peer("x/b", "x/a", true);
        world.expect(&ALL, &PORTS, &table);
    });
}

#[test]
fn should_enforce_policy_based_on_namespace_selector_with_match_expressions() {
    case(|world| {
        let from = json!([{"namespaceSelector": expression(DEFAULT_LABEL, "In", &["y"])}]);
        let spec = json!({"podSelector": pods("a"), "ingress": [{"from": from}]});
        world.apply("x", "allow-ns-y-match-selector", &spec);
        let table = Table::default()
            .peer("x/*", "x/a", false)
            .peer("z/*", "x/a", false);
        world.expect(&ALL, &PORTS, &table);
    });
}

#[test]
fn should_enforce_policy_based_on_pod_selector_or_namespace_selector() {
    case(|world| {
        let elsewhere = json!({"namespaceSelector": expression(DEFAULT_LABEL, "NotIn", &["x"])});
        let from = json!([elsewhere, {"podSelector": pods("b")}]);
        let spec = json!({"podSelector": pods("a"), "ingress": [{"from": from}]});
        world.apply("x", "allow-ns-y-match-selector", &spec);
        world.expect(&ALL, &PORTS, &Table::default().peer("x/c", "x/a", false));
    });
}

#[test]
fn should_enforce_policy_based_on_pod_selector_and_namespace_selector() {
    case(|world| {
        let elsewhere = expression(DEFAULT_LABEL, "NotIn", &["x"]);
        let from = json!([{"namespaceSelector": elsewhere, "podSelector": pods("b")}]);
        let spec = json!({"podSelector": pods("a"), "ingress": [{"from": from}]});
        world.apply("x", "allow-ns-y-podselector-and-nsselector", &spec);
        let table = Table::default().all_ingress("x/a", false);
        let table = table.peer("y/b", "x/a", true).peer("z/b", "x/a", true);
        world.expect(&ALL, &PORTS, &table);
    });
}

#[test]
fn should_enforce_policy_based_on_multiple_pod_selectors_and_namespace_selectors() {
    case(|world| {
        let elsewhere = expression(DEFAULT_LABEL, "NotIn", &["x"]);
        let both = expression("pod", "In", &["b", "c"]);
        let from = json!([{"namespaceSelector": elsewhere, "podSelector": both}]);
        let spec = json!({"podSelector": pods("a"), "ingress": [{"from": from}]});
        world.apply("x", "allow-ns-y-z-pod-b-c", &spec);
        let table = Table::default().peer("x/*", "x/a", false);
        let table = table.peer("y/a", "x/a", false).peer("z/a", "x/a", false);
        world.expect(&ALL, &PORTS, &table);
    });
}

#[test]
fn should_enforce_policy_based_on_any_pod_selectors() {
    case(|world| {
        let from = json!([{"podSelector": pods("b")}, {"podSelector": pods("c")}]);
        let spec = json!({"podSelector": pods("a"), "ingress": [{"from": from}]});
        world.apply("x", "allow-ns-x-pod-b-c", &spec);
        let table = Table::default().all_ingress("x/a", false);
        let table = table.peer("x/b", "x/a", true).peer("x/c", "x/a", true);
        world.expect(&ALL, &PORTS, &table);
    });
}

#[test]
fn should_enforce_policy_to_allow_traffic_only_from_a_pod_in_a_different_namespace_based_on_pod_selector_and_namespace_selector()
 {
    case(|world| {
        let from = json!([{"namespaceSelector": namespaces("y"), "podSelector": pods("a")}]);
        let spec = json!({"podSelector": pods("a"), "ingress": [{"from": from}]});
        world.apply("x", "allow-ns-y-pod-a-via-namespace-pod-selector", &spec);
        let table = Table::default()
            .all_ingress("x/a", false)
            .peer("y/a", "x/a", true);
        world.expect(&ALL, &PORTS, &table);
    });
}

#[test]
fn should_enforce_policy_based_on_ports() {
    case(|world| {
        for protocol in ALL {
            let name = format!("{protocol:?}").to_uppercase();
            let port = json!({"port": 81, "protocol": name});
            let rule = json!({"from": [{"namespaceSelector": namespaces("y")}], "ports": [port]});
            let spec = json!({"podSelector": pods("a"), "ingress": [rule]});
            world.apply("x", "allow-ingress-on-port-81-ns-x", &spec);
            let table = Table::default()
                .peer("x/*", "x/a", false)
                .peer("z/*", "x/a", false);
            world.expect(&[protocol], &[81], &table);
            world.expect(
                &[protocol],
                &[80],
                &Table::default().all_ingress("x/a", false),
            );
        }
    });
}

#[test]
fn should_enforce_multiple_stacked_policies_with_overlapping_pod_selectors() {
    case(|world| {
        let on_port = |port: u16| {
            let ports = json!([{"port": port, "protocol": "TCP"}]);
            let rule = json!({"from": [{"namespaceSelector": namespaces("y")}], "ports": ports});
            json!({"podSelector": pods("a"), "ingress": [rule]})
        };
        let allowed = Table::default()
            .peer("x/*", "x/a", false)
            .peer("z/*", "x/a", false);
        let denied = Table::default().all_ingress("x/a", false);
        world.apply("x", "allow-client-a-via-ns-selector", &on_port(81));
        world.expect(&TCP, &[81], &allowed);
        world.expect(&TCP, &[80], &denied);
        world.apply("x", "allow-client-a-via-ns-selector-80", &on_port(80));
        world.expect(&TCP, &PORTS, &allowed);
        world.expect(&[Protocol::Udp, Protocol::Sctp], &PORTS, &denied);
    });
}

#[test]
fn should_support_allow_all_policy() {
    case(|world| {
        world.apply(
            "x",
            "allow-all",
            &json!({"podSelector": {}, "ingress": [{}]}),
        );
        world.expect(&ALL, &PORTS, &Table::default());
    });
}

#[test]
fn should_allow_ingress_access_on_one_named_port() {
    case(|world| {
        let rule = json!({"ports": [{"port": "serve-81-tcp"}]});
        world.apply(
            "x",
            "allow-all",
            &json!({"podSelector": {}, "ingress": [rule]}),
        );
        world.expect(&TCP, &[81], &Table::default());
        let denied = Table::default().peer("*", "x/*", false);
        world.expect(&TCP, &[80], &denied);
        world.expect(&[Protocol::Udp, Protocol::Sctp], &PORTS, &denied);
    });
}

#[test]
fn should_allow_ingress_access_from_namespace_on_one_named_port() {
    case(|world| {
        let ports = json!([{"port": "serve-80-tcp", "protocol": "TCP"}]);
        let rule = json!({"from": [{"namespaceSelector": namespaces("y")}], "ports": ports});
        let spec = json!({"podSelector": pods("a"), "ingress": [rule]});
        world.apply("x", "allow-client-a-via-ns-selector-80", &spec);
        let table = Table::default()
            .peer("x/*", "x/a", false)
            .peer("z/*", "x/a", false);
        world.expect(&TCP, &[80], &table);
        world.expect(&TCP, &[81], &Table::default().all_ingress("x/a", false));
    });
}

#[test]
fn should_enforce_updated_policy() {
    case(|world| {
        let name = "allow-all-mutate-to-deny-all";
        world.apply("x", name, &json!({"podSelector": {}, "ingress": [{}]}));
        world.expect(&ALL, &PORTS, &Table::default());
        world.apply("x", name, &json!({"podSelector": {}, "ingress": []}));
        world.expect(&ALL, &PORTS, &Table::default().peer("*", "x/*", false));
    });
}

#[test]
fn should_allow_ingress_access_from_updated_namespace() {
    case(|world| {
        let from = json!([{"namespaceSelector": {"matchLabels": {"ns2": "updated"}}}]);
        let spec = json!({"podSelector": pods("a"), "ingress": [{"from": from}]});
        world.apply("x", "allow-client-a-via-ns-selector", &spec);
        let denied = Table::default().all_ingress("x/a", false);
        world.expect(&ALL, &PORTS, &denied);
        world.label_namespace("y", &[("ns2", "updated")]);
        world.expect(&ALL, &PORTS, &denied.peer("y/*", "*", true));
    });
}

#[test]
fn should_allow_ingress_access_from_updated_pod() {
    case(|world| {
        let updated = json!({"matchLabels": {"pod": "b", "pod2": "updated"}});
        let from = json!([{"podSelector": updated}]);
        let spec = json!({"podSelector": pods("a"), "ingress": [{"from": from}]});
        world.apply("x", "allow-client-a-via-pod-selector", &spec);
        let denied = Table::default().all_ingress("x/a", false);
        world.expect(&ALL, &PORTS, &denied);
        world.label_pod("x/b", &[("pod2", "updated")]);
        world.expect(&ALL, &PORTS, &denied.peer("x/b", "x/a", true));
    });
}

#[test]
fn should_deny_ingress_from_pods_on_other_namespaces() {
    case(|world| {
        let spec = json!({"podSelector": {}, "ingress": [{"from": [{"podSelector": {}}]}]});
        world.apply("x", "deny-empty-policy", &spec);
        let table = Table::default()
            .peer("y/*", "x/*", false)
            .peer("z/*", "x/*", false);
        world.expect(&ALL, &PORTS, &table);
    });
}

#[test]
fn should_deny_ingress_access_to_updated_pod() {
    case(|world| {
        let isolated = json!({"matchLabels": {"target": "isolated"}});
        world.apply(
            "x",
            "deny-ingress-via-label-selector",
            &json!({"podSelector": isolated}),
        );
        world.expect(&ALL, &PORTS, &Table::default());
        world.label_pod("x/a", &[("target", "isolated")]);
        world.expect(&ALL, &PORTS, &Table::default().all_ingress("x/a", false));
    });
}

#[test]
fn should_enforce_ingress_policy_allowing_any_port_traffic_to_a_server_on_a_specific_protocol() {
    case(|world| {
        let rule = json!({"ports": [{"protocol": "TCP"}]});
        world.apply(
            "x",
            "allow-ingress-by-proto",
            &json!({"podSelector": pods("a"), "ingress": [rule]}),
        );
        world.expect(&TCP, &PORTS, &Table::default());
        let denied = Table::default().all_ingress("x/a", false);
        world.expect(&[Protocol::Udp, Protocol::Sctp], &PORTS, &denied);
    });
}

#[test]
fn should_enforce_multiple_ingress_policies_with_ingress_allow_all_policy_taking_precedence() {
    case(|world| {
        let rule = json!({"ports": [{"port": 80}]});
        world.apply(
            "x",
            "allow-ingress-port-80",
            &json!({"podSelector": {}, "ingress": [rule]}),
        );
        world.expect(&TCP, &[81], &Table::default().peer("*", "x/*", false));
        world.apply(
            "x",
            "allow-ingress",
            &json!({"podSelector": {}, "ingress": [{}]}),
        );
        world.expect(&ALL, &PORTS, &Table::default());
    });
}

#[test]
fn should_stop_enforcing_policies_after_they_are_deleted() {
    case(|world| {
        let spec = json!({"podSelector": {}, "policyTypes": ["Ingress", "Egress"]});
        world.apply("x", "deny-all", &spec);
        let table = Table::default()
            .peer("x/*", "*", false)
            .peer("*", "x/*", false);
        world.expect(&ALL, &PORTS, &table);
        world.delete("x", "deny-all");
        world.expect(&ALL, &PORTS, &Table::default());
    });
}

#[test]
fn should_not_mistakenly_treat_protocol_sctp_as_protocol_tcp() {
    case(|world| {
        world.apply("x", "deny-ingress", &json!({"podSelector": {}}));
        let rule = json!({"ports": [{"port": 81, "protocol": "SCTP"}]});
        let spec = json!({"podSelector": pods("a"), "ingress": [rule]});
        world.apply("x", "allow-only-sctp-ingress-on-port-81", &spec);
        let denied = Table::default().peer("*", "x/*", false);
        world.expect(&[Protocol::Tcp, Protocol::Udp], &PORTS, &denied);
        world.expect(&[Protocol::Sctp], &[81], &denied.all_ingress("x/a", true));
    });
}

#[test]
fn should_properly_isolate_pods_that_are_selected_by_a_policy_allowing_sctp() {
    case(|world| {
        let rule = json!({"ports": [{"port": 80, "protocol": "SCTP"}]});
        let spec = json!({"podSelector": pods("a"), "ingress": [rule]});
        world.apply("x", "allow-only-sctp-ingress-on-port-80", &spec);
        world.expect(&TCP, &[81], &Table::default().all_ingress("x/a", false));
        world.expect(&[Protocol::Sctp], &[80], &Table::default());
    });
}

#[test]
fn should_not_allow_access_by_tcp_when_a_policy_specifies_only_udp() {
    case(|world| {
        let rule = json!({"ports": [{"port": 81, "protocol": "UDP"}]});
        let spec = json!({"podSelector": pods("a"), "ingress": [rule]});
        world.apply("x", "allow-only-udp-ingress-on-port-81", &spec);
        world.expect(&TCP, &[81], &Table::default().all_ingress("x/a", false));
        world.expect(&[Protocol::Udp], &[81], &Table::default());
    });
}

#[test]
fn should_enforce_policy_to_allow_traffic_based_on_namespace_selector_with_match_labels_using_default_ns_label()
 {
    case(|world| {
        let from = json!([{"namespaceSelector": {"matchLabels": {DEFAULT_LABEL: "y"}}}]);
        let spec = json!({"podSelector": pods("a"), "ingress": [{"from": from}]});
        world.apply(
            "x",
            "allow-client-a-via-ns-selector-for-immutable-ns-label",
            &spec,
        );
        let table = Table::default()
            .peer("x/*", "x/a", false)
            .peer("z/*", "x/a", false);
        world.expect(&ALL, &PORTS, &table);
    });
}

#[test]
fn should_enforce_policy_based_on_namespace_selector_with_match_expressions_using_default_ns_label()
{
    case(|world| {
        let to = json!([{"namespaceSelector": expression(DEFAULT_LABEL, "NotIn", &["y"])}]);
        let spec =
            json!({"podSelector": pods("a"), "egress": [{"to": to}], "policyTypes": ["Egress"]});
        world.apply(
            "x",
            "allow-ns-y-match-selector-for-immutable-ns-label",
            &spec,
        );
        world.expect(&ALL, &PORTS, &Table::default().peer("x/a", "y/*", false));
    });
}

#[test]
fn should_enforce_end_port() {
    case(|world| {
        let rule = json!({"ports": [{"port": 81, "endPort": 90, "protocol": "TCP"}]});
        world.apply(
            "x",
            "allow-range",
            &json!({"podSelector": pods("a"), "ingress": [rule]}),
        );
        world.expect(&TCP, &[81, 85, 90], &Table::default());
        world.expect(&TCP, &[80, 91], &Table::default().all_ingress("x/a", false));
    });
}
