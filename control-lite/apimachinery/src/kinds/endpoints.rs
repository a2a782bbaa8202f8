//! Endpoints.

use super::{ALL_VERBS, Kind, Strategy, cells};
use crate::field::{ErrorList, FieldError, Path};
use crate::value::{default_to, i64_at, list_at, list_mut, str_at};
use serde_json::Value;
use std::net::IpAddr;

/// The table entry.
pub static ENDPOINTS: Kind = Kind {
    group: "",
    version: "v1",
    kind: "Endpoints",
    plural: "endpoints",
    singular: "endpoints",
    short_names: &["ep"],
    categories: &[],
    is_namespaced: true,
    verbs: ALL_VERBS,
    subresources: &[],
    message: "core.Endpoints",
    storage: "/services/endpoints",
    is_volatile: false,
    columns: &[
        cells::NAME,
        cells::text("Endpoints", 0, "Addresses that serve."),
        cells::AGE,
    ],
    cells: |object, now| {
        vec![
            cells::name(object),
            addresses(object).into(),
            cells::age(object, now),
        ]
    },
    field_selectors: &[],
    name_rule: crate::names::dns_subdomain,
    strategy: Strategy {
        default,
        validate,
        validate_update: |new, _| validate(new),
        ..Strategy::PLAIN
    },
};

fn addresses(object: &Value) -> String {
    let mut list = Vec::new();
    for subset in list_at(object, "subsets") {
        let (ports, addresses) = (list_at(subset, "ports"), list_at(subset, "addresses"));
        if ports.is_empty() {
            list.extend(addresses.iter().map(|a| str_at(a, "ip").to_owned()));
        }
        for port in ports {
            let number = i64_at(port, "port").unwrap_or_default();
            list.extend(addresses.iter().map(|a| match str_at(a, "ip") {
                ip if ip.contains(':') => format!("[{ip}]:{number}"),
                ip => format!("{ip}:{number}"),
            }));
        }
    }
    if list.is_empty() {
        "<none>".to_owned()
    } else {
        cells::shortened(&list, 3)
    }
}

fn default(object: &mut Value) {
    for subset in list_mut(object, "subsets").into_iter().flatten() {
        for port in list_mut(subset, "ports")
            .into_iter()
            .flatten()
            .filter_map(Value::as_object_mut)
        {
            default_to(port, "protocol", "TCP");
        }
    }
}

fn validate(object: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    for (i, subset) in list_at(object, "subsets").iter().enumerate() {
        let path = Path::new("subsets").index(i);
        let (ready, not_ready) = (
            list_at(subset, "addresses"),
            list_at(subset, "notReadyAddresses"),
        );
        if ready.is_empty() && not_ready.is_empty() {
            errors.push(FieldError::required(
                &path,
                "must specify `addresses` or `notReadyAddresses`",
            ));
        }
        for (key, list) in [("addresses", ready), ("notReadyAddresses", not_ready)] {
            for (j, address) in list.iter().enumerate() {
                let path = path.child(key).index(j).child("ip");
                errors.extend(validate_backend_ip(str_at(address, "ip"), &path));
            }
        }
        let ports = list_at(subset, "ports");
        for (j, port) in ports.iter().enumerate() {
            errors.extend(validate_port(
                port,
                ports.len() > 1,
                &path.child("ports").index(j),
            ));
        }
    }
    errors
}

fn validate_port(port: &Value, needs_name: bool, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    match str_at(port, "name") {
        "" if needs_name => errors.push(FieldError::required(&path.child("name"), "")),
        "" => {}
        name => errors.extend(crate::names::errors(
            &path.child("name"),
            name,
            crate::names::dns_label(name),
        )),
    }
    let number = i64_at(port, "port").unwrap_or_default();
    for message in crate::names::port_number(number) {
        errors.push(FieldError::invalid(&path.child("port"), number, message));
    }
    errors.extend(super::service::validate_protocol(
        str_at(port, "protocol"),
        &path.child("protocol"),
    ));
    errors
}

/// An address that traffic may be sent to: no loopback, link-local or multicast, as upstream.
pub(super) fn validate_backend_ip(text: &str, path: &Path) -> ErrorList {
    let Ok(ip) = text.parse::<IpAddr>() else {
        let detail = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
        return vec![FieldError::invalid(path, text, detail)];
    };
    let is_link_local = match ip {
        IpAddr::V4(v4) => v4.is_link_local(),
        IpAddr::V6(v6) => v6.segments()[0] & 0xffc0 == 0xfe80,
    };
    let is_link_local_multicast = match ip {
        IpAddr::V4(v4) => v4.octets()[..3] == [224, 0, 0],
        IpAddr::V6(v6) => v6.segments()[0] & 0xff0f == 0xff02,
    };
    let broken = [
        (
            ip.is_unspecified(),
            format!("may not be unspecified ({text})"),
        ),
        (
            ip.is_loopback(),
            "may not be in the loopback range (127.0.0.0/8, ::1/128)".to_owned(),
        ),
        (
            is_link_local,
            "may not be in the link-local range (169.254.0.0/16, fe80::/10)".to_owned(),
        ),
        (
            is_link_local_multicast,
            "may not be in the link-local multicast range (224.0.0.0/24, ff02::/10)".to_owned(),
        ),
    ];
    broken
        .into_iter()
        .filter(|(is, _)| *is)
        .map(|(_, detail)| FieldError::invalid(path, text, detail))
        .collect()
}
