//! Socket load balancing gives the answers that packets get, with real sockets in a cgroup of its own.
//!
//! A socket belongs to the cgroup of the process that makes it, so the scenario runs in a process
//! that is put into one before it makes any.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use aya::maps::{HashMap, Map, MapData};
use tholepin_agent::dataplane::AttachMode;
use tholepin_agent::dataplane::socket_lb::ensure_pods_cgroup;
use tholepin_ebpf_abi::{ConntrackEntry, FlowKey, names};

use super::cluster::{Cluster, privileged};
use super::sockets::{in_netns, serve, udp_flow};

const CGROUP_VARIABLE: &str = "THOLEPIN_TEST_CGROUP";
/// Long enough for an answer on a loaded machine.
const PATIENCE: Duration = Duration::from_secs(10);
/// Short enough to wait for one that does not come.
const IMPATIENCE: Duration = Duration::from_millis(700);

/// Both families of: two backends on two nodes; none; one on the other node, with local policy; one
/// that is the client itself.
const WEB: [&str; 2] = ["10.96.0.10", "fd00:10:96::a"];
const NONE: [&str; 2] = ["10.96.0.11", "fd00:10:96::b"];
const LOCAL: [&str; 2] = ["10.96.0.12", "fd00:10:96::c"];
const SELF: [&str; 2] = ["10.96.0.13", "fd00:10:96::d"];

/// A cgroup with a process of this binary in it; both go with it.
struct Inside {
    cgroup: PathBuf,
    process: Child,
}

impl Inside {
    fn start(test: &str) -> Option<Self> {
        // One for each test: they run at the same time and count what is attached.
        let scenario = test.rsplit("::").next().unwrap_or(test);
        let cgroup = ensure_pods_cgroup(&format!("/thpt-{}-{scenario}", std::process::id()));
        let cgroup = cgroup.unwrap().or_else(|| {
            let missing = Err(anyhow::anyhow!("no cgroup v2 tree"));
            tholepin_harness::skip::unless::<PathBuf>(missing)
        })?;
        let mut process = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", test, "--nocapture"])
            .env(CGROUP_VARIABLE, &cgroup)
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        std::fs::write(cgroup.join("cgroup.procs"), process.id().to_string()).unwrap();
        process.stdin.as_mut().unwrap().write_all(b"go\n").unwrap();
        Some(Self { cgroup, process })
    }
}

impl Drop for Inside {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
        std::fs::remove_dir(&self.cgroup).ok();
    }
}

/// Runs `scenario` in a cgroup of its own: in this process if it is in there, in another one otherwise.
fn in_a_cgroup(test: &str, scenario: fn(&Path)) {
    if !privileged() {
        return;
    }
    if let Some(cgroup) = std::env::var_os(CGROUP_VARIABLE) {
        io::stdin().read_exact(&mut [0; 3]).unwrap();
        return scenario(Path::new(&cgroup));
    }
    let Some(mut inside) = Inside::start(test) else {
        return;
    };
    assert!(inside.process.wait().unwrap().success());
    let cgroup = inside.cgroup.clone();
    drop(inside);
    assert!(
        !cgroup.exists(),
        "a process is left in {}",
        cgroup.display()
    );
}

#[test]
fn sockets_get_the_answers_that_packets_get() {
    in_a_cgroup(
        "socket_lb::sockets_get_the_answers_that_packets_get",
        |cgroup| {
            let mut cluster = cluster();
            let mut answers = Vec::new();
            for mode in ["off", "tcp", "all"] {
                cluster.use_socket_lb(0, mode, cgroup);
                cluster.kill_and_restart(0);
                publish(&mut cluster, ["a2", "b1"]);
                answers.push(battery(&cluster, mode));
            }
            for other in &answers[1..] {
                assert_eq!(answers[0], *other);
            }
            a_pod_may_opt_out(&mut cluster);
        },
    );
}

#[test]
fn what_sockets_were_told_outlives_agents_and_backends_that_go_are_left() {
    in_a_cgroup(
        "socket_lb::what_sockets_were_told_outlives_agents_and_backends_that_go_are_left",
        |cgroup| {
            let mut cluster = cluster();
            cluster.use_socket_lb(0, "all", cgroup);
            cluster.kill_and_restart(0);
            publish(&mut cluster, ["a2", "a2"]);
            a_restart_goes_unnoticed(&mut cluster);
            datagrams_leave_a_backend_that_stops_serving(&mut cluster);
            switched_off_nothing_is_left(&mut cluster, cgroup);
        },
    );
}

fn cluster() -> Cluster {
    let mut cluster = Cluster::start(AttachMode::Auto);
    for (pod, node) in [("a1", 0), ("a2", 0), ("b1", 1)] {
        cluster.add_pod(pod, node);
        for family in 0..2 {
            let address = SocketAddr::new(cluster.address(pod, family), 8080);
            serve(&cluster.pod_netns(pod), address, pod);
        }
    }
    cluster
}

fn publish(cluster: &mut Cluster, web: [&str; 2]) {
    let mut services = Vec::new();
    let mut local = Vec::new();
    for family in 0..2 {
        let mut backends = web
            .map(|pod| cluster.address(pod, family).to_string())
            .to_vec();
        backends.dedup();
        let remote = vec![cluster.address("b1", family).to_string()];
        let own = vec![cluster.address("a1", family).to_string()];
        for protocol in ["TCP", "UDP"] {
            let name = |kind: &str| format!("{kind}{family}-{}", protocol.to_lowercase());
            services.push((name("web"), WEB[family], protocol, backends.clone()));
            services.push((name("none"), NONE[family], protocol, Vec::new()));
            services.push((name("local"), LOCAL[family], protocol, remote.clone()));
            services.push((name("self"), SELF[family], protocol, own.clone()));
            local.push(name("local"));
        }
    }
    cluster.use_local_policy(&local.iter().map(String::as_str).collect::<Vec<_>>());
    cluster.publish(&services);
}

/// What a client saw: who answered, and from which address it seemed to come.
type Outcome = Result<(String, SocketAddr), io::ErrorKind>;
/// How a client asks, and how long it waits.
type Ask = fn(SocketAddr, Duration) -> Outcome;
type Answers = BTreeMap<String, BTreeSet<String>>;

/// Every kind of socket, Service and client; checks that sockets are balanced where they should be.
fn battery(cluster: &Cluster, mode: &str) -> Answers {
    let mut answers = Answers::new();
    for client in [cluster.pod_netns("a1"), cluster.node_netns(0)] {
        for family in 0..2 {
            let kinds: [(&str, &str, Ask); 4] = [
                ("tcp", "tcp", tcp),
                ("udp", "all", udp_unconnected),
                ("connected udp", "never", udp_connected),
                ("bound udp", "never", udp_bound),
            ];
            for (kind, from, ask) in kinds {
                let to = socket(WEB[family]);
                let before = flows(cluster, to);
                let case = format!("{} {kind} {to}", &client[client.len() - 2..]);
                // A fair coin misses a side in 24 throws once in 8 million times.
                let seen = (0..24).map(|_| run(&client, to, ask)).collect();
                answers.insert(case.clone(), seen);
                let balanced = mode == from || mode == "all" && from == "tcp";
                let translated = flows(cluster, to) > before;
                assert_eq!(translated, !balanced, "{mode}: {case}");
            }
            // The same through a mapped address of an IPv6 socket.
            if family == 0 {
                let to = mapped(socket(WEB[0]));
                for (kind, ask) in [("tcp", tcp as Ask), ("udp", udp_unconnected)] {
                    let seen = (0..24).map(|_| run(&client, to, ask)).collect();
                    answers.insert(
                        format!("{} mapped {kind}", &client[client.len() - 2..]),
                        seen,
                    );
                }
            }
            for service in [NONE, LOCAL, SELF] {
                let to = socket(service[family]);
                for (kind, ask) in [("tcp", tcp as Ask), ("udp", udp_unconnected)] {
                    let patience = if service == SELF {
                        PATIENCE
                    } else {
                        IMPATIENCE
                    };
                    let seen = [run_for(&client, to, ask, patience)].into();
                    answers.insert(format!("{} {kind} {to}", &client[client.len() - 2..]), seen);
                }
            }
        }
    }
    expected(&answers);
    answers
}

/// That the answers are right, and not only the same.
fn expected(answers: &Answers) {
    for (case, seen) in answers {
        let address = case.rsplit(' ').next().unwrap();
        let one = |text: &str| BTreeSet::from([text.to_owned()]);
        let wanted = if case.contains(".11:") || case.contains("::b]") {
            one("ConnectionRefused")
        } else if case.contains(".12:") || case.contains("::c]") {
            one("WouldBlock")
        } else if case.contains(".13:") || case.contains("::d]") {
            one(&format!("a1 from {address}"))
        } else if case.contains("mapped") {
            BTreeSet::from(["a2", "b1"].map(|pod| format!("{pod} from [::ffff:10.96.0.10]:80")))
        } else {
            BTreeSet::from(["a2", "b1"].map(|pod| format!("{pod} from {address}")))
        };
        assert_eq!(*seen, wanted, "{case}");
    }
}

fn run(netns: &str, to: SocketAddr, ask: Ask) -> String {
    run_for(netns, to, ask, PATIENCE)
}

fn run_for(netns: &str, to: SocketAddr, ask: Ask, patience: Duration) -> String {
    match in_netns(netns, move || ask(to, patience)) {
        Ok((answer, from)) => format!("{answer} from {from}"),
        // Which of the two a time-out is depends on the call.
        Err(io::ErrorKind::TimedOut) => "WouldBlock".to_owned(),
        // An ICMP error reaches sockets that are connected; others hear nothing.
        Err(kind) => format!("{kind:?}"),
    }
}

fn socket(address: &str) -> SocketAddr {
    SocketAddr::new(address.parse().unwrap(), 80)
}

fn mapped(address: SocketAddr) -> SocketAddr {
    let IpAddr::V4(v4) = address.ip() else {
        return address;
    };
    SocketAddr::new(v4.to_ipv6_mapped().into(), address.port())
}

fn tcp(to: SocketAddr, patience: Duration) -> Outcome {
    let ask = || {
        let mut stream = TcpStream::connect_timeout(&to, patience)?;
        stream.set_read_timeout(Some(patience))?;
        exchange(&mut stream)
    };
    ask().map_err(|error: io::Error| error.kind())
}

fn exchange(stream: &mut TcpStream) -> io::Result<(String, SocketAddr)> {
    stream.write_all(b"name")?;
    let mut buffer = [0; 64];
    let length = stream.read(&mut buffer)?;
    Ok((text(&buffer[..length]), stream.peer_addr()?))
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn udp_unconnected(to: SocketAddr, patience: Duration) -> Outcome {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).unwrap();
    let first = ask_twice(&socket, to, patience);
    // A socket that is not connected hears of no ICMP error; one that is tells what it was.
    match first {
        Err(io::ErrorKind::WouldBlock) => udp_connected(to, patience),
        other => other,
    }
}

/// The second datagram must go where the first went.
fn ask_twice(socket: &UdpSocket, to: SocketAddr, patience: Duration) -> Outcome {
    socket.set_read_timeout(Some(patience)).unwrap();
    let ask = || {
        socket.send_to(b"name", to)?;
        let mut buffer = [0; 64];
        let (length, from) = socket.recv_from(&mut buffer)?;
        Ok((text(&buffer[..length]), from))
    };
    let once = || ask().map_err(|error: io::Error| error.kind());
    let first = once()?;
    assert_eq!(first, once()?, "one socket, one backend");
    Ok(first)
}

fn udp_connected(to: SocketAddr, patience: Duration) -> Outcome {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let ask = || {
        let socket = UdpSocket::bind(any)?;
        socket.connect(to)?;
        socket.set_read_timeout(Some(patience))?;
        socket.send(b"name")?;
        let mut buffer = [0; 64];
        let length = socket.recv(&mut buffer)?;
        Ok((text(&buffer[..length]), socket.peer_addr()?))
    };
    ask().map_err(|error: io::Error| error.kind())
}

/// Bound to the address the kernel would take.
fn udp_bound(to: SocketAddr, patience: Duration) -> Outcome {
    let probe = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).unwrap();
    probe.connect(to).unwrap();
    let own = SocketAddr::new(probe.local_addr().unwrap().ip(), 0);
    ask_twice(&UdpSocket::bind(own).unwrap(), to, patience)
}

/// The client's halves of flows to a Service, which packets make and sockets do not.
fn flows(cluster: &Cluster, to: SocketAddr) -> usize {
    let path = cluster.pins(0).map(names::CONNTRACK);
    let map = Map::LruHashMap(MapData::from_pin(path).unwrap());
    let map: HashMap<_, FlowKey, ConntrackEntry> = map.try_into().unwrap();
    map.keys()
        .flatten()
        .filter(|key| key.destination.to_ip() == to.ip() && key.destination_port.get() == to.port())
        .count()
}

/// The agent dies and comes again: connections, new ones, and whom they show as their peer.
fn a_restart_goes_unnoticed(cluster: &mut Cluster) {
    let netns = cluster.pod_netns("a1");
    for to in WEB.map(socket) {
        let mut stream = in_netns(&netns, move || TcpStream::connect(to)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let wanted = ("a2".to_owned(), to);
        assert_eq!(exchange(&mut stream).unwrap(), wanted);
        let before = flows(cluster, to);
        cluster.kill(0);
        assert_eq!(exchange(&mut stream).unwrap(), wanted, "without an agent");
        assert_eq!(
            run(&netns, to, tcp),
            format!("a2 from {to}"),
            "without an agent"
        );
        assert_eq!(run(&netns, to, udp_unconnected), format!("a2 from {to}"));
        cluster.kill_and_restart(0);
        assert_eq!(exchange(&mut stream).unwrap(), wanted, "with another agent");
        assert_eq!(
            run(&netns, to, tcp),
            format!("a2 from {to}"),
            "with another agent"
        );
        assert_eq!(run(&netns, to, udp_unconnected), format!("a2 from {to}"));
        assert_eq!(
            flows(cluster, to),
            before,
            "sockets were balanced throughout"
        );
    }
}

/// Sockets that are connected to the Service, which packets serve, and those that are not.
fn datagrams_leave_a_backend_that_stops_serving(cluster: &mut Cluster) {
    let netns = cluster.pod_netns("a1");
    publish(cluster, ["a2", "a2"]);
    let mut loose = Vec::new();
    for service in WEB {
        let any = if socket(service).is_ipv4() {
            "0.0.0.0:0"
        } else {
            "[::]:0"
        };
        let open = in_netns(&netns, move || UdpSocket::bind(any)).unwrap();
        loose.push((open, socket(service), udp_flow(&netns, socket(service))));
    }
    for (open, to, connected) in &loose {
        assert_eq!(ask_twice(open, *to, PATIENCE), Ok(("a2".to_owned(), *to)));
        assert_eq!(connected.ask().unwrap(), "a2");
    }
    publish(cluster, ["b1", "b1"]);
    for (open, to, connected) in &loose {
        assert_eq!(
            ask_twice(open, *to, PATIENCE),
            Ok(("b1".to_owned(), *to)),
            "the next datagram"
        );
        assert_eq!(connected.ask().unwrap(), "b1", "the next datagram");
    }
}

fn switched_off_nothing_is_left(cluster: &mut Cluster, cgroup: &Path) {
    let netns = cluster.pod_netns("a1");
    let to = socket(WEB[0]);
    let mut stream = in_netns(&netns, move || TcpStream::connect(to)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_attached(cgroup, 8, "before");
    cluster.use_socket_lb(0, "tcp", cgroup);
    cluster.kill_and_restart(0);
    assert_attached(cgroup, 4, "without the hooks for datagrams");
    cluster.use_socket_lb(0, "off", cgroup);
    cluster.kill_and_restart(0);
    publish(cluster, ["b1", "b1"]);
    assert_attached(cgroup, 0, "after");
    let before = flows(cluster, to);
    assert_eq!(run(&netns, to, tcp), format!("b1 from {to}"));
    assert!(flows(cluster, to) > before, "packets are translated again");
    assert_eq!(
        exchange(&mut stream).unwrap().0,
        "b1",
        "an open connection goes on"
    );
}

/// The kernel releases the links of a killed agent some time after it is gone.
fn assert_attached(cgroup: &Path, expected: usize, when: &str) {
    let end = Instant::now() + PATIENCE;
    while attached(cgroup) != expected && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(attached(cgroup), expected, "{when}");
}

/// Programs on a cgroup, by the kernel's own account.
fn attached(cgroup: &Path) -> usize {
    let output = Command::new("bpftool")
        .args(["-j", "cgroup", "show"])
        .arg(cgroup)
        .output()
        .unwrap();
    let list: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    list.as_array().map_or(0, Vec::len)
}

fn a_pod_may_opt_out(cluster: &mut Cluster) {
    cluster.add_opted_out_pod("mesh");
    let netns = cluster.pod_netns("mesh");
    for to in WEB.map(socket) {
        for ask in [tcp as Ask, udp_unconnected] {
            let before = flows(cluster, to);
            let seen = run(&netns, to, ask);
            assert!(seen.ends_with(&format!("from {to}")), "{seen}");
            assert!(flows(cluster, to) > before, "a pod that does not want it");
        }
    }
}
