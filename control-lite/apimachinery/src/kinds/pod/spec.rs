//! Rules of a pod spec, in a Pod or in a template.

use super::scheduling::{affinity, tolerations, topology};
use super::{containers, volumes};
use crate::field::{ErrorList, FieldError, Path};
use crate::names;
use crate::value::{bool_at, i64_at, list_at, map_at, str_at};
use serde_json::Value;

/// Checks the spec at `path`. Pods may have ephemeral containers, templates may not.
pub(in crate::kinds) fn validate_spec(spec: &Value, path: &Path, is_pod: bool) -> ErrorList {
    let volume_names = volumes::names(spec);
    let mut errors = volumes::validate(list_at(spec, "volumes"), &path.child("volumes"));
    errors.extend(containers::validate_all(spec, &volume_names, path));
    if !is_pod && !list_at(spec, "ephemeralContainers").is_empty() {
        errors.push(FieldError::forbidden(
            &path.child("ephemeralContainers"),
            "ephemeral containers not allowed in pod template",
        ));
    }
    errors.extend(one_of(
        spec,
        path,
        "restartPolicy",
        &["Always", "OnFailure", "Never"],
    ));
    let policies = ["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"];
    errors.extend(one_of(spec, path, "dnsPolicy", &policies));
    errors.extend(dns_config(spec, path));
    errors.extend(crate::meta::validate_labels(
        map_at(spec, "nodeSelector"),
        &path.child("nodeSelector"),
    ));
    errors.extend(names_and_numbers(spec, path));
    errors.extend(security_context(spec, path));
    errors.extend(image_pull_secrets(spec, path));
    errors.extend(affinity(spec, path));
    errors.extend(tolerations(
        list_at(spec, "tolerations"),
        &path.child("tolerations"),
    ));
    errors.extend(host_aliases(spec, path));
    errors.extend(topology(spec, path));
    for (i, gate) in list_at(spec, "readinessGates").iter().enumerate() {
        let name = str_at(gate, "conditionType");
        let path = path.child("readinessGates").index(i).child("conditionType");
        errors.extend(names::errors(&path, name, names::qualified_name(name)));
    }
    for (i, gate) in list_at(spec, "schedulingGates").iter().enumerate() {
        let name = str_at(gate, "name");
        let path = path.child("schedulingGates").index(i);
        errors.extend(names::errors(&path, name, names::qualified_name(name)));
        if list_at(spec, "schedulingGates")[..i]
            .iter()
            .any(|g| str_at(g, "name") == name)
        {
            errors.push(FieldError::duplicate(&path, name));
        }
    }
    errors
}

/// A required text out of a closed set.
pub(super) fn one_of(value: &Value, path: &Path, key: &str, supported: &[&str]) -> ErrorList {
    match str_at(value, key) {
        "" => vec![FieldError::required(&path.child(key), "")],
        text if supported.contains(&text) => Vec::new(),
        text => vec![FieldError::not_supported(&path.child(key), text, supported)],
    }
}

fn names_and_numbers(spec: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let mut check = |key: &str, rule: names::NameRule| {
        let text = str_at(spec, key);
        if !text.is_empty() {
            errors.extend(names::errors(&path.child(key), text, rule(text)));
        }
    };
    check("serviceAccountName", names::dns_subdomain);
    check("nodeName", names::dns_subdomain);
    check("hostname", names::dns_label);
    check("subdomain", names::dns_label);
    check("priorityClassName", names::dns_subdomain);
    check("runtimeClassName", names::dns_subdomain);
    if let Some(secs) = i64_at(spec, "terminationGracePeriodSeconds").filter(|s| *s < 0) {
        let detail = "must be greater than or equal to 0";
        errors.push(FieldError::invalid(
            &path.child("terminationGracePeriodSeconds"),
            secs,
            detail,
        ));
    }
    if let Some(secs) =
        i64_at(spec, "activeDeadlineSeconds").filter(|s| !(1..=i64::from(i32::MAX)).contains(s))
    {
        let detail = "must be between 1 and 2147483647, inclusive";
        errors.push(FieldError::invalid(
            &path.child("activeDeadlineSeconds"),
            secs,
            detail,
        ));
    }
    if !matches!(
        str_at(spec, "preemptionPolicy"),
        "" | "PreemptLowerPriority" | "Never"
    ) {
        let supported = ["Never", "PreemptLowerPriority"];
        errors.push(FieldError::not_supported(
            &path.child("preemptionPolicy"),
            str_at(spec, "preemptionPolicy"),
            &supported,
        ));
    }
    if !matches!(str_at(spec, "os.name"), "" | "linux" | "windows") {
        let path = path.child("os").child("name");
        errors.push(FieldError::not_supported(
            &path,
            str_at(spec, "os.name"),
            &["linux", "windows"],
        ));
    }
    errors
}

fn dns_config(spec: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let path = path.child("dnsConfig");
    let servers = list_at(spec, "dnsConfig.nameservers");
    if str_at(spec, "dnsPolicy") == "None" && servers.is_empty() {
        let detail = "must provide at least one DNS nameserver when `dnsPolicy` is None";
        errors.push(FieldError::required(&path.child("nameservers"), detail));
    }
    if servers.len() > 3 {
        let value: Value = servers.to_vec().into();
        errors.push(FieldError::invalid(
            &path.child("nameservers"),
            value,
            "must not have more than 3 nameservers",
        ));
    }
    for (i, server) in servers.iter().filter_map(Value::as_str).enumerate() {
        if server.parse::<std::net::IpAddr>().is_err() {
            let detail = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
            errors.push(FieldError::invalid(
                &path.child("nameservers").index(i),
                server,
                detail,
            ));
        }
    }
    let searches = list_at(spec, "dnsConfig.searches");
    if searches.len() > 32 {
        let value: Value = searches.to_vec().into();
        errors.push(FieldError::invalid(
            &path.child("searches"),
            value,
            "must not have more than 32 search paths",
        ));
    }
    for (i, option) in list_at(spec, "dnsConfig.options").iter().enumerate() {
        if str_at(option, "name").is_empty() {
            errors.push(FieldError::required(
                &path.child("options").index(i),
                "must not be empty",
            ));
        }
    }
    errors
}

fn security_context(spec: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    let path = path.child("securityContext");
    for key in ["runAsUser", "runAsGroup", "fsGroup"] {
        if let Some(id) = i64_at(spec, &format!("securityContext.{key}")) {
            errors.extend(validate_id(id, &path.child(key)));
        }
    }
    for (i, id) in list_at(spec, "securityContext.supplementalGroups")
        .iter()
        .filter_map(Value::as_i64)
        .enumerate()
    {
        errors.extend(validate_id(id, &path.child("supplementalGroups").index(i)));
    }
    if bool_at(spec, "shareProcessNamespace") && bool_at(spec, "hostPID") {
        let detail = "ShareProcessNamespace and HostPID cannot both be enabled";
        errors.push(FieldError::invalid(
            &path.child("shareProcessNamespace"),
            true,
            detail,
        ));
    }
    for (i, sysctl) in list_at(spec, "securityContext.sysctls").iter().enumerate() {
        if str_at(sysctl, "name").is_empty() {
            errors.push(FieldError::required(
                &path.child("sysctls").index(i).child("name"),
                "",
            ));
        }
    }
    errors
}

/// A user or group id.
pub(super) fn validate_id(id: i64, path: &Path) -> ErrorList {
    if (0..=i64::from(i32::MAX)).contains(&id) {
        return Vec::new();
    }
    vec![FieldError::invalid(
        path,
        id,
        "must be between 0 and 2147483647, inclusive",
    )]
}

fn image_pull_secrets(spec: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    for (i, secret) in list_at(spec, "imagePullSecrets").iter().enumerate() {
        if str_at(secret, "name").is_empty() {
            let path = path.child("imagePullSecrets").index(i).child("name");
            errors.push(FieldError::required(&path, ""));
        }
    }
    errors
}

fn host_aliases(spec: &Value, path: &Path) -> ErrorList {
    let mut errors = ErrorList::new();
    for (i, alias) in list_at(spec, "hostAliases").iter().enumerate() {
        let path = path.child("hostAliases").index(i);
        if str_at(alias, "ip").parse::<std::net::IpAddr>().is_err() {
            let detail = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
            errors.push(FieldError::invalid(
                &path.child("ip"),
                str_at(alias, "ip"),
                detail,
            ));
        }
        for (j, name) in list_at(alias, "hostnames")
            .iter()
            .filter_map(Value::as_str)
            .enumerate()
        {
            errors.extend(names::errors(
                &path.child("hostnames").index(j),
                name,
                names::dns_subdomain(name),
            ));
        }
    }
    errors
}

/// A port given by number or by name.
pub(in crate::kinds) fn validate_port_reference(value: Option<&Value>, path: &Path) -> ErrorList {
    match value {
        Some(Value::String(name)) => names::errors(path, name, names::port_name(name)),
        other => {
            let number = other.and_then(Value::as_i64).unwrap_or_default();
            names::port_number(number)
                .into_iter()
                .map(|m| FieldError::invalid(path, number, m))
                .collect()
        }
    }
}
