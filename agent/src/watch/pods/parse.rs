//! API pods to domain pods. Everything this agent cannot do yet is collected here, so that nothing is
//! skipped in silence: `refused` features fail the pod, `ignored` ones warn.

use std::time::SystemTime;

use k8s_openapi::api::core::v1 as api;
use tholepin_model::pod::env::{EnvFrom, EnvValue, EnvVar, KeyRef, ObjectKind};
use tholepin_model::pod::quantity::{InvalidQuantity, parse_milli, parse_units};
use tholepin_model::pod::resources::Resources;
use tholepin_model::pod::status::Condition;
use tholepin_model::pod::{
    Container, Deletion, DnsConfig, DnsPolicy, DownwardValue, HostAlias, ObservedStatus, Pod,
    PullPolicy, RestartPolicy, Security, VolumeMount,
};

use super::{unsupported, volumes};
use crate::time::system_time;

/// Why an API pod is not a pod.
#[derive(Debug, thiserror::Error)]
pub enum InvalidPod {
    #[error("metadata.{field} is missing")]
    Metadata { field: &'static str },
    #[error("spec is missing")]
    NoSpec,
    #[error("{field}")]
    Quantity {
        field: String,
        source: InvalidQuantity,
    },
}

/// Parses one pod.
pub fn pod(object: &api::Pod) -> Result<Pod, InvalidPod> {
    let metadata = &object.metadata;
    let spec = object.spec.as_ref().ok_or(InvalidPod::NoSpec)?;
    let required = |value: &Option<String>, field| {
        value
            .clone()
            .filter(|value| !value.is_empty())
            .ok_or(InvalidPod::Metadata { field })
    };
    let containers = spec
        .containers
        .iter()
        .map(|one| container(one, spec.security_context.as_ref()))
        .collect::<Result<Vec<_>, _>>()?;
    let seconds = |value: i64| u64::try_from(value).unwrap_or(0);
    let grace = spec.termination_grace_period_seconds.map_or(30, seconds);
    let deletion = metadata.deletion_timestamp.as_ref().map(|_| Deletion {
        grace_secs: metadata
            .deletion_grace_period_seconds
            .map_or(grace, seconds),
    });
    let security = spec.security_context.clone().unwrap_or_default();
    Ok(Pod {
        uid: required(&metadata.uid, "uid")?,
        namespace: required(&metadata.namespace, "namespace")?,
        name: required(&metadata.name, "name")?,
        generation: metadata.generation,
        labels: metadata.labels.clone().unwrap_or_default(),
        annotations: metadata.annotations.clone().unwrap_or_default(),
        deletion,
        node_name: spec.node_name.clone().unwrap_or_default(),
        service_account: spec.service_account_name.clone().unwrap_or_default(),
        restart_policy: match spec.restart_policy.as_deref() {
            Some("Never") => RestartPolicy::Never,
            Some("OnFailure") => RestartPolicy::OnFailure,
            _ => RestartPolicy::Always,
        },
        termination_grace_secs: grace,
        active_deadline_secs: spec.active_deadline_seconds.map(seconds),
        host_network: spec.host_network.unwrap_or(false),
        host_pid: spec.host_pid.unwrap_or(false),
        host_ipc: spec.host_ipc.unwrap_or(false),
        hostname: spec.hostname.clone().filter(|name| !name.is_empty()),
        subdomain: spec.subdomain.clone().filter(|name| !name.is_empty()),
        dns_policy: match spec.dns_policy.as_deref() {
            Some("Default") => DnsPolicy::Default,
            Some("None") => DnsPolicy::None,
            Some("ClusterFirstWithHostNet") => DnsPolicy::ClusterFirstWithHostNet,
            _ => DnsPolicy::ClusterFirst,
        },
        dns_config: dns_config(spec.dns_config.as_ref()),
        host_aliases: spec
            .host_aliases
            .iter()
            .flatten()
            .map(|alias| HostAlias {
                ip: alias.ip.clone(),
                hostnames: alias.hostnames.clone().unwrap_or_default(),
            })
            .collect(),
        enable_service_links: spec.enable_service_links.unwrap_or(true),
        containers,
        volumes: volumes::parse(spec),
        image_pull_secrets: spec
            .image_pull_secrets
            .iter()
            .flatten()
            .map(|reference| reference.name.clone())
            .collect(),
        sysctls: security
            .sysctls
            .iter()
            .flatten()
            .map(|sysctl| (sysctl.name.clone(), sysctl.value.clone()))
            .collect(),
        fs_group: security.fs_group,
        readiness_gates: spec
            .readiness_gates
            .iter()
            .flatten()
            .map(|gate| gate.condition_type.clone())
            .collect(),
        refused: unsupported::refused(spec),
        ignored: unsupported::ignored(spec),
        observed: observed(object.status.as_ref()),
    })
}

fn dns_config(config: Option<&api::PodDNSConfig>) -> DnsConfig {
    let Some(config) = config else {
        return DnsConfig::default();
    };
    DnsConfig {
        nameservers: config.nameservers.clone().unwrap_or_default(),
        searches: config.searches.clone().unwrap_or_default(),
        options: config
            .options
            .iter()
            .flatten()
            .filter_map(|option| {
                let name = option.name.clone()?;
                Some(match &option.value {
                    Some(value) => format!("{name}:{value}"),
                    None => name,
                })
            })
            .collect(),
    }
}

fn observed(status: Option<&api::PodStatus>) -> ObservedStatus {
    let Some(status) = status else {
        return ObservedStatus::default();
    };
    let phase = status.phase.clone().unwrap_or_default();
    ObservedStatus {
        terminal: phase == "Succeeded" || phase == "Failed",
        phase,
        reason: status.reason.clone().unwrap_or_default(),
        message: status.message.clone().unwrap_or_default(),
        start_time: status.start_time.as_ref().map(system_time),
        conditions: status
            .conditions
            .iter()
            .flatten()
            .map(|condition| Condition {
                kind: condition.type_.clone(),
                status: condition.status == "True",
                reason: condition.reason.clone().unwrap_or_default(),
                message: condition.message.clone().unwrap_or_default(),
                transition: condition
                    .last_transition_time
                    .as_ref()
                    .map_or(SystemTime::UNIX_EPOCH, system_time),
            })
            .collect(),
    }
}

fn container(
    object: &api::Container,
    pod_security: Option<&api::PodSecurityContext>,
) -> Result<Container, InvalidPod> {
    let image = object.image.clone().unwrap_or_default();
    Ok(Container {
        name: object.name.clone(),
        pull_policy: match object.image_pull_policy.as_deref() {
            Some("Always") => PullPolicy::Always,
            Some("Never") => PullPolicy::Never,
            _ => PullPolicy::IfNotPresent,
        },
        image,
        command: object.command.clone().unwrap_or_default(),
        args: object.args.clone().unwrap_or_default(),
        working_dir: object
            .working_dir
            .clone()
            .filter(|directory| !directory.is_empty()),
        env: object.env.iter().flatten().map(env_var).collect(),
        env_from: object
            .env_from
            .iter()
            .flatten()
            .filter_map(env_from)
            .collect(),
        mounts: object
            .volume_mounts
            .iter()
            .flatten()
            .map(|mount| VolumeMount {
                volume: mount.name.clone(),
                path: mount.mount_path.clone(),
                sub_path: mount.sub_path.clone().unwrap_or_default(),
                read_only: mount.read_only.unwrap_or(false),
            })
            .collect(),
        resources: resources(&object.name, object.resources.as_ref())?,
        security: security(object.security_context.as_ref(), pod_security),
        stdin: object.stdin.unwrap_or(false),
        stdin_once: object.stdin_once.unwrap_or(false),
        tty: object.tty.unwrap_or(false),
        termination_message_path: object
            .termination_message_path
            .clone()
            .filter(|path| !path.is_empty())
            .unwrap_or_else(|| "/dev/termination-log".to_owned()),
        termination_message_from_logs: object.termination_message_policy.as_deref()
            == Some("FallbackToLogsOnError"),
    })
}

fn env_var(object: &api::EnvVar) -> EnvVar {
    let name = object.name.clone();
    let from = object.value_from.as_ref();
    let key = |kind, name: &str, key: &str, optional: Option<bool>| {
        EnvValue::Key(KeyRef {
            kind,
            name: name.to_owned(),
            key: key.to_owned(),
            optional: optional.unwrap_or(false),
        })
    };
    let value = if let Some(field) = from.and_then(|from| from.field_ref.as_ref()) {
        EnvValue::Downward(DownwardValue::Field(field.field_path.clone()))
    } else if let Some(resource) = from.and_then(|from| from.resource_field_ref.as_ref()) {
        EnvValue::Downward(resource_field(resource))
    } else if let Some(map) = from.and_then(|from| from.config_map_key_ref.as_ref()) {
        key(ObjectKind::ConfigMap, &map.name, &map.key, map.optional)
    } else if let Some(secret) = from.and_then(|from| from.secret_key_ref.as_ref()) {
        key(
            ObjectKind::Secret,
            &secret.name,
            &secret.key,
            secret.optional,
        )
    } else {
        EnvValue::Literal(object.value.clone().unwrap_or_default())
    };
    EnvVar { name, value }
}

pub(super) fn resource_field(selector: &api::ResourceFieldSelector) -> DownwardValue {
    DownwardValue::Resource {
        container: selector.container_name.clone().unwrap_or_default(),
        resource: selector.resource.clone(),
        divisor: selector
            .divisor
            .as_ref()
            .map(|quantity| quantity.0.clone())
            .unwrap_or_default(),
    }
}

fn env_from(object: &api::EnvFromSource) -> Option<EnvFrom> {
    let prefix = object.prefix.clone().unwrap_or_default();
    if let Some(map) = &object.config_map_ref {
        return Some(EnvFrom {
            kind: ObjectKind::ConfigMap,
            name: map.name.clone(),
            prefix,
            optional: map.optional.unwrap_or(false),
        });
    }
    let secret = object.secret_ref.as_ref()?;
    Some(EnvFrom {
        kind: ObjectKind::Secret,
        name: secret.name.clone(),
        prefix,
        optional: secret.optional.unwrap_or(false),
    })
}

fn resources(
    container: &str,
    object: Option<&api::ResourceRequirements>,
) -> Result<Resources, InvalidPod> {
    let Some(object) = object else {
        return Ok(Resources::default());
    };
    let find = |limits: bool, resource: &str| {
        let map = if limits {
            &object.limits
        } else {
            &object.requests
        };
        map.as_ref()
            .and_then(|map| map.get(resource))
            .map(|quantity| quantity.0.as_str())
    };
    let invalid = |limits: bool, resource: &str| {
        let which = if limits { "limits" } else { "requests" };
        let field = format!("container {container}: resources.{which}.{resource}");
        move |source| InvalidPod::Quantity { field, source }
    };
    let cpu = |limits| {
        find(limits, "cpu")
            .map(|text| parse_milli(text).map(|milli| i64::try_from(milli).unwrap_or(i64::MAX)))
            .transpose()
            .map_err(invalid(limits, "cpu"))
    };
    let memory = |limits| {
        find(limits, "memory")
            .map(parse_units)
            .transpose()
            .map_err(invalid(limits, "memory"))
    };
    Ok(Resources {
        cpu_request_milli: cpu(false)?,
        cpu_limit_milli: cpu(true)?,
        memory_request_bytes: memory(false)?,
        memory_limit_bytes: memory(true)?,
    })
}

fn security(own: Option<&api::SecurityContext>, pod: Option<&api::PodSecurityContext>) -> Security {
    let own = own.cloned().unwrap_or_default();
    let pod = pod.cloned().unwrap_or_default();
    let capabilities = own.capabilities.unwrap_or_default();
    let mut supplemental_groups = pod.supplemental_groups.unwrap_or_default();
    supplemental_groups.extend(pod.fs_group);
    Security {
        run_as_user: own.run_as_user.or(pod.run_as_user),
        run_as_group: own.run_as_group.or(pod.run_as_group),
        run_as_non_root: own.run_as_non_root.or(pod.run_as_non_root).unwrap_or(false),
        supplemental_groups,
        privileged: own.privileged.unwrap_or(false),
        read_only_root: own.read_only_root_filesystem.unwrap_or(false),
        allow_privilege_escalation: own.allow_privilege_escalation.unwrap_or(true),
        added_capabilities: capabilities.add.unwrap_or_default(),
        dropped_capabilities: capabilities.drop.unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests;
