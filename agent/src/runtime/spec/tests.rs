//! The spec, field by field against what containerd's CRI plugin makes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::super::image::ImageConfig;
use super::super::{ContainerSpec, MountSpec, PodIdentity, ResourceLimits, RuntimeError};
use super::*;

fn container() -> ContainerSpec {
    ContainerSpec {
        pod: PodIdentity {
            uid: "uid-1".into(),
            namespace: "default".into(),
            name: "web".into(),
        },
        name: "main".into(),
        attempt: 0,
        image: "docker.io/library/busybox:latest".into(),
        command: Vec::new(),
        args: Vec::new(),
        working_dir: None,
        env: Vec::new(),
        mounts: Vec::new(),
        run_as_user: None,
        run_as_group: None,
        run_as_non_root: false,
        supplemental_groups: Vec::new(),
        privileged: false,
        read_only_root: false,
        allow_privilege_escalation: true,
        added_capabilities: Vec::new(),
        dropped_capabilities: Vec::new(),
        resources: ResourceLimits::default(),
        stdin: false,
        stdin_once: false,
        tty: false,
        log_path: "/var/log/pods/x/main/0.log".into(),
        labels: BTreeMap::new(),
    }
}

fn image() -> ImageConfig {
    ImageConfig {
        entrypoint: Some(vec!["/entry".into()]),
        cmd: Some(vec!["default".into()]),
        env: Some(vec!["A=image".into(), "PATH=/bin".into()]),
        ..ImageConfig::default()
    }
}

fn root() -> ResolvedUser {
    ResolvedUser {
        uid: 0,
        gid: 0,
        additional_gids: vec![0],
    }
}

fn build_with(
    container: &ContainerSpec,
    image: &ImageConfig,
    held: Held,
) -> Result<Value, RuntimeError> {
    build(&Inputs {
        container,
        image,
        user: &root(),
        hostname: "web",
        network_namespace: Some("/ns/net".into()),
        ipc_namespace: Some("/ns/ipc".into()),
        uts_namespace: Some("/ns/uts".into()),
        host_pid: false,
        shm: Path::new("/run/shm"),
        cgroup_path: "/kubepods/besteffort/poduid-1/abc",
        cgroup_v2: false,
        swap_limit: false,
        held: &held,
        host_devices: &[],
    })
}

fn spec_of(container: &ContainerSpec) -> Value {
    build_with(container, &image(), Held::of(u64::MAX, 0)).expect("valid")
}

fn database() -> UserDatabase {
    UserDatabase {
        passwd: "root:x:0:0:root:/root:/bin/sh\napp:x:1000:1001::/home/app:/bin/sh\n".into(),
        group: "root:x:0:\nwheel:x:10:root,app\napp:x:1001:\nlog:x:44:app\n".into(),
    }
}

#[test]
fn the_spec_of_a_plain_container_is_the_one_of_containerds_cri() {
    let spec = spec_of(&container());
    let capabilities = json!([
        "CAP_AUDIT_WRITE",
        "CAP_CHOWN",
        "CAP_DAC_OVERRIDE",
        "CAP_FOWNER",
        "CAP_FSETID",
        "CAP_KILL",
        "CAP_MKNOD",
        "CAP_NET_BIND_SERVICE",
        "CAP_NET_RAW",
        "CAP_SETFCAP",
        "CAP_SETGID",
        "CAP_SETPCAP",
        "CAP_SETUID",
        "CAP_SYS_CHROOT"
    ]);
    let golden = json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": { "uid": 0, "gid": 0, "additionalGids": [0] },
            "args": ["/entry", "default"],
            "env": ["PATH=/bin", "A=image", "HOSTNAME=web"],
            "cwd": "/",
            "capabilities": {
                "bounding": capabilities, "effective": capabilities, "permitted": capabilities
            },
            "noNewPrivileges": false,
            "oomScoreAdj": 0
        },
        "root": { "path": "rootfs", "readonly": false },
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc",
              "options": ["nosuid", "noexec", "nodev"] },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs",
              "options": ["nosuid", "strictatime", "mode=755", "size=65536k"] },
            { "destination": "/dev/pts", "type": "devpts", "source": "devpts",
              "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"] },
            { "destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue",
              "options": ["nosuid", "noexec", "nodev"] },
            { "destination": "/sys", "type": "sysfs", "source": "sysfs",
              "options": ["nosuid", "noexec", "nodev", "ro"] },
            { "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
              "options": ["nosuid", "noexec", "nodev", "relatime", "ro"] },
            { "destination": "/dev/shm", "type": "bind", "source": "/run/shm",
              "options": ["rbind", "rprivate", "rw"] }
        ],
        "annotations": { "io.containerd.runc.v2.group": "uid-1" },
        "linux": {
            "cgroupsPath": "/kubepods/besteffort/poduid-1/abc",
            "namespaces": [
                { "type": "mount" },
                { "type": "pid" },
                { "type": "ipc", "path": "/ns/ipc" },
                { "type": "uts", "path": "/ns/uts" },
                { "type": "network", "path": "/ns/net" }
            ],
            "resources": { "devices": [{ "allow": false, "access": "rwm" }] },
            "maskedPaths": MASKED_PATHS,
            "readonlyPaths": READ_ONLY_PATHS
        }
    });
    assert_eq!(spec, golden, "{spec:#}");
    let typed: oci_spec::runtime::Spec = serde_json::from_value(spec).expect("an OCI spec");
    assert!(typed.process().is_some());
}

#[test]
fn command_and_args_replace_entrypoint_and_cmd_as_kubernetes_documents() {
    let list = |words: &[&str]| {
        words
            .iter()
            .map(|word| (*word).to_owned())
            .collect::<Vec<_>>()
    };
    for (command, args, expected) in [
        (&[][..], &[][..], &["/entry", "default"][..]),
        (&["/cmd"], &[], &["/cmd"]),
        (&[], &["x"], &["/entry", "x"]),
        (&["/cmd"], &["x"], &["/cmd", "x"]),
    ] {
        let container = ContainerSpec {
            command: list(command),
            args: list(args),
            ..container()
        };
        assert_eq!(spec_of(&container)["process"]["args"], json!(expected));
    }
    let error = build_with(&container(), &ImageConfig::default(), Held::of(0, 0));
    assert!(
        error
            .expect_err("nothing to run")
            .to_string()
            .contains("no command specified")
    );
}

#[test]
fn the_containers_environment_wins_and_a_terminal_gets_term() {
    let container = ContainerSpec {
        env: vec![
            ("A".into(), "own".into()),
            ("HOSTNAME".into(), "other".into()),
        ],
        tty: true,
        ..container()
    };
    let env = spec_of(&container)["process"]["env"].clone();
    assert_eq!(
        env,
        json!(["PATH=/bin", "TERM=xterm", "A=own", "HOSTNAME=other"])
    );
}

#[test]
fn capabilities_are_added_dropped_and_never_more_than_this_process_holds() {
    let set = |container: &ContainerSpec, held| {
        build_with(container, &image(), held).expect("valid")["process"]["capabilities"]["bounding"]
            .clone()
    };
    let dropped = ContainerSpec {
        added_capabilities: vec!["NET_ADMIN".into(), "CAP_SYS_TIME".into()],
        dropped_capabilities: vec!["ALL".into()],
        ..container()
    };
    assert_eq!(
        set(&dropped, Held::of(u64::MAX, 0)),
        json!(["CAP_NET_ADMIN", "CAP_SYS_TIME"])
    );
    let without_sys_time = Held::of(!(1 << 25), 0);
    assert_eq!(set(&dropped, without_sys_time), json!(["CAP_NET_ADMIN"]));
    let privileged = ContainerSpec {
        privileged: true,
        ..container()
    };
    assert_eq!(
        set(&privileged, Held::of(u64::MAX, 0))
            .as_array()
            .map(Vec::len),
        Some(41)
    );
    let unknown = ContainerSpec {
        added_capabilities: vec!["FLY".into()],
        ..container()
    };
    let error = build_with(&unknown, &image(), Held::of(u64::MAX, 0)).expect_err("unknown");
    assert_eq!(
        error.to_string(),
        "container main: unknown capability \"FLY\""
    );
}

#[test]
fn oom_score_is_only_lowered_by_who_may() {
    let score = |wanted, held: Held| held.clamp_oom_score_adj(wanted);
    let all = Held::of(u64::MAX, 0);
    let none = Held::of(0, 100);
    assert_eq!(
        [score(-997, all), score(-997, none), score(1000, none)],
        [-997, 100, 1000]
    );
}

#[test]
fn mounts_of_the_container_replace_defaults_and_outer_ones_come_first() {
    let mount = |path: &str, read_only| MountSpec {
        host_path: PathBuf::from("/host"),
        container_path: path.into(),
        read_only,
    };
    let container = ContainerSpec {
        mounts: vec![
            mount("/data/inner", true),
            mount("/dev/shm", false),
            mount("/data", false),
        ],
        ..container()
    };
    let spec = spec_of(&container);
    let mounts = spec["mounts"].as_array().expect("a list");
    let tail: Vec<_> = mounts[6..]
        .iter()
        .map(|mount| (mount["destination"].as_str(), mount["options"][2].as_str()))
        .collect();
    assert_eq!(
        tail,
        [
            (Some("/data"), Some("rw")),
            (Some("/data/inner"), Some("ro")),
            (Some("/dev/shm"), Some("rw"))
        ]
    );
}

#[test]
fn limits_reach_the_resources_and_zero_means_unlimited() {
    let resources = ResourceLimits {
        cpu_shares: 512,
        cpu_quota_us: 50_000,
        cpu_period_us: 100_000,
        memory_limit_bytes: 64 << 20,
        oom_score_adj: 1000,
    };
    let spec = spec_of(&ContainerSpec {
        resources,
        ..container()
    });
    assert_eq!(
        spec["linux"]["resources"]["cpu"],
        json!({ "shares": 512, "quota": 50_000, "period": 100_000 })
    );
    assert_eq!(
        spec["linux"]["resources"]["memory"],
        json!({ "limit": 64 << 20 })
    );
    assert_eq!(spec["process"]["oomScoreAdj"], 1000);
}

#[test]
fn users_are_resolved_against_the_images_own_files() {
    let resolve = |container: &ContainerSpec, user: &str| {
        let image = ImageConfig {
            user: user.into(),
            ..image()
        };
        resolve_user(container, &image, &database())
            .map(|user| (user.uid, user.gid, user.additional_gids))
    };
    let plain = container();
    assert_eq!(resolve(&plain, "").expect("root"), (0, 0, vec![0, 10]));
    assert_eq!(
        resolve(&plain, "app").expect("by name"),
        (1000, 1001, vec![1001, 10, 44])
    );
    assert_eq!(
        resolve(&plain, "app:log").expect("with group"),
        (1000, 44, vec![44, 10])
    );
    assert_eq!(
        resolve(&plain, "1000").expect("by number"),
        (1000, 1001, vec![1001, 10, 44])
    );
    assert_eq!(
        resolve(&plain, "7:8").expect("unknown numbers"),
        (7, 8, vec![8])
    );
    let own = ContainerSpec {
        run_as_user: Some(2000),
        run_as_group: Some(3000),
        supplemental_groups: vec![4000, 3000],
        ..container()
    };
    assert_eq!(
        resolve(&own, "app").expect("own"),
        (2000, 3000, vec![3000, 4000])
    );
    let error = resolve(&plain, "ghost")
        .expect_err("unknown name")
        .to_string();
    assert_eq!(
        error,
        "container main: unable to find user ghost: no matching entries in passwd file"
    );
    let error = resolve(&plain, "app:ghosts")
        .expect_err("unknown group")
        .to_string();
    assert!(error.contains("unable to find group ghosts"), "{error}");
}

#[test]
fn run_as_non_root_is_refused_with_the_kubelets_words() {
    let verdict = |run_as_user, user: &str| {
        let container = ContainerSpec {
            run_as_non_root: true,
            run_as_user,
            ..container()
        };
        verify_non_root(
            &container,
            &ImageConfig {
                user: user.into(),
                ..image()
            },
        )
        .map_err(|error| error.to_string())
    };
    assert_eq!(verdict(Some(5), ""), Ok(()));
    assert_eq!(verdict(None, "1000"), Ok(()));
    let whom = "(pod: \"web_default(uid-1)\", container: main)";
    for (user, image, message) in [
        (Some(0), "", "container's runAsUser breaks non-root policy"),
        (
            None,
            "",
            "container has runAsNonRoot and image will run as root",
        ),
        (
            None,
            "app",
            "container has runAsNonRoot and image has non-numeric user (app), cannot verify user is \
             non-root",
        ),
    ] {
        assert_eq!(
            verdict(user, image),
            Err(format!("container main: {message} {whom}"))
        );
    }
}
