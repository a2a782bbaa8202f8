//! What leaves the pod network: pods and nodes reaching addresses of the underlay, directly and as
//! backends of a Service.

use std::net::{IpAddr, SocketAddr};
use std::process::Command;

use super::cluster::Cluster;
use super::sockets::{in_netns, serve, tcp_ask, tcp_ask_for, udp_flow};

/// A Service whose only backend is the second node itself, like `kubernetes` or that of a pod with
/// `hostNetwork`.
const SERVICE: [&str; 2] = ["10.96.0.20", "fd00:10:96::14"];
/// The underlay addresses of the nodes.
const NODES: [[&str; 2]; 2] = [
    ["172.30.0.10", "fd00:30::10"],
    ["172.30.0.11", "fd00:30::11"],
];

pub(crate) fn serve_on_the_second_node(cluster: &mut Cluster) {
    let mut services = Vec::new();
    for family in 0..2 {
        let address = SocketAddr::new(NODES[1][family].parse().unwrap(), 8080);
        serve(&cluster.node_netns(1), address, "node");
        for protocol in ["TCP", "UDP"] {
            services.push((
                format!("node{family}-{}", protocol.to_lowercase()),
                SERVICE[family],
                protocol,
                vec![NODES[1][family].to_owned()],
            ));
        }
    }
    cluster.publish(&services);
}

pub(crate) fn the_underlay_is_reached_from_everywhere(cluster: &Cluster) {
    for family in 0..2 {
        let service = SocketAddr::new(SERVICE[family].parse().unwrap(), 80);
        let direct = SocketAddr::new(NODES[1][family].parse().unwrap(), 8080);
        let clients = [
            // Who asks, and as whom the second node sees it.
            (cluster.pod_netns("a1"), NODES[0][family].to_owned()),
            (cluster.node_netns(0), NODES[0][family].to_owned()),
            // On the same machine nothing needs to be hidden, but the Service must answer.
            (
                cluster.pod_netns("b1"),
                cluster.address("b1", family).to_string(),
            ),
            (cluster.node_netns(1), SERVICE[family].to_owned()),
        ];
        for (client, seen_as) in &clients {
            for _ in 0..4 {
                assert_eq!(
                    tcp_ask(client, service).unwrap(),
                    "node",
                    "{client} -> {service} tcp"
                );
            }
            let peer = tcp_ask_for(client, service, b"peer").unwrap();
            assert_eq!(&peer, seen_as, "{client} -> {service} tcp");
            let flow = udp_flow(client, service);
            for _ in 0..4 {
                assert_eq!(flow.ask().unwrap(), "node", "{client} -> {service} udp");
            }
            let peer = flow.ask_for(b"peer").unwrap();
            assert_eq!(&peer, seen_as, "{client} -> {service} udp");
        }
        for (client, seen_as) in &clients[..3] {
            let peer = tcp_ask_for(client, direct, b"peer").unwrap();
            assert_eq!(&peer, seen_as, "{client} -> {direct} tcp");
            let peer = udp_flow(client, direct).ask_for(b"peer").unwrap();
            assert_eq!(&peer, seen_as, "{client} -> {direct} udp");
            assert!(ping(client, direct.ip()), "{client} -> {direct} ping");
        }
        let closed = SocketAddr::new(direct.ip(), 9);
        for (client, _) in &clients[..1] {
            let refused = tcp_ask(client, closed).unwrap_err();
            assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
            // The ICMP error comes back to the pod, too.
            let refused = udp_flow(client, closed).ask().unwrap_err();
            assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);
        }
    }
}

/// The kernel gives none of the ports kept for masquerading to a socket of the node.
pub(crate) fn ports_are_reserved(cluster: &Cluster) {
    let list = in_netns(&cluster.node_netns(0), || {
        std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_reserved_ports").unwrap()
    });
    assert_eq!(list.trim(), "61440-65535");
}

fn ping(netns: &str, to: IpAddr) -> bool {
    let program = if to.is_ipv4() { "ping" } else { "ping6" };
    let output = Command::new("nsenter")
        .arg(format!("--net=/run/netns/{netns}"))
        .args(["busybox", program, "-c", "1", "-W", "2", &to.to_string()])
        .output()
        .unwrap();
    output.status.success()
}
