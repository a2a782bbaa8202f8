//! What pods ask for and this agent does not do: `refused` features keep a pod from running, `ignored`
//! ones warn. Nothing is skipped in silence.

use k8s_openapi::api::core::v1 as api;

/// What the pod would be wrong without.
pub(super) fn refused(spec: &api::PodSpec) -> Vec<String> {
    let mut refused = Vec::new();
    let mut check = |is_used: bool, feature: &str| {
        if is_used {
            refused.push(feature.to_owned());
        }
    };
    check(
        spec.init_containers
            .as_ref()
            .is_some_and(|list| !list.is_empty()),
        "init containers",
    );
    check(
        spec.share_process_namespace == Some(true),
        "shareProcessNamespace",
    );
    check(spec.host_users == Some(false), "hostUsers: false");
    check(spec.runtime_class_name.is_some(), "runtimeClassName");
    check(
        spec.resource_claims
            .as_ref()
            .is_some_and(|list| !list.is_empty()),
        "resourceClaims",
    );
    check(
        spec.os.as_ref().is_some_and(|os| os.name != "linux"),
        "an os other than linux",
    );
    for container in &spec.containers {
        check(
            container
                .volume_devices
                .as_ref()
                .is_some_and(|list| !list.is_empty()),
            "volumeDevices",
        );
        for mount in container.volume_mounts.iter().flatten() {
            check(
                mount
                    .sub_path_expr
                    .as_ref()
                    .is_some_and(|path| !path.is_empty()),
                "volumeMounts.subPathExpr",
            );
            check(
                mount
                    .mount_propagation
                    .as_deref()
                    .is_some_and(|kind| kind != "None"),
                "volumeMounts.mountPropagation",
            );
        }
        let keys = container
            .env
            .iter()
            .flatten()
            .filter_map(|env| env.value_from.as_ref());
        check(
            keys.clone().any(|from| from.file_key_ref.is_some()),
            "env.valueFrom.fileKeyRef",
        );
    }
    refused.sort();
    refused.dedup();
    refused
}

/// What the pod runs without, as if it were not written.
pub(super) fn ignored(spec: &api::PodSpec) -> Vec<String> {
    let mut ignored = Vec::new();
    if let Some(security) = &spec.security_context {
        let seccomp = security
            .seccomp_profile
            .as_ref()
            .map(|one| one.type_.as_str());
        let apparmor = security
            .app_armor_profile
            .as_ref()
            .map(|one| one.type_.as_str());
        profiles("the pod", seccomp, apparmor, &mut ignored);
        note(
            security.se_linux_options.is_some(),
            "securityContext.seLinuxOptions",
            "the pod",
            &mut ignored,
        );
        note(
            security.supplemental_groups_policy.as_deref() == Some("Strict"),
            "securityContext.supplementalGroupsPolicy Strict",
            "the pod",
            &mut ignored,
        );
    }
    let fqdn = spec.set_hostname_as_fqdn == Some(true);
    note(fqdn, "setHostnameAsFQDN", "the pod", &mut ignored);
    note(
        spec.resources.is_some(),
        "resources",
        "the pod",
        &mut ignored,
    );
    note(spec.overhead.is_some(), "overhead", "the pod", &mut ignored);
    for container in spec.ephemeral_containers.iter().flatten() {
        ignored.push(format!("ephemeral container {}", container.name));
    }
    for volume in spec.volumes.iter().flatten() {
        let directory = volume.empty_dir.as_ref();
        let on_disk = directory.filter(|one| one.medium.as_deref() != Some("Memory"));
        if on_disk.is_some_and(|one| one.size_limit.is_some()) {
            ignored.push(format!("sizeLimit of emptyDir volume {}", volume.name));
        }
    }
    for container in &spec.containers {
        ignored_of(container, &mut ignored);
    }
    ignored
}

fn note(is_used: bool, feature: &str, of: &str, ignored: &mut Vec<String>) {
    if is_used {
        ignored.push(format!("{feature} of {of}"));
    }
}

fn profiles(of: &str, seccomp: Option<&str>, apparmor: Option<&str>, ignored: &mut Vec<String>) {
    let fields = [
        ("securityContext.seccompProfile", seccomp),
        ("securityContext.appArmorProfile", apparmor),
    ];
    for (field, profile) in fields {
        if let Some(profile) = profile.filter(|profile| *profile != "Unconfined") {
            ignored.push(format!("{field} {profile} of {of}"));
        }
    }
}

fn ignored_of(container: &api::Container, ignored: &mut Vec<String>) {
    let of = format!("container {}", container.name);
    let mut check = |is_used: bool, feature: &str| note(is_used, feature, &of, ignored);
    check(container.liveness_probe.is_some(), "livenessProbe");
    check(container.readiness_probe.is_some(), "readinessProbe");
    check(container.startup_probe.is_some(), "startupProbe");
    check(container.lifecycle.is_some(), "lifecycle");
    check(container.restart_policy.is_some(), "restartPolicy");
    check(
        container.restart_policy_rules.is_some(),
        "restartPolicyRules",
    );
    let recursive = container.volume_mounts.iter().flatten();
    let mut recursive = recursive.filter_map(|mount| mount.recursive_read_only.as_deref());
    check(
        recursive.any(|mode| mode == "Enabled"),
        "volumeMounts.recursiveReadOnly",
    );
    if let Some(resources) = &container.resources {
        let names = [&resources.requests, &resources.limits];
        let mut others: Vec<&str> = names
            .into_iter()
            .flatten()
            .flat_map(|map| map.keys().map(String::as_str))
            .filter(|name| !matches!(*name, "cpu" | "memory"))
            .collect();
        others.sort_unstable();
        others.dedup();
        for other in others {
            check(true, &format!("resource {other}"));
        }
    }
    if let Some(security) = &container.security_context {
        check(
            security.se_linux_options.is_some(),
            "securityContext.seLinuxOptions",
        );
        let proc_mount = security.proc_mount.as_deref();
        check(
            proc_mount.is_some_and(|kind| kind != "Default"),
            "securityContext.procMount",
        );
        let seccomp = security
            .seccomp_profile
            .as_ref()
            .map(|one| one.type_.as_str());
        let apparmor = security
            .app_armor_profile
            .as_ref()
            .map(|one| one.type_.as_str());
        profiles(&of, seccomp, apparmor, ignored);
    }
}
