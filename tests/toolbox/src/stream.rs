//! One long TCP connection with numbered lines: shows whether a change somewhere breaks or stalls a
//! connection that is already there.

use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use crate::args::{Args, UsageError};
use crate::report::quoted;
use crate::simple;

pub(crate) fn run(args: Args) -> Result<ExitCode, UsageError> {
    let to: SocketAddr = args.required("to")?;
    let end = Instant::now() + Duration::from_secs_f64(args.or("seconds", 10.0)?);
    let interval = Duration::from_secs_f64(1.0 / args.or("rate", 10.0_f64)?.max(0.001));
    let timeout = Duration::from_secs_f64(args.or("timeout", 5.0)?);
    let mut longest = Duration::ZERO;
    let mut echoed = 0_u64;
    let outcome = TcpStream::connect_timeout(&to, timeout).and_then(|stream| {
        stream.set_read_timeout(Some(timeout))?;
        stream.set_nodelay(true)?;
        let mut reader = BufReader::new(stream.try_clone()?);
        while Instant::now() < end {
            let asked = Instant::now();
            exchange(&stream, &mut reader, echoed)?;
            longest = longest.max(asked.elapsed());
            echoed += 1;
            simple::pause(interval.saturating_sub(asked.elapsed()));
        }
        Ok(())
    });
    let error = outcome
        .as_ref()
        .err()
        .map_or("null".to_owned(), |e| quoted(&e.to_string()));
    println!(
        "{{\"echoed\":{echoed},\"longest_ms\":{:.3},\"error\":{error}}}",
        longest.as_secs_f64() * 1e3
    );
    Ok(if outcome.is_ok() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn exchange(mut stream: &TcpStream, reader: &mut impl BufRead, number: u64) -> io::Result<()> {
    stream.write_all(format!("{number}\n").as_bytes())?;
    let mut line = String::new();
    reader.read_line(&mut line)?;
    match line.trim_end() {
        "" => Err(io::Error::other("connection closed")),
        text if text == number.to_string() => Ok(()),
        other => Err(io::Error::other(format!("sent {number}, got `{other}`"))),
    }
}
