//! The other end of the load: a thread per port, blocking, until SIGTERM.

use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::datagrams::{Batch, grow_receive_buffer};
use super::{CONTROL_OFFSET, SINK_OFFSET, cpu, streams};
use crate::args::{Args, UsageError};
use crate::signals;

pub(crate) const SERVE_OPTIONS: &[&str] = &["address", "port", "ports", "cpu"];

pub(crate) fn run(args: Args) -> Result<ExitCode, UsageError> {
    let address: String = args.or("address", "::".to_owned())?;
    let port: u16 = args.or("port", 9000)?;
    let ports: u16 = args.or("ports", 5)?;
    cpu::settle(&args)?;
    signals::on_termination(|_| signals::exit(0));
    match start(&address, port, ports) {
        Ok(first) => {
            println!("{{\"port\":{first}}}");
            loop {
                std::thread::park();
            }
        }
        Err(error) => {
            eprintln!("toolbox load-serve: {address} port {port}: {error}");
            Ok(ExitCode::FAILURE)
        }
    }
}

/// Starts every thread; the first port, which the kernel chooses when `port` is 0.
pub(super) fn start(address: &str, port: u16, ports: u16) -> io::Result<u16> {
    let address: IpAddr = address
        .parse()
        .map_err(|_| io::Error::other(format!("`{address}` is no address")))?;
    if port != 0 {
        return open(address, port, ports).map(|()| port);
    }
    let mut last = io::Error::other("no free range of ports");
    for _ in 0..20 {
        let candidate = TcpListener::bind((address, 0))?.local_addr()?.port();
        // Ports above the ephemeral range's end would overflow.
        if candidate > u16::MAX - CONTROL_OFFSET {
            continue;
        }
        match open(address, candidate, ports) {
            Ok(()) => return Ok(candidate),
            Err(error) => last = error,
        }
    }
    Err(last)
}

fn open(address: IpAddr, first: u16, ports: u16) -> io::Result<()> {
    let count = Arc::new(AtomicU64::new(0));
    let control = TcpListener::bind((address, first + CONTROL_OFFSET))?;
    let mut work: Vec<Box<dyn FnOnce() + Send>> = Vec::new();
    for port in first..first + ports {
        let sink = port + SINK_OFFSET;
        let answering = TcpListener::bind((address, port))?;
        let bulk = TcpListener::bind((address, sink))?;
        let echo = UdpSocket::bind(SocketAddr::new(address, port))?;
        let counter = UdpSocket::bind(SocketAddr::new(address, sink))?;
        grow_receive_buffer(&counter)?;
        let count = Arc::clone(&count);
        work.push(Box::new(move || accept(&answering, answer)));
        work.push(Box::new(move || accept(&bulk, swallow)));
        work.push(Box::new(move || echo_datagrams(&echo)));
        work.push(Box::new(move || count_datagrams(&counter, &count)));
    }
    work.push(Box::new(move || {
        accept(&control, move |mut stream| {
            let received = count.swap(0, Ordering::Relaxed);
            stream.write_all(&received.to_be_bytes())
        });
    }));
    for one in work {
        std::thread::spawn(one);
    }
    Ok(())
}

/// One connection after the other: the clients of a measurement come one after the other.
fn accept(listener: &TcpListener, serve: impl Fn(TcpStream) -> io::Result<()>) {
    loop {
        let outcome = listener.accept().and_then(|(stream, _)| serve(stream));
        if let Err(error) = outcome
            && error.kind() != io::ErrorKind::ConnectionReset
        {
            eprintln!("toolbox load-serve: {error}");
        }
    }
}

/// Answers each request with as many bytes as came; closes when it says so.
fn answer(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; 65_536];
    let mut fresh = true;
    loop {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            return Ok(());
        }
        stream.write_all(&buffer[..length])?;
        if buffer[0] == streams::ONCE {
            return Ok(());
        }
        if std::mem::take(&mut fresh) {
            stream.set_nodelay(true)?;
        }
    }
}

/// Reads everything, then says how much it was.
fn swallow(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; 256 * 1024];
    let mut total: u64 = 0;
    loop {
        match stream.read(&mut buffer)? {
            0 => return stream.write_all(&total.to_be_bytes()),
            length => total += length as u64,
        }
    }
}

fn echo_datagrams(socket: &UdpSocket) {
    let mut buffer = vec![0; 65_536];
    loop {
        let outcome = socket
            .recv_from(&mut buffer)
            .and_then(|(length, peer)| socket.send_to(&buffer[..length], peer));
        if let Err(error) = outcome {
            eprintln!("toolbox load-serve: datagram: {error}");
        }
    }
}

fn count_datagrams(socket: &UdpSocket, count: &AtomicU64) {
    let mut batch = Batch::new(2048);
    loop {
        match batch.receive(socket) {
            Ok(received) => {
                count.fetch_add(received as u64, Ordering::Relaxed);
            }
            Err(error) => eprintln!("toolbox load-serve: datagram: {error}"),
        }
    }
}
