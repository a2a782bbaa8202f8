//! Traffic that accounts for every packet: numbered datagrams, a bulk transfer, short connections.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};

use super::sockets::{in_netns, tcp_ask};

/// What came of the traffic of one test.
#[derive(Clone, Debug, Default)]
pub(crate) struct Account {
    pub(crate) sent: u64,
    pub(crate) lost: u64,
    pub(crate) duplicated: u64,
    pub(crate) reordered: u64,
    /// When a number did not follow the one before.
    pub(crate) gaps: Vec<Instant>,
}

/// Datagrams a second.
pub(crate) const RATE: u64 = 1_000;
/// Room for everything that comes while a loaded machine does not run the receiver.
const RECEIVE_BUFFER: usize = 32 << 20;
/// A sender that was not run for a while does not make up for more than this at once: the kernel's
/// own queues between interfaces are short, and what they drop is not the dataplane's loss.
const BURST: u64 = 16;

/// Calls `step` with 1, 2, … at a rate until told to stop.
fn paced(
    stop: &AtomicBool,
    interval: Duration,
    mut step: impl FnMut(u64) -> io::Result<()>,
) -> io::Result<u64> {
    let (mut number, mut due) = (0, Instant::now());
    while !stop.load(Ordering::Relaxed) {
        let now = Instant::now();
        if let Some(early) = due.checked_duration_since(now) {
            std::thread::sleep(early);
        }
        due = due.max(now - interval * BURST as u32) + interval;
        number += 1;
        step(number)?;
    }
    Ok(number)
}

/// One flow of numbered datagrams in one direction.
pub(crate) struct Datagrams {
    stop: Arc<AtomicBool>,
    sender: JoinHandle<io::Result<u64>>,
    /// Set once every datagram is sent.
    done: Arc<AtomicBool>,
    receiver: JoinHandle<Account>,
}

impl Datagrams {
    /// Sends to `to`, which must lead to `at` in the namespace `server`.
    pub(crate) fn start(client: &str, to: SocketAddr, server: &str, at: SocketAddr) -> Self {
        let sink = in_netns(server, move || UdpSocket::bind(at)).unwrap();
        setsockopt(&sink, sockopt::RcvBufForce, &RECEIVE_BUFFER).unwrap();
        sink.set_read_timeout(Some(Duration::from_millis(50)))
            .unwrap();
        let source = in_netns(client, move || {
            let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let socket = UdpSocket::bind(any)?;
            socket.connect(to)?;
            io::Result::Ok(socket)
        })
        .unwrap();
        let (stop, done) = (Arc::new(AtomicBool::new(false)), Arc::default());
        let (stopped, finished) = (Arc::clone(&stop), Arc::clone(&done));
        let sender = std::thread::spawn(move || {
            paced(
                &stopped,
                Duration::from_micros(1_000_000 / RATE),
                |number| source.send(&number.to_be_bytes()).map(drop),
            )
        });
        let receiver = std::thread::spawn(move || receive(&sink, &finished));
        Self {
            stop,
            sender,
            done,
            receiver,
        }
    }

    pub(crate) fn finish(self) -> io::Result<Account> {
        self.stop.store(true, Ordering::Relaxed);
        let sent = self.sender.join().unwrap()?;
        self.done.store(true, Ordering::Relaxed);
        let mut account = self.receiver.join().unwrap();
        account.lost = sent - account.sent;
        account.sent = sent;
        Ok(account)
    }
}

/// Counts until nothing has come for a while after the last was sent. `sent` is what arrived.
fn receive(sink: &UdpSocket, done: &AtomicBool) -> Account {
    let (mut account, mut last) = (Account::default(), 0);
    let mut seen = vec![false; 1 << 20];
    let mut quiet = 0;
    let mut buffer = [0; 64];
    while quiet < 10 {
        let Ok(length) = sink.recv(&mut buffer) else {
            quiet += u32::from(done.load(Ordering::Relaxed));
            continue;
        };
        let number = u64::from_be_bytes(buffer[..length].try_into().unwrap());
        let index = usize::try_from(number).unwrap();
        if index >= seen.len() {
            seen.resize(2 * index, false);
        }
        if number > last + 1 {
            account.gaps.push(Instant::now());
        }
        account.duplicated += u64::from(seen[index]);
        account.sent += u64::from(!seen[index]);
        account.reordered += u64::from(number < last);
        seen[index] = true;
        last = last.max(number);
    }
    account
}

/// One connection with a steady stream of bytes whose order the receiver checks.
pub(crate) struct Bulk {
    stop: Arc<AtomicBool>,
    sender: JoinHandle<io::Result<u64>>,
    receiver: JoinHandle<io::Result<u64>>,
}

const CHUNK: usize = 32 * 1024;

/// The byte at a place of the stream; the period fits neither segments nor chunks.
fn pattern() -> Vec<u8> {
    (0..251 * 1024_u32).map(|at| (at % 251) as u8).collect()
}

impl Bulk {
    /// About 16 MB/s to `to`, which must lead to `at` in the namespace `server`.
    pub(crate) fn start(client: &str, to: SocketAddr, server: &str, at: SocketAddr) -> Self {
        let listener = in_netns(server, move || TcpListener::bind(at)).unwrap();
        let receiver = std::thread::spawn(move || {
            let (mut stream, _) = listener.accept()?;
            drain(&mut stream)
        });
        let patience = Duration::from_secs(10);
        let connect = move || TcpStream::connect_timeout(&to, patience);
        let mut stream = in_netns(client, connect).unwrap();
        stream.set_write_timeout(Some(patience)).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = Arc::clone(&stop);
        let sender = std::thread::spawn(move || {
            let (pattern, mut at) = (pattern(), 0);
            let chunks = paced(&stopped, Duration::from_millis(2), |_| {
                stream.write_all(&pattern[at..at + CHUNK])?;
                at = (at + CHUNK) % 251;
                Ok(())
            })?;
            stream.shutdown(std::net::Shutdown::Write)?;
            Ok(chunks * CHUNK as u64)
        });
        Self {
            stop,
            sender,
            receiver,
        }
    }

    /// Bytes sent and received.
    pub(crate) fn finish(self) -> io::Result<(u64, u64)> {
        self.stop.store(true, Ordering::Relaxed);
        let sent = self.sender.join().unwrap()?;
        Ok((sent, self.receiver.join().unwrap()?))
    }
}

fn drain(stream: &mut TcpStream) -> io::Result<u64> {
    let (pattern, mut total) = (pattern(), 0_u64);
    let mut buffer = vec![0; 128 * 1024];
    loop {
        let length = stream.read(&mut buffer)?;
        if length == 0 {
            return Ok(total);
        }
        let at = usize::try_from(total % 251).unwrap();
        if buffer[..length] != pattern[at..at + length] {
            return Err(io::Error::other(format!("wrong bytes after {total}")));
        }
        total += length as u64;
    }
}

/// A new connection for every request, fifty a second.
pub(crate) struct Connections {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<(u64, Vec<String>)>,
}

impl Connections {
    pub(crate) fn start(client: &str, to: SocketAddr, answer: &'static str) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (stopped, client) = (Arc::clone(&stop), client.to_owned());
        let thread = std::thread::spawn(move || {
            let mut failures = Vec::new();
            let asked = paced(&stopped, Duration::from_millis(20), |number| {
                match tcp_ask(&client, to) {
                    Ok(found) if found == answer => (),
                    other => failures.push(format!("connection {number} to {to}: {other:?}")),
                }
                Ok(())
            });
            (asked.expect("asking does not end the loop"), failures)
        });
        Self { stop, thread }
    }

    /// Connections made, and what failed.
    pub(crate) fn finish(self) -> (u64, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap()
    }
}
