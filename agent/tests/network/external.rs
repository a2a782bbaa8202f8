//! A client outside the cluster, behind a router, and Services at the ports of a node.
//!
//! The second node is the router as well: the client asks the first node, so what the first node hands
//! to the second comes back to where the client is, by another way than the request.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use tholepin_agent::dataplane::AttachMode;

use super::cluster::{Cluster, privileged};
use super::sockets::{ip, serve, tcp_ask, tcp_ask_for, udp_flow};

const CLIENT: [&str; 2] = ["192.168.7.7", "fd00:192::7"];
const ROUTER: [&str; 2] = ["192.168.7.1", "fd00:192::1"];
const NODES: [[&str; 2]; 2] = [
    ["172.30.0.10", "fd00:30::10"],
    ["172.30.0.11", "fd00:30::11"],
];
/// The first node's own addresses in the pod network.
const GATEWAY: [&str; 2] = ["10.244.0.1", "fd00:10:244::1"];
/// By Service: a pod of the asked node, of the other, the same with its client hidden, the other with
/// a local policy.
const PORTS: [(&str, u16); 4] = [
    ("here", 30_080),
    ("there", 30_081),
    ("hidden", 30_082),
    ("local", 30_083),
];

/// ClusterIPs of these Services.
const ADDRESSES: [[&str; 2]; 4] = [
    ["10.96.1.1", "fd00:10:96::101"],
    ["10.96.1.2", "fd00:10:96::102"],
    ["10.96.1.3", "fd00:10:96::103"],
    ["10.96.1.4", "fd00:10:96::104"],
];

#[test]
fn a_client_outside_reaches_pods_of_both_nodes_and_keeps_its_address() {
    if !privileged() {
        return;
    }
    for mode in [AttachMode::Auto, AttachMode::Clsact] {
        let mut cluster = Cluster::start(mode);
        for (pod, node) in [("a1", 0), ("b1", 1)] {
            cluster.add_pod(pod, node);
            for family in 0..2 {
                let at = SocketAddr::new(cluster.address(pod, family), 8080);
                serve(&cluster.pod_netns(pod), at, pod);
            }
        }
        let client = outside(&mut cluster);
        publish(&mut cluster);
        for family in 0..2 {
            let node =
                |number: usize, port| SocketAddr::new(NODES[number][family].parse().unwrap(), port);
            wait_for(&client, node(0, 30_080));
            let own = CLIENT[family].to_owned();
            let gateway = GATEWAY[family].to_owned();
            for (port, pod, seen_as) in [
                (30_080, "a1", &own),
                (30_081, "b1", &own),
                (30_082, "b1", &gateway),
            ] {
                let to = node(0, port);
                for _ in 0..4 {
                    assert_eq!(tcp_ask(&client, to).unwrap(), pod, "{to} tcp");
                }
                assert_eq!(
                    &tcp_ask_for(&client, to, b"peer").unwrap(),
                    seen_as,
                    "{to} tcp"
                );
                let flow = udp_flow(&client, to);
                for _ in 0..4 {
                    assert_eq!(flow.ask().unwrap(), pod, "{to} udp");
                }
                assert_eq!(&flow.ask_for(b"peer").unwrap(), seen_as, "{to} udp");
            }
            // The backend is on the other node, and the policy is local.
            assert!(udp_flow(&client, node(0, 30_083)).ask().is_err());
            assert!(cluster.drops(0, "no_local_backend") > 0);

            // A pod and a process of the other node, whose own pod is the backend.
            for asking in [cluster.pod_netns("b1"), cluster.node_netns(1)] {
                let to = node(0, 30_081);
                assert_eq!(tcp_ask(&asking, to).unwrap(), "b1", "{asking} -> {to} tcp");
                assert_eq!(
                    udp_flow(&asking, to).ask().unwrap(),
                    "b1",
                    "{asking} -> {to} udp"
                );
            }
            // A pod and a process of the node itself.
            for asking in [cluster.pod_netns("a1"), cluster.node_netns(0)] {
                for (port, pod) in [(30_080, "a1"), (30_081, "b1"), (30_083, "b1")] {
                    let to = node(0, port);
                    assert_eq!(tcp_ask(&asking, to).unwrap(), pod, "{asking} -> {to} tcp");
                    let flow = udp_flow(&asking, to);
                    assert_eq!(flow.ask().unwrap(), pod, "{asking} -> {to} udp");
                }
            }
        }
    }
}

/// A namespace behind the second node.
fn outside(cluster: &mut Cluster) -> String {
    let client = cluster.add_netns("outside");
    let (first, router) = (cluster.node_netns(0), cluster.node_netns(1));
    let pair = [
        "link", "add", "out0", "type", "veth", "peer", "eth0", "netns",
    ];
    ip(&[&["-n", &router], &pair[..], &[&client]].concat());
    for (netns, device, addresses) in [(&router, "out0", ROUTER), (&client, "eth0", CLIENT)] {
        ip(&["-n", netns, "link", "set", device, "up"]);
        for (address, bits) in addresses.iter().zip(["24", "64"]) {
            let address = format!("{address}/{bits}");
            ip(&[
                "-n", netns, "address", "add", &address, "dev", device, "nodad",
            ]);
        }
    }
    for family in 0..2 {
        ip(&[
            "-n",
            &client,
            "route",
            "add",
            "default",
            "via",
            ROUTER[family],
        ]);
        let network = ["192.168.7.0/24", "fd00:192::/64"][family];
        ip(&[
            "-n",
            &first,
            "route",
            "add",
            network,
            "via",
            NODES[1][family],
        ]);
    }
    client
}

fn publish(cluster: &mut Cluster) {
    let mut services = Vec::new();
    let mut ports = Vec::new();
    let mut names: [Vec<String>; 2] = [Vec::new(), Vec::new()];
    for (number, (name, port)) in PORTS.into_iter().enumerate() {
        let pod = if name == "here" { "a1" } else { "b1" };
        for (family, address) in ADDRESSES[number].into_iter().enumerate() {
            for protocol in ["TCP", "UDP"] {
                let service = format!("{name}{family}-{}", protocol.to_lowercase());
                let backend = cluster.address(pod, family).to_string();
                match name {
                    "hidden" => names[0].push(service.clone()),
                    "local" => names[1].push(service.clone()),
                    _ => {}
                }
                ports.push((service.clone(), port));
                services.push((service, address, protocol, vec![backend]));
            }
        }
    }
    let ports: Vec<_> = ports
        .iter()
        .map(|(name, port)| (name.as_str(), *port))
        .collect();
    cluster.use_node_ports(&ports);
    let [hidden, local] = names;
    cluster.use_masquerade(&hidden.iter().map(String::as_str).collect::<Vec<_>>());
    cluster.use_external_local_policy(&local.iter().map(String::as_str).collect::<Vec<_>>());
    cluster.announce(&services);
}

/// Waits until a Service answers: the last of them is programmed with the first.
fn wait_for(client: &str, to: SocketAddr) {
    let give_up = Instant::now() + Duration::from_secs(60);
    while tcp_ask(client, to).is_err() {
        assert!(Instant::now() < give_up, "no answer from {to}");
        std::thread::sleep(Duration::from_millis(50));
    }
}
