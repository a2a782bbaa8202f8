//! `drops`: how many packets were dropped for which reason, and single ones as it happens.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result, anyhow};
use nix::net::if_::if_nameindex;
use nix::time::{ClockId, clock_gettime};
use serde_json::{Value, json};
use tholepin_ebpf_abi::event::EVENT_FLOW;
use tholepin_ebpf_abi::{DropReason, Event};

use crate::Place;
use crate::events::{Headers, Interest, Listener};
use crate::maps::Live;
use crate::names::Names;
use crate::output::{self, Format};
use crate::pcap::Pcap;

/// Show why packets were dropped: counters since the maps were made, or single packets with --follow
///
/// With --follow or --pcap the programs report each dropped packet while this command runs, and for at most
/// ten seconds after it was killed. One listener at a time: a second one takes over.
#[derive(Debug, clap::Args)]
pub(crate) struct Options {
    /// Also reasons that never happened
    #[arg(long)]
    all: bool,
    /// Print each dropped packet as it happens
    #[arg(short, long)]
    follow: bool,
    /// Also write the first 128 bytes of each dropped packet to this file
    #[arg(long, value_name = "FILE")]
    pcap: Option<PathBuf>,
    /// Only drops for this reason, as the table shows it; may be repeated
    #[arg(long, value_name = "REASON", value_parser = reason)]
    reason: Vec<DropReason>,
    /// Also print one in N new flows (with --follow)
    #[arg(long, value_name = "N")]
    flows: Option<u32>,
    /// End after so many packets
    #[arg(long, value_name = "N")]
    count: Option<u64>,
    /// End after so many seconds
    #[arg(long, value_name = "SECONDS")]
    seconds: Option<u64>,
}

fn reason(text: &str) -> Result<DropReason> {
    let mut all = DropReason::ALL.iter();
    all.find(|reason| reason.label() == text)
        .copied()
        .ok_or_else(|| {
            let labels: Vec<&str> = DropReason::ALL
                .iter()
                .map(|reason| reason.label())
                .collect();
            anyhow!("not a reason; reasons are {}", labels.join(", "))
        })
}

pub(crate) fn run(place: &Place, options: &Options) -> Result<ExitCode> {
    let live = Live::open(place)?;
    if options.follow || options.pcap.is_some() {
        return follow(place, options, &live);
    }
    let mut counts = live.drops()?;
    counts.retain(|(reason, count)| options.shows(*reason, *count));
    match place.output {
        Format::Json => {
            let rows: Vec<Value> = counts
                .iter()
                .map(|(reason, count)| {
                    json!({
                        "reason": reason.label(),
                        "packets": count,
                        "description": reason.description(),
                    })
                })
                .collect();
            output::print_json(&json!(rows))?;
        }
        Format::Table if counts.is_empty() => output::print("nothing was dropped\n")?,
        Format::Table => {
            let rows: Vec<Vec<String>> = counts
                .iter()
                .map(|(reason, count)| {
                    vec![
                        reason.label().to_owned(),
                        count.to_string(),
                        reason.description().to_owned(),
                    ]
                })
                .collect();
            output::print(&output::table(
                &["REASON", "PACKETS", "WHAT IT MEANS"],
                &rows,
            ))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

impl Options {
    fn shows(&self, reason: DropReason, count: u64) -> bool {
        let wanted = self.reason.is_empty() || self.reason.contains(&reason);
        wanted && (count > 0 || self.all || !self.reason.is_empty())
    }

    fn interest(&self) -> Interest {
        let bits = self.reason.iter().map(|reason| 1 << (*reason as u32));
        let drops = if self.reason.is_empty() {
            u64::MAX
        } else {
            bits.sum()
        };
        Interest {
            drops,
            flow_sample: self.flows.unwrap_or(0),
        }
    }
}

fn follow(place: &Place, options: &Options, live: &Live) -> Result<ExitCode> {
    let names = place.names();
    let mut file = match &options.pcap {
        Some(path) => {
            let created = Pcap::create(path);
            Some(created.with_context(|| format!("cannot write {}", path.display()))?)
        }
        None => None,
    };
    let mut listener = Listener::start(live, options.interest())?;
    let end = options
        .seconds
        .map(|seconds| Instant::now() + Duration::from_secs(seconds));
    let mut seen = 0;
    while options.count.is_none_or(|count| seen < count) {
        let patience = end.map_or(Duration::from_secs(3600), |end| {
            end.saturating_duration_since(Instant::now())
        });
        let Some(event) = listener.next(patience)? else {
            if end.is_some_and(|end| Instant::now() >= end) {
                break;
            }
            continue;
        };
        seen += 1;
        let at = wall_clock(&event);
        if let Some(file) = &mut file {
            file.packet(at, event.packet_len, event.bytes())
                .context("cannot write the file")?;
        }
        if options.follow {
            let line = match place.output {
                Format::Json => format!("{}\n", describe_json(&event, &names, at)),
                Format::Table => format!("{}\n", describe(&event, &names, &interfaces())),
            };
            output::print(&line)?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// The event's time since 1970.
fn wall_clock(event: &Event) -> Duration {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let clock =
        clock_gettime(ClockId::CLOCK_MONOTONIC_COARSE).map_or(Duration::ZERO, Duration::from);
    (now + Duration::from_nanos(event.at_ns)).saturating_sub(clock)
}

/// Names by index, as they are now.
fn interfaces() -> BTreeMap<u32, String> {
    let Ok(all) = if_nameindex() else {
        return BTreeMap::new();
    };
    all.iter()
        .map(|one| (one.index(), one.name().to_string_lossy().into_owned()))
        .collect()
}

fn describe(event: &Event, names: &Names, interfaces: &BTreeMap<u32, String>) -> String {
    let interface = interfaces
        .get(&event.ifindex)
        .cloned()
        .unwrap_or_else(|| format!("if{}", event.ifindex));
    let what = match event.kind {
        EVENT_FLOW => format!(
            "new flow    service id {}, backend {}",
            event.detail, event.backend_id
        ),
        _ => format!("dropped     {}", label(event)),
    };
    let packet = match Headers::of(event.bytes()) {
        None => format!("{} bytes that are no IP packet", event.packet_len),
        Some(headers) => {
            let (from, to) = headers.ends();
            let pod = |address| {
                names
                    .pod(address)
                    .map(|pod| format!(" ({pod})"))
                    .unwrap_or_default()
            };
            let flags = headers
                .flags
                .as_ref()
                .map(|flags| format!(" {flags}"))
                .unwrap_or_default();
            format!(
                "{} {from}{} -> {to}{}{flags}, {} bytes",
                headers.protocol,
                pod(headers.source),
                service_or_pod(names, &headers),
                event.packet_len
            )
        }
    };
    format!("{interface:<15} {what:<36} {packet}")
}

fn service_or_pod(names: &Names, headers: &Headers) -> String {
    let protocol = match headers.protocol.as_str() {
        "tcp" => 6,
        "udp" => 17,
        _ => 132,
    };
    let service = headers
        .ports
        .and_then(|(_, port)| names.service(headers.destination, port, protocol));
    let name = service.or_else(|| names.pod(headers.destination).map(str::to_owned));
    name.map(|name| format!(" ({name})")).unwrap_or_default()
}

fn label(event: &Event) -> &'static str {
    // An object of a later version may know more reasons.
    DropReason::from_code(event.detail).map_or("unknown reason", DropReason::label)
}

fn describe_json(event: &Event, names: &Names, at: Duration) -> Value {
    let headers = Headers::of(event.bytes());
    let ends = headers.as_ref().map(Headers::ends);
    let kind = if event.kind == EVENT_FLOW {
        "flow"
    } else {
        "drop"
    };
    json!({
        "time": at.as_secs_f64(),
        "kind": kind,
        "reason": (kind == "drop").then(|| label(event)),
        "serviceId": (kind == "flow").then_some(event.detail),
        "backendId": (kind == "flow").then_some(event.backend_id),
        "ifindex": event.ifindex,
        "length": event.packet_len,
        "protocol": headers.as_ref().map(|headers| headers.protocol.clone()),
        "source": ends.as_ref().map(|(from, _)| from.clone()),
        "sourcePod": headers.as_ref().and_then(|headers| names.pod(headers.source)),
        "destination": ends.as_ref().map(|(_, to)| to.clone()),
        "destinationPod": headers.as_ref().and_then(|headers| names.pod(headers.destination)),
        "tcpFlags": headers.as_ref().and_then(|headers| headers.flags.clone()),
    })
}

#[cfg(test)]
mod tests {
    use tholepin_ebpf_abi::event::{EVENT_CAPTURE, EVENT_DROP};

    use super::*;

    fn event() -> Event {
        let mut packet = [0; EVENT_CAPTURE];
        packet[12] = 8;
        packet[14..34].copy_from_slice(&[
            0x45, 0, 0, 40, 0, 0, 0, 0, 64, 17, 0, 0, 10, 244, 0, 5, 10, 96, 0, 10,
        ]);
        packet[34..38].copy_from_slice(&[0x9c, 0x40, 0, 53]);
        Event {
            at_ns: 1,
            kind: EVENT_DROP,
            detail: DropReason::PolicyEgress as u32,
            ifindex: 9,
            packet_len: 54,
            captured: 54,
            packet: std::array::from_fn(|row| std::array::from_fn(|at| packet[32 * row + at])),
            ..Event::default()
        }
    }

    #[test]
    fn a_dropped_packet_is_one_line_with_names() {
        let names = Names::of(
            &[("10.96.0.10", 53, 17, "kube-system/dns", "dns")],
            &[("10.244.0.5", "a/b")],
        );
        let interfaces = [(9, "thp0123456789a".to_owned())].into_iter().collect();
        assert_eq!(
            describe(&event(), &names, &interfaces),
            "thp0123456789a  dropped     policy_egress            \
             udp 10.244.0.5:40000 (a/b) -> 10.96.0.10:53 (kube-system/dns:dns), 54 bytes"
        );
        let json = describe_json(&event(), &names, Duration::from_secs(3));
        assert_eq!(json["reason"], "policy_egress");
        assert_eq!(json["sourcePod"], "a/b");
    }

    #[test]
    fn an_unknown_reason_is_refused_with_those_there_are() {
        assert_eq!(
            reason("no_backend").expect("a reason"),
            DropReason::NoBackend
        );
        let error = reason("nope").expect_err("no reason").to_string();
        assert!(error.contains("spoofed_source, no_backend"), "{error}");
    }
}
