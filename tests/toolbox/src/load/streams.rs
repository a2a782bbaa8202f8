//! The TCP modes: fresh connections, one connection's requests, bulk.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::Instant;

use super::{Measured, Target};

/// First byte of a request after which the server closes.
pub(super) const ONCE: u8 = b'1';
/// First byte of a request after which the connection stays.
pub(super) const AGAIN: u8 = b'+';

/// Connect, request, answer, close by the server, close. The server closes first, so that the state that
/// outlives a connection is on its side and the client never runs out of ports.
pub(super) fn connect_request_close(target: &Target) -> io::Result<Measured> {
    let mut measured = Measured::default();
    let mut random = seed();
    let mut request = vec![0; target.size];
    request[0] = ONCE;
    let mut answer = vec![0; target.size + 1];
    let started = Instant::now();
    while started.elapsed() < target.duration {
        let began = Instant::now();
        let outcome = TcpStream::connect(target.next(&mut random)).and_then(|mut stream| {
            stream.write_all(&request)?;
            read_to_end(&mut stream, &mut answer)
        });
        match outcome {
            Ok(length) if length == request.len() => measured.record(began),
            _ => measured.failures += 1,
        }
    }
    measured.elapsed = started.elapsed();
    Ok(measured)
}

fn read_to_end(stream: &mut TcpStream, buffer: &mut [u8]) -> io::Result<usize> {
    let mut length = 0;
    loop {
        match stream.read(&mut buffer[length..])? {
            0 => return Ok(length),
            more => length += more,
        }
    }
}

/// Requests and answers in turn over one connection.
pub(super) fn request_response(target: &Target) -> io::Result<Measured> {
    let mut measured = Measured::default();
    let mut request = vec![0; target.size];
    request[0] = AGAIN;
    let mut answer = vec![0; target.size];
    let mut stream = TcpStream::connect(target.next(&mut seed()))?;
    stream.set_nodelay(true)?;
    let started = Instant::now();
    while started.elapsed() < target.duration {
        let began = Instant::now();
        stream.write_all(&request)?;
        stream.read_exact(&mut answer)?;
        measured.record(began);
    }
    measured.elapsed = started.elapsed();
    Ok(measured)
}

/// As much as the connection takes, until the server has said how much arrived.
pub(super) fn bulk(target: &Target) -> io::Result<Measured> {
    let mut measured = Measured::default();
    let block = vec![0x5a; 128 * 1024];
    let mut stream = TcpStream::connect(target.next(&mut seed()))?;
    let started = Instant::now();
    while started.elapsed() < target.duration {
        stream.write_all(&block)?;
        measured.operations += 1;
    }
    stream.shutdown(Shutdown::Write)?;
    let mut received = [0; 8];
    stream.read_exact(&mut received)?;
    measured.elapsed = started.elapsed();
    measured.bytes = u64::from_be_bytes(received);
    let sent = measured.operations * block.len() as u64;
    if measured.bytes != sent {
        return Err(io::Error::other(format!(
            "{sent} bytes sent, {} received",
            measured.bytes
        )));
    }
    Ok(measured)
}

/// Different in every process; never zero.
pub(super) fn seed() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(1, |time| time.as_nanos() as u64) | 1
}
