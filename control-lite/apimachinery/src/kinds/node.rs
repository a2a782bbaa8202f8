//! Node.

use super::{ALL_VERBS, Kind, Strategy, Subresource, cells};
use crate::field::{ErrorList, FieldError, Path};
use crate::value::{at, bool_at, list_at, semantically_equal, set, str_at};
use jiff::Timestamp;
use serde_json::Value;

/// The table entry.
pub static NODE: Kind = Kind {
    group: "",
    version: "v1",
    kind: "Node",
    plural: "nodes",
    singular: "node",
    short_names: &["no"],
    categories: &[],
    is_namespaced: false,
    verbs: ALL_VERBS,
    subresources: &[Subresource {
        name: "status",
        group: "",
        version: "v1",
        kind: "Node",
        verbs: &["get", "patch", "update"],
    }],
    message: "core.Node",
    storage: "/nodes",
    is_volatile: false,
    columns: &[
        cells::NAME,
        cells::text(
            "Status",
            0,
            "Ready, NotReady or Unknown, and whether new pods are kept away.",
        ),
        cells::text("Roles", 0, "Roles from the node-role.kubernetes.io labels."),
        cells::AGE,
        cells::text("Version", 0, "Version of the node agent."),
        cells::text("Internal-IP", 1, "First internal address."),
        cells::text("External-IP", 1, "First external address."),
        cells::text("OS-Image", 1, "Operating system."),
        cells::text("Kernel-Version", 1, "Kernel."),
        cells::text("Container-Runtime", 1, "Container runtime and its version."),
    ],
    cells: row,
    field_selectors: &["spec.unschedulable"],
    name_rule: crate::names::dns_subdomain,
    strategy: Strategy {
        default,
        validate,
        validate_update,
        keeps_status_on_create: true,
        ..Strategy::PLAIN
    },
};

fn row(node: &Value, now: Timestamp) -> Vec<Value> {
    let info = |key: &str, absent| cells::text_or(node, &format!("status.nodeInfo.{key}"), absent);
    vec![
        cells::name(node),
        status(node).into(),
        roles(node).into(),
        cells::age(node, now),
        info("kubeletVersion", ""),
        address(node, "InternalIP"),
        address(node, "ExternalIP"),
        info("osImage", "<unknown>"),
        info("kernelVersion", "<unknown>"),
        info("containerRuntimeVersion", "<unknown>"),
    ]
}

fn status(node: &Value) -> String {
    let ready = list_at(node, "status.conditions")
        .iter()
        .rfind(|c| str_at(c, "type") == "Ready");
    let mut text = match ready.map(|c| str_at(c, "status")) {
        Some("True") => "Ready",
        Some(_) => "NotReady",
        None => "Unknown",
    }
    .to_owned();
    if bool_at(node, "spec.unschedulable") {
        text.push_str(",SchedulingDisabled");
    }
    text
}

fn roles(node: &Value) -> String {
    let mut roles: Vec<&str> = crate::meta::labels(node)
        .into_iter()
        .flatten()
        .filter_map(
            |(key, value)| match key.strip_prefix("node-role.kubernetes.io/") {
                Some(role) => Some(role),
                None if key == "kubernetes.io/role" => value.as_str(),
                None => None,
            },
        )
        .filter(|role| !role.is_empty())
        .collect();
    roles.sort_unstable();
    roles.dedup();
    if roles.is_empty() {
        "<none>".to_owned()
    } else {
        roles.join(",")
    }
}

fn address(node: &Value, kind: &str) -> Value {
    let found = list_at(node, "status.addresses")
        .iter()
        .find(|a| str_at(a, "type") == kind);
    found.map_or("<none>", |a| str_at(a, "address")).into()
}

fn default(node: &mut Value) {
    super::mirror_first(node, "spec.podCIDR", "spec.podCIDRs", None);
    if let (Some(capacity), None) = (
        at(node, "status.capacity").cloned(),
        at(node, "status.allocatable"),
    ) {
        set(node, "status.allocatable", capacity);
    }
}

fn validate(node: &Value) -> ErrorList {
    let path = Path::new("spec");
    let mut errors = validate_taints(list_at(node, "spec.taints"), &path.child("taints"));
    for (i, range) in list_at(node, "spec.podCIDRs")
        .iter()
        .filter_map(Value::as_str)
        .enumerate()
    {
        if range.parse::<ipnet::IpNet>().is_err() {
            let path = path.child("podCIDRs").index(i);
            errors.push(FieldError::invalid(
                &path,
                range,
                "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)",
            ));
        }
    }
    errors
}

fn validate_taints(taints: &[Value], path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    for (i, taint) in taints.iter().enumerate() {
        let path = path.index(i);
        let (key, value, effect) = (
            str_at(taint, "key"),
            str_at(taint, "value"),
            str_at(taint, "effect"),
        );
        errors.extend(crate::names::errors(
            &path.child("key"),
            key,
            crate::names::qualified_name(key),
        ));
        errors.extend(crate::names::errors(
            &path.child("value"),
            value,
            crate::names::label_value(value),
        ));
        errors.extend(super::pod::validate_taint_effect(
            effect,
            false,
            &path.child("effect"),
        ));
        let is_twin = |t: &Value| str_at(t, "key") == key && str_at(t, "effect") == effect;
        if taints[..i].iter().any(is_twin) {
            let mut error = FieldError::duplicate(&path, taint.clone());
            error.detail = "taints must be unique by key and effect pair".to_owned();
            errors.push(error);
        }
    }
    errors
}

fn validate_update(new: &Value, old: &Value) -> ErrorList {
    let mut errors = validate(new);
    let path = Path::new("spec");
    let are_ranges_set = !list_at(old, "spec.podCIDRs").is_empty();
    if are_ranges_set && !semantically_equal(at(new, "spec.podCIDRs"), at(old, "spec.podCIDRs")) {
        errors.push(FieldError::forbidden(
            &path.child("podCIDRs"),
            "node updates may not change podCIDR except from \"\" to valid",
        ));
    }
    let provider = str_at(old, "spec.providerID");
    if !provider.is_empty() && provider != str_at(new, "spec.providerID") {
        errors.push(FieldError::forbidden(
            &path.child("providerID"),
            "node updates may not change providerID except from \"\" to valid",
        ));
    }
    errors
}
