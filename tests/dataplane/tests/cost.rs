//! What a packet costs, by the kernel's own clock. Not a bar: figures for people.

use tholepin_tests_dataplane::stage::{frame, raw_frame};
use tholepin_tests_dataplane::{Hook, Packet, Stage, stage, tcp};

/// Nanoseconds of a run, each on a fresh packet: `repeat` would feed the rewritten one back. The
/// median of many small batches' means, because whatever else the machine does only ever adds.
fn cost(stage: &mut Stage, hook: Hook, frames: impl Iterator<Item = Vec<u8>>) -> u64 {
    let frames: Vec<_> = frames.collect();
    let (mut before, _) = stage.run_stats(hook);
    let mut means: Vec<u64> = Vec::new();
    for batch in frames.chunks(BATCH) {
        for frame in batch {
            stage.run_blind(hook, frame);
        }
        let (after, _) = stage.run_stats(hook);
        means.push((after - before) / batch.len() as u64);
        before = after;
    }
    means.sort_unstable();
    means[means.len() / 2]
}

/// Runs between two looks at the clock.
const BATCH: usize = 20;

#[test]
#[ignore = "a measurement; run it with --ignored --nocapture on a quiet machine"]
fn cost_of_a_packet() {
    let Some(mut stage) = stage() else { return };
    let _stats = aya::sys::enable_stats(aya::sys::Stats::RunTime).expect("statistics");
    let nothing = vec![raw_frame(0x0806, &[0; 64]); 4000].into_iter();
    let clock = cost(&mut stage, Hook::UnderlayIn, nothing);
    println!("of which the clock and the call: {clock} ns");
    for (name, client, service, backend, other, node) in [
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
        for _ in 0..3 {
            stage.reset_flows();
            let ends = |from: &str, port: u32, to: &str| format!("{from}:{port} -> {to}");
            let to = format!("{service}:80");
            let syn = |port| tcp("S", &ends(client, port, &to));
            let data = tcp("A", &ends(client, 1, &to));
            let reply = tcp("A", &format!("{backend} -> {client}:1"));
            let direct = tcp("A", &ends(client, 1, &format!("{other}:80")));
            let node = tcp("A", &format!("{client}:1 -> {node}:40000"));
            let new = cost(
                &mut stage,
                Hook::PodEgress,
                (1..400).map(syn).map(|packet| frame(&packet)),
            );
            let again = |packet: &Packet| vec![frame(packet); 4000].into_iter();
            let established = cost(&mut stage, Hook::PodEgress, again(&data));
            let replies = cost(&mut stage, Hook::PodEgress, again(&reply));
            let plain = cost(&mut stage, Hook::PodEgress, again(&direct));
            let uplink = cost(&mut stage, Hook::UnderlayIn, again(&node));
            println!(
                "{name}: new {new} ns, established {established}, reply {replies}, \
                 not a Service {plain}, the node's own traffic on the underlay {uplink}"
            );
        }
    }
}
