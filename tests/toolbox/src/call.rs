//! The HTTP load client: a fresh connection per request, so that every request is one decision of
//! the load balancer.

use std::io::{self, BufReader, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use crate::args::{Args, UsageError};
use crate::http::Message;
use crate::report::Report;
use crate::simple;

pub(crate) const OPTIONS: &[&str] = &[
    "url",
    "count",
    "concurrency",
    "rate",
    "duration",
    "timeout",
    "name-header",
];

/// Where and how to ask.
#[derive(Debug, Clone)]
struct Target {
    authority: String,
    path: String,
    timeout: Duration,
    name_header: String,
}

impl Target {
    fn parse(url: &str, timeout: Duration, name_header: String) -> Result<Self, UsageError> {
        let rest = url
            .strip_prefix("http://")
            .ok_or_else(|| UsageError(format!("`{url}` does not begin with http://")))?;
        let (authority, path) = match rest.split_once('/') {
            Some((authority, path)) => (authority, format!("/{path}")),
            None => (rest, "/".to_owned()),
        };
        let has_port = authority
            .rsplit_once(':')
            .is_some_and(|(_, port)| !port.contains(']'));
        let authority = if has_port {
            authority.to_owned()
        } else {
            format!("{authority}:80")
        };
        Ok(Self {
            authority,
            path,
            timeout,
            name_header,
        })
    }

    /// One request; the name of the host that answered.
    fn call(&self, address: SocketAddr) -> io::Result<String> {
        let fail = |stage: &str, error: io::Error| {
            io::Error::new(error.kind(), format!("{stage}: {error}"))
        };
        let mut stream = TcpStream::connect_timeout(&address, self.timeout)
            .map_err(|error| fail("connect", error))?;
        stream.set_read_timeout(Some(self.timeout))?;
        stream.set_write_timeout(Some(self.timeout))?;
        let request = format!(
            "GET {} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n",
            self.path, self.authority
        );
        stream
            .write_all(request.as_bytes())
            .map_err(|error| fail("send", error))?;
        let answer = Message::read(&mut BufReader::new(stream))
            .map_err(|error| fail("receive", error))?
            .ok_or_else(|| io::Error::other("closed without an answer"))?;
        match answer.status() {
            Some(200) => Ok(answer
                .header(&self.name_header)
                .map_or_else(|| "(unnamed)".to_owned(), str::to_owned)),
            _ => Err(io::Error::other(answer.first_line)),
        }
    }
}

/// When the next request may start and when the run is over; shared by the workers.
#[derive(Debug)]
struct Schedule {
    started: Instant,
    issued: AtomicU64,
    count: Option<u64>,
    rate: Option<f64>,
    duration: Option<Duration>,
}

impl Schedule {
    /// Waits for this request's moment; false when there is none left.
    fn next(&self) -> bool {
        let number = self.issued.fetch_add(1, Ordering::SeqCst);
        if self.count.is_some_and(|count| number >= count) {
            return false;
        }
        if let Some(rate) = self.rate {
            let due = Duration::from_secs_f64(number as f64 / rate);
            if self.duration.is_some_and(|duration| due >= duration) {
                return false;
            }
            simple::pause(due.saturating_sub(self.started.elapsed()));
        }
        self.duration
            .is_none_or(|duration| self.started.elapsed() < duration)
    }
}

pub(crate) fn run(args: Args) -> Result<ExitCode, UsageError> {
    let timeout = Duration::from_secs_f64(args.or("timeout", 5.0)?);
    let header = args.or("name-header", "Tholepin-Host".to_owned())?;
    let target = Target::parse(&args.required::<String>("url")?, timeout, header)?;
    let duration = args
        .optional::<f64>("duration")?
        .map(Duration::from_secs_f64);
    let rate = args.optional::<f64>("rate")?;
    if rate.is_some_and(|rate| !rate.is_finite() || rate <= 0.0) {
        return Err(UsageError("`--rate` must be above 0".to_owned()));
    }
    let count = match (args.optional("count")?, duration) {
        (None, None) => Some(1),
        (count, _) => count,
    };
    let address = match target.authority.to_socket_addrs().map(|mut all| all.next()) {
        Ok(Some(address)) => address,
        Ok(None) => return Err(UsageError(format!("`{}` has no address", target.authority))),
        Err(error) => return Err(UsageError(format!("`{}`: {error}", target.authority))),
    };
    let schedule = Arc::new(Schedule {
        started: Instant::now(),
        issued: AtomicU64::new(0),
        count,
        rate,
        duration,
    });
    let workers: Vec<_> = (0..args.or("concurrency", 1_usize)?.max(1))
        .map(|_| {
            let (target, schedule) = (target.clone(), Arc::clone(&schedule));
            std::thread::spawn(move || work(&target, &schedule, address))
        })
        .collect();
    let mut report = Report::default();
    for worker in workers {
        report.merge(worker.join().expect("a worker does not panic"));
    }
    println!("{}", report.json(schedule.started.elapsed()));
    Ok(if report.failures() == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn work(target: &Target, schedule: &Schedule, address: SocketAddr) -> Report {
    let mut report = Report::default();
    while schedule.next() {
        let started = Instant::now();
        match target.call(address) {
            Ok(host) => report.answered(&host, started.elapsed()),
            Err(error) => report.failed(error.to_string()),
        }
    }
    report
}

#[cfg(test)]
mod tests {
    use super::*;

    fn authority(url: &str) -> String {
        Target::parse(url, Duration::ZERO, String::new())
            .unwrap()
            .authority
    }

    #[test]
    fn a_url_without_a_port_means_port_80() {
        assert_eq!(authority("http://10.96.0.1/x"), "10.96.0.1:80");
        assert_eq!(authority("http://[fd00::1]/"), "[fd00::1]:80");
        assert_eq!(authority("http://[fd00::1]:8080"), "[fd00::1]:8080");
    }

    #[test]
    fn a_count_ends_the_run() {
        let schedule = Schedule {
            started: Instant::now(),
            issued: AtomicU64::new(0),
            count: Some(2),
            rate: None,
            duration: None,
        };
        assert_eq!(
            [schedule.next(), schedule.next(), schedule.next()],
            [true, true, false]
        );
    }

    #[test]
    fn a_rate_and_a_duration_give_their_product() {
        let schedule = Schedule {
            started: Instant::now(),
            issued: AtomicU64::new(0),
            count: None,
            rate: Some(100.0),
            duration: Some(Duration::from_millis(45)),
        };
        assert_eq!(
            std::iter::repeat_with(|| schedule.next())
                .take_while(|next| *next)
                .count(),
            5
        );
    }
}
