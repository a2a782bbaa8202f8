//! NetworkPolicy of networking.k8s.io.

use super::service::validate_protocol;
use super::{ALL_VERBS, Kind, Strategy, cells};
use crate::field::{ErrorList, FieldError, Path};
use crate::selector::{LabelSelector, validate_spec};
use crate::value::{at, default_to, ensure_map, i64_at, list_at, list_mut, map_at, str_at};
use serde_json::Value;
use std::net::{IpAddr, Ipv6Addr};

const TYPES: [&str; 2] = ["Egress", "Ingress"];

/// The table entry.
pub static NETWORK_POLICY: Kind = Kind {
    group: "networking.k8s.io",
    version: "v1",
    kind: "NetworkPolicy",
    plural: "networkpolicies",
    singular: "networkpolicy",
    short_names: &["netpol"],
    categories: &[],
    is_namespaced: true,
    verbs: ALL_VERBS,
    subresources: &[],
    message: "networking.NetworkPolicy",
    storage: "networking.k8s.io/networkpolicies",
    is_volatile: false,
    columns: &[
        cells::NAME,
        cells::text("Pod-Selector", 0, "The pods that the policy isolates."),
        cells::AGE,
    ],
    cells: |object, now| {
        vec![
            cells::name(object),
            pod_selector(object).into(),
            cells::age(object, now),
        ]
    },
    field_selectors: &[],
    name_rule: crate::names::dns_subdomain,
    strategy: Strategy {
        default,
        validate,
        validate_update: |new, _| validate(new),
        has_generation: true,
        ..Strategy::PLAIN
    },
};

fn pod_selector(object: &Value) -> String {
    match LabelSelector::from_spec(at(object, "spec.podSelector")).to_string() {
        none if none.is_empty() => "<none>".to_owned(),
        some => some,
    }
}

fn default(object: &mut Value) {
    ensure_map(object, "spec.podSelector");
    for direction in ["spec.ingress", "spec.egress"] {
        for rule in list_mut(object, direction).into_iter().flatten() {
            let ports = list_mut(rule, "ports").into_iter().flatten();
            for port in ports.filter_map(Value::as_object_mut) {
                default_to(port, "protocol", "TCP");
            }
        }
    }
    if list_at(object, "spec.policyTypes").is_empty() {
        let mut types = vec![Value::from("Ingress")];
        if !list_at(object, "spec.egress").is_empty() {
            types.push("Egress".into());
        }
        ensure_map(object, "spec").insert("policyTypes".to_owned(), types.into());
    }
}

fn validate(object: &Value) -> ErrorList {
    let path = Path::new("spec");
    let mut errors = ErrorList::new();
    if let Some(selector) = at(object, "spec.podSelector") {
        errors.extend(validate_spec(selector, &path.child("podSelector")));
    }
    for (direction, peers) in [("ingress", "from"), ("egress", "to")] {
        let rules = list_at(object, &format!("spec.{direction}"));
        for (i, rule) in rules.iter().enumerate() {
            let path = path.child(direction).index(i);
            for (j, port) in list_at(rule, "ports").iter().enumerate() {
                errors.extend(validate_port(port, &path.child("ports").index(j)));
            }
            for (j, peer) in list_at(rule, peers).iter().enumerate() {
                errors.extend(validate_peer(peer, &path.child(peers).index(j)));
            }
        }
    }
    let path = path.child("policyTypes");
    let types = list_at(object, "spec.policyTypes");
    if types.len() > TYPES.len() {
        let detail = "may not specify more than two policyTypes";
        errors.push(FieldError::invalid(&path, types.to_vec(), detail));
        return errors;
    }
    for (i, kind) in types.iter().enumerate() {
        let kind = kind.as_str().unwrap_or_default();
        if !TYPES.contains(&kind) {
            errors.push(FieldError::not_supported(&path.index(i), kind, &TYPES));
        }
    }
    errors
}

fn validate_port(port: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    if at(port, "protocol").is_some_and(|protocol| !protocol.is_null()) {
        let protocol = str_at(port, "protocol");
        errors.extend(validate_protocol(protocol, &path.child("protocol")));
    }
    let (port_path, end_path) = (path.child("port"), path.child("endPort"));
    let end = i64_at(port, "endPort");
    let refuse_end = |errors: &mut ErrorList, detail: &str| {
        if let Some(end) = end {
            errors.push(FieldError::invalid(&end_path, end, detail));
        }
    };
    match at(port, "port").filter(|port| !port.is_null()) {
        None => refuse_end(
            &mut errors,
            "may not be specified when `port` is not specified",
        ),
        Some(Value::String(name)) => {
            refuse_end(
                &mut errors,
                "may not be specified when `port` is non-numeric",
            );
            let messages = crate::names::port_name(name);
            errors.extend(crate::names::errors(&port_path, name, messages));
        }
        Some(number) => {
            let number = number.as_i64().unwrap_or_default();
            for message in crate::names::port_number(number) {
                errors.push(FieldError::invalid(&port_path, number, message));
            }
            if end.is_some_and(|end| end < number) {
                refuse_end(&mut errors, "must be greater than or equal to `port`");
            }
            for message in end.map(crate::names::port_number).unwrap_or_default() {
                refuse_end(&mut errors, &message);
            }
        }
    }
    errors
}

fn validate_peer(peer: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let selectors = ["podSelector", "namespaceSelector"];
    let selectors = selectors.map(|name| (name, map_at(peer, name).is_some()));
    for (name, _) in selectors.iter().filter(|(_, is_set)| *is_set) {
        errors.extend(validate_spec(&peer[*name], &path.child(name)));
    }
    let has_block = map_at(peer, "ipBlock").is_some();
    if has_block {
        errors.extend(validate_block(&peer["ipBlock"], &path.child("ipBlock")));
    }
    let has_selector = selectors.iter().any(|(_, is_set)| *is_set);
    if !has_selector && !has_block {
        errors.push(FieldError::required(path, "must specify a peer"));
    } else if has_selector && has_block {
        let detail = "may not specify both ipBlock and another peer";
        errors.push(FieldError::forbidden(path, detail));
    }
    errors
}

/// An address range: its base address and how many bits of it count.
fn cidr(text: &str) -> Option<(IpAddr, u32)> {
    let (address, len) = text.split_once('/')?;
    let is_decimal = !len.is_empty() && len.bytes().all(|byte| byte.is_ascii_digit());
    let (address, len) = (address.parse::<IpAddr>().ok()?, len.parse::<u32>().ok()?);
    let is_mapped = matches!(address, IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() && len >= 96);
    let max = if address.is_ipv4() { 32 } else { 128 };
    (is_decimal && len <= max && !is_mapped).then_some((address, len))
}

fn contains((range, len): (IpAddr, u32), address: IpAddr) -> bool {
    let bits = |v6: Ipv6Addr, from: u32| {
        let outside = 128 - (from + len);
        u128::from(v6).checked_shr(outside).unwrap_or(0)
    };
    match (range, address) {
        (IpAddr::V4(a), IpAddr::V4(b)) => {
            bits(a.to_ipv6_mapped(), 96) == bits(b.to_ipv6_mapped(), 96)
        }
        (IpAddr::V6(a), IpAddr::V6(b)) => bits(a, 0) == bits(b, 0),
        _ => false,
    }
}

fn validate_block(block: &Value, path: &Path) -> ErrorList {
    const DETAIL: &str = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
    let text = str_at(block, "cidr");
    let cidr_path = path.child("cidr");
    if text.is_empty() {
        return vec![FieldError::required(&cidr_path, "")];
    }
    let Some(range) = cidr(text) else {
        return vec![FieldError::invalid(&cidr_path, text, DETAIL)];
    };
    let mut errors = ErrorList::new();
    for (i, except) in list_at(block, "except").iter().enumerate() {
        let path = path.child("except").index(i);
        let text = except.as_str().unwrap_or_default();
        match cidr(text) {
            None => errors.push(FieldError::invalid(&path, text, DETAIL)),
            Some((address, len)) if !contains(range, address) || range.1 >= len => {
                let detail = "must be a strict subset of `cidr`";
                errors.push(FieldError::invalid(&path, text, detail));
            }
            Some(_) => {}
        }
    }
    errors
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn policy(spec: Value) -> Value {
        let metadata = json!({"name": "p", "namespace": "d"});
        let mut object = json!({"metadata": metadata, "spec": spec});
        NETWORK_POLICY.apply_defaults(&mut object);
        NETWORK_POLICY.prepare_create(&mut object);
        object
    }

    fn errors(spec: Value) -> String {
        match NETWORK_POLICY.validate_create(&policy(spec)) {
            Ok(()) => String::new(),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn policy_types_follow_from_what_rules_there_are() {
        let types = |spec| policy(spec)["spec"]["policyTypes"].clone();
        assert_eq!(types(json!({"podSelector": {}})), json!(["Ingress"]));
        assert_eq!(types(json!({"egress": []})), json!(["Ingress"]));
        assert_eq!(types(json!({"egress": [{}]})), json!(["Ingress", "Egress"]));
        assert_eq!(
            types(json!({"egress": [{}], "policyTypes": ["Egress"]})),
            json!(["Egress"])
        );
    }

    #[test]
    fn ports_are_of_tcp_unless_they_say_otherwise() {
        let spec = json!({"ingress": [{"ports": [{"port": 80}, {"protocol": "UDP"}]}]});
        let ports = &policy(spec)["spec"]["ingress"][0]["ports"];
        assert_eq!(
            *ports,
            json!([{"port": 80, "protocol": "TCP"}, {"protocol": "UDP"}])
        );
    }

    #[test]
    fn the_table_shows_the_pods_as_kubectl_does() {
        let cells = |selector: Value| {
            let now = jiff::Timestamp::UNIX_EPOCH;
            let object = policy(json!({"podSelector": selector}));
            NETWORK_POLICY.row_cells(&object, now)[1].clone()
        };
        assert_eq!(cells(json!({})), "<none>");
        assert_eq!(cells(json!({"matchLabels": {"app": "db"}})), "app=db");
        let expression = json!({"key": "tier", "operator": "In", "values": ["a", "b"]});
        let both = json!({"matchLabels": {"app": "db"}, "matchExpressions": [expression]});
        assert_eq!(cells(both), "app=db,tier in (a,b)");
    }

    #[test]
    fn what_upstream_refuses_is_refused_in_its_words() {
        let port = |port: Value| errors(json!({"ingress": [{"ports": [port]}]}));
        let peer = |peer: Value| errors(json!({"egress": [{"to": [peer]}]}));
        let block = |cidr: &str, except: &[&str]| {
            peer(json!({"ipBlock": {"cidr": cidr, "except": except}}))
        };
        for (found, expected) in [
            (
                port(json!({"port": 0})),
                "spec.ingress[0].ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive",
            ),
            (
                port(json!({"port": 90, "endPort": 80})),
                "ports[0].endPort: Invalid value: 80: must be greater than or equal to `port`",
            ),
            (
                port(json!({"port": "web", "endPort": 80})),
                "may not be specified when `port` is non-numeric",
            ),
            (
                port(json!({"endPort": 80})),
                "may not be specified when `port` is not specified",
            ),
            (
                port(json!({"port": 80, "protocol": "ICMP"})),
                "ports[0].protocol: Unsupported value: \"ICMP\": supported values: \"SCTP\", \"TCP\", \"UDP\"",
            ),
            (
                peer(json!({})),
                "spec.egress[0].to[0]: Required value: must specify a peer",
            ),
            (
                peer(json!({"podSelector": {}, "ipBlock": {"cidr": "10.0.0.0/8"}})),
                "Forbidden: may not specify both ipBlock and another peer",
            ),
            (
                block("10.0.0.0/33", &[]),
                "to[0].ipBlock.cidr: Invalid value: \"10.0.0.0/33\": must be a valid CIDR value",
            ),
            (
                block("10.0.0.0/8", &["10.0.0.0/8"]),
                "except[0]: Invalid value: \"10.0.0.0/8\": must be a strict subset of `cidr`",
            ),
            (
                block("10.0.0.0/8", &["11.0.0.0/9"]),
                "must be a strict subset of `cidr`",
            ),
            (
                block("fd00::/64", &["fd00:0:0:1::/96"]),
                "must be a strict subset of `cidr`",
            ),
            (
                errors(json!({"policyTypes": ["Both"]})),
                "spec.policyTypes[0]: Unsupported value: \"Both\": supported values: \"Egress\", \"Ingress\"",
            ),
            (
                errors(json!({"policyTypes": ["Ingress", "Egress", "Ingress"]})),
                "may not specify more than two policyTypes",
            ),
            (
                errors(json!({"podSelector": {"matchLabels": {"-": "x"}}})),
                "spec.podSelector.matchLabels: Invalid value",
            ),
        ] {
            assert!(found.contains(expected), "{found:?} lacks {expected:?}");
        }
    }

    #[test]
    fn what_upstream_takes_is_taken() {
        assert_eq!(errors(json!({})), "");
        let peers = json!([
            {"podSelector": {}}, {"namespaceSelector": {"matchLabels": {"a": "b"}}, "podSelector": {}},
            {"ipBlock": {"cidr": "10.1.2.3/8", "except": ["10.9.0.0/16"]}},
            {"ipBlock": {"cidr": "::/0", "except": ["fd00::/8"]}},
        ]);
        let ports = json!([{"port": "web"}, {"port": 80, "endPort": 90}, {"protocol": "SCTP"}]);
        assert_eq!(
            errors(json!({"ingress": [{"from": peers, "ports": ports}]})),
            ""
        );
    }
}
