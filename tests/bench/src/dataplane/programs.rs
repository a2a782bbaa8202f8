//! Nanoseconds per run of the programs by the kernel's own statistics: each run on a fresh packet, because
//! a repeated run would get the packet as the run before left it. The empty program is run in between,
//! so the share of the clock and the call is known from the same moment.

use anyhow::Result;
use tholepin_tests_dataplane::stage::{frame, raw_frame};
use tholepin_tests_dataplane::{Hook, Stage, stage, tcp};

use super::empty::EmptyProgram;
use crate::rows::{Bar, Row};
use crate::stats::Summary;

pub(crate) const SECTION: &str = "Programs, by BPF_PROG_TEST_RUN and run-time statistics";
/// Runs between two looks at the statistics. A new flow takes two of the test map's 1,024 entries.
const BATCH: u16 = 200;

struct Family {
    name: &'static str,
    client: &'static str,
    service: &'static str,
    backend: &'static str,
    other: &'static str,
    node: &'static str,
}

const FAMILIES: [Family; 2] = [
    Family {
        name: "IPv4",
        client: "10.244.1.2",
        service: "10.96.0.10",
        backend: "10.244.1.7:8080",
        other: "10.244.1.3",
        node: "172.30.0.11",
    },
    Family {
        name: "IPv6",
        client: "[fd00:10:244:1::2]",
        service: "[fd00:10:96::10]",
        backend: "[fd00:10:244:1::7]:8080",
        other: "[fd00:10:244:1::3]",
        node: "[fd00:172:30::11]",
    },
];

/// What a packet is to the program.
struct Case {
    name: String,
    hook: Hook,
    frames: Vec<Vec<u8>>,
    /// Every packet must be unknown: flows are forgotten before each batch.
    fresh: bool,
    bar: Option<Bar>,
    means: Vec<f64>,
}

/// Runs every case, in turn, and gives a row for each.
pub(crate) fn rows(rounds: u32) -> Result<Vec<Row>> {
    // The stage moves its thread into a namespace of its own.
    let thread = std::thread::spawn(move || measure(rounds));
    thread.join().expect("measuring does not panic")
}

fn measure(rounds: u32) -> Result<Vec<Row>> {
    let Some(mut stage) = stage() else {
        let why = "eBPF may not be loaded here";
        return Ok(vec![Row::missing(SECTION, "all", why, None)]);
    };
    let empty = EmptyProgram::load()?;
    let _statistics = aya::sys::enable_stats(aya::sys::Stats::RunTime)?;
    let mut cases: Vec<Case> = FAMILIES
        .iter()
        .flat_map(|family| cases(&mut stage, family))
        .collect();
    let nothing = raw_frame(0x0806, &[0; 64]);
    let mut clock = Vec::new();
    // Caches and branch predictors belong to a program that runs all the time.
    for round in 0..rounds + 1 {
        let mut figures = vec![empty_batch(&empty, &nothing)?];
        for case in &mut cases {
            let mean = batch(&mut stage, case);
            if round > 0 {
                case.means.push(mean);
            }
        }
        if round > 0 {
            clock.append(&mut figures);
        }
    }
    let mut rows = Vec::new();
    let summary = |means: &[f64]| Summary::of(means).expect("there are rounds");
    rows.push(Row::value(
        SECTION,
        "an empty program: the clock and the call",
        "ns",
        summary(&clock),
    ));
    for case in cases {
        let mut row = Row::value(SECTION, &case.name, "ns", summary(&case.means));
        row.bar = case.bar;
        rows.push(row);
    }
    Ok(rows)
}

fn cases(stage: &mut Stage, family: &Family) -> Vec<Case> {
    let Family {
        name,
        client,
        service,
        backend,
        other,
        node,
    } = family;
    stage.service(&format!("{service}:80/tcp"), &[backend]);
    let packet = |flags: &str, ends: String| frame(&tcp(flags, &ends));
    let again = |packet: Vec<u8>| vec![packet; usize::from(BATCH)];
    let syn = |port: u16| packet("S", format!("{client}:{port} -> {service}:80"));
    let case = |what: &str, hook, frames, bar: Option<(f64, f64)>| Case {
        name: format!("{name}, {what}"),
        hook,
        frames,
        fresh: false,
        bar: bar.map(|(bar, stretch)| Bar::AtMost(bar, stretch)),
        means: Vec::new(),
    };
    let pod = Hook::PodEgress;
    let mut new = case(
        "new flow",
        pod,
        (1..=BATCH).map(|port| syn(20_000 + port)).collect(),
        Some((600.0, 350.0)),
    );
    new.fresh = true;
    let data = packet("A", format!("{client}:1 -> {service}:80"));
    let reply = packet("A", format!("{backend} -> {client}:1"));
    let direct = packet("A", format!("{client}:1 -> {other}:80"));
    let uplink = packet("A", format!("{client}:1 -> {node}:40000"));
    vec![
        new,
        case("established flow", pod, again(data), Some((150.0, 90.0))),
        case(
            "established flow, answer",
            pod,
            again(reply),
            Some((150.0, 90.0)),
        ),
        case("not a Service", pod, again(direct), Some((80.0, 40.0))),
        case(
            "the node's own traffic on the underlay",
            Hook::UnderlayIn,
            again(uplink),
            None,
        ),
    ]
}

/// Mean of a batch.
fn batch(stage: &mut Stage, case: &Case) -> f64 {
    if case.fresh {
        stage.reset_flows();
    } else {
        // Makes the flow that later packets belong to, if they belong to one.
        for frame in case.frames.iter().take(1) {
            stage.run_blind(case.hook, frame);
        }
    }
    let (time, runs) = stage.run_stats(case.hook);
    for frame in &case.frames {
        stage.run_blind(case.hook, frame);
    }
    let (time_after, runs_after) = stage.run_stats(case.hook);
    (time_after - time) as f64 / (runs_after - runs).max(1) as f64
}

fn empty_batch(empty: &EmptyProgram, frame: &[u8]) -> Result<f64> {
    let (time, runs) = empty.run_stats()?;
    for _ in 0..BATCH {
        empty.run(frame)?;
    }
    let (time_after, runs_after) = empty.run_stats()?;
    Ok((time_after - time) as f64 / (runs_after - runs).max(1) as f64)
}
