//! How long Services take from objects in memory to the maps: all of them on a node that has none, and
//! one endpoint among many. The agent's own reconciler over the real maps; only its last step is watched.

use std::net::Ipv4Addr;
use std::path::Path;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use tholepin_agent::dataplane::AttachMode;
use tholepin_agent::dataplane::features::Features;
use tholepin_agent::dataplane::loader::{NodeConstants, Programs};
use tholepin_agent::dataplane::maps::MapAccessError;
use tholepin_agent::dataplane::maps::workloads::Workloads;
use tholepin_agent::dataplane::pin::PinDirectory;
use tholepin_agent::observe::proxy_metrics::ProxyMetrics;
use tholepin_agent::reconcile::services::{
    Generations, PinnedServiceMaps, Programmer, ServiceMaps, ServicesStatus, ServicesTask,
};
use tholepin_agent::watch::changes::ServiceChanges;
use tholepin_model::desired::Desired;
use tholepin_model::plan::services::{Plan, RealizedServices};
use tholepin_model::service::NodeView;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::node::{Objects, fold, fold_slice, objects_of};
use super::sandbox::Sandbox;
use super::spec;
use crate::rows::{Bar, Row};
use crate::stats::{Summary, quantile};

const COLD: &str = "Cold program time: objects in memory to programmed";
const CHANGE: &str = "One endpoint changed: object received to map written";
/// How long one thing may take before the run gives up.
const LIMIT: Duration = Duration::from_secs(60);

/// How long all changes may take: fewer are made when each is slow, and their number is in the row.
const PATIENCE: Duration = Duration::from_secs(30);

/// What to measure.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Extent {
    pub(crate) cold: bool,
    pub(crate) changes: u32,
    pub(crate) rounds: u32,
}

/// The rows for a number of Services; rows that say why where it could not be measured.
pub(crate) fn rows(sandbox: &Sandbox, count: u32, extent: Extent) -> Result<Vec<Row>> {
    let name = format!("{count} Services × {} endpoints", spec::ENDPOINTS);
    let (cold_bar, change_bar) = match count {
        10_000 => (Some(Bar::AtMost(0.3, 0.1)), Some(Bar::AtMost(2.0, 0.3))),
        _ => (None, None),
    };
    let mut rows = Vec::new();
    let (colds, changes) = match measure(sandbox, count, extent) {
        Ok(measured) => measured,
        Err(error) => {
            let why = format!("{error:#}");
            if extent.cold {
                rows.push(Row::missing(COLD, &name, &why, cold_bar));
            }
            if extent.changes > 0 {
                rows.push(Row::missing(CHANGE, &name, &why, change_bar));
            }
            return Ok(rows);
        }
    };
    if extent.cold {
        let value = Summary::of(&colds).context("there was a round")?;
        let mut row = Row::value(COLD, &name, "s", value);
        row.bar = cold_bar;
        rows.push(row);
    }
    for (percent, at) in [("p50", 0.5), ("p99", 0.99)] {
        let Some(median) = quantile(&changes, at) else {
            continue;
        };
        let (low, high) = (quantile(&changes, 0.1), quantile(&changes, 1.0));
        let value = Summary {
            median,
            low: low.unwrap_or(median),
            high: high.unwrap_or(median),
        };
        let name = format!("{name}, {percent} of {} changes", changes.len());
        let mut row = Row::value(CHANGE, &name, "ms", value);
        row.bar = change_bar.filter(|_| percent == "p99");
        rows.push(row);
    }
    Ok(rows)
}

/// Seconds of each cold start, and milliseconds of each change after the last.
fn measure(sandbox: &Sandbox, count: u32, extent: Extent) -> Result<(Vec<f64>, Vec<f64>)> {
    let specs: Vec<_> = (0..count).map(spec::idle).collect();
    let objects = objects_of(&specs);
    drop(specs);
    let mut colds = Vec::new();
    let mut changes = Vec::new();
    let rounds = if extent.cold { extent.rounds.max(1) } else { 1 };
    for round in 0..rounds {
        let short = format!("maps-{count}-{round}");
        let pins = sandbox.pins(&short);
        let running = Running::start(&pins, &sandbox.directory(&short)?)?;
        let number = if round + 1 == rounds {
            extent.changes
        } else {
            0
        };
        let outcome = running.one_round(&objects, number, &mut changes);
        // Ended whatever happened: its task would outlive what it runs on.
        running.end(&pins)?;
        colds.push(outcome?);
    }
    Ok((colds, changes))
}

/// The agent's reconciler of Services, on maps of its own.
struct Running {
    runtime: tokio::runtime::Runtime,
    ended: tokio::task::JoinHandle<()>,
    changes: ServiceChanges,
    status: watch::Receiver<ServicesStatus>,
    written: mpsc::Receiver<Instant>,
    _desired: watch::Sender<Desired>,
    cancel: CancellationToken,
    _programs: Programs,
}

impl Running {
    fn start(pins: &Path, directory: &Path) -> Result<Self> {
        let pins = PinDirectory::prepare(pins)?;
        let programs = Programs::load(
            &pins,
            Features::probe(AttachMode::Auto),
            &NodeConstants::default(),
        )?;
        let workloads = Workloads::default();
        workloads.open(&pins)?;
        let (sender, written) = mpsc::channel();
        let (desired, receiver) = watch::channel(Desired::default());
        let (status_sender, status) = watch::channel(ServicesStatus::default());
        let maps = Watched {
            maps: PinnedServiceMaps::open(&pins, workloads)?,
            written: sender,
        };
        let generations = Generations::open(directory)?;
        let changes = ServiceChanges::default();
        // What the watches of the Node and of pods would say.
        changes.change(|changes| {
            (changes.sync.node, changes.sync.host_ports) = (true, true);
        });
        let task = ServicesTask {
            node: NodeView {
                name: "n1".to_owned(),
                ..NodeView::default()
            },
            programmer: Programmer::new(maps, generations, vec!["10.96.0.0/16".parse()?]),
            changes: changes.clone(),
            metrics: ProxyMetrics::default(),
            recorder: None,
            desired: receiver,
            status: status_sender,
        };
        let runtime = tokio::runtime::Runtime::new()?;
        let (handle, cancel) = (runtime.handle().clone(), CancellationToken::new());
        let token = cancel.clone();
        // A thread of its own, as the agent gives it.
        let ended = runtime.spawn_blocking(move || handle.block_on(task.run(token)));
        Ok(Self {
            runtime,
            ended,
            changes,
            status,
            written,
            _desired: desired,
            cancel,
            _programs: programs,
        })
    }

    /// Seconds of a cold start; then so many changes, whose milliseconds are added.
    fn one_round(&self, objects: &Objects, number: u32, changes: &mut Vec<f64>) -> Result<f64> {
        let cold = self.program(objects)?.as_secs_f64();
        let began = Instant::now();
        for number in 0..number {
            if began.elapsed() > PATIENCE {
                break;
            }
            changes.push(self.change(objects, number)?.as_secs_f64() * 1e3);
        }
        Ok(cold)
    }

    /// All objects at once, until the reconciler says that all is programmed.
    fn program(&self, objects: &Objects) -> Result<Duration> {
        let started = Instant::now();
        let mut problem = Ok(());
        self.changes
            .change(|changes| problem = fold(changes, objects));
        problem?;
        let mut status = self.status.clone();
        let wanted = objects.services.len();
        let done = self.runtime.block_on(async {
            let ready = status.wait_for(|status| status.synced && status.frontend_count >= wanted);
            tokio::time::timeout(LIMIT, ready).await.map(|_| ())
        });
        let elapsed = started.elapsed();
        let status = self.status.borrow().clone();
        if let Some(((owner, _), reason)) = status.problems.iter().next() {
            bail!("{owner}: {reason}");
        }
        done.with_context(|| format!("{} of {wanted} programmed", status.frontend_count))?;
        while self.written.try_recv().is_ok() {}
        Ok(elapsed)
    }

    /// One endpoint of one Service gets another address. The time until its last map entry is written,
    /// and the old endpoint is marked as gone. The wait for packets under way runs beside it, as it does
    /// beside the next changes.
    fn change(&self, objects: &Objects, number: u32) -> Result<Duration> {
        // A stride that visits Services far from each other.
        let index = number as usize * 7919 % objects.slices.len();
        let mut object: EndpointSlice = objects.slices[index].clone();
        let address = u32::from(Ipv4Addr::new(10, 160, 0, 1)) + number;
        object.endpoints[0].addresses = vec![Ipv4Addr::from(address).to_string()];
        let received = Instant::now();
        let mut problem = Ok(());
        self.changes
            .change(|changes| problem = fold_slice(changes, &object));
        problem?;
        match self.written.recv_timeout(LIMIT) {
            Ok(at) => Ok(at - received),
            Err(error) => bail!("change {number} was not written: {error}"),
        }
    }

    fn end(self, pins: &Path) -> Result<()> {
        self.cancel.cancel();
        self.runtime
            .block_on(self.ended)
            .context("the reconciler")?;
        std::fs::remove_dir_all(pins).with_context(|| format!("cannot remove {}", pins.display()))
    }
}

/// The real maps, with the time of each plan that was written.
struct Watched {
    maps: PinnedServiceMaps,
    written: mpsc::Sender<Instant>,
}

impl ServiceMaps for Watched {
    fn read(&self, backends: Option<u32>) -> Result<RealizedServices, MapAccessError> {
        self.maps.read(backends)
    }

    fn apply(&mut self, plan: &Plan) -> Result<(), MapAccessError> {
        self.maps.apply(plan)?;
        if !plan.is_empty() {
            // Nobody listens any more at the end.
            self.written.send(Instant::now()).ok();
        }
        Ok(())
    }
}
