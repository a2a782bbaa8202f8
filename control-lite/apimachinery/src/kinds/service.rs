//! Service.

mod validate;

pub(super) use validate::validate_protocol;

use super::{ALL_VERBS, Kind, Strategy, Subresource, cells};
use crate::value::{
    at, bool_at, default_to, ensure_map, i64_at, list_at, list_mut, remove, set, str_at,
};
use jiff::Timestamp;
use serde_json::{Value, json};

/// The table entry.
pub static SERVICE: Kind = Kind {
    group: "",
    version: "v1",
    kind: "Service",
    plural: "services",
    singular: "service",
    short_names: &["svc"],
    categories: &["all"],
    is_namespaced: true,
    verbs: ALL_VERBS,
    subresources: &[Subresource {
        name: "status",
        group: "",
        version: "v1",
        kind: "Service",
        verbs: &["get", "patch", "update"],
    }],
    message: "core.Service",
    storage: "/services/specs",
    is_volatile: false,
    columns: &[
        cells::NAME,
        cells::text("Type", 0, "How it is reached."),
        cells::text("Cluster-IP", 0, "Its address inside the cluster."),
        cells::text("External-IP", 0, "Its addresses outside the cluster."),
        cells::text("Port(s)", 0, "Its ports, with their node ports."),
        cells::AGE,
        cells::SELECTOR,
    ],
    cells: row,
    field_selectors: &["spec.clusterIP", "spec.type"],
    name_rule: crate::names::dns1035_label,
    strategy: Strategy {
        default,
        validate: validate::create,
        validate_update: validate::update,
        prepare,
        ..Strategy::PLAIN
    },
};

fn row(service: &Value, now: Timestamp) -> Vec<Value> {
    let address = match (
        list_at(service, "spec.clusterIPs")
            .first()
            .and_then(Value::as_str),
        str_at(service, "spec.clusterIP"),
    ) {
        (Some(first), _) => first,
        (None, "") => "<none>",
        (None, one) => one,
    };
    vec![
        cells::name(service),
        cells::text_or(service, "spec.type", ""),
        address.into(),
        external_address(service).into(),
        ports(service).into(),
        cells::age(service, now),
        cells::labels_at(service, "spec.selector"),
    ]
}

fn external_address(service: &Value) -> String {
    let outside: Vec<&str> = list_at(service, "spec.externalIPs")
        .iter()
        .filter_map(Value::as_str)
        .collect();
    match str_at(service, "spec.type") {
        "ExternalName" => str_at(service, "spec.externalName").to_owned(),
        "LoadBalancer" => {
            let ingress = list_at(service, "status.loadBalancer.ingress");
            let mut all: Vec<&str> = ingress
                .iter()
                .map(|i| {
                    if str_at(i, "ip").is_empty() {
                        str_at(i, "hostname")
                    } else {
                        str_at(i, "ip")
                    }
                })
                .filter(|a| !a.is_empty())
                .collect();
            all.sort_unstable();
            all.dedup();
            all.extend(&outside);
            if all.is_empty() {
                "<pending>".to_owned()
            } else {
                all.join(",")
            }
        }
        _ if outside.is_empty() => "<none>".to_owned(),
        _ => outside.join(","),
    }
}

fn ports(service: &Value) -> String {
    let of = |port: &Value| {
        let (number, protocol) = (
            i64_at(port, "port").unwrap_or_default(),
            str_at(port, "protocol"),
        );
        match i64_at(port, "nodePort") {
            Some(node_port) if node_port > 0 => format!("{number}:{node_port}/{protocol}"),
            _ => format!("{number}/{protocol}"),
        }
    };
    let list: Vec<String> = list_at(service, "spec.ports").iter().map(of).collect();
    if list.is_empty() {
        "<none>".to_owned()
    } else {
        list.join(",")
    }
}

/// Whether the Service has no cluster address on purpose.
pub(super) fn is_headless(service: &Value) -> bool {
    str_at(service, "spec.clusterIP") == "None"
        || list_at(service, "spec.clusterIPs")
            .first()
            .is_some_and(|ip| ip == "None")
}

fn default(service: &mut Value) {
    default_to(ensure_map(service, "spec"), "sessionAffinity", "None");
    if str_at(service, "spec.sessionAffinity") == "None" {
        drop(remove(service, "spec.sessionAffinityConfig"));
    } else if at(
        service,
        "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
    )
    .is_none()
    {
        set(
            service,
            "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
            10_800,
        );
    }
    default_to(ensure_map(service, "spec"), "type", "ClusterIP");
    for port in list_mut(service, "spec.ports")
        .into_iter()
        .flatten()
        .filter_map(Value::as_object_mut)
    {
        default_to(port, "protocol", "TCP");
        let is_unset = port
            .get("targetPort")
            .is_none_or(|t| t.is_null() || *t == json!(0) || *t == json!(""));
        if let (true, Some(number)) = (is_unset, port.get("port").cloned()) {
            port.insert("targetPort".to_owned(), number);
        }
    }
    let kind = str_at(service, "spec.type").to_owned();
    let is_outside = matches!(kind.as_str(), "NodePort" | "LoadBalancer")
        || (kind == "ClusterIP" && !list_at(service, "spec.externalIPs").is_empty());
    let spec = ensure_map(service, "spec");
    if is_outside {
        default_to(spec, "externalTrafficPolicy", "Cluster");
    }
    if kind != "ExternalName" {
        default_to(spec, "internalTrafficPolicy", "Cluster");
    }
    if kind == "LoadBalancer" && !spec.contains_key("allocateLoadBalancerNodePorts") {
        spec.insert("allocateLoadBalancerNodePorts".to_owned(), true.into());
    }
    mirror_cluster_ip(service);
    if kind != "ExternalName" {
        default_family_policy(service);
    }
}

/// `clusterIP` is the first of `clusterIPs`; a client that gives one gets the other.
fn mirror_cluster_ip(service: &mut Value) {
    let one = str_at(service, "spec.clusterIP").to_owned();
    let first = list_at(service, "spec.clusterIPs").first().cloned();
    match (one.is_empty(), first) {
        (false, None) => set(service, "spec.clusterIPs", json!([one])),
        (true, Some(first)) => set(service, "spec.clusterIP", first),
        _ => {}
    }
}

fn default_family_policy(service: &mut Value) {
    if !str_at(service, "spec.ipFamilyPolicy").is_empty() {
        return;
    }
    let wants_two = list_at(service, "spec.ipFamilies").len() == 2
        || list_at(service, "spec.clusterIPs").len() == 2;
    let has_selector = at(service, "spec.selector")
        .and_then(Value::as_object)
        .is_some_and(|s| !s.is_empty());
    // Without a selector the endpoints are somebody else's, of any family.
    let is_open = is_headless(service) && !has_selector;
    set(
        service,
        "spec.ipFamilyPolicy",
        if wants_two || is_open {
            "RequireDualStack"
        } else {
            "SingleStack"
        },
    );
}

fn prepare(new: &mut Value, old: Option<&Value>) {
    let Some(old) = old else { return };
    drop_fields_of_other_types(new, old);
    let needs_address = |s: &Value| str_at(s, "spec.type") != "ExternalName";
    if needs_address(new) && needs_address(old) {
        inherit_addresses(new, old);
        inherit_node_ports(new, old);
    } else if !needs_address(new) {
        // Becoming an ExternalName gives the addresses back, unless the client holds on to others.
        for path in ["spec.clusterIP", "spec.clusterIPs"] {
            if at(new, path) == at(old, path) {
                drop(remove(new, path));
            }
        }
        for path in [
            "spec.ipFamilies",
            "spec.ipFamilyPolicy",
            "spec.internalTrafficPolicy",
        ] {
            drop(remove(new, path));
        }
    }
}

/// A client that leaves allocated values out keeps them.
fn inherit_addresses(new: &mut Value, old: &Value) {
    if str_at(new, "spec.clusterIP").is_empty() && list_at(new, "spec.clusterIPs").is_empty() {
        crate::value::copy(old, new, "spec.clusterIP");
        crate::value::copy(old, new, "spec.clusterIPs");
    }
    // Clients that know only clusterIP change that one.
    let is_list_untouched = at(new, "spec.clusterIPs") == at(old, "spec.clusterIPs");
    let one = str_at(new, "spec.clusterIP").to_owned();
    if is_list_untouched && !one.is_empty() && one != str_at(old, "spec.clusterIP") {
        set(new, "spec.clusterIPs", json!([one]));
    }
    if list_at(new, "spec.ipFamilies").is_empty() {
        crate::value::copy(old, new, "spec.ipFamilies");
        crate::value::copy(old, new, "spec.ipFamilyPolicy");
    }
}

fn has_node_ports(service: &Value) -> bool {
    matches!(str_at(service, "spec.type"), "NodePort" | "LoadBalancer")
}

/// Whether clients outside the cluster have an address of it.
fn is_external(service: &Value) -> bool {
    let has_addresses = !list_at(service, "spec.externalIPs").is_empty();
    has_node_ports(service) || str_at(service, "spec.type") == "ClusterIP" && has_addresses
}

fn needs_health_check(service: &Value) -> bool {
    str_at(service, "spec.type") == "LoadBalancer"
        && str_at(service, "spec.externalTrafficPolicy") == "Local"
}

/// A Service that changes its type loses what only the old one has, unless the client changed it too.
fn drop_fields_of_other_types(new: &mut Value, old: &Value) {
    if has_node_ports(old) && !has_node_ports(new) {
        let numbers = |s: &Value| -> Vec<Option<i64>> {
            let ports = list_at(s, "spec.ports").iter();
            ports.map(|port| i64_at(port, "nodePort")).collect()
        };
        if numbers(new) == numbers(old) {
            for port in list_mut(new, "spec.ports").into_iter().flatten() {
                drop(remove(port, "nodePort"));
            }
        }
    }
    let mut drop_if = |applies: fn(&Value) -> bool, path: &str| {
        if applies(old) && !applies(new) && at(new, path) == at(old, path) {
            drop(remove(new, path));
        }
    };
    drop_if(is_external, "spec.externalTrafficPolicy");
    drop_if(needs_health_check, "spec.healthCheckNodePort");
    let is_load_balancer = |s: &Value| str_at(s, "spec.type") == "LoadBalancer";
    drop_if(is_load_balancer, "spec.allocateLoadBalancerNodePorts");
    drop_if(is_load_balancer, "spec.loadBalancerClass");
    if needs_health_check(new)
        && needs_health_check(old)
        && i64_at(new, "spec.healthCheckNodePort").unwrap_or_default() == 0
    {
        crate::value::copy(old, new, "spec.healthCheckNodePort");
    }
}

fn inherit_node_ports(new: &mut Value, old: &Value) {
    let keeps = |s: &Value| match str_at(s, "spec.type") {
        "NodePort" => true,
        "LoadBalancer" => {
            at(s, "spec.allocateLoadBalancerNodePorts").is_none()
                || bool_at(s, "spec.allocateLoadBalancerNodePorts")
        }
        _ => false,
    };
    if !keeps(new) || !keeps(old) {
        return;
    }
    let before = list_at(old, "spec.ports").to_vec();
    for port in list_mut(new, "spec.ports").into_iter().flatten() {
        if i64_at(port, "nodePort").unwrap_or_default() != 0 {
            continue;
        }
        let same = |p: &&Value| {
            i64_at(p, "port") == i64_at(port, "port")
                && str_at(p, "protocol") == str_at(port, "protocol")
        };
        if let Some(number) = before.iter().find(same).and_then(|p| i64_at(p, "nodePort")) {
            set(port, "nodePort", number);
        }
    }
}
