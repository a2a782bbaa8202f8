//! The `dataplane` suite: our dataplane against the kernel's own paths and against rule sets of kube-proxy's
//! shape. See docs/design/bench.md for the method.

mod changes;
mod empty;
mod front;
mod kernel;
mod memory;
pub(crate) mod node;
mod programs;
mod rules;
mod sandbox;
mod spec;
mod tholepin;
mod traffic;

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::{Args, ValueEnum};
use serde_json::json;

use self::rules::Rules;
use self::sandbox::Sandbox;
use self::traffic::{Kind, Measure, Pace, Path, Place, Samples};
use crate::rows::{Bar, Row, Verdict, table};
use crate::stats::Summary;
use crate::{chart, machine};

/// Measure the dataplane: traffic, programming, programs, memory
///
/// Everything is measured interleaved in one run and given as a ratio against the direct kernel path, a
/// bridge, and nftables and iptables rule sets of kube-proxy's shape. Prints a table and writes
/// `dataplane.json` and `dataplane.svg`. Needs root. Without `--quick` the rule sets of 10,000 Services
/// take some minutes to load.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// A few minutes: 1 and 1,000 Services, three short rounds
    #[arg(long)]
    quick: bool,
    /// Numbers of Services for traffic
    #[arg(long, value_delimiter = ',', value_name = "N,…")]
    services: Vec<u32>,
    /// Numbers of Services for programming
    #[arg(long, value_delimiter = ',', value_name = "N,…")]
    programmed: Vec<u32>,
    /// Rounds over all paths
    #[arg(long)]
    rounds: Option<u32>,
    /// Seconds of each run of a path
    #[arg(long, value_name = "SECONDS")]
    duration: Option<f64>,
    /// Only these parts
    #[arg(long, value_enum, value_delimiter = ',')]
    only: Vec<Part>,
    /// Only traffic to a server there
    #[arg(long, value_enum)]
    place: Option<PlaceOption>,
    /// Leave out nftables and iptables, which take long to load
    #[arg(long)]
    no_rules: bool,
    /// Fail when a bar is missed or could not be measured
    #[arg(long)]
    check: bool,
    /// Folder of the results
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
    /// The toolbox, which makes the load
    #[arg(long)]
    toolbox: PathBuf,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    Connect,
    Request,
    UdpRequest,
    Bulk,
    UdpOneWay,
    /// From objects in memory to programmed
    Cold,
    /// One endpoint changed
    Change,
    /// ns per run
    Programs,
    /// Maps, resident memory, idle processor time
    Node,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum PlaceOption {
    SameNode,
    AcrossNodes,
}

/// The options with their defaults applied.
struct Plan<'a> {
    options: &'a Options,
    services: Vec<u32>,
    programmed: Vec<u32>,
    pace: Pace,
    server_cpu: usize,
    changes: u32,
}

impl<'a> Plan<'a> {
    fn new(options: &'a Options) -> Self {
        let quick = options.quick;
        let or = |given: &[u32], quickly: &[u32], whole: &[u32]| {
            let default = if quick { quickly } else { whole };
            let mut list = if given.is_empty() { default } else { given }.to_vec();
            list.sort_unstable();
            list.dedup();
            list
        };
        let seconds = options.duration.unwrap_or(if quick { 0.2 } else { 0.5 });
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            options,
            services: or(&options.services, &[1, 1_000], &[1, 1_000, 10_000]),
            programmed: or(&options.programmed, &[1_000], &[1_000, 10_000, 30_000]),
            pace: Pace {
                rounds: options.rounds.unwrap_or(if quick { 3 } else { 9 }).max(1),
                seconds: seconds.clamp(0.02, 60.0),
                client_cpu: 0,
            },
            server_cpu: 1.min(processors - 1),
            changes: if quick { 200 } else { 1_000 },
        }
    }

    fn has(&self, part: Part) -> bool {
        self.options.only.is_empty() || self.options.only.contains(&part)
    }

    fn measures(&self) -> Vec<Measure> {
        let of = |measure| match measure {
            Measure::Connect => Part::Connect,
            Measure::Request => Part::Request,
            Measure::UdpRequest => Part::UdpRequest,
            Measure::Bulk => Part::Bulk,
            Measure::UdpOneWay => Part::UdpOneWay,
        };
        let all = Measure::ALL.into_iter();
        all.filter(|measure| self.has(of(*measure))).collect()
    }

    fn places(&self) -> Vec<Place> {
        match self.options.place {
            None => Place::ALL.to_vec(),
            Some(PlaceOption::SameNode) => vec![Place::SameNode],
            Some(PlaceOption::AcrossNodes) => vec![Place::AcrossNodes],
        }
    }
}

/// Runs the suite.
pub(crate) fn run(options: &Options) -> Result<ExitCode> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "measuring needs root: network namespaces, eBPF"
    );
    let plan = Plan::new(options);
    let started = Instant::now();
    let load_before = machine::load_average();
    let mut rows = Vec::new();
    let mut sandbox = Sandbox::new(&options.toolbox)?;
    if plan.has(Part::Programs) {
        progress("programs");
        let rounds = plan.pace.rounds * 3;
        machine::realtime(true);
        let measured = programs::rows(rounds).and_then(|mut rows| {
            rows.extend(front::rows(programs::SECTION, rounds)?);
            Ok(rows)
        });
        machine::realtime(false);
        rows.extend(measured?);
    }
    if plan.has(Part::Cold) || plan.has(Part::Change) {
        for count in &plan.programmed {
            progress(&format!("programming {count} Services"));
            let extent = changes::Extent {
                cold: plan.has(Part::Cold),
                changes: if plan.has(Part::Change) {
                    plan.changes
                } else {
                    0
                },
                rounds: plan.pace.rounds.min(5),
            };
            machine::realtime(true);
            let measured = changes::rows(&sandbox, *count, extent);
            machine::realtime(false);
            rows.extend(measured?);
        }
    }
    let measures = plan.measures();
    if !measures.is_empty() || plan.has(Part::Node) {
        rows.extend(traffic_rows(&plan, &mut sandbox, &measures)?);
    }
    drop(sandbox);
    // Sections in the order in which they first came, each whole.
    let mut sections: Vec<String> = Vec::new();
    for row in &rows {
        if !sections.contains(&row.section) {
            sections.push(row.section.clone());
        }
    }
    rows.sort_by_key(|row| sections.iter().position(|section| *section == row.section));
    report(&plan, &rows, load_before, started.elapsed())
}

fn traffic_rows(plan: &Plan<'_>, sandbox: &mut Sandbox, measures: &[Measure]) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    let mut paths = Vec::new();
    if !measures.is_empty() {
        progress("the kernel's own paths");
        let direct = kernel::routed(sandbox, "direct", plan.server_cpu)?;
        paths.extend(ways(
            Kind::Direct,
            &direct.client,
            [direct.near, direct.far],
            None,
        ));
        let bridge = kernel::bridged(sandbox, "bridge", plan.server_cpu)?;
        paths.extend(ways(
            Kind::Bridge,
            &bridge.client,
            [bridge.near, bridge.far],
            None,
        ));
        if !plan.options.no_rules {
            rows.extend(rule_sets(plan, sandbox, &mut paths)?);
        }
    }
    // Agents run as long as there is traffic.
    let mut running = Vec::new();
    for (index, count) in plan.services.iter().enumerate() {
        progress(&format!("our dataplane with {count} Services"));
        let nodes = tholepin::start(sandbox, &format!("ours{count}"), *count, plan.server_cpu)?;
        let servers = [nodes.near, nodes.far];
        if index == 0 {
            paths.extend(ways(Kind::Pod(*count), &nodes.direct_client, servers, None));
        }
        let services = Some(kernel::service_addresses());
        paths.extend(ways(
            Kind::Service(*count),
            &nodes.client,
            servers,
            services,
        ));
        match &nodes.socket_client {
            None => rows.push(Row::missing(
                "TCP connect + request + close, same node",
                &Kind::Socket(*count).label(),
                "there is no cgroup v2 tree",
                Some(Bar::RatioAtLeast(1.0, 1.03)),
            )),
            Some((client, cgroup)) => {
                for way in ways(Kind::Socket(*count), client, servers, services) {
                    let cgroup = Some(cgroup.clone());
                    paths.push(Path { cgroup, ..way });
                }
            }
        }
        let name = format!("our agent, {count} Services");
        rows.push(seconds(&name, Duration::from_secs_f64(nodes.programmed_in)));
        if plan.has(Part::Node) {
            let idle = Duration::from_secs(if plan.options.quick { 2 } else { 10 });
            rows.extend(memory::rows(&nodes, *count, idle)?);
        }
        running.push(nodes);
    }
    if measures.is_empty() {
        return Ok(rows);
    }
    let mut samples = Samples::default();
    for place in plan.places() {
        for measure in measures {
            progress(&format!("{}, {}", measure.title(), place.title()));
            samples.measure(sandbox, &paths, place, *measure, plan.pace)?;
        }
    }
    drop(running);
    let mut measured = samples.rows();
    measured.extend(rows);
    Ok(measured)
}

/// Loads both rule sets in every size, side by side: one program at a time uses one processor.
fn rule_sets(plan: &Plan<'_>, sandbox: &mut Sandbox, paths: &mut Vec<Path>) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    for count in &plan.services {
        let mut prepared = Vec::new();
        for rules in [Rules::Nft, Rules::Iptables] {
            let label = format!("{}, {count} Services", rules.label());
            if let Err(why) = rules.version() {
                rows.push(Row::missing(RULES, &label, &why, None));
                continue;
            }
            let tag = format!("{}{count}", rules.label());
            let nodes = kernel::routed(sandbox, &tag, plan.server_cpu)?;
            prepared.push((rules, label, nodes));
        }
        progress(&format!("loading rule sets of {count} Services"));
        let times = std::thread::scope(|scope| {
            let loads: Vec<_> = prepared
                .iter()
                .map(|(rules, _, nodes)| scope.spawn(|| nodes.load_rules(*rules, *count)))
                .collect();
            let joined = loads.into_iter().map(|load| load.join());
            joined
                .map(|time| time.expect("loading does not panic"))
                .collect::<Result<Vec<_>>>()
        })?;
        for ((rules, label, nodes), time) in prepared.into_iter().zip(times) {
            rows.push(seconds(&label, time));
            if rules == Rules::Iptables {
                let last = Some(kernel::last_addresses());
                let servers = [nodes.near, nodes.far];
                paths.extend(ways(
                    Kind::LastRule(*count),
                    &nodes.last_client,
                    servers,
                    last,
                ));
            }
            let kind = Kind::Rules(rules, *count);
            let services = Some(kernel::service_addresses());
            paths.extend(ways(kind, &nodes.client, [nodes.near, nodes.far], services));
        }
    }
    Ok(rows)
}

const RULES: &str = "Time to load, once, for comparison (rule sets: two loading side by side)";

fn seconds(name: &str, time: Duration) -> Row {
    let flat = time.as_secs_f64();
    let value = Summary {
        median: flat,
        low: flat,
        high: flat,
    };
    Row::value(RULES, name, "s", value)
}

/// The path to the server on the client's node and to the one on the other.
fn ways(
    kind: Kind,
    client: &str,
    servers: [Ipv4Addr; 2],
    services: Option<[Ipv4Addr; 2]>,
) -> Vec<Path> {
    let way = |(index, place)| Path {
        kind: kind.clone(),
        place,
        client: client.to_owned(),
        server: servers[index],
        service: services.map(|services| services[index]),
        cgroup: None,
    };
    Place::ALL.into_iter().enumerate().map(way).collect()
}

fn progress(what: &str) {
    let [load, ..] = machine::load_average();
    eprintln!("==> {what} (load {load})");
}

fn report(
    plan: &Plan<'_>,
    rows: &[Row],
    load_before: [f64; 3],
    elapsed: Duration,
) -> Result<ExitCode> {
    let load_after = machine::load_average();
    print!("{}", table(rows));
    let count = |wanted: &[Verdict]| {
        let verdicts = rows.iter().filter_map(Row::verdict);
        verdicts.filter(|verdict| wanted.contains(verdict)).count()
    };
    let reached = count(&[Verdict::Pass, Verdict::Stretch]);
    let missed = count(&[Verdict::Missed]);
    let unmeasured = count(&[Verdict::NotMeasured]);
    let summary = format!(
        "bars: {reached} reached, {missed} missed, {unmeasured} not measured; load average {load_before:?} \
         before, {load_after:?} after; {} rounds of {} s; {:.0} s in all",
        plan.pace.rounds,
        plan.pace.seconds,
        elapsed.as_secs_f64()
    );
    println!("\n{summary}");
    std::fs::create_dir_all(&plan.options.out)?;
    let versions = [Rules::Nft, Rules::Iptables].map(|rules| match rules.version() {
        Ok(version) => version,
        Err(why) => why,
    });
    let json = json!({
        "suite": "dataplane",
        "machine": machine::facts(),
        "load_average": {"before": load_before, "after": load_after},
        "rounds": plan.pace.rounds,
        "seconds_per_run": plan.pace.seconds,
        "rules": versions,
        "rows": rows.iter().map(Row::json).collect::<Vec<_>>(),
    });
    let at = plan.options.out.join("dataplane.json");
    std::fs::write(&at, serde_json::to_string_pretty(&json)?)
        .with_context(|| format!("cannot write {}", at.display()))?;
    let picture = plan.options.out.join("dataplane.svg");
    let title = "Tholepin dataplane: ratios of the same round, median and p10 … p90";
    std::fs::write(&picture, chart::svg(title, &summary, rows))
        .with_context(|| format!("cannot write {}", picture.display()))?;
    println!("written: {}, {}", at.display(), picture.display());
    let failed = plan.options.check && missed + unmeasured > 0;
    Ok(if failed {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}
