//! The pod network of two nodes with the real programs, netlink and sockets, without Kubernetes.
//!
//! Each node is a process of this binary inside a namespace of its own, so that it can be killed; pods
//! are namespaces wired through the node's CNI socket. Needs root; skipped with a report otherwise, an
//! error where `CI` is set.

#![expect(clippy::unwrap_used, reason = "a test panics where it fails")]
#![expect(clippy::disallowed_methods, reason = "plain threads pace the traffic")]

#[path = "network/cluster.rs"]
mod cluster;
#[path = "network/external.rs"]
mod external;
#[path = "network/front.rs"]
mod front;
#[path = "network/halfway.rs"]
mod halfway;
#[path = "network/node.rs"]
mod node;
#[path = "network/outside.rs"]
mod outside;
#[path = "network/socket_lb.rs"]
mod socket_lb;
#[path = "network/sockets.rs"]
mod sockets;
#[path = "network/traffic.rs"]
mod traffic;
#[path = "network/upgrades.rs"]
mod upgrades;

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use cluster::{Cluster, privileged};
use sockets::{in_netns, ip, serve, tcp_ask, udp_ask};
use tholepin_agent::dataplane::AttachMode;

/// Runs as a node when the environment says so; a no-op as a test.
#[test]
fn node_process() {
    node::run_if_asked();
}

const WEB: &str = "10.96.0.10";
const WEB6: &str = "fd00:10:96::a";

fn socket(address: &str, port: u16) -> SocketAddr {
    SocketAddr::new(address.parse().unwrap(), port)
}

/// Both families of a Service `web` with these pods behind it, and of one without endpoints.
fn publish(cluster: &mut Cluster, pods: &[&str]) {
    let backends = |family: usize| {
        let addresses = pods
            .iter()
            .map(|pod| cluster.address(pod, family).to_string());
        addresses.collect::<Vec<_>>()
    };
    let (v4, v6) = (backends(0), backends(1));
    let mut services = Vec::new();
    for protocol in ["TCP", "UDP"] {
        services.push((
            format!("web-{}", protocol.to_lowercase()),
            WEB,
            protocol,
            v4.clone(),
        ));
        services.push((
            format!("web6-{}", protocol.to_lowercase()),
            WEB6,
            protocol,
            v6.clone(),
        ));
        services.push((
            format!("none-{protocol}"),
            "10.96.0.11",
            protocol,
            Vec::new(),
        ));
        services.push((
            format!("none6-{protocol}"),
            "fd00:10:96::b",
            protocol,
            Vec::new(),
        ));
    }
    cluster.publish(&services);
}

/// Pods a1 and a2 on the first node, b1 on the second; each answers with its name on port 8080.
fn two_nodes(mode: AttachMode) -> Cluster {
    let mut cluster = Cluster::start(mode);
    for (pod, node) in [("a1", 0), ("a2", 0), ("b1", 1)] {
        cluster.add_pod(pod, node);
        for family in 0..2 {
            let address = SocketAddr::new(cluster.address(pod, family), 8080);
            serve(&cluster.pod_netns(pod), address, pod);
        }
    }
    publish(&mut cluster, &["a2", "b1"]);
    cluster
}

#[test]
fn pods_and_nodes_reach_pods_and_services_in_both_families() {
    if !privileged() {
        return;
    }
    let mut cluster = two_nodes(AttachMode::Auto);
    every_path_works(&cluster);
    a_failed_attach_is_undone(&mut cluster);
    queued_and_collected_pods_are_detached(&mut cluster);
    spoofed_packets_are_dropped_and_counted(&cluster);
    services_without_a_backend_reject(&cluster);
    detached_pods_leave_nothing(cluster);
}

#[test]
fn the_same_holds_with_clsact_and_across_a_change_of_the_attach_mode() {
    if !privileged() {
        return;
    }
    let mut cluster = two_nodes(AttachMode::Clsact);
    every_path_works(&cluster);
    assert_eq!(cluster.filters(0, "thp_host", "egress"), 1);
    assert_eq!(cluster.pinned_links(0), 0, "clsact filters need no pin");
    cluster.use_mode(0, AttachMode::Auto);
    cluster.kill_and_restart(0);
    publish(&mut cluster, &["a2", "b1"]);
    every_path_works(&cluster);
    if cluster.pinned_links(0) > 0 {
        assert_eq!(
            cluster.filters(0, "thp_host", "egress"),
            0,
            "TCX has taken over"
        );
    }
    cluster.use_mode(0, AttachMode::Clsact);
    cluster.kill_and_restart(0);
    publish(&mut cluster, &["a2", "b1"]);
    every_path_works(&cluster);
    detached_pods_leave_nothing(cluster);
}

/// Asks again from another port when no answer comes: a datagram sent directly from the port of an
/// earlier flow through a Service to the same pod is answered as that flow (docs/design/dataplane.md,
/// "Review notes"), and the kernel draws such a port once in some hundred runs of this program.
fn direct_udp_ask(netns: &str, to: SocketAddr) -> std::io::Result<String> {
    udp_ask(netns, None, to).or_else(|error| match error.kind() {
        std::io::ErrorKind::WouldBlock => udp_ask(netns, None, to),
        _ => Err(error),
    })
}

fn every_path_works(cluster: &Cluster) {
    for family in 0..2 {
        for (client, server) in [("a1", "a2"), ("a1", "b1"), ("b1", "a1")] {
            let to = SocketAddr::new(cluster.address(server, family), 8080);
            let netns = cluster.pod_netns(client);
            let answers = [
                ("tcp", tcp_ask(&netns, to)),
                ("udp", direct_udp_ask(&netns, to)),
            ];
            for (protocol, answer) in answers {
                let answer = answer.unwrap_or_else(|error| {
                    panic!("{client} -> {server} at {to}, {protocol}: {error}")
                });
                assert_eq!(answer, server, "{client} -> {to}, {protocol}");
            }
        }
        let service = socket([WEB, WEB6][family], 80);
        for from in [
            cluster.pod_netns("a1"),
            cluster.pod_netns("b1"),
            cluster.node_netns(0),
        ] {
            let mut tcp: Vec<_> = (0..24).map(|_| tcp_ask(&from, service).unwrap()).collect();
            let mut udp: Vec<_> = (0..24)
                .map(|_| udp_ask(&from, None, service).unwrap())
                .collect();
            for answers in [&mut tcp, &mut udp] {
                answers.sort();
                answers.dedup();
                // A fair coin misses a side in 24 throws once in 8 million times.
                assert_eq!(*answers, ["a2", "b1"], "{from} -> {service}");
            }
        }
        for (node, pod) in [(0, "a1"), (0, "b1"), (1, "a2")] {
            let to = SocketAddr::new(cluster.address(pod, family), 8080);
            assert_eq!(
                tcp_ask(&cluster.node_netns(node), to).unwrap(),
                pod,
                "node -> {to}"
            );
        }
    }
}

/// The namespace has an `eth0` already: the attach fails, names it, and nothing of it stays.
fn a_failed_attach_is_undone(cluster: &mut Cluster) {
    let netns = cluster.pod_netns("taken");
    ip(&["netns", "add", &netns]);
    ip(&[
        "-n", &netns, "link", "add", "eth0", "type", "veth", "peer", "other",
    ]);
    let leases = cluster.leases(0);
    let error = cluster.try_add("taken", 0).unwrap_err();
    ip(&["netns", "del", &netns]);
    assert!(
        error.contains("default/taken") && error.contains("File exists"),
        "{error}"
    );
    assert_eq!(cluster.leases(0), leases);
    let error = cluster.try_add("absent", 0).unwrap_err();
    assert!(
        error.contains("failed to open the network namespace"),
        "{error}"
    );
    assert_eq!(cluster.leases(0), leases);
}

/// DEL while the agent was down is done by the next one; GC removes what the runtime does not list.
fn queued_and_collected_pods_are_detached(cluster: &mut Cluster) {
    cluster.add_pod("queued", 0);
    cluster.add_pod("lost", 0);
    let leases = cluster.leases(0);
    cluster.queue_deletion("queued", 0);
    cluster.kill_and_restart(0);
    cluster.wait_for_leases(0, leases - 1);
    assert!(cluster.check_pod("queued").is_err());
    cluster.collect(0, &["a1", "a2"]);
    assert!(cluster.check_pod("lost").is_err());
    assert!(cluster.check_pod("a1").is_ok());
    assert_eq!(cluster.leases(0), leases - 2);
    publish(cluster, &["a2", "b1"]);
}

fn spoofed_packets_are_dropped_and_counted(cluster: &Cluster) {
    let netns = cluster.pod_netns("a1");
    let foreign = cluster.address("b1", 0);
    ip(&[
        "-n",
        &netns,
        "address",
        "add",
        &format!("{foreign}/32"),
        "dev",
        "eth0",
    ]);
    let before = cluster.drops(0, "spoofed_source");
    let to = SocketAddr::new(cluster.address("a2", 0), 8080);
    let error = udp_ask(&netns, Some(foreign), to).unwrap_err();
    assert!(
        matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
        "{error}"
    );
    assert!(cluster.drops(0, "spoofed_source") > before);
    ip(&[
        "-n",
        &netns,
        "address",
        "del",
        &format!("{foreign}/32"),
        "dev",
        "eth0",
    ]);
}

fn services_without_a_backend_reject(cluster: &Cluster) {
    for address in ["10.96.0.11", "fd00:10:96::b"] {
        for netns in [cluster.pod_netns("a1"), cluster.node_netns(0)] {
            let to = socket(address, 80);
            let tcp = tcp_ask(&netns, to).unwrap_err();
            assert_eq!(
                tcp.kind(),
                ErrorKind::ConnectionRefused,
                "{netns} -> {to} tcp"
            );
            let udp = udp_ask(&netns, None, to).unwrap_err();
            assert_eq!(
                udp.kind(),
                ErrorKind::ConnectionRefused,
                "{netns} -> {to} udp"
            );
        }
    }
    assert!(cluster.drops(0, "no_backend") >= 4);
}

fn detached_pods_leave_nothing(mut cluster: Cluster) {
    let unused = cluster.address("a1", 0);
    for pod in ["a1", "a2", "b1"] {
        assert!(cluster.check_pod(pod).is_ok());
        cluster.remove_pod(pod);
        cluster.remove_pod(pod);
        assert!(cluster.check_pod(pod).is_err(), "CHECK of a detached pod");
    }
    for node in 0..2 {
        let links = ip(&["-n", &cluster.node_netns(node), "-brief", "link"]);
        let pods = links
            .lines()
            .filter(|line| line.starts_with("thp") && !line.contains("thp_"));
        assert_eq!(pods.count(), 0, "{links}");
        assert_eq!(cluster.pinned_pod_links(node), Vec::<String>::new());
        assert_eq!(cluster.leases(node), 0);
    }
    cluster.add_pod("a3", 0);
    assert_ne!(
        cluster.address("a3", 0),
        unused,
        "a just freed address comes last"
    );
}

#[test]
fn the_underlay_is_reached_from_pods_and_nodes_also_as_a_backend_and_after_a_restart() {
    if !privileged() {
        return;
    }
    let mut cluster = two_nodes(AttachMode::Auto);
    outside::serve_on_the_second_node(&mut cluster);
    outside::the_underlay_is_reached_from_everywhere(&cluster);
    outside::ports_are_reserved(&cluster);
    let netns = cluster.pod_netns("a1");
    let direct = sockets::Transfer::tcp(&netns, socket("172.30.0.11", 8080));
    cluster.use_mode(0, AttachMode::Clsact);
    for filters in [1, 0] {
        cluster.kill_and_restart(0);
        outside::the_underlay_is_reached_from_everywhere(&cluster);
        assert_eq!(cluster.filters(0, "eth0", "ingress"), filters);
        cluster.use_mode(0, AttachMode::Auto);
    }
    let (sent, answered) = direct.finish().unwrap();
    assert!(
        sent > 300 && answered == sent,
        "{sent} sent, {answered} answered"
    );
}

#[test]
fn a_killed_agent_loses_no_packet_and_forgets_no_pod() {
    if !privileged() {
        return;
    }
    let mut cluster = two_nodes(AttachMode::Auto);
    // Only the remote pod is behind the Service, so that both directions cross the overlay.
    publish(&mut cluster, &["b1"]);
    let netns = cluster.pod_netns("a1");
    let stream = sockets::Transfer::tcp(&netns, socket(WEB, 80));
    let datagrams = sockets::Transfer::udp(&netns, socket(WEB6, 80));
    let lease = cluster.address("a1", 0);
    for round in 0..3 {
        std::thread::sleep(Duration::from_millis(300));
        cluster.kill_and_restart(0);
        assert_eq!(cluster.check_pod("a1").unwrap(), lease, "round {round}");
        publish(&mut cluster, &["b1"]);
    }
    for (name, report) in [("tcp", stream.finish()), ("udp", datagrams.finish())] {
        let (sent, answered) = report.unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(sent > 300, "{name}: {sent}");
        assert_eq!(answered, sent, "{name}: sent, answered");
    }
    assert!(in_netns(&netns, move || sockets::local_addresses().contains(&lease)));
}

/// Ten agents here, and as many as `THOLEPIN_RESTARTS` says: see docs/design/testing.md.
#[test]
fn replaced_agents_lose_duplicate_and_reset_nothing() {
    if !privileged() {
        return;
    }
    let mut cluster = two_nodes(AttachMode::Auto);
    outside::serve_on_the_second_node(&mut cluster);
    upgrades::lose_nothing(&mut cluster, upgrades::restarts());
}

#[test]
fn services_half_programmed_by_a_killed_agent_lead_to_nobody_else() {
    if !privileged() {
        return;
    }
    let mut cluster = two_nodes(AttachMode::Auto);
    halfway::kill_while_programming(&mut cluster);
}

/// The nodes of this test are told of Services on their standard input, so one that is started and told
/// nothing is one whose API server does not answer.
#[test]
fn an_agent_that_starts_without_a_control_plane_leaves_services_as_they_are() {
    if !privileged() {
        return;
    }
    let mut cluster = two_nodes(AttachMode::Auto);
    let netns = cluster.pod_netns("a1");
    let flow = sockets::udp_flow(&netns, socket(WEB6, 80));
    let backend = flow.ask().unwrap();
    let stream = sockets::Transfer::tcp(&netns, socket(WEB, 80));
    cluster.kill_and_restart(0);
    cluster.kill_and_restart(1);
    for _ in 0..100 {
        let new = [
            tcp_ask(&netns, socket(WEB, 80)),
            udp_ask(&netns, None, socket(WEB6, 80)),
        ];
        for answer in new {
            let answer = answer.expect("new flows find their Service");
            assert!(["a2", "b1"].contains(&answer.as_str()), "{answer}");
        }
        assert_eq!(
            flow.ask().unwrap(),
            backend,
            "the old flow keeps its backend"
        );
        std::thread::sleep(Duration::from_millis(30));
    }
    services_without_a_backend_reject(&cluster);
    // It comes back, and what has changed meanwhile is done.
    publish(&mut cluster, &["a2"]);
    assert_eq!(tcp_ask(&netns, socket(WEB, 80)).unwrap(), "a2");
    let (sent, answered) = stream.finish().unwrap();
    assert!(
        sent > 300 && answered == sent,
        "{sent} sent, {answered} answered"
    );
}

#[test]
fn a_udp_flow_leaves_a_backend_that_stops_serving_at_once() {
    if !privileged() {
        return;
    }
    let mut cluster = two_nodes(AttachMode::Auto);
    publish(&mut cluster, &["a2"]);
    let flow = sockets::udp_flow(&cluster.pod_netns("a1"), socket(WEB, 80));
    assert_eq!(flow.ask().unwrap(), "a2");
    publish(&mut cluster, &["b1"]);
    assert_eq!(
        flow.ask().unwrap(),
        "b1",
        "the same flow, the next datagram"
    );
}

#[test]
fn a_pinned_map_of_another_layout_is_refused_and_nothing_is_touched() {
    if !privileged() {
        return;
    }
    use aya::maps::{Array, MapData};
    use tholepin_agent::dataplane::pin::{PinDirectory, PinError};
    let root = format!("/sys/fs/bpf/thpt-{}-layout", std::process::id());
    // Removes the directory also when an assertion fails.
    struct Remove(String);
    impl Drop for Remove {
        fn drop(&mut self) {
            std::fs::remove_dir_all(&self.0).ok();
        }
    }
    let remove = Remove(root.clone());
    let root = std::path::Path::new(&root);
    let pins = PinDirectory::prepare(root).unwrap();
    let map = Array::<MapData, u64>::create(4, 0).unwrap();
    let path = pins.map("FRONTENDS");
    map.pin(&path).unwrap();
    let error = PinDirectory::prepare(root).unwrap_err();
    assert!(matches!(error, PinError::Layout { .. }), "{error}");
    let text = error.to_string();
    assert!(
        text.contains("FRONTENDS") && text.contains("found Array"),
        "{text}"
    );
    assert!(text.contains("expected Hash"), "{text}");
    assert!(path.exists());
    drop(remove);
}
