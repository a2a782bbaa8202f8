//! EndpointSlice of discovery.k8s.io.

use super::endpoints::validate_backend_ip;
use super::{ALL_VERBS, Kind, Strategy, cells};
use crate::field::{ErrorList, FieldError, Path};
use crate::value::{at, default_to, i64_at, list_at, list_mut, str_at};
use serde_json::Value;
use std::net::IpAddr;

const ENDPOINT_LIMIT: usize = 1000;
const PORT_LIMIT: usize = 100;

/// The table entry.
pub static ENDPOINT_SLICE: Kind = Kind {
    group: "discovery.k8s.io",
    version: "v1",
    kind: "EndpointSlice",
    plural: "endpointslices",
    singular: "endpointslice",
    short_names: &[],
    categories: &[],
    is_namespaced: true,
    verbs: ALL_VERBS,
    subresources: &[],
    message: "discovery.EndpointSlice",
    storage: "discovery.k8s.io/endpointslices",
    is_volatile: false,
    columns: &[
        cells::NAME,
        cells::text("AddressType", 0, "IPv4, IPv6 or FQDN."),
        cells::text("Ports", 0, "Ports that every endpoint serves."),
        cells::text("Endpoints", 0, "Addresses of the endpoints."),
        cells::AGE,
    ],
    cells: |object, now| {
        vec![
            cells::name(object),
            str_at(object, "addressType").into(),
            ports(object).into(),
            endpoints(object).into(),
            cells::age(object, now),
        ]
    },
    field_selectors: &[],
    name_rule: crate::names::dns_subdomain,
    strategy: Strategy {
        default,
        validate,
        validate_update,
        has_generation: true,
        ..Strategy::PLAIN
    },
};

fn or_unset(list: &[String]) -> String {
    if list.is_empty() {
        "<unset>".to_owned()
    } else {
        cells::shortened(list, 3)
    }
}

fn ports(object: &Value) -> String {
    let of = |port: &Value| match (i64_at(port, "port"), str_at(port, "name")) {
        (Some(number), _) => number.to_string(),
        (None, "") => "*".to_owned(),
        (None, name) => name.to_owned(),
    };
    or_unset(&list_at(object, "ports").iter().map(of).collect::<Vec<_>>())
}

fn endpoints(object: &Value) -> String {
    let addresses = list_at(object, "endpoints")
        .iter()
        .flat_map(|e| list_at(e, "addresses"));
    or_unset(
        &addresses
            .filter_map(Value::as_str)
            .map(str::to_owned)
            .collect::<Vec<_>>(),
    )
}

fn default(object: &mut Value) {
    for port in list_mut(object, "ports")
        .into_iter()
        .flatten()
        .filter_map(Value::as_object_mut)
    {
        default_to(port, "protocol", "TCP");
        if port.get("name").is_none_or(Value::is_null) {
            port.insert("name".to_owned(), "".into());
        }
    }
}

fn validate(object: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let family = str_at(object, "addressType");
    match family {
        "" => errors.push(FieldError::required(&Path::new("addressType"), "")),
        "IPv4" | "IPv6" | "FQDN" => {}
        other => errors.push(FieldError::not_supported(
            &Path::new("addressType"),
            other,
            &["FQDN", "IPv4", "IPv6"],
        )),
    }
    let endpoints = list_at(object, "endpoints");
    if endpoints.len() > ENDPOINT_LIMIT {
        errors.push(FieldError::too_many(
            &Path::new("endpoints"),
            endpoints.len(),
            ENDPOINT_LIMIT,
        ));
        return errors;
    }
    for (i, endpoint) in endpoints.iter().enumerate() {
        errors.extend(validate_endpoint(
            endpoint,
            family,
            &Path::new("endpoints").index(i),
        ));
    }
    let ports = list_at(object, "ports");
    if ports.len() > PORT_LIMIT {
        errors.push(FieldError::too_many(
            &Path::new("ports"),
            ports.len(),
            PORT_LIMIT,
        ));
    }
    for (i, port) in ports.iter().enumerate() {
        let path = Path::new("ports").index(i);
        let name = str_at(port, "name");
        if !name.is_empty() {
            errors.extend(crate::names::errors(
                &path.child("name"),
                name,
                crate::names::dns_label(name),
            ));
        }
        if ports[..i].iter().any(|p| str_at(p, "name") == name) {
            errors.push(FieldError::duplicate(&path.child("name"), name));
        }
        errors.extend(super::service::validate_protocol(
            str_at(port, "protocol"),
            &path.child("protocol"),
        ));
        if let Some(number) = i64_at(port, "port") {
            for message in crate::names::port_number(number) {
                errors.push(FieldError::invalid(&path.child("port"), number, message));
            }
        }
    }
    errors
}

fn validate_endpoint(endpoint: &Value, family: &str, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let addresses = list_at(endpoint, "addresses");
    if addresses.is_empty() {
        errors.push(FieldError::required(
            &path.child("addresses"),
            "must contain at least 1 address",
        ));
    }
    if addresses.len() > 100 {
        errors.push(FieldError::too_many(
            &path.child("addresses"),
            addresses.len(),
            100,
        ));
    }
    for (i, address) in addresses.iter().filter_map(Value::as_str).enumerate() {
        let path = path.child("addresses").index(i);
        let parsed = address.parse::<IpAddr>();
        match (family, parsed) {
            ("IPv4", Ok(IpAddr::V4(_))) | ("IPv6", Ok(IpAddr::V6(_))) => {
                errors.extend(validate_backend_ip(address, &path));
            }
            ("IPv4", _) => errors.push(FieldError::invalid(
                &path,
                address,
                "must be an IPv4 address",
            )),
            ("IPv6", _) => errors.push(FieldError::invalid(
                &path,
                address,
                "must be an IPv6 address",
            )),
            ("FQDN", _) => errors.extend(crate::names::errors(
                &path,
                address,
                crate::names::dns_subdomain(address),
            )),
            _ => {}
        }
    }
    if let Some(node) = at(endpoint, "nodeName").and_then(Value::as_str) {
        errors.extend(crate::names::errors(
            &path.child("nodeName"),
            node,
            crate::names::dns_subdomain(node),
        ));
    }
    errors
}

fn validate_update(new: &Value, old: &Value) -> ErrorList {
    let mut errors = validate(new);
    if str_at(new, "addressType") != str_at(old, "addressType") {
        errors.push(FieldError::invalid(
            &Path::new("addressType"),
            str_at(new, "addressType"),
            "field is immutable",
        ));
    }
    errors
}
