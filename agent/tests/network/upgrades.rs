//! Agents that are killed, stopped, replaced by another build and back, under traffic that accounts
//! for every packet.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::cluster::{Cluster, spawn};
use super::sockets::Transfer;
use super::traffic::{Account, Bulk, Connections, Datagrams, RATE};
use super::{WEB, WEB6, socket};

const SINK: &str = "10.96.0.12";
const SINK6: &str = "fd00:10:96::c";
/// Ports of the sinks: what is reached directly must not have the ends of what is balanced.
const PORT: u16 = 8080;
const DIRECT_PORT: u16 = 9090;

/// How many agents are replaced; `THOLEPIN_RESTARTS` asks for another number.
pub(crate) fn restarts() -> usize {
    let asked = std::env::var("THOLEPIN_RESTARTS").ok();
    asked.map_or(10, |text| {
        text.parse().expect("THOLEPIN_RESTARTS is a number")
    })
}

/// What happens to an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    /// `kill -9`, a while without, the same again.
    Killed,
    /// SIGTERM, and the same again at once.
    Stopped,
    /// Another file with other constants in its programs.
    Upgraded,
    /// Back to what was before.
    Downgraded,
    /// Killed once more while it puts its programs in place.
    KilledInStart,
    /// The other way of attaching programs, and with the next of these back.
    AttachedOtherwise,
}

const CHANGES: [Change; 6] = [
    Change::Killed,
    Change::Upgraded,
    Change::KilledInStart,
    Change::AttachedOtherwise,
    Change::Downgraded,
    Change::Stopped,
];

/// The traffic of the whole test.
struct Load {
    datagrams: Vec<(&'static str, Datagrams)>,
    bulks: Vec<(&'static str, Bulk)>,
    transfers: Vec<(&'static str, Transfer)>,
    connections: Vec<(&'static str, Connections)>,
}

impl Load {
    fn start(cluster: &Cluster) -> Self {
        let [a1, b2] = ["a1", "b2"].map(|pod| cluster.pod_netns(pod));
        let at = |family, port| SocketAddr::new(cluster.address("b2", family), port);
        let service = |family: usize| socket([SINK, SINK6][family], 80);
        let datagrams = vec![
            (
                "UDP, ClusterIP, IPv4",
                Datagrams::start(&a1, service(0), &b2, at(0, PORT)),
            ),
            (
                "UDP, ClusterIP, IPv6",
                Datagrams::start(&a1, service(1), &b2, at(1, PORT)),
            ),
            (
                "UDP, pod to pod, IPv4",
                Datagrams::start(&a1, at(0, DIRECT_PORT), &b2, at(0, DIRECT_PORT)),
            ),
        ];
        let bulks = vec![
            (
                "TCP bulk, ClusterIP, IPv4",
                Bulk::start(&a1, service(0), &b2, at(0, PORT)),
            ),
            (
                "TCP bulk, pod to pod, IPv6",
                Bulk::start(&a1, at(1, DIRECT_PORT), &b2, at(1, DIRECT_PORT)),
            ),
        ];
        // The way back and the same node, too: every answer must come before the next is asked.
        let a2 = SocketAddr::new(cluster.address("a2", 0), 8080);
        let node = cluster.node_netns(0);
        let outside = socket("172.30.0.11", 8080);
        let transfers = vec![
            (
                "TCP request/response, ClusterIP",
                Transfer::tcp(&a1, socket(WEB, 80)),
            ),
            (
                "UDP request/response, ClusterIP, IPv6",
                Transfer::udp(&a1, socket(WEB6, 80)),
            ),
            ("TCP request/response, same node", Transfer::tcp(&a1, a2)),
            (
                "UDP request/response, node to ClusterIP",
                Transfer::udp(&node, socket(WEB, 80)),
            ),
            (
                "TCP request/response, masqueraded",
                Transfer::tcp(&a1, outside),
            ),
        ];
        let connections = vec![(
            "connections, ClusterIP",
            Connections::start(&a1, socket(WEB, 80), "b1"),
        )];
        Self {
            datagrams,
            bulks,
            transfers,
            connections,
        }
    }

    /// One line for each kind of traffic, and what went wrong.
    fn finish(self, log: &[(Instant, usize, Change)]) -> (Vec<String>, Vec<String>) {
        let (mut lines, mut wrong) = (Vec::new(), Vec::new());
        for (name, datagrams) in self.datagrams {
            match datagrams.finish() {
                Ok(account) => {
                    let line = format!(
                        "{name}: {} sent, {} lost, {} duplicated, {} reordered",
                        account.sent, account.lost, account.duplicated, account.reordered
                    );
                    if account.lost > 0 || account.duplicated > 0 {
                        wrong.push(format!("{line}: {}", culprits(&account, log)));
                    }
                    lines.push(line);
                }
                Err(error) => wrong.push(format!("{name}: {error}")),
            }
        }
        for (name, bulk) in self.bulks {
            let result = bulk.finish();
            lines.push(format!("{name}: bytes sent and received {result:?}"));
            let right = matches!(result, Ok((sent, received)) if sent == received);
            wrong.extend((!right).then(|| format!("{name}: {result:?}")));
        }
        for (name, transfer) in self.transfers {
            let result = transfer.finish();
            lines.push(format!("{name}: requests and answers {result:?}"));
            let right = matches!(result, Ok((sent, answered)) if sent == answered && sent > 0);
            wrong.extend((!right).then(|| format!("{name}: {result:?}")));
        }
        for (name, connections) in self.connections {
            let (made, failures) = connections.finish();
            lines.push(format!("{name}: {made} made, {} failed", failures.len()));
            wrong.extend(failures);
        }
        (lines, wrong)
    }
}

/// What had last been done when numbers were missing.
fn culprits(account: &Account, log: &[(Instant, usize, Change)]) -> String {
    let before = |gap: &Instant| log.iter().rev().find(|(at, ..)| at < gap);
    let text = |gap: &Instant| match before(gap) {
        Some((at, node, change)) => {
            format!(
                "{:?} after node {node} was {change:?}",
                gap.duration_since(*at)
            )
        }
        None => "before any change".to_owned(),
    };
    account.gaps.iter().map(text).collect::<Vec<_>>().join(", ")
}

/// The second build of the agent: another file, as a package manager leaves it.
fn other_binary(directory: &std::path::Path) -> PathBuf {
    let copy = directory.join("tholepin-agent-next");
    std::fs::copy(std::env::current_exe().unwrap(), &copy).unwrap();
    copy
}

fn publish(cluster: &mut Cluster) {
    let mut services = Vec::new();
    for (name, addresses, pod) in [("web", [WEB, WEB6], "b1"), ("sink", [SINK, SINK6], "b2")] {
        for (family, address) in addresses.into_iter().enumerate() {
            for protocol in ["TCP", "UDP"] {
                let backends = vec![cluster.address(pod, family).to_string()];
                services.push((
                    format!("{name}-{family}-{protocol}"),
                    address,
                    protocol,
                    backends,
                ));
            }
        }
    }
    cluster.publish(&services);
}

fn change(cluster: &mut Cluster, round: usize, change: Change, next: &PathBuf) {
    let number = round % 2;
    let node = &mut cluster.nodes[number];
    let pid = Pid::from_raw(i32::try_from(node.child.id()).unwrap());
    let signal = match change {
        Change::Stopped => Signal::SIGTERM,
        _ => Signal::SIGKILL,
    };
    kill(pid, signal).unwrap();
    node.child.wait().unwrap();
    match change {
        Change::Upgraded => {
            node.process.binary.clone_from(next);
            node.process.redirect_peer = false;
        }
        Change::Downgraded => {
            node.process.binary = std::env::current_exe().unwrap();
            node.process.redirect_peer = true;
        }
        Change::AttachedOtherwise => node.process.clsact = !node.process.clsact,
        Change::Killed | Change::KilledInStart => std::thread::sleep(Duration::from_millis(200)),
        Change::Stopped => (),
    }
    node.child = spawn(&node.netns, &node.process);
    if change == Change::KilledInStart {
        // Another place in the start each time, from the first system call to the last program.
        std::thread::sleep(Duration::from_millis(60 * (round as u64 % 11 + 1)));
        node.child.kill().unwrap();
        node.child.wait().unwrap();
        node.child = spawn(&node.netns, &node.process);
    }
    cluster.wait_ready(number);
}

/// Replaces agents of both nodes, in turns, under load.
pub(crate) fn lose_nothing(cluster: &mut Cluster, restarts: usize) {
    cluster.add_pod("b2", 1);
    publish(cluster);
    let next = other_binary(cluster.directory());
    // The kernel stops a device's queues while it gets its first clsact qdisc, whoever adds it: up to a
    // millisecond's packets are lost then. It is not what is tried here, so the devices have theirs.
    for node in [0, 1, 0, 1] {
        change(cluster, node, Change::AttachedOtherwise, &next);
    }
    publish(cluster);
    let load = Load::start(cluster);
    let mut log = Vec::new();
    let started = Instant::now();
    let mut programs = cluster.programs_of(0);
    let mut replaced = 0;
    for round in 0..restarts {
        let (node, kind) = (round % 2, CHANGES[(round / 2) % CHANGES.len()]);
        log.push((Instant::now(), node, kind));
        change(cluster, round, kind, &next);
        publish(cluster);
        if node == 0 {
            let now = cluster.programs_of(0);
            // Clsact filters have no pinned link to ask.
            let comparable = !programs.is_empty() && !now.is_empty();
            assert!(
                !comparable || programs != now,
                "{kind:?}: the programs are the old ones"
            );
            replaced += usize::from(programs != now);
            programs = now;
        }
    }
    let took = started.elapsed();
    let (lines, wrong) = load.finish(&log);
    println!(
        "{restarts} agents replaced in {:.1} s (programs of the first node: {replaced} times) under {RATE} datagrams a second and flow:",
        took.as_secs_f64()
    );
    for line in lines {
        println!("  {line}");
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
