//! Agents killed while they program a thousand Services, and a client that never stops asking them.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::time::Duration;

use super::cluster::{Cluster, spawn};
use super::sockets::tcp_ask;

/// Services of a round.
const SERVICES: u16 = 1_000;
const ROUNDS: u8 = 6;

/// Service `number` of a round, and the pod behind it: always the same, so that an answer of another
/// pod shows a slot or a backend of somebody else.
fn service(round: u8, number: u16) -> (Ipv4Addr, &'static str) {
    let [high, low] = number.to_be_bytes();
    let address = Ipv4Addr::new(10, 96, 16 * (round + 1) + high, low);
    let pod = ["a2", "b1"][usize::from((number ^ u16::from(round)) % 2)];
    (address, pod)
}

/// Numbers with an address that is no network's first or last.
fn numbers() -> impl Iterator<Item = u16> {
    (1..2 * SERVICES)
        .filter(|number| !matches!(number % 256, 0 | 255))
        .take(usize::from(SERVICES))
}

fn services(cluster: &Cluster, round: u8) -> Vec<(String, String, Vec<String>)> {
    let one = |number| {
        let (address, pod) = service(round, number);
        let backends = vec![cluster.address(pod, 0).to_string()];
        (format!("s{round}-{number}"), address.to_string(), backends)
    };
    numbers().map(one).collect()
}

/// Asks Services of this round and the one before, known or not, and keeps wrong answers.
struct Asker {
    stop: Arc<AtomicBool>,
    round: Arc<AtomicU8>,
    thread: std::thread::JoinHandle<(u32, u32, Vec<String>)>,
}

impl Asker {
    fn start(netns: String) -> Self {
        let (stop, round) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU8::new(0)));
        let (stopped, current) = (Arc::clone(&stop), Arc::clone(&round));
        let thread = std::thread::spawn(move || {
            let (mut answered, mut refused, mut wrong) = (0, 0, Vec::new());
            let all: Vec<u16> = numbers().collect();
            for step in 0_usize.. {
                if stopped.load(Ordering::Relaxed) {
                    break;
                }
                let current = current.load(Ordering::Relaxed);
                let round = current.saturating_sub((step % 3 == 0).into());
                let (address, pod) = service(round, all[step * 7_919 % all.len()]);
                match tcp_ask(&netns, SocketAddr::new(address.into(), 80)) {
                    Ok(name) if name == pod => answered += 1,
                    Ok(name) => wrong.push(format!("{address} is {pod}, and {name} answered")),
                    // Not there yet, or not any more.
                    Err(_) => refused += 1,
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            (answered, refused, wrong)
        });
        Self {
            stop,
            round,
            thread,
        }
    }
}

pub(crate) fn kill_while_programming(cluster: &mut Cluster) {
    let asker = Asker::start(cluster.pod_netns("a1"));
    for round in 0..ROUNDS {
        asker.round.store(round, Ordering::Relaxed);
        let services = services(cluster, round);
        let services: Vec<(String, &str, &str, Vec<String>)> = services
            .iter()
            .map(|(name, address, backends)| {
                (name.clone(), address.as_str(), "TCP", backends.clone())
            })
            .collect();
        cluster.announce(&services);
        // Another place each time: while it parses, plans, writes, removes what was there before.
        std::thread::sleep(Duration::from_millis(10 + 25 * u64::from(round)));
        let node = &mut cluster.nodes[0];
        node.child.kill().unwrap();
        node.child.wait().unwrap();
        node.child = spawn(&node.netns, &node.process);
        cluster.wait_ready(0);
        cluster.publish(&services);
        for number in numbers().step_by(31) {
            let (address, pod) = service(round, number);
            let to = SocketAddr::new(address.into(), 80);
            let name = tcp_ask(&cluster.pod_netns("a1"), to);
            assert_eq!(name.ok().as_deref(), Some(pod), "{to} in round {round}");
        }
    }
    asker.stop.store(true, Ordering::Relaxed);
    let (answered, refused, wrong) = asker.thread.join().unwrap();
    println!(
        "{answered} answers, {refused} refusals, {} wrong answers",
        wrong.len()
    );
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(answered > 100, "{answered} answers");
}
