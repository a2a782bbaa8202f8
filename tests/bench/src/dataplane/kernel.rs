//! The kernel's own paths: two nodes with pods on veth pairs, joined as our nodes are. Routed, with or
//! without a rule set, and bridged. As many devices lie between two pods as in our dataplane.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result};

use super::rules::Rules;
use super::sandbox::{Sandbox, ip, sysctl};
use super::spec::{self, ServiceSpec};

/// Of every pod and overlay device here and in our dataplane: 1500 less the overlay's headers.
const MTU: u32 = 1450;
/// What pods send to; a permanent neighbour, as in our dataplane.
const GATEWAY_MAC: &str = "02:74:68:70:00:01";
const SERVICE_LOCAL: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 10);
const SERVICE_REMOTE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 11);
const LAST_LOCAL: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 12);
const LAST_REMOTE: Ipv4Addr = Ipv4Addr::new(10, 96, 0, 13);

/// Two nodes with a client and a server pod on the first and a server pod on the second.
#[derive(Debug)]
pub(crate) struct KernelNodes {
    pub(crate) client: String,
    /// Asks the Services at the end of a rule set's list: one client must not ask one server by two
    /// addresses, see docs/design/bench.md.
    pub(crate) last_client: String,
    /// The node the client is on.
    pub(crate) node: String,
    /// The server on the client's node.
    pub(crate) near: Ipv4Addr,
    /// The server on the other node.
    pub(crate) far: Ipv4Addr,
}

/// The Services of a rule set: one to each server, amid idle ones.
pub(crate) fn services(near: Ipv4Addr, far: Ipv4Addr, count: u32) -> Vec<ServiceSpec> {
    let hot = [
        spec::hot("near", SERVICE_LOCAL, near),
        spec::hot("far", SERVICE_REMOTE, far),
    ];
    spec::services(&hot, count)
}

/// The addresses of the two Services with traffic.
pub(crate) fn service_addresses() -> [Ipv4Addr; 2] {
    [SERVICE_LOCAL, SERVICE_REMOTE]
}

/// The same of those at the end of a rule set's list.
pub(crate) fn last_addresses() -> [Ipv4Addr; 2] {
    [LAST_LOCAL, LAST_REMOTE]
}

impl KernelNodes {
    /// Loads a rule set on the client's node; how long that took. Two more Services with traffic are at
    /// its end, where a list that is searched from its start is at its worst.
    pub(crate) fn load_rules(&self, rules: Rules, count: u32) -> Result<Duration> {
        let mut services = services(self.near, self.far, count);
        services.push(spec::hot("near-last", LAST_LOCAL, self.near));
        services.push(spec::hot("far-last", LAST_REMOTE, self.far));
        rules.load(&self.node, &services)
    }
}

/// Joins two nodes by a veth pair with the underlay's addresses.
pub(crate) fn join_nodes(sandbox: &Sandbox, tag: &str) -> Result<[String; 2]> {
    let nodes = [
        sandbox.namespace(&format!("{tag}-n1"))?,
        sandbox.namespace(&format!("{tag}-n2"))?,
    ];
    ip(
        &nodes[0],
        &format!(
            "link add eth0 type veth peer name eth0 netns {}\n",
            nodes[1]
        ),
    )?;
    for (index, node) in nodes.iter().enumerate() {
        ip(
            node,
            &format!(
                "addr add 172.30.0.1{}/16 dev eth0\nlink set eth0 up\n",
                index + 1
            ),
        )?;
    }
    Ok(nodes)
}

/// Pods behind veth pairs, each routed by its node; the other node's pods through VXLAN.
pub(crate) fn routed(sandbox: &mut Sandbox, tag: &str, server_cpu: usize) -> Result<KernelNodes> {
    let nodes = join_nodes(sandbox, tag)?;
    for (index, node) in nodes.iter().enumerate() {
        sysctl(node, &[("ipv4/ip_forward", "1")])?;
        let (own, other) = (index + 1, 2 - index);
        ip(
            node,
            &format!(
                "link add vx0 address 02:00:00:00:01:0{own} mtu {MTU} type vxlan id 1 dstport 8472 \
                 local 172.30.0.1{own} dev eth0 nolearning\n\
                 link set vx0 up\n\
                 addr add 10.244.{own}.0/32 dev vx0\n\
                 neigh add 10.244.{other}.0 lladdr 02:00:00:00:01:0{other} dev vx0 nud permanent\n\
                 route add 10.244.{other}.0/24 via 10.244.{other}.0 dev vx0 onlink\n"
            ),
        )?;
        fdb(node, &format!("02:00:00:00:01:0{other}"), other)?;
    }
    let pod = |name: &str, node: usize, last: u8| -> Result<(String, Ipv4Addr)> {
        let pod = sandbox.namespace(&format!("{tag}-{name}"))?;
        let address = Ipv4Addr::new(10, 244, node as u8 + 1, last);
        ip(
            &nodes[node],
            &format!(
                "link add {name} address {GATEWAY_MAC} mtu {MTU} type veth peer name eth0 mtu {MTU} netns {pod}\n\
                 link set {name} up\n\
                 route add {address}/32 dev {name}\n"
            ),
        )?;
        ip(
            &pod,
            &format!(
                "addr add {address}/32 dev eth0\n\
                 link set eth0 up\n\
                 neigh add 169.254.1.1 lladdr {GATEWAY_MAC} dev eth0 nud permanent\n\
                 route add 169.254.1.1 dev eth0 scope link\n\
                 route add default via 169.254.1.1 dev eth0\n"
            ),
        )?;
        Ok((pod, address))
    };
    let (client, _) = pod("client", 0, 2)?;
    let (last_client, _) = pod("last", 0, 4)?;
    let (near, near_address) = pod("near", 0, 3)?;
    let (far, far_address) = pod("far", 1, 3)?;
    sandbox.serve(&near, server_cpu)?;
    sandbox.serve(&far, server_cpu)?;
    let [node, _] = nodes;
    Ok(KernelNodes {
        client,
        last_client,
        node,
        near: near_address,
        far: far_address,
    })
}

/// Pods behind veth pairs on a bridge per node; the bridges joined by VXLAN.
pub(crate) fn bridged(sandbox: &mut Sandbox, tag: &str, server_cpu: usize) -> Result<KernelNodes> {
    let nodes = join_nodes(sandbox, tag)?;
    for (index, node) in nodes.iter().enumerate() {
        let (own, other) = (index + 1, 2 - index);
        ip(
            node,
            &format!(
                "link add br0 mtu {MTU} type bridge stp_state 0 forward_delay 0\n\
                 link set br0 up\n\
                 link add vx0 mtu {MTU} type vxlan id 1 dstport 8472 local 172.30.0.1{own} \
                 remote 172.30.0.1{other} dev eth0\n\
                 link set vx0 master br0 up\n"
            ),
        )?;
    }
    let pod = |name: &str, node: usize, last: u8| -> Result<(String, Ipv4Addr)> {
        let pod = sandbox.namespace(&format!("{tag}-{name}"))?;
        let address = Ipv4Addr::new(10, 244, node as u8 + 1, last);
        ip(
            &nodes[node],
            &format!(
                "link add {name} mtu {MTU} type veth peer name eth0 mtu {MTU} netns {pod}\n\
                 link set {name} master br0 up\n"
            ),
        )?;
        ip(
            &pod,
            &format!("addr add {address}/16 dev eth0\nlink set eth0 up\n"),
        )?;
        Ok((pod, address))
    };
    let (client, _) = pod("client", 0, 2)?;
    let (last_client, _) = pod("last", 0, 4)?;
    let (near, near_address) = pod("near", 0, 3)?;
    let (far, far_address) = pod("far", 1, 3)?;
    sandbox.serve(&near, server_cpu)?;
    sandbox.serve(&far, server_cpu)?;
    let [node, _] = nodes;
    Ok(KernelNodes {
        client,
        last_client,
        node,
        near: near_address,
        far: far_address,
    })
}

/// Tells a VXLAN device on which node a MAC is.
fn fdb(node: &str, mac: &str, number: usize) -> Result<()> {
    let mut bridge = std::process::Command::new("bridge");
    bridge
        .args(["-n", node, "fdb", "append", mac, "dev", "vx0", "dst"])
        .arg(format!("172.30.0.1{number}"));
    tholepin_harness::command::run(&mut bridge).context("the overlay's forwarding table")?;
    Ok(())
}
