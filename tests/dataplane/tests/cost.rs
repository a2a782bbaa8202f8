//! What a packet costs, by the kernel's own clock. Not a bar: figures for people.

use tholepin_tests_dataplane::{Hook, Packet, Stage, stage, tcp};

/// Mean nanoseconds per run, each on a fresh packet: `repeat` would feed the rewritten one back.
fn cost(stage: &mut Stage, packets: impl Iterator<Item = Packet>) -> f64 {
    let (time, runs) = stage.run_stats(Hook::PodEgress);
    for packet in packets {
        drop(stage.run(Hook::PodEgress, &packet));
    }
    let (after, runs_after) = stage.run_stats(Hook::PodEgress);
    (after - time) as f64 / (runs_after - runs) as f64
}

#[test]
#[ignore = "a measurement; run it with --ignored --nocapture on a quiet machine"]
fn cost_of_a_packet() {
    let Some(mut stage) = stage() else { return };
    let _stats = aya::sys::enable_stats(aya::sys::Stats::RunTime).expect("statistics");
    for (name, client, service, backend, other) in [
        (
            "IPv4",
            "10.244.1.2",
            "10.96.0.10",
            "10.244.1.7:8080",
            "10.244.1.3",
        ),
        (
            "IPv6",
            "[fd00:10:244:1::2]",
            "[fd00:10:96::10]",
            "[fd00:10:244:1::7]:8080",
            "[fd00:10:244:1::3]",
        ),
    ] {
        stage.service(&format!("{service}:80/tcp"), &[backend]);
        for _ in 0..3 {
            stage.reset_flows();
            let syn = |port| tcp("S", &format!("{client}:{port} -> {service}:80"));
            let data = tcp("A", &format!("{client}:1 -> {service}:80"));
            let reply = tcp("A", &format!("{backend} -> {client}:1"));
            let direct = tcp("A", &format!("{client}:1 -> {other}:80"));
            let new = cost(&mut stage, (1..400).map(syn));
            let established = cost(&mut stage, (0..2000).map(|_| data.clone()));
            let replies = cost(&mut stage, (0..2000).map(|_| reply.clone()));
            let plain = cost(&mut stage, (0..2000).map(|_| direct.clone()));
            println!(
                "{name}: new {new:.0} ns, established {established:.0}, reply {replies:.0}, \
                 not a Service {plain:.0}"
            );
        }
    }
}
