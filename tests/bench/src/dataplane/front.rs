//! Nanoseconds per run of the XDP program that sends packets on to a backend's node, as in
//! [`super::programs`].

use anyhow::Result;
use tholepin_ebpf_abi::conntrack::{
    FLOW_ESTABLISHED, FLOW_EXTERNAL, FLOW_HANDED, FLOW_SOURCE_TRANSLATED, FLOW_SYN,
};
use tholepin_tests_dataplane::front::{FrontStage, entry};
use tholepin_tests_dataplane::wire::end;
use tholepin_tests_dataplane::{stage, tcp};

use crate::rows::{Bar, Row};
use crate::stats::Summary;

const OPEN: u32 = FLOW_SYN | FLOW_ESTABLISHED | FLOW_EXTERNAL;
const BATCH: u32 = 200;

/// A row for packets that are handed on as they are, and one for those that are masqueraded.
pub(crate) fn rows(section: &'static str, rounds: u32) -> Result<Vec<Row>> {
    // The stage moves its thread into a namespace of its own.
    let thread = std::thread::spawn(move || measure(section, rounds));
    thread.join().expect("measuring does not panic")
}

fn measure(section: &str, rounds: u32) -> Result<Vec<Row>> {
    let bar = Bar::AtMost(178.0, 120.0);
    let name = |how: &str| format!("XDP NodePort forward, established flow, {how}");
    let Some(stage) = stage() else {
        let why = "eBPF may not be loaded here";
        return Ok(vec![Row::missing(section, &name("all"), why, Some(bar))]);
    };
    let mut front = FrontStage::new(stage)?;
    let _statistics = aya::sys::enable_stats(aya::sys::Stats::RunTime)?;
    let packet = tcp("A", "192.168.7.9:4000 -> 172.30.0.11:30080");
    let backend = end("10.244.2.7:8080");
    let handed = entry(packet.source, backend, OPEN | FLOW_HANDED);
    let node = end("172.30.0.11:61500");
    let masqueraded = entry(node, backend, OPEN | FLOW_SOURCE_TRANSLATED);
    let mut means = [Vec::new(), Vec::new()];
    for round in 0..=rounds {
        for (means, entry) in means.iter_mut().zip([handed, masqueraded]) {
            let mean = front.cost(&packet, entry, BATCH);
            // Caches and branch predictors belong to a program that runs all the time.
            if round > 0 {
                means.push(mean);
            }
        }
    }
    let names = ["handed on", "masqueraded"].map(name);
    let row = |(name, means): (&String, &Vec<f64>)| {
        let summary = Summary::of(means).expect("there are rounds");
        Row::value(section, name, "ns", summary).with_bar(bar)
    };
    Ok(names.iter().zip(&means).map(row).collect())
}
