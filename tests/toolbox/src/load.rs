//! Load for measurements: `load-serve` answers, `load` asks in one of five modes and prints one line of
//! JSON. Blocking calls and few of them, so that the path between the two is what is measured.
//!
//! The server has several ports per kind, which stand for several endpoints at one address: whether a
//! client reaches them directly or through a Service, the server side is the same.

mod cpu;
mod datagrams;
mod serve;
mod streams;

use std::io;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::args::{Args, UsageError};
use crate::report::quoted;
use crate::{signals, simple};

pub(crate) use serve::{SERVE_OPTIONS, run as serve};

pub(crate) const OPTIONS: &[&str] = &["mode", "to", "ports", "control", "seconds", "size", "cpu"];

/// Bulk and one-way ports are this far above those that answer.
pub(crate) const SINK_OFFSET: u16 = 100;
/// The port that tells what the one-way ports have received is this far above the first.
pub(crate) const CONTROL_OFFSET: u16 = 200;

/// Where to, for how long.
#[derive(Debug, Clone)]
struct Target {
    to: SocketAddr,
    /// Ports `to.port() ..` among which connections are spread; one for a Service, which spreads itself.
    ports: u16,
    /// Where the receiver of one-way datagrams says how many came.
    control: Option<SocketAddr>,
    duration: Duration,
    size: usize,
}

impl Target {
    /// One of the ports, by a small generator: no need for more, and none for a dependency.
    fn next(&self, state: &mut u64) -> SocketAddr {
        *state ^= *state << 13;
        *state ^= *state >> 7;
        *state ^= *state << 17;
        let offset = (*state % u64::from(self.ports)) as u16;
        SocketAddr::new(self.to.ip(), self.to.port() + offset)
    }
}

/// One mode.
type Work = fn(&Target) -> io::Result<Measured>;

/// What a run has measured.
#[derive(Debug, Default)]
struct Measured {
    operations: u64,
    bytes: u64,
    failures: u64,
    elapsed: Duration,
    /// One per operation, where operations have a latency.
    times_ns: Vec<u32>,
}

impl Measured {
    fn record(&mut self, since: Instant) {
        self.operations += 1;
        self.times_ns
            .push(u32::try_from(since.elapsed().as_nanos()).unwrap_or(u32::MAX));
    }

    fn json(mut self, mode: &str) -> String {
        self.times_ns.sort_unstable();
        let seconds = self.elapsed.as_secs_f64().max(1e-9);
        format!(
            "{{\"mode\":{},\"operations\":{},\"bytes\":{},\"failures\":{},\"seconds\":{seconds:.6},\"rate\":{:.3},\"bits_per_second\":{:.0},\"p50_us\":{:.3},\"p99_us\":{:.3}}}",
            quoted(mode),
            self.operations,
            self.bytes,
            self.failures,
            self.operations as f64 / seconds,
            self.bytes as f64 * 8.0 / seconds,
            percentile_us(&self.times_ns, 50),
            percentile_us(&self.times_ns, 99),
        )
    }
}

fn percentile_us(sorted: &[u32], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100);
    let at = rank.checked_sub(1).and_then(|index| sorted.get(index));
    at.map_or(0.0, |ns| f64::from(*ns) / 1e3)
}

pub(crate) fn run(args: Args) -> Result<ExitCode, UsageError> {
    let mode: String = args.required("mode")?;
    let seconds: f64 = args.or("seconds", 1.0)?;
    let target = Target {
        to: args.required("to")?,
        ports: args.or("ports", 1_u16)?.max(1),
        control: args.optional("control")?,
        duration: Duration::from_secs_f64(seconds),
        size: args.or("size", 64_usize)?.clamp(1, 65_000),
    };
    let work: Work = match mode.as_str() {
        "connect" => streams::connect_request_close,
        "request" => streams::request_response,
        "bulk" => streams::bulk,
        "udp-request" => datagrams::request_response,
        "udp-one-way" => datagrams::one_way,
        other => return Err(UsageError(format!("unknown mode `{other}`"))),
    };
    cpu::settle(&args)?;
    // Blocking calls have no deadline of their own; a path that loses everything must not hang the run.
    let give_up = target.duration + Duration::from_secs(10);
    std::thread::spawn(move || {
        simple::pause(give_up);
        eprintln!("toolbox load: no end in sight");
        signals::exit(1);
    });
    match work(&target) {
        Ok(measured) => {
            println!("{}", measured.json(&mode));
            Ok(ExitCode::SUCCESS)
        }
        Err(error) => {
            eprintln!("toolbox load: {mode} to {}: {error}", target.to);
            Ok(ExitCode::FAILURE)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_are_spread_over_the_given_ports_and_no_others() {
        let target = Target {
            to: "10.0.0.1:9000".parse().unwrap(),
            ports: 5,
            control: None,
            duration: Duration::ZERO,
            size: 64,
        };
        let mut state = 1;
        let mut seen: Vec<u16> = (0..1000).map(|_| target.next(&mut state).port()).collect();
        seen.sort_unstable();
        seen.dedup();
        assert_eq!(seen, [9000, 9001, 9002, 9003, 9004]);
    }

    #[test]
    fn the_report_has_rates_and_percentiles() {
        let measured = Measured {
            operations: 4,
            bytes: 1000,
            failures: 1,
            elapsed: Duration::from_secs(2),
            times_ns: vec![4000, 1000, 2000, 3000],
        };
        assert_eq!(
            measured.json("connect"),
            r#"{"mode":"connect","operations":4,"bytes":1000,"failures":1,"seconds":2.000000,"rate":2.000,"bits_per_second":4000,"p50_us":2.000,"p99_us":4.000}"#
        );
    }

    #[test]
    fn every_mode_measures_something_on_loopback() {
        let first = serve::start("127.0.0.1", 0, 2).unwrap();
        let target = |offset: u16| Target {
            to: SocketAddr::new("127.0.0.1".parse().unwrap(), first + offset),
            ports: 2,
            control: Some(SocketAddr::new(
                "127.0.0.1".parse().unwrap(),
                first + CONTROL_OFFSET,
            )),
            duration: Duration::from_millis(30),
            size: 64,
        };
        let modes: [(Work, u16); 5] = [
            (streams::connect_request_close, 0),
            (streams::request_response, 0),
            (streams::bulk, SINK_OFFSET),
            (datagrams::request_response, 0),
            (datagrams::one_way, SINK_OFFSET),
        ];
        for (number, (mode, offset)) in modes.into_iter().enumerate() {
            let measured = mode(&target(offset)).unwrap();
            assert!(measured.operations > 0, "mode {number}: {measured:?}");
            // One-way datagrams may overrun a receiver that is not scheduled.
            assert!(measured.failures == 0 || number == 4, "mode {number}");
        }
    }
}
