//! The UDP modes: requests on one flow, and one-way packets as fast as they go.
#![expect(
    unsafe_code,
    reason = "sending and receiving many datagrams per call has no safe interface in the standard library"
)]

use std::io::{self, Read};
use std::net::{TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use super::{Measured, Target, streams};
use crate::simple;

/// Datagrams per system call: the path is to be measured, not the calls.
const BATCH: usize = 64;

/// How long an answer may take before the datagram counts as lost.
const TIMEOUT: Duration = Duration::from_millis(500);

fn open(target: &Target) -> io::Result<UdpSocket> {
    let any = if target.to.is_ipv4() {
        "0.0.0.0:0"
    } else {
        "[::]:0"
    };
    let socket = UdpSocket::bind(any)?;
    socket.connect(target.next(&mut streams::seed()))?;
    Ok(socket)
}

/// Requests and answers in turn on one flow.
pub(super) fn request_response(target: &Target) -> io::Result<Measured> {
    let mut measured = Measured::default();
    let socket = open(target)?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    let mut request = vec![0; target.size.max(8)];
    let mut answer = vec![0; request.len()];
    let started = Instant::now();
    for number in 0_u64.. {
        if started.elapsed() >= target.duration {
            break;
        }
        request[..8].copy_from_slice(&number.to_be_bytes());
        let began = Instant::now();
        socket.send(&request)?;
        match socket.recv(&mut answer) {
            Ok(length) if answer[..length] == request[..] => measured.record(began),
            // A late answer to a datagram that had been given up, or no answer.
            Ok(_) => measured.failures += 1,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => measured.failures += 1,
            Err(error) => return Err(error),
        }
    }
    measured.elapsed = started.elapsed();
    Ok(measured)
}

/// Sends as fast as it goes; operations are what the receiver counted, failures what was lost.
pub(super) fn one_way(target: &Target) -> io::Result<Measured> {
    let mut measured = Measured::default();
    let socket = open(target)?;
    let control = target
        .control
        .ok_or_else(|| io::Error::other("`--control` is needed to know what arrived"))?;
    received(control)?;
    let mut batch = Batch::new(target.size);
    let started = Instant::now();
    let mut sent = 0;
    while started.elapsed() < target.duration {
        sent += batch.send(&socket)? as u64;
    }
    measured.elapsed = started.elapsed();
    // What is still in a queue belongs to the run; a queue is emptied in far less.
    simple::pause(Duration::from_millis(20));
    measured.operations = received(control)?;
    measured.failures = sent.saturating_sub(measured.operations);
    Ok(measured)
}

/// Asks the receiver for its count, which begins anew.
fn received(control: std::net::SocketAddr) -> io::Result<u64> {
    let mut count = [0; 8];
    TcpStream::connect(control)?.read_exact(&mut count)?;
    Ok(u64::from_be_bytes(count))
}

/// Buffers for many datagrams per system call. The pointers lead into `bytes`, which never moves.
#[derive(Debug)]
pub(super) struct Batch {
    _bytes: Vec<u8>,
    _vectors: Vec<libc::iovec>,
    headers: Vec<libc::mmsghdr>,
}

impl Batch {
    /// Datagrams of `size` bytes, or room for them.
    pub(super) fn new(size: usize) -> Self {
        let mut bytes = vec![0x5a_u8; size * BATCH];
        let mut vectors: Vec<libc::iovec> = bytes
            .chunks_exact_mut(size)
            .map(|chunk| libc::iovec {
                iov_base: chunk.as_mut_ptr().cast(),
                iov_len: chunk.len(),
            })
            .collect();
        let headers = vectors
            .iter_mut()
            .map(|vector| {
                // SAFETY: all-zero is a valid header: no name, no control data, no flags.
                let mut header: libc::mmsghdr = unsafe { std::mem::zeroed() };
                header.msg_hdr.msg_iov = vector;
                header.msg_hdr.msg_iovlen = 1;
                header
            })
            .collect();
        Self {
            _bytes: bytes,
            _vectors: vectors,
            headers,
        }
    }

    /// Sends the datagrams; how many went.
    fn send(&mut self, socket: &UdpSocket) -> io::Result<usize> {
        // SAFETY: the headers point to vectors and bytes that this value owns and does not move.
        let sent = unsafe {
            libc::sendmmsg(
                socket.as_raw_fd(),
                self.headers.as_mut_ptr(),
                self.headers.len() as u32,
                0,
            )
        };
        match usize::try_from(sent) {
            Ok(sent) => Ok(sent),
            Err(_) => match io::Error::last_os_error() {
                // A full queue on the way is part of the measurement.
                error if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(0),
                error => Err(error),
            },
        }
    }

    /// Waits for one datagram and takes what is there; how many.
    pub(super) fn receive(&mut self, socket: &UdpSocket) -> io::Result<usize> {
        // SAFETY: as in `send`; the kernel writes at most `iov_len` bytes behind each pointer.
        let received = unsafe {
            libc::recvmmsg(
                socket.as_raw_fd(),
                self.headers.as_mut_ptr(),
                self.headers.len() as u32,
                libc::MSG_WAITFORONE,
                std::ptr::null_mut(),
            )
        };
        usize::try_from(received).map_err(|_| io::Error::last_os_error())
    }
}

/// Lets the socket queue megabytes, so that a receiver that is not scheduled for a moment loses nothing.
pub(super) fn grow_receive_buffer(socket: &UdpSocket) -> io::Result<()> {
    let bytes: libc::c_int = 8 << 20;
    let set = |option: libc::c_int| {
        // SAFETY: the value is a live integer of the size that is passed.
        unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                option,
                (&raw const bytes).cast(),
                size_of::<libc::c_int>() as u32,
            )
        }
    };
    // Without the privilege the ordinary limit has to do.
    if set(libc::SO_RCVBUFFORCE) == 0 || set(libc::SO_RCVBUF) == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
