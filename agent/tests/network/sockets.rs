//! Real sockets inside namespaces: servers that say their name, clients that ask, numbered transfers.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use nix::sched::{CloneFlags, setns};

const PATIENCE: Duration = Duration::from_secs(5);

/// Runs `ip` and returns its output.
pub(crate) fn ip(arguments: &[&str]) -> String {
    let output = Command::new("ip").args(arguments).output().unwrap();
    assert!(
        output.status.success(),
        "ip {arguments:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Runs `work` on a thread inside the namespace; sockets it returns stay there.
pub(crate) fn in_netns<T: Send + 'static>(
    netns: &str,
    work: impl FnOnce() -> T + Send + 'static,
) -> T {
    let file = File::open(format!("/run/netns/{netns}")).unwrap();
    let thread = std::thread::spawn(move || {
        setns(file, CloneFlags::CLONE_NEWNET).unwrap();
        work()
    });
    thread.join().unwrap()
}

/// Answers TCP and UDP on `address` for the rest of the test: `name`, or an echo of what has a number.
pub(crate) fn serve(netns: &str, address: SocketAddr, name: &str) {
    let (listener, socket) = in_netns(netns, move || {
        (
            TcpListener::bind(address).unwrap(),
            UdpSocket::bind(address).unwrap(),
        )
    });
    let answer = name.as_bytes().to_vec();
    let reply = move |asked: &[u8], from: SocketAddr| match asked {
        b"name" => answer.clone(),
        b"peer" => from.ip().to_canonical().to_string().into_bytes(),
        other => other.to_vec(),
    };
    let udp_reply = reply.clone();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let reply = reply.clone();
            std::thread::spawn(move || answer_stream(stream, reply));
        }
    });
    std::thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            socket
                .send_to(&udp_reply(&buffer[..length], from), from)
                .ok();
        }
    });
}

fn answer_stream(mut stream: TcpStream, reply: impl Fn(&[u8], SocketAddr) -> Vec<u8>) {
    let Ok(from) = stream.peer_addr() else { return };
    let mut buffer = [0; 2048];
    while let Ok(length @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&reply(&buffer[..length], from)).is_err() {
            return;
        }
    }
}

pub(crate) fn tcp_ask(netns: &str, to: SocketAddr) -> io::Result<String> {
    tcp_ask_for(netns, to, b"name")
}

/// Asks for the name of the server, or as whom it sees the client ("peer").
pub(crate) fn tcp_ask_for(
    netns: &str,
    to: SocketAddr,
    question: &'static [u8],
) -> io::Result<String> {
    in_netns(netns, move || {
        let mut stream = TcpStream::connect_timeout(&to, PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(question)?;
        let mut buffer = [0; 64];
        let length = stream.read(&mut buffer)?;
        Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
    })
}

pub(crate) struct UdpFlow(UdpSocket);

impl UdpFlow {
    pub(crate) fn ask(&self) -> io::Result<String> {
        self.ask_for(b"name")
    }

    pub(crate) fn ask_for(&self, question: &[u8]) -> io::Result<String> {
        self.0.send(question)?;
        let mut buffer = [0; 64];
        let length = self.0.recv(&mut buffer)?;
        Ok(String::from_utf8_lossy(&buffer[..length]).into_owned())
    }
}

/// A connected socket: one flow for as long as it lives.
pub(crate) fn udp_flow(netns: &str, to: SocketAddr) -> UdpFlow {
    in_netns(netns, move || open_udp(None, to))
        .map(UdpFlow)
        .unwrap()
}

fn open_udp(from: Option<IpAddr>, to: SocketAddr) -> io::Result<UdpSocket> {
    let any = if to.is_ipv4() {
        [0, 0, 0, 0].into()
    } else {
        IpAddr::from([0_u8; 16])
    };
    let socket = UdpSocket::bind((from.unwrap_or(any), 0))?;
    socket.connect(to)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    Ok(socket)
}

pub(crate) fn udp_ask(netns: &str, from: Option<IpAddr>, to: SocketAddr) -> io::Result<String> {
    in_netns(netns, move || {
        open_udp(from, to).and_then(|socket| UdpFlow(socket).ask())
    })
}

/// Addresses of the calling thread's namespace that a socket can be bound to, without loopback.
pub(crate) fn local_addresses() -> Vec<IpAddr> {
    let addresses = nix::ifaddrs::getifaddrs().unwrap();
    addresses
        .filter_map(|interface| {
            let address = interface.address?;
            let v4 = address.as_sockaddr_in().map(|a| IpAddr::V4(a.ip()));
            v4.or_else(|| address.as_sockaddr_in6().map(|a| IpAddr::V6(a.ip())))
        })
        .collect()
}

/// Numbered messages over one flow, until it is told to finish.
pub(crate) struct Transfer {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<io::Result<(u32, u32)>>,
}

impl Transfer {
    /// One connection; every message is echoed before the next is sent.
    pub(crate) fn tcp(netns: &str, to: SocketAddr) -> Self {
        let mut stream =
            in_netns(netns, move || TcpStream::connect_timeout(&to, PATIENCE)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        Self::run(move |number| {
            stream.write_all(&number.to_be_bytes())?;
            let mut answer = [0; 4];
            stream.read_exact(&mut answer)?;
            Ok(u32::from(answer == number.to_be_bytes()))
        })
    }

    /// One flow of a thousand datagrams a second; answers are counted as they come.
    pub(crate) fn udp(netns: &str, to: SocketAddr) -> Self {
        let socket = in_netns(netns, move || open_udp(None, to)).unwrap();
        Self::run(move |number| {
            socket.send(&number.to_be_bytes())?;
            let mut answer = [0; 64];
            let length = socket.recv(&mut answer)?;
            Ok(u32::from(answer[..length] == number.to_be_bytes()))
        })
    }

    fn run(mut exchange: impl FnMut(u32) -> io::Result<u32> + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let thread = std::thread::spawn(move || {
            let (mut sent, mut answered) = (0, 0);
            while !stopped.load(Ordering::Relaxed) {
                sent += 1;
                answered += exchange(sent)?;
                std::thread::sleep(Duration::from_millis(1));
            }
            Ok((sent, answered))
        });
        Self { stop, thread }
    }

    /// Messages sent and answered.
    pub(crate) fn finish(self) -> io::Result<(u32, u32)> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}
