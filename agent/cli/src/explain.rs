//! `explain`: what becomes of a packet on this node, step by step, from the live maps and without side
//! effects. The order of the steps is that of the programs (docs/design/dataplane.md).

mod judge;
mod question;

use std::net::IpAddr;
use std::process::ExitCode;

use anyhow::{Result, anyhow};
use clap::ValueEnum;
use serde_json::{Value, json};
use tholepin_agent::dataplane::pin::PinDirectory;
use tholepin_agent::netlink::Netlink;
use tholepin_agent::network::names::{HOST_DEVICE, OVERLAY_DEVICE};
use tholepin_ebpf_abi::names::{HOST_EGRESS, OVERLAY_IN, POD_EGRESS, UNDERLAY_IN};

use self::judge::{Judge, Step};
use self::question::Question;
use crate::Place;
use crate::maps::{Live, Maps, now_ticks};
use crate::output::{self, Format};

/// Explain what becomes of a packet: which program decides what, and why
///
/// The packet is taken for the first of its flow (TCP: a SYN) unless the live table already knows the flow.
/// Where chance decides, all possible backends are named. Nothing is sent, nothing is changed.
///
/// Examples:
///   tholepin explain tcp 10.244.0.5 10.96.0.10:80
///   tholepin explain 'udp 10.244.0.5:4000 -> 10.96.0.10:53'
///   tholepin explain tcp 203.0.113.9 172.30.0.11:30080 --from outside
///
/// Exit codes: 0 the packet goes on, 1 it is dropped or rejected.
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
pub(crate) struct Options {
    /// PROTOCOL SOURCE[:PORT] [->] DESTINATION[:PORT]; quote the arrow, the shell has one of its own
    #[arg(required = true, value_name = "PACKET")]
    packet: Vec<String>,
    /// Where it comes from; found out by its source if it is not said
    #[arg(long, value_enum)]
    from: Option<From>,
}

/// Where a packet comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum From {
    /// A pod of this node
    Pod,
    /// A process of this node
    Node,
    /// Another node, through the overlay
    Overlay,
    /// The underlay: a client outside the cluster, or an answer from there
    Outside,
}

impl From {
    fn program(self) -> &'static str {
        match self {
            Self::Pod => POD_EGRESS,
            Self::Node => HOST_EGRESS,
            Self::Overlay => OVERLAY_IN,
            Self::Outside => UNDERLAY_IN,
        }
    }
}

/// The addresses of this node that the programs know.
#[derive(Clone, Debug, Default)]
struct Addresses {
    gateways: Vec<IpAddr>,
    node: Vec<IpAddr>,
}

pub(crate) fn run(place: &Place, options: &Options) -> Result<ExitCode> {
    let live = Live::open(place)?;
    let question = Question::parse(&options.packet)?;
    let addresses = addresses(live.pins())?;
    let from = match options.from {
        Some(from) => from,
        None => guess(&live, &addresses, question.source)?,
    };
    let names = place.names();
    let judge = Judge {
        maps: &live,
        names: &names,
        addresses: &addresses,
        now: now_ticks(),
    };
    let (mut steps, outcome) = judge.explain(&question, from)?;
    steps.insert(0, attachment(live.pins(), from)?);
    match place.output {
        Format::Json => {
            let steps: Vec<Value> = steps
                .iter()
                .map(|step| json!({ "stage": step.stage, "finding": step.finding }))
                .collect();
            output::print_json(&json!({
                "packet": question.to_string(),
                "program": from.program(),
                "steps": steps,
                "outcome": outcome.word(),
                "reason": outcome.reason().map(|reason| reason.label()),
                "summary": outcome.to_string(),
            }))?;
        }
        Format::Table => {
            let mut text = format!("{question}\n");
            for (number, step) in (1..).zip(&steps) {
                text += &format!("{number:>3}. {:<12} {}\n", step.stage, step.finding);
            }
            text += &format!("  => {outcome}\n");
            output::print(&text)?;
        }
    }
    Ok(if outcome.reason().is_some() {
        ExitCode::FAILURE
    } else {
        ExitCode::SUCCESS
    })
}

fn guess(maps: &dyn Maps, addresses: &Addresses, source: IpAddr) -> Result<From> {
    let is_node = addresses.node.contains(&source) || addresses.gateways.contains(&source);
    Ok(if maps.workload(source)?.is_some() {
        From::Pod
    } else if is_node {
        From::Node
    } else if maps.route(source)?.is_some() {
        From::Overlay
    } else {
        From::Outside
    })
}

/// The gateway addresses are those of `thp_host`; the node's those of the interfaces with `underlay_in`.
fn addresses(pins: &PinDirectory) -> Result<Addresses> {
    let underlay: Vec<String> = pins
        .links()?
        .into_iter()
        .filter(|(_, program)| program == UNDERLAY_IN)
        .map(|(interface, _)| interface)
        .collect();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let netlink = Netlink::open()?;
        let mut found = Addresses::default();
        for link in netlink.links().await? {
            if link.name == HOST_DEVICE {
                found.gateways = netlink.addresses(&link).await?;
            } else if underlay.contains(&link.name)
                || underlay.is_empty() && !link.name.starts_with("thp") && link.name != "lo"
            {
                found.node.extend(netlink.addresses(&link).await?);
            }
        }
        Ok(found)
    })
}

/// Whether the program that would see the packet is there at all.
fn attachment(pins: &PinDirectory, from: From) -> Result<Step> {
    let program = from.program();
    let pinned: Vec<String> = pins
        .links()?
        .into_iter()
        .filter(|(_, name)| name == program)
        .map(|(interface, _)| interface)
        .collect();
    let place = match from {
        From::Pod => "the ingress of the pod's interface".to_owned(),
        From::Node => format!("the egress of {HOST_DEVICE}"),
        From::Overlay => format!("the ingress of {OVERLAY_DEVICE}"),
        From::Outside => "the ingress of the underlay interface".to_owned(),
    };
    let links = match pinned.len() {
        0 => "no pinned link of it (clsact needs none)".to_owned(),
        1 => format!("attached to {}", pinned[0]),
        count => format!("attached to {count} interfaces"),
    };
    Ok(Step {
        stage: "program",
        finding: format!("{program} on {place}; {links}"),
    })
}

/// An error for a packet that cannot be explained.
fn cannot_read(text: &str, why: &str) -> anyhow::Error {
    anyhow!("cannot read the packet `{text}`: {why}")
}
