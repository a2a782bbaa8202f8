//! The server in the `web` image: HTTP and UDP on one port, a TCP echo on another. Every answer says
//! which host gave it, so that a client can count how a Service spreads its calls.

use std::io::{self, BufReader, Write};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::args::{Args, UsageError};
use crate::http::{self, Message};
use crate::{signals, simple};

/// How long SIGTERM waits for requests that are being answered.
const DRAIN: Duration = Duration::from_secs(2);

pub(crate) fn run(args: Args) -> Result<ExitCode, UsageError> {
    let port: u16 = args.or("port", 8080)?;
    let echo_port: u16 = args.or("echo-port", 8081)?;
    let name: Arc<str> = args.or("name", hostname())?.into();
    let active = Arc::new(AtomicUsize::new(0));
    let at_end = Arc::clone(&active);
    signals::on_termination(move |_| {
        let end = std::time::Instant::now() + DRAIN;
        while at_end.load(Ordering::SeqCst) > 0 && std::time::Instant::now() < end {
            simple::pause(Duration::from_millis(5));
        }
        signals::exit(0)
    });
    match listen(port, echo_port) {
        Ok((web, echo, datagrams)) => {
            println!("serving as {name}: HTTP and UDP on {port}, TCP echo on {echo_port}");
            let udp_name = Arc::clone(&name);
            std::thread::spawn(move || answer_datagrams(&datagrams, &udp_name));
            std::thread::spawn(move || accept(&echo, &Arc::new(AtomicUsize::new(0)), echo_stream));
            accept(&web, &active, move |stream| serve_http(stream, &name));
            Ok(ExitCode::FAILURE)
        }
        Err(error) => {
            eprintln!("toolbox serve: cannot listen on {port} or {echo_port}: {error}");
            Ok(ExitCode::FAILURE)
        }
    }
}

/// The host's name as the kernel has it: in a pod that is the pod's name.
fn hostname() -> String {
    std::fs::read_to_string("/proc/sys/kernel/hostname")
        .map_or_else(|_| "unknown".to_owned(), |name| name.trim().to_owned())
}

fn listen(port: u16, echo_port: u16) -> io::Result<(TcpListener, TcpListener, UdpSocket)> {
    // `[::]` takes IPv4 as well; a kernel without IPv6 has only the second.
    let any = |port| {
        [
            SocketAddr::from((Ipv6Addr::UNSPECIFIED, port)),
            (Ipv4Addr::UNSPECIFIED, port).into(),
        ]
    };
    Ok((
        TcpListener::bind(&any(port)[..])?,
        TcpListener::bind(&any(echo_port)[..])?,
        UdpSocket::bind(&any(port)[..])?,
    ))
}

/// One thread per connection; `active` counts those that run.
fn accept(
    listener: &TcpListener,
    active: &Arc<AtomicUsize>,
    serve: impl Fn(TcpStream) -> io::Result<()> + Clone + Send + 'static,
) {
    for stream in listener.incoming() {
        match stream {
            Ok(stream) => {
                let (serve, active) = (serve.clone(), Arc::clone(active));
                active.fetch_add(1, Ordering::SeqCst);
                std::thread::spawn(move || {
                    // A client that goes away is no event for an echo server.
                    serve(stream).ok();
                    active.fetch_sub(1, Ordering::SeqCst);
                });
            }
            Err(error) => {
                eprintln!("toolbox serve: accept: {error}");
                simple::pause(Duration::from_millis(50));
            }
        }
    }
}

fn serve_http(stream: TcpStream, name: &str) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let peer = stream.peer_addr()?;
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut writer = stream;
    while let Some(message) = Message::read(&mut reader)? {
        let Some((_, path, query)) = message.request() else {
            return http::answer(&mut writer, "400 Bad Request", name, b"bad request\n");
        };
        let (status, body) = respond(path, query, &message.body, name, peer);
        http::answer(&mut writer, status, name, &body)?;
        if path == "/exit" {
            signals::exit(query.trim_start_matches("code=").parse().unwrap_or(0));
        }
        if message
            .header("connection")
            .is_some_and(|value| value.eq_ignore_ascii_case("close"))
        {
            return Ok(());
        }
    }
    Ok(())
}

fn respond(
    path: &str,
    query: &str,
    body: &[u8],
    name: &str,
    peer: SocketAddr,
) -> (&'static str, Vec<u8>) {
    const OK: &str = "200 OK";
    match path {
        "/" => (OK, format!("Hello from {name}\n").into_bytes()),
        "/hostname" => (OK, format!("{name}\n").into_bytes()),
        "/clientip" => (
            OK,
            format!("{} {}\n", peer.ip().to_canonical(), peer.port()).into_bytes(),
        ),
        "/echo" if body.is_empty() => (OK, format!("{query}\n").into_bytes()),
        "/echo" => (OK, body.to_vec()),
        "/env" => (OK, environment(query).into_bytes()),
        "/delay" => match query.trim_start_matches("ms=").parse() {
            Ok(millis) => {
                simple::pause(Duration::from_millis(millis));
                (OK, b"waited\n".to_vec())
            }
            Err(_) => ("400 Bad Request", b"/delay?MILLISECONDS\n".to_vec()),
        },
        "/exit" => (OK, b"ending\n".to_vec()),
        "/healthz" => (OK, b"ok\n".to_vec()),
        _ => ("404 Not Found", format!("no page {path}\n").into_bytes()),
    }
}

fn environment(name: &str) -> String {
    let mut variables: Vec<(String, String)> = std::env::vars_os()
        .map(|(key, value)| {
            (
                key.to_string_lossy().into_owned(),
                value.to_string_lossy().into_owned(),
            )
        })
        .filter(|(key, _)| name.is_empty() || key == name)
        .collect();
    variables.sort();
    variables
        .iter()
        .map(|(key, value)| format!("{key}={value}\n"))
        .collect()
}

fn echo_stream(stream: TcpStream) -> io::Result<()> {
    stream.set_nodelay(true)?;
    io::copy(&mut stream.try_clone()?, &mut &stream)?;
    (&stream).flush()
}

/// Answers every datagram with the host's name and what was sent.
fn answer_datagrams(socket: &UdpSocket, name: &str) {
    let mut buffer = vec![0; 65_536];
    loop {
        match socket.recv_from(&mut buffer) {
            Ok((length, peer)) => {
                let mut reply = format!("{name} ").into_bytes();
                reply.extend_from_slice(&buffer[..length]);
                if let Err(error) = socket.send_to(&reply, peer) {
                    eprintln!("toolbox serve: answer to {peer}: {error}");
                }
            }
            Err(error) => eprintln!("toolbox serve: datagram: {error}"),
        }
    }
}
