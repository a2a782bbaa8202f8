//! Rules of Services.

use super::{is_external, is_headless, needs_health_check};
use crate::field::{ErrorList, FieldError, Path};
use crate::names;
use crate::value::{i64_at, list_at, str_at};
use serde_json::Value;
use std::net::IpAddr;

const IP_DETAIL: &str = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";

/// TCP, UDP or SCTP.
pub(in crate::kinds) fn validate_protocol(protocol: &str, path: &Path) -> ErrorList {
    match protocol {
        "" => vec![FieldError::required(path, "")],
        "TCP" | "UDP" | "SCTP" => Vec::new(),
        other => vec![FieldError::not_supported(
            path,
            other,
            &["SCTP", "TCP", "UDP"],
        )],
    }
}

pub(super) fn create(service: &Value) -> ErrorList {
    let path = Path::new("spec");
    let mut errors = ErrorList::new();
    let kind = str_at(service, "spec.type");
    let ports = list_at(service, "spec.ports");
    if ports.is_empty() && !is_headless(service) && kind != "ExternalName" {
        errors.push(FieldError::required(&path.child("ports"), ""));
    }
    match kind {
        "LoadBalancer" | "NodePort" if is_headless(service) => {
            let detail = format!("may not be set to 'None' for {kind} services");
            errors.push(FieldError::invalid(
                &path.child("clusterIPs").index(0),
                "None",
                detail,
            ));
        }
        "ExternalName" => errors.extend(external_name(service, &path)),
        "ClusterIP" | "LoadBalancer" | "NodePort" => {}
        "" => errors.push(FieldError::required(&path.child("type"), "")),
        other => {
            let supported = ["ClusterIP", "ExternalName", "LoadBalancer", "NodePort"];
            errors.push(FieldError::not_supported(
                &path.child("type"),
                other,
                &supported,
            ));
        }
    }
    for (i, port) in ports.iter().enumerate() {
        errors.extend(service_port(
            port,
            &ports[..i],
            ports.len() > 1,
            kind,
            &path.child("ports").index(i),
        ));
    }
    errors.extend(crate::meta::validate_labels(
        crate::value::map_at(service, "spec.selector"),
        &path.child("selector"),
    ));
    errors.extend(affinity(service, &path));
    errors.extend(outside(service, &path));
    errors.extend(addresses(service, &path));
    for (key, supported) in [
        ("externalTrafficPolicy", &["Cluster", "Local"][..]),
        ("internalTrafficPolicy", &["Cluster", "Local"]),
        (
            "ipFamilyPolicy",
            &["PreferDualStack", "RequireDualStack", "SingleStack"],
        ),
    ] {
        let value = str_at(service, &format!("spec.{key}"));
        if !value.is_empty() && !supported.contains(&value) {
            errors.push(FieldError::not_supported(
                &path.child(key),
                value,
                supported,
            ));
        }
    }
    errors
}

fn external_name(service: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    if !list_at(service, "spec.clusterIPs").is_empty() {
        errors.push(FieldError::forbidden(
            &path.child("clusterIPs"),
            "may not be set for ExternalName services",
        ));
    }
    let name = str_at(service, "spec.externalName").trim_end_matches('.');
    if name.is_empty() {
        errors.push(FieldError::required(&path.child("externalName"), ""));
    } else {
        errors.extend(names::errors(
            &path.child("externalName"),
            name,
            names::dns_subdomain(name),
        ));
    }
    errors
}

fn service_port(
    port: &Value,
    before: &[Value],
    needs_name: bool,
    kind: &str,
    path: &Path,
) -> ErrorList {
    let mut errors = ErrorList::new();
    let name = str_at(port, "name");
    if name.is_empty() && needs_name {
        errors.push(FieldError::required(&path.child("name"), ""));
    } else if !name.is_empty() {
        errors.extend(names::errors(
            &path.child("name"),
            name,
            names::dns_label(name),
        ));
        if before.iter().any(|p| str_at(p, "name") == name) {
            errors.push(FieldError::duplicate(&path.child("name"), name));
        }
    }
    let number = i64_at(port, "port").unwrap_or_default();
    errors.extend(
        names::port_number(number)
            .into_iter()
            .map(|m| FieldError::invalid(&path.child("port"), number, m)),
    );
    errors.extend(validate_protocol(
        str_at(port, "protocol"),
        &path.child("protocol"),
    ));
    errors.extend(crate::kinds::pod::validate_port_reference(
        port.get("targetPort"),
        &path.child("targetPort"),
    ));
    let node_port = i64_at(port, "nodePort").unwrap_or_default();
    if node_port != 0 && !matches!(kind, "NodePort" | "LoadBalancer") {
        let detail = format!("may not be used when `type` is '{kind}'");
        errors.push(FieldError::forbidden(&path.child("nodePort"), detail));
    }
    let protocol = str_at(port, "protocol");
    if before
        .iter()
        .any(|p| i64_at(p, "port") == Some(number) && str_at(p, "protocol") == protocol)
    {
        errors.push(FieldError::duplicate(
            path,
            serde_json::json!({"protocol": protocol, "port": number}),
        ));
    }
    errors
}

/// What only Services with an address outside the cluster have.
fn outside(service: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let policy = str_at(service, "spec.externalTrafficPolicy");
    if !policy.is_empty() && !is_external(service) {
        errors.push(FieldError::invalid(
            &path.child("externalTrafficPolicy"),
            policy,
            "may only be set for externally-accessible services",
        ));
    }
    let health_check = i64_at(service, "spec.healthCheckNodePort").unwrap_or_default();
    if health_check != 0 && !needs_health_check(service) {
        errors.push(FieldError::forbidden(
            &path.child("healthCheckNodePort"),
            "may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'",
        ));
    }
    let ranges = list_at(service, "spec.loadBalancerSourceRanges");
    let is_load_balancer = str_at(service, "spec.type") == "LoadBalancer";
    if !ranges.is_empty() && !is_load_balancer {
        errors.push(FieldError::forbidden(
            &path.child("loadBalancerSourceRanges"),
            "may only be used when `type` is 'LoadBalancer'",
        ));
    }
    for (i, range) in ranges.iter().filter_map(Value::as_str).enumerate() {
        // Blanks around a range are upstream's to ignore.
        if range.trim().parse::<ipnet::IpNet>().is_err() {
            let detail = "must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)";
            let path = path.child("loadBalancerSourceRanges").index(i);
            errors.push(FieldError::invalid(&path, range, detail));
        }
    }
    let distribution = str_at(service, "spec.trafficDistribution");
    let known = ["PreferClose", "PreferSameNode", "PreferSameZone"];
    if !distribution.is_empty() && !known.contains(&distribution) {
        let path = path.child("trafficDistribution");
        errors.push(FieldError::not_supported(&path, distribution, &known));
    }
    let ports = list_at(service, "spec.ports");
    for (i, port) in ports.iter().enumerate() {
        let number = i64_at(port, "nodePort").unwrap_or_default();
        let same = |other: &Value| {
            i64_at(other, "nodePort") == Some(number)
                && str_at(other, "protocol") == str_at(port, "protocol")
        };
        if number != 0 && ports[..i].iter().any(same) {
            let path = path.child("ports").index(i).child("nodePort");
            errors.push(FieldError::duplicate(&path, number));
        }
    }
    errors
}

fn affinity(service: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    match str_at(service, "spec.sessionAffinity") {
        "None" => {}
        "ClientIP" => {
            let secs = i64_at(
                service,
                "spec.sessionAffinityConfig.clientIP.timeoutSeconds",
            )
            .unwrap_or_default();
            if !(1..=86_400).contains(&secs) {
                let path = path
                    .child("sessionAffinityConfig")
                    .child("clientIP")
                    .child("timeoutSeconds");
                errors.push(FieldError::invalid(
                    &path,
                    secs,
                    "must be greater than 0 and less than 86400",
                ));
            }
        }
        "" => errors.push(FieldError::required(&path.child("sessionAffinity"), "")),
        other => errors.push(FieldError::not_supported(
            &path.child("sessionAffinity"),
            other,
            &["ClientIP", "None"],
        )),
    }
    errors
}

fn addresses(service: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let (one, all) = (
        str_at(service, "spec.clusterIP"),
        list_at(service, "spec.clusterIPs"),
    );
    let list = path.child("clusterIPs");
    if all.len() > 2 {
        errors.push(FieldError::invalid(
            &list,
            all.to_vec(),
            "may only hold up to 2 values",
        ));
    }
    if all
        .first()
        .and_then(Value::as_str)
        .is_some_and(|first| first != one)
    {
        errors.push(FieldError::invalid(
            &list,
            all.to_vec(),
            "first value must match `clusterIP`",
        ));
    }
    let is_none_mixed = all.len() > 1 && all.iter().any(|ip| ip == "None");
    if is_none_mixed {
        errors.push(FieldError::invalid(
            &list,
            all.to_vec(),
            "'None' must be the first and only value",
        ));
    }
    for (i, ip) in all.iter().filter_map(Value::as_str).enumerate() {
        if ip != "None" && ip.parse::<IpAddr>().is_err() {
            errors.push(FieldError::invalid(&list.index(i), ip, IP_DETAIL));
        }
    }
    let parsed: Vec<IpAddr> = all
        .iter()
        .filter_map(Value::as_str)
        .filter_map(|ip| ip.parse().ok())
        .collect();
    if parsed.len() == 2 && parsed[0].is_ipv4() == parsed[1].is_ipv4() {
        let detail =
            "may specify no more than one IP for each IP family, i.e. [IPv4, IPv6] or [IPv6, IPv4]";
        errors.push(FieldError::invalid(&list, all.to_vec(), detail));
    }
    for (i, ip) in list_at(service, "spec.externalIPs")
        .iter()
        .filter_map(Value::as_str)
        .enumerate()
    {
        errors.extend(crate::kinds::endpoints::validate_backend_ip(
            ip,
            &path.child("externalIPs").index(i),
        ));
    }
    let families = list_at(service, "spec.ipFamilies");
    for (i, family) in families.iter().filter_map(Value::as_str).enumerate() {
        let path = path.child("ipFamilies").index(i);
        if !["IPv4", "IPv6"].contains(&family) {
            errors.push(FieldError::not_supported(&path, family, &["IPv4", "IPv6"]));
        }
        if families[..i].iter().any(|f| f == family) {
            errors.push(FieldError::duplicate(&path, family));
        }
    }
    errors
}

pub(super) fn update(new: &Value, old: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let path = Path::new("spec");
    let has_address = |s: &Value| str_at(s, "spec.type") != "ExternalName";
    if has_address(new) && has_address(old) {
        for key in ["clusterIPs", "ipFamilies"] {
            let (before, after) = (
                list_at(old, &format!("spec.{key}")),
                list_at(new, &format!("spec.{key}")),
            );
            // The second may come and go with the family policy; neither may become another.
            for (i, value) in before.iter().enumerate() {
                let is_gone = i == 0 && after.is_empty();
                if is_gone || after.get(i).is_some_and(|v| v != value) {
                    let path = path.child(key).index(i);
                    errors.push(FieldError::invalid(
                        &path,
                        after.to_vec(),
                        "may not change once set",
                    ));
                }
            }
        }
    }
    let port = |service| i64_at(service, "spec.healthCheckNodePort");
    if needs_health_check(new) && needs_health_check(old) && port(new) != port(old) {
        errors.push(FieldError::invalid(
            &path.child("healthCheckNodePort"),
            port(new).unwrap_or_default(),
            "field is immutable",
        ));
    }
    errors.extend(create(new));
    errors
}
