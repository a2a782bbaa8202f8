//! The XDP front door on a node's underlay interface: put up, replaced and taken down under traffic.

use std::net::SocketAddr;
use std::process::Command;

use tholepin_agent::dataplane::AttachMode;

use super::cluster::{Cluster, privileged};
use super::sockets::{Transfer, serve, tcp_ask};

#[test]
fn the_front_door_is_put_up_replaced_and_taken_down_under_traffic() {
    if !privileged() {
        return;
    }
    let mut cluster = Cluster::start(AttachMode::Auto);
    for (pod, node) in [("a1", 0), ("b1", 1)] {
        cluster.add_pod(pod, node);
    }
    let to = SocketAddr::new(cluster.address("b1", 0), 8080);
    serve(&cluster.pod_netns("b1"), to, "b1");
    let client = cluster.pod_netns("a1");
    let transfer = Transfer::tcp(&client, to);
    let node = cluster.node_netns(0);
    assert_eq!(program(&node), None);
    // The interface is one of a pair, which `auto` leaves alone.
    for mode in ["auto", "native"] {
        cluster.use_xdp(0, mode);
        cluster.kill_and_restart(0);
        assert_eq!(program(&node).is_some(), mode == "native", "{mode}");
        assert_eq!(tcp_ask(&client, to).unwrap(), "b1", "{mode}");
    }
    let first = program(&node);
    cluster.kill_and_restart(0);
    let second = program(&node);
    assert!(
        second.is_some() && second != first,
        "another agent's program"
    );
    cluster.use_xdp(0, "off");
    cluster.kill_and_restart(0);
    assert_eq!(program(&node), None, "nothing is left");
    let (sent, answered) = transfer.finish().unwrap();
    assert!(sent > 300 && answered == sent, "{sent}, {answered}");
}

/// Id of the XDP program on a node's underlay interface, by the kernel's own account.
fn program(netns: &str) -> Option<u64> {
    let output = Command::new("ip")
        .args(["-n", netns, "-json", "link", "show", "eth0"])
        .output()
        .unwrap();
    let links: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    links[0]["xdp"]["prog"]["id"].as_u64()
}
