//! What containers may do, and which of the node's namespaces they share.

use std::fs;

use tholepin_agent::runtime::{ContainerSpec, Runtime, RuntimeError, SandboxSpec};

use crate::world::{World, exit_of, pod};

#[tokio::test(flavor = "multi_thread")]
async fn privileges_are_what_the_spec_says() {
    let Some(world) = World::start() else { return };
    let runtime = world.runtime();
    runtime.ensure_sandbox(&world.sandbox("p")).await.unwrap();
    let script = "grep -E 'CapEff|NoNewPrivs' /proc/self/status; \
                  touch /x 2>/dev/null && echo writable || echo read-only; \
                  ls /dev | grep -c '^loop-control$\\|^kmsg$\\|^mem$'; \
                  echo 1 2>/dev/null > /proc/sys/vm/drop_caches && echo sys-writable || echo sys-read-only";
    let tight = ContainerSpec {
        read_only_root: true,
        allow_privilege_escalation: false,
        dropped_capabilities: vec!["ALL".into()],
        added_capabilities: vec!["NET_BIND_SERVICE".into()],
        ..world.shell("p", "tight", script)
    };
    let privileged = ContainerSpec {
        privileged: true,
        ..world.shell(
            "p",
            "privileged",
            "ls /dev/null; grep CapEff /proc/self/status",
        )
    };
    runtime.start_container(&tight).await.unwrap();
    exit_of(&runtime, "tight").await;
    let log = world.log(&tight).join("\n").replace("stdout F ", "");
    assert_eq!(
        log,
        "CapEff:\t0000000000000400\nNoNewPrivs:\t1\nread-only\n0\nsys-read-only"
    );
    runtime.start_container(&privileged).await.unwrap();
    assert_eq!(exit_of(&runtime, "privileged").await.exit_code, 0);
    let own = std::fs::read_to_string("/proc/self/status").unwrap();
    let own = own
        .lines()
        .find(|line| line.starts_with("CapEff"))
        .unwrap()
        .to_owned();
    assert_eq!(world.log(&privileged)[1], format!("stdout F {own}"));
    runtime.remove_sandbox(&pod("p")).await.unwrap();
    assert!(runtime.list().await.unwrap().is_empty());
    world.assert_clean("p").await;
}

/// The namespaces of a process of the node's own.
fn own_namespaces(kinds: &[&str]) -> Vec<String> {
    kinds
        .iter()
        .map(|kind| {
            let link = fs::read_link(format!("/proc/self/ns/{kind}")).unwrap();
            format!("stdout F {}", link.display())
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_shares_exactly_the_namespaces_of_the_node_that_it_asks_for() {
    let Some(world) = World::start() else { return };
    let runtime = world.runtime();
    let kinds = ["net", "uts", "pid", "ipc"];
    let script = "for kind in net uts pid ipc; do readlink /proc/self/ns/$kind; done";
    let plain = world.sandbox("none");
    let cases = [
        (plain.clone(), [false; 4]),
        (
            // The node's network comes with the node's name.
            SandboxSpec {
                host_network: true,
                ..world.sandbox("net")
            },
            [true, true, false, false],
        ),
        (
            SandboxSpec {
                host_pid: true,
                ..world.sandbox("pid")
            },
            [false, false, true, false],
        ),
        (
            SandboxSpec {
                host_ipc: true,
                ..world.sandbox("ipc")
            },
            [false, false, false, true],
        ),
        (
            SandboxSpec {
                host_network: true,
                host_pid: true,
                host_ipc: true,
                ..world.sandbox("all")
            },
            [true; 4],
        ),
    ];
    let own = own_namespaces(&kinds);
    for (sandbox, shared) in cases {
        let name = sandbox.pod.name.clone();
        let made = runtime.ensure_sandbox(&sandbox).await.unwrap();
        assert_eq!(made.netns.is_none(), sandbox.host_network, "{name}");
        // Privileged as well: what host namespaces are mostly used with.
        for privileged in [false, true] {
            let container = if privileged { "privileged" } else { "plain" };
            let spec = ContainerSpec {
                privileged,
                ..world.shell(&name, &format!("{name}-{container}"), script)
            };
            runtime.start_container(&spec).await.unwrap();
            assert_eq!(exit_of(&runtime, &spec.name).await.exit_code, 0, "{name}");
            let log = world.log(&spec);
            let is_own: Vec<bool> = log
                .iter()
                .zip(&own)
                .map(|(seen, own)| seen == own)
                .collect();
            assert_eq!(is_own, shared, "{name} {container}: {log:?}");
        }
        let listed = runtime.list().await.unwrap();
        assert!(listed.len() == 1 && listed[0].ready, "{name}");
        runtime.remove_sandbox(&pod(&name)).await.unwrap();
        world.assert_clean(&name).await;
    }
    // The node is as it was: its own namespaces are no pod's to remove.
    assert_eq!(own_namespaces(&kinds), own);
}

#[tokio::test(flavor = "multi_thread")]
async fn running_as_root_is_refused_with_the_kubelets_words() {
    let Some(world) = World::start() else { return };
    let runtime = world.runtime();
    runtime.ensure_sandbox(&world.sandbox("q")).await.unwrap();
    let spec = ContainerSpec {
        run_as_non_root: true,
        ..world.shell("q", "main", "id -u")
    };
    let error = runtime.start_container(&spec).await.unwrap_err();
    assert!(!error.is_transient());
    let RuntimeError::InvalidSpec { message, .. } = error else {
        panic!("{error:?}");
    };
    assert_eq!(
        message,
        "container has runAsNonRoot and image will run as root \
         (pod: \"q_default(uid-q)\", container: main)"
    );
    let spec = ContainerSpec {
        run_as_user: Some(1234),
        ..spec
    };
    runtime.start_container(&spec).await.unwrap();
    exit_of(&runtime, "main").await;
    assert_eq!(world.log(&spec), ["stdout F 1234"]);
    runtime.remove_sandbox(&pod("q")).await.unwrap();
    world.assert_clean("q").await;
}
