//! What a packet costs, by the kernel's own clock. Not a bar: figures for people.
//!
//! Every kind of packet runs in turn in small batches, an almost empty program among them, so that
//! whatever else the machine does meets all of them alike. What is printed is the median over the
//! batches with its tenth and ninetieth percentile, and how much of it is not the clock's.

use tholepin_tests_dataplane::stage::{Globals, frame, raw_frame, stage_with};
use tholepin_tests_dataplane::{Hook, Stage, tcp, udp};

/// Runs between two looks at the clock. `repeat` would feed the rewritten packet back.
const BATCH: usize = 20;
const BATCHES: usize = 150;

/// A kind of packet: its name, hook, and the frames, of which the next are taken in turn.
struct Kind {
    name: &'static str,
    hook: Hook,
    frames: Vec<Vec<u8>>,
    means: Vec<u64>,
}

impl Kind {
    fn new(name: &'static str, hook: Hook, frames: Vec<Vec<u8>>) -> Self {
        Self {
            name,
            hook,
            frames,
            means: Vec::new(),
        }
    }

    fn batch(&mut self, stage: &mut Stage) {
        let (before, _) = stage.run_stats(self.hook);
        for run in 0..BATCH {
            let at = (self.means.len() * BATCH + run) % self.frames.len();
            stage.run_blind(self.hook, &self.frames[at]);
        }
        let (after, _) = stage.run_stats(self.hook);
        self.means.push((after - before) / BATCH as u64);
    }

    /// Tenth percentile, median and ninetieth percentile of the batches' means.
    fn spread(&mut self) -> [u64; 3] {
        self.means.sort_unstable();
        [10, 50, 90].map(|percent| self.means[self.means.len() * percent / 100])
    }
}

#[test]
#[ignore = "a measurement; run it with --ignored --nocapture on a quiet machine"]
fn cost_of_a_packet() {
    // Room for every flow, as on a node: a full map evicts before it inserts.
    let globals = Globals {
        flows: 65_536,
        ..Globals::default()
    };
    let Some(mut stage) = stage_with(globals) else {
        return;
    };
    let _stats = aya::sys::enable_stats(aya::sys::Stats::RunTime).expect("statistics");
    for (family, client, service, backend, other, node) in [
        (
            "IPv4",
            "10.244.1.2",
            "10.96.0.10",
            "10.244.1.7:8080",
            "10.244.1.3",
            "172.30.0.11",
        ),
        (
            "IPv6",
            "[fd00:10:244:1::2]",
            "[fd00:10:96::10]",
            "[fd00:10:244:1::7]:8080",
            "[fd00:10:244:1::3]",
            "[fd00:172:30::11]",
        ),
    ] {
        stage.service(&format!("{service}:80/tcp"), &[backend]);
        stage.service(&format!("{service}:80/udp"), &[backend]);
        let ends = |from: &str, port: usize, to: &str| format!("{from}:{port} -> {to}");
        let to = format!("{service}:80");
        let syn = |port| frame(&tcp("S", &ends(client, port, &to)));
        let syns: Vec<_> = (1000..1000 + BATCH * BATCHES).map(syn).collect();
        let data = frame(&tcp("A", &ends(client, 1, &to)));
        let datagram = frame(&udp(&ends(client, 1, &to)));
        let reply = frame(&tcp("A", &format!("{backend} -> {client}:1")));
        let direct = frame(&tcp("A", &ends(client, 1, &format!("{other}:80"))));
        let first = frame(&tcp("S", &ends(client, 1, &format!("{other}:80"))));
        let node = frame(&tcp("A", &format!("{client}:1 -> {node}:40000")));
        let pod = Hook::PodEgress;
        let mut kinds = [
            Kind::new(
                "nothing",
                Hook::UnderlayIn,
                vec![raw_frame(0x0806, &[0; 64])],
            ),
            Kind::new("new", pod, syns),
            Kind::new("established", pod, vec![data]),
            Kind::new("established, UDP", pod, vec![datagram]),
            Kind::new("reply", pod, vec![reply]),
            Kind::new("not a Service", pod, vec![direct]),
            Kind::new("not a Service, SYN", pod, vec![first]),
            Kind::new("node's own, underlay", Hook::UnderlayIn, vec![node]),
        ];
        for _ in 0..BATCHES {
            for kind in &mut kinds {
                kind.batch(&mut stage);
            }
        }
        let [_, clock, _] = kinds[0].spread();
        println!("{family}: ns per run, clock included (10% .. 90%), and without the clock");
        for kind in &mut kinds {
            let [low, median, high] = kind.spread();
            let work = median.saturating_sub(clock);
            println!(
                "  {:<22} {median:>5} ({low} .. {high}) {work:>5}",
                kind.name
            );
        }
        stage.reset();
    }
}
