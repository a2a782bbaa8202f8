//! Real traffic over every path, in turn, round by round; and the rows that follow from it.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};

use super::sandbox::Sandbox;
use super::spec::{ANSWER, CONTROL_OFFSET, FIRST_PORT, PORTS_PER_KIND, SINK, SINK_OFFSET};
use crate::rows::{Bar, Row};
use crate::stats::{Summary, ratios};

/// What is measured on a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Measure {
    Connect,
    Request,
    UdpRequest,
    Bulk,
    UdpOneWay,
}

impl Measure {
    pub(crate) const ALL: [Self; 5] = [
        Self::Connect,
        Self::Request,
        Self::UdpRequest,
        Self::Bulk,
        Self::UdpOneWay,
    ];

    /// The toolbox's word for it.
    pub(crate) fn mode(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Request => "request",
            Self::UdpRequest => "udp-request",
            Self::Bulk => "bulk",
            Self::UdpOneWay => "udp-one-way",
        }
    }

    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::Connect => "TCP connect + request + close",
            Self::Request => "TCP request/response, one connection",
            Self::UdpRequest => "UDP request/response, one flow",
            Self::Bulk => "TCP bulk, one connection",
            Self::UdpOneWay => "UDP one way, small packets",
        }
    }

    fn unit(self) -> &'static str {
        match self {
            Self::Bulk => "Gbit/s",
            Self::UdpOneWay => "pkt/s",
            _ => "/s",
        }
    }

    fn is_sink(self) -> bool {
        matches!(self, Self::Bulk | Self::UdpOneWay)
    }
}

/// Where the server is, seen from the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Place {
    SameNode,
    AcrossNodes,
}

impl Place {
    pub(crate) const ALL: [Self; 2] = [Self::SameNode, Self::AcrossNodes];

    pub(crate) fn title(self) -> &'static str {
        match self {
            Self::SameNode => "same node",
            Self::AcrossNodes => "across nodes",
        }
    }
}

/// How the packets get there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// The kernel's routing, no rules; across nodes with VXLAN.
    Direct,
    /// A bridge, no rules; across nodes with VXLAN.
    Bridge,
    /// A Service by a rule set, with so many Services.
    Rules(super::rules::Rules, u32),
    /// The same, by a Service at the end of iptables' list; for new connections only.
    LastRule(u32),
    /// Ours, from pod to pod.
    Pod(u32),
    /// Ours, through a Service, each packet translated.
    Service(u32),
    /// Ours, through a Service, sockets balanced when they connect.
    Socket(u32),
}

impl Kind {
    pub(crate) fn label(&self) -> String {
        match self {
            Self::Direct => "direct".to_owned(),
            Self::Bridge => "bridge".to_owned(),
            Self::Rules(rules, count) => format!("{} @ {count}", rules.label()),
            Self::LastRule(count) => format!("iptables @ {count}, last"),
            Self::Pod(_) => "tholepin pod".to_owned(),
            Self::Service(count) => format!("tholepin Service @ {count}"),
            Self::Socket(count) => format!("tholepin socket LB @ {count}"),
        }
    }

    /// Only the first packet of a flow looks for its Service.
    fn is_of_interest_for(&self, measure: Measure) -> bool {
        measure == Measure::Connect || !matches!(self, Self::LastRule(_))
    }

    fn is_ours(&self) -> bool {
        matches!(self, Self::Pod(_) | Self::Service(_) | Self::Socket(_))
    }
}

/// A way from a client to a server.
#[derive(Clone, Debug)]
pub(crate) struct Path {
    pub(crate) kind: Kind,
    pub(crate) place: Place,
    /// The client's namespace.
    pub(crate) client: String,
    /// The server's own address.
    pub(crate) server: Ipv4Addr,
    /// The Service to go through.
    pub(crate) service: Option<Ipv4Addr>,
    /// Where the client runs, if that matters.
    pub(crate) cgroup: Option<PathBuf>,
}

impl Path {
    fn arguments(&self, measure: Measure, seconds: f64) -> Vec<String> {
        let (to, ports) = match (self.service, measure.is_sink()) {
            // A Service spreads over its endpoints; a direct client does so itself.
            (Some(service), sink) => (
                SocketAddr::from((service, if sink { SINK } else { ANSWER })),
                1,
            ),
            (None, sink) => {
                let port = FIRST_PORT + if sink { SINK_OFFSET } else { 0 };
                (SocketAddr::from((self.server, port)), PORTS_PER_KIND)
            }
        };
        let control = SocketAddr::from((self.server, FIRST_PORT + CONTROL_OFFSET));
        // 18 bytes of payload make the shortest Ethernet frame; 64 is a small request.
        let size = if measure == Measure::UdpOneWay {
            18
        } else {
            64
        };
        let pairs: [(&str, String); 6] = [
            ("--mode", measure.mode().to_owned()),
            ("--to", to.to_string()),
            ("--ports", ports.to_string()),
            ("--control", control.to_string()),
            ("--seconds", seconds.to_string()),
            ("--size", size.to_string()),
        ];
        pairs
            .into_iter()
            .flat_map(|(flag, value)| [flag.to_owned(), value])
            .collect()
    }
}

/// One run's figures.
#[derive(Clone, Copy, Debug)]
struct Sample {
    value: f64,
    p50_us: f64,
    p99_us: f64,
    lost: f64,
}

/// Samples of every path, one per round, in the order of the rounds.
#[derive(Debug, Default)]
pub(crate) struct Samples {
    all: BTreeMap<(Place, Measure, Kind), Vec<Sample>>,
}

/// How the measuring goes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Pace {
    pub(crate) rounds: u32,
    pub(crate) seconds: f64,
    pub(crate) client_cpu: usize,
}

impl Samples {
    /// Goes over the paths of a place in turn, so often as there are rounds, each time beginning with
    /// another one, so that no path always follows the same other.
    pub(crate) fn measure(
        &mut self,
        sandbox: &Sandbox,
        paths: &[Path],
        place: Place,
        measure: Measure,
        pace: Pace,
    ) -> Result<()> {
        let paths: Vec<&Path> = paths
            .iter()
            .filter(|path| path.place == place && path.kind.is_of_interest_for(measure))
            .collect();
        // A first, short one fills caches, neighbour tables and flows of every path.
        for path in &paths {
            self.run(sandbox, path, measure, pace, Duration::from_millis(100))?;
        }
        let length = Duration::from_secs_f64(pace.seconds);
        for round in 0..pace.rounds as usize {
            for index in 0..paths.len() {
                let path = paths[(index + round) % paths.len()];
                let sample = self.run(sandbox, path, measure, pace, length)?;
                let key = (place, measure, path.kind.clone());
                self.all.entry(key).or_default().push(sample);
            }
        }
        Ok(())
    }

    fn run(
        &self,
        sandbox: &Sandbox,
        path: &Path,
        measure: Measure,
        pace: Pace,
        length: Duration,
    ) -> Result<Sample> {
        let arguments = path.arguments(measure, length.as_secs_f64());
        let report = sandbox
            .load(
                &path.client,
                path.cgroup.as_deref(),
                pace.client_cpu,
                &arguments,
            )
            .with_context(|| {
                let (kind, place) = (path.kind.label(), path.place.title());
                format!("{}, {kind}, {place}", measure.title())
            })?;
        let field = |name: &str| report[name].as_f64().context("a field of the report");
        Ok(Sample {
            value: match measure {
                Measure::Bulk => field("bits_per_second")? / 1e9,
                _ => field("rate")?,
            },
            p50_us: field("p50_us")?,
            p99_us: field("p99_us")?,
            lost: field("failures")?,
        })
    }

    fn values(&self, place: Place, measure: Measure, kind: &Kind) -> Option<Vec<f64>> {
        let samples = self.all.get(&(place, measure, kind.clone()))?;
        Some(samples.iter().map(|sample| sample.value).collect())
    }

    /// The rows of what was measured.
    pub(crate) fn rows(&self) -> Vec<Row> {
        let mut rows = Vec::new();
        for place in Place::ALL {
            for measure in Measure::ALL {
                let section = format!("{}, {}", measure.title(), place.title());
                for (key, samples) in &self.all {
                    if (key.0, key.1) == (place, measure) {
                        rows.extend(self.rows_of(&section, place, measure, &key.2, samples));
                    }
                }
            }
        }
        rows
    }

    fn rows_of(
        &self,
        section: &str,
        place: Place,
        measure: Measure,
        kind: &Kind,
        samples: &[Sample],
    ) -> Vec<Row> {
        let mut rows = Vec::new();
        let of = |pick: fn(&Sample) -> f64| {
            let values: Vec<f64> = samples.iter().map(pick).collect();
            Summary::of(&values)
        };
        let Some(value) = of(|sample| sample.value) else {
            return rows;
        };
        let plain = Row::value(section, &kind.label(), measure.unit(), value);
        let comparisons = comparisons(place, measure, kind);
        let own: Vec<f64> = samples.iter().map(|sample| sample.value).collect();
        let mut compared = comparisons.into_iter().filter_map(|(against, bar)| {
            let other = self.values(place, measure, &against)?;
            let mut row = plain.clone();
            row.against = Some((against.label(), Summary::of(&ratios(&own, &other))));
            row.bar = bar;
            Some(row)
        });
        match compared.next() {
            Some(first) => {
                rows.push(first);
                rows.extend(compared);
            }
            None => rows.push(plain.clone()),
        }
        if !measure.is_sink() && kind.is_ours() || measure == Measure::Connect {
            let latencies = [
                ("p50", of(|sample| sample.p50_us)),
                ("p99", of(|sample| sample.p99_us)),
            ];
            for (name, value) in latencies {
                if let Some(value) = value {
                    let name = format!("{}, {name}", kind.label());
                    rows.push(Row::value(section, &name, "µs", value));
                }
            }
        }
        if measure != Measure::UdpOneWay
            && let Some(lost) = of(|sample| sample.lost)
            && lost.high > 0.0
        {
            let name = format!("{}, failed per run", kind.label());
            rows.push(Row::value(section, &name, "", lost));
        }
        rows
    }
}

/// What a path is compared with, and the bar of that comparison.
fn comparisons(place: Place, measure: Measure, kind: &Kind) -> Vec<(Kind, Option<Bar>)> {
    use super::rules::Rules;
    use Measure::{Bulk, Connect, Request, UdpOneWay};
    let at_least = |bar, stretch| Some(Bar::RatioAtLeast(bar, stretch));
    let mut list = Vec::new();
    match kind {
        Kind::Direct => {}
        Kind::Bridge | Kind::Rules(..) | Kind::LastRule(_) => list.push((Kind::Direct, None)),
        Kind::Pod(_) => {
            let bar = match (place, measure) {
                (Place::SameNode, Bulk | UdpOneWay) => at_least(1.1, 1.3),
                (Place::AcrossNodes, Bulk | UdpOneWay) => at_least(1.0, 1.15),
                (_, Request) => at_least(1.0, 1.02),
                _ => None,
            };
            list.push((Kind::Bridge, bar));
            list.push((Kind::Direct, None));
        }
        Kind::Socket(_) => {
            let bar = match measure {
                Connect if place == Place::SameNode => at_least(1.0, 1.03),
                _ => None,
            };
            list.push((Kind::Direct, bar));
        }
        Kind::Service(count) => {
            let near = place == Place::SameNode;
            let bar = match measure {
                Connect if near && matches!(count, 1 | 10_000) => at_least(0.97, 1.03),
                Request if near => at_least(0.98, 1.0),
                _ => None,
            };
            list.push((Kind::Direct, bar));
            for rules in [Rules::Nft, Rules::Iptables] {
                let bar = match (near, measure, rules, count) {
                    (true, Connect, Rules::Nft, 1) => at_least(1.08, 1.14),
                    _ => None,
                };
                list.push((Kind::Rules(rules, *count), bar));
            }
            let bar = match (near, measure, count) {
                (true, Connect, 10_000) => at_least(2.7, 2.9),
                _ => None,
            };
            list.push((Kind::LastRule(*count), bar));
        }
    }
    list
}

#[cfg(test)]
mod tests {
    use super::super::rules::Rules;
    use super::*;

    fn sample(value: f64) -> Sample {
        Sample {
            value,
            p50_us: 1.0,
            p99_us: 2.0,
            lost: 0.0,
        }
    }

    #[test]
    fn a_service_is_compared_with_the_direct_path_and_both_rule_sets_of_its_size() {
        let mut samples = Samples::default();
        let mut add = |kind: Kind, value: f64| {
            let key = (Place::SameNode, Measure::Connect, kind);
            samples.all.insert(key, vec![sample(value); 3]);
        };
        add(Kind::Direct, 100.0);
        add(Kind::Rules(Rules::Nft, 1), 90.0);
        add(Kind::LastRule(10_000), 35.0);
        add(Kind::Service(1), 99.0);
        add(Kind::Service(10_000), 98.0);
        let rows = samples.rows();
        let against: Vec<(String, String)> = rows
            .iter()
            .filter(|row| row.bar.is_some())
            .map(|row| (row.name.clone(), row.against.clone().unwrap().0))
            .collect();
        let pair = |one: &str, other: &str| (one.to_owned(), other.to_owned());
        assert_eq!(
            against,
            [
                pair("tholepin Service @ 1", "direct"),
                pair("tholepin Service @ 1", "nftables @ 1"),
                pair("tholepin Service @ 10000", "direct"),
                pair("tholepin Service @ 10000", "iptables @ 10000, last"),
            ]
        );
    }

    #[test]
    fn a_direct_client_spreads_itself_and_a_service_does_it_for_its_client() {
        let mut path = Path {
            kind: Kind::Direct,
            place: Place::SameNode,
            client: String::new(),
            server: [10, 244, 1, 3].into(),
            service: None,
            cgroup: None,
        };
        let direct = path.arguments(Measure::UdpOneWay, 0.5).join(" ");
        assert!(
            direct.contains("--to 10.244.1.3:9100 --ports 5"),
            "{direct}"
        );
        path.service = Some([10, 96, 0, 10].into());
        let through = path.arguments(Measure::Connect, 0.5).join(" ");
        assert!(
            through.contains("--to 10.96.0.10:80 --ports 1"),
            "{through}"
        );
        assert!(through.contains("--control 10.244.1.3:9200"), "{through}");
    }
}
