//! A node without an agent: the topology, a containerd with our images in it, a container, and the
//! removal of all of it after its owner has "crashed".

use std::fs;
use std::process::Command;

use tholepin_harness::state::ClusterState;
use tholepin_harness::{
    ClusterId, Layout, ProcessRef, binaries, cleanup, command, containerd, image,
};
use tholepin_harness::{netns, skip, tools, topology, workspace_root};

/// Removes the cluster when a test fails half-way.
struct Removed(ClusterId);

impl Drop for Removed {
    fn drop(&mut self) {
        if let Err(error) = cleanup::remove(&self.0) {
            eprintln!("{error:#}");
        }
    }
}

fn state(layout: &Layout, owner: Option<ProcessRef>) -> ClusterState {
    ClusterState {
        owner,
        workspace: workspace_root(),
        state_dir: layout.state_dir.clone(),
        api_port: 0,
        nodes: 2,
        complete: false,
        mounted_bpffs: cleanup::ensure_bpffs().expect("root may mount bpffs"),
        processes: Vec::new(),
    }
}

#[test]
fn a_node_runs_a_container_from_our_images_and_a_sweep_removes_all_after_a_crash() {
    let Some(()) = skip::unless(skip::root()) else {
        return;
    };
    let Some(version) = skip::unless(tools::containerd(None)) else {
        return;
    };
    let layout = Layout::new(&ClusterId::random());
    let removed = Removed(layout.id.clone());
    // An owner that does not run is what a killed test leaves.
    let dead = ProcessRef {
        start_time: 1,
        ..ProcessRef::current()
    };
    fs::create_dir_all(&layout.state_dir).unwrap();
    state(&layout, Some(dead)).write(&layout).unwrap();
    topology::create_fabric(&layout).unwrap();
    let nodes = [layout.node(1), layout.node(2)];
    for node in &nodes {
        topology::create_node(&layout, node).unwrap();
    }

    // The nodes reach each other and the fabric, over both families.
    for address in ["172.30.0.1", "172.30.0.12", "fd00:30::1", "fd00:30::12"] {
        let mut ping = Command::new("busybox");
        ping.args(["ping", "-c1", "-W5", address]);
        netns::run_inside(&mut ping, &nodes[0].namespace).unwrap();
        command::run(&mut ping).unwrap();
    }

    let toolbox = binaries::toolbox().unwrap();
    assert!(
        tools::is_static(&toolbox).unwrap(),
        "the toolbox must run in an empty image"
    );
    let process = containerd::start(&nodes[0], &version).unwrap();
    for archive in image::archives(&toolbox).unwrap() {
        containerd::import(&nodes[0], &version, &archive).unwrap();
    }
    let cgroup = format!("{}/probe", nodes[0].cgroup_parent());
    let mut run = containerd::ctr(&nodes[0], &version);
    run.args([
        "run",
        "--detach",
        "--net-host",
        "--cgroup",
        &cgroup,
        image::WEB,
        "probe",
    ]);
    run.args(["/toolbox", "serve", "--name", "probe"]);
    netns::run_inside(&mut run, &nodes[0].namespace).unwrap();
    command::run(&mut run).unwrap();

    // The container answers the toolbox's own client.
    let mut call = Command::new(&toolbox);
    call.args(["call", "--url", "http://172.30.0.11:8080/", "--count", "20"]);
    netns::run_inside(&mut call, &nodes[1].namespace).unwrap();
    let mut answer = String::new();
    for _ in 0..100 {
        // The container was started, which does not mean that it listens.
        if let Ok(text) = command::run(&mut call) {
            answer = text;
            break;
        }
        command::pause(std::time::Duration::from_millis(20));
    }
    assert!(answer.contains(r#""hosts":{"probe":20}"#), "{answer}");

    assert!(!cleanup::leftovers(&layout.id).unwrap().is_empty());
    // Our own child would otherwise stay as a zombie until it is waited for.
    drop(process);
    assert!(cleanup::sweep().unwrap().contains(&layout.id));
    assert_eq!(
        cleanup::leftovers(&layout.id).unwrap(),
        Vec::<String>::new()
    );
    assert!(!layout.state_dir.exists());
    std::mem::forget(removed);
}

#[test]
fn a_cluster_that_was_left_running_is_not_swept() {
    let Some(()) = skip::unless(skip::root()) else {
        return;
    };
    let layout = Layout::new(&ClusterId::random());
    let removed = Removed(layout.id.clone());
    fs::create_dir_all(&layout.state_dir).unwrap();
    state(&layout, None).write(&layout).unwrap();
    assert!(!cleanup::sweep().unwrap().contains(&layout.id));
    assert!(layout.run_dir.exists());
    drop(removed);
    assert!(!layout.run_dir.exists());
}
