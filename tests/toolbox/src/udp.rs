//! The UDP client: numbered datagrams, so that a lost, late or foreign answer is told apart.

use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::args::{Args, UsageError};
use crate::report::Report;

pub(crate) fn run(args: Args) -> Result<ExitCode, UsageError> {
    let to: SocketAddr = args.required("to")?;
    let count: u64 = args.or("count", 1)?;
    let timeout = Duration::from_secs_f64(args.or("timeout", 2.0)?);
    let started = Instant::now();
    let mut report = Report::default();
    let mut socket = None;
    for number in 0..count {
        let asked = Instant::now();
        // A fresh socket has a fresh source port, which is a new flow for the load balancer.
        let current = match socket.take() {
            Some(kept) if args.has("same-socket") => Ok(kept),
            _ => open(to, timeout),
        };
        let outcome = current.and_then(|current| {
            let host = call(&current, number)?;
            socket = Some(current);
            Ok(host)
        });
        match outcome {
            Ok(host) => report.answered(&host, asked.elapsed()),
            Err(error) => report.failed(error.to_string()),
        }
    }
    println!("{}", report.json(started.elapsed()));
    Ok(if report.failures() == 0 {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn open(to: SocketAddr, timeout: Duration) -> io::Result<UdpSocket> {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any)?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(timeout))?;
    Ok(socket)
}

fn call(socket: &UdpSocket, number: u64) -> io::Result<String> {
    socket.send(number.to_string().as_bytes())?;
    let mut buffer = [0; 2048];
    loop {
        let length = socket.recv(&mut buffer)?;
        let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
        match text.rsplit_once(' ') {
            Some((host, echoed)) if echoed == number.to_string() => return Ok(host.to_owned()),
            // An answer to an earlier datagram that was given up.
            Some((_, echoed)) if echoed.parse::<u64>().is_ok_and(|late| late < number) => {}
            _ => return Err(io::Error::other(format!("unexpected answer `{text}`"))),
        }
    }
}
