//! Container logs in CRI format: framing of two byte streams into `<time> <stream> <F|P> <line>`.
//!
//! [`Framer`] is pure; [`pump`] moves bytes from the FIFOs to the file. A container must never block or
//! die for its log: when the file cannot be written the bytes are counted, reported and dropped.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe::Receiver;
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::fanout::{Fanout, Stream};
use super::log_file::{LogFile, LogLimits};

/// Longest piece of a line in one entry, as containerd's CRI plugin has it.
const MAX_LINE: usize = 16 << 10;
const READ_SIZE: usize = 64 << 10;
/// A line without its newline is written as partial after this: a prompt shows up in `logs -f`, and an
/// agent that is killed loses at most this much of it.
const PARTIAL_AFTER: Duration = Duration::from_millis(50);

/// Splits one stream into entries.
#[derive(Debug)]
pub(super) struct Framer {
    stream: &'static str,
    pending: Vec<u8>,
}

impl Framer {
    pub(super) fn new(stream: &'static str) -> Self {
        Self {
            stream,
            pending: Vec::new(),
        }
    }

    /// Appends the entries that `bytes` completes to `out`.
    pub(super) fn push(&mut self, bytes: &[u8], now: Timestamp, out: &mut Vec<u8>) {
        let mut rest = bytes;
        while !rest.is_empty() {
            let newline = rest.iter().position(|&byte| byte == b'\n');
            let mut line = &rest[..newline.unwrap_or(rest.len())];
            while self.pending.len() + line.len() > MAX_LINE {
                let (piece, left) = line.split_at(MAX_LINE - self.pending.len());
                self.pending.extend_from_slice(piece);
                self.emit('P', now, out);
                line = left;
            }
            self.pending.extend_from_slice(line);
            match newline {
                Some(at) => {
                    self.emit('F', now, out);
                    rest = &rest[at + 1..];
                }
                None => return,
            }
        }
    }

    /// Writes an unfinished line as partial.
    pub(super) fn flush(&mut self, now: Timestamp, out: &mut Vec<u8>) {
        if self.has_partial() {
            self.emit('P', now, out);
        }
    }

    pub(super) fn has_partial(&self) -> bool {
        !self.pending.is_empty()
    }

    fn emit(&mut self, tag: char, now: Timestamp, out: &mut Vec<u8>) {
        out.extend_from_slice(format!("{now:.9} {} {tag} ", self.stream).as_bytes());
        out.append(&mut self.pending);
        out.push(b'\n');
    }
}

/// Where the bytes of a container go.
#[derive(Debug)]
pub(super) struct Sinks {
    pub(super) path: PathBuf,
    pub(super) limits: LogLimits,
    pub(super) output: Arc<Fanout>,
}

/// Copies both streams into the log, and then to attached clients, until the last writer is gone, or
/// until told to leave the rest to a later agent: then nothing that was taken from a FIFO stays
/// unwritten. `ended` says that no writer is left or will come: a FIFO that was opened after the last
/// one had gone never says so itself.
pub(super) async fn pump(
    stdout: Option<Receiver>,
    stderr: Option<Receiver>,
    sinks: Sinks,
    cancel: CancellationToken,
    ended: CancellationToken,
) {
    let mut log = LogFile::new(sinks.path, sinks.limits);
    let mut out = Source::new(Stream::Stdout, stdout);
    let mut err = Source::new(Stream::Stderr, stderr);
    let mut entries = Vec::new();
    while out.is_open() || err.is_open() {
        let has_partial = out.framer.has_partial() || err.framer.has_partial();
        tokio::select! {
            () = cancel.cancelled() => break,
            () = ended.cancelled() => {
                out.take_rest();
                err.take_rest();
            }
            () = out.fill(), if out.is_open() => {}
            () = err.fill(), if err.is_open() => {}
            () = tokio::time::sleep(PARTIAL_AFTER), if has_partial => {
                let now = Timestamp::now();
                out.framer.flush(now, &mut entries);
                err.framer.flush(now, &mut entries);
            }
        }
        out.frame(&mut entries);
        err.frame(&mut entries);
        log.append(&mut entries).await;
        let publishing = async {
            out.publish(&sinks.output, &ended).await;
            err.publish(&sinks.output, &ended).await;
        };
        cancel.run_until_cancelled(publishing).await;
    }
    let now = Timestamp::now();
    out.framer.flush(now, &mut entries);
    err.framer.flush(now, &mut entries);
    log.append(&mut entries).await;
    log.finish();
    sinks.output.end();
}

struct Source {
    stream: Stream,
    pipe: Option<Receiver>,
    framer: Framer,
    buffer: Vec<u8>,
}

impl Source {
    fn new(stream: Stream, pipe: Option<Receiver>) -> Self {
        Self {
            stream,
            pipe,
            framer: Framer::new(stream.name()),
            buffer: Vec::new(),
        }
    }

    fn is_open(&self) -> bool {
        self.pipe.is_some()
    }

    /// Reads once. Cancel-safe: `read_buf` either takes bytes and completes or takes none.
    async fn fill(&mut self) {
        let Some(pipe) = &mut self.pipe else {
            return;
        };
        self.buffer.reserve(READ_SIZE);
        match pipe.read_buf(&mut self.buffer).await {
            Ok(0) => self.pipe = None,
            Ok(_) => {}
            Err(error) => {
                warn!(stream = self.stream.name(), %error, "cannot read container output");
                self.pipe = None;
            }
        }
    }

    /// Reads what is in the pipe now, past tokio, which would first wait for a readiness event.
    fn take_rest(&mut self) {
        let Some(pipe) = self.pipe.take() else {
            return;
        };
        let mut chunk = vec![0; READ_SIZE];
        while let Ok(count @ 1..) = nix::unistd::read(&pipe, &mut chunk) {
            self.buffer.extend_from_slice(&chunk[..count]);
        }
    }

    /// The bytes of the last read as entries.
    fn frame(&mut self, entries: &mut Vec<u8>) {
        let now = Timestamp::now();
        self.framer.push(&self.buffer, now, entries);
        if self.pipe.is_none() {
            self.framer.flush(now, entries);
        }
    }

    /// The same bytes to attached clients; they are done with then.
    async fn publish(&mut self, output: &Fanout, ended: &CancellationToken) {
        output.publish(self.stream, &self.buffer, ended).await;
        self.buffer.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at() -> Timestamp {
        "2026-01-02T03:04:05.000000006Z".parse().expect("valid")
    }

    fn framed(chunks: &[&[u8]], flush: bool) -> String {
        let mut framer = Framer::new("stdout");
        let mut out = Vec::new();
        for chunk in chunks {
            framer.push(chunk, at(), &mut out);
        }
        if flush {
            framer.flush(at(), &mut out);
        }
        String::from_utf8(out)
            .expect("ascii")
            .replace("2026-01-02T03:04:05.000000006Z stdout", "T")
    }

    #[test]
    fn whole_lines_are_full_and_nanoseconds_are_kept() {
        let mut out = Vec::new();
        Framer::new("stderr").push(b"a\n", at(), &mut out);
        assert_eq!(out, b"2026-01-02T03:04:05.000000006Z stderr F a\n");
        assert_eq!(framed(&[b"a\n\nb\n"], false), "T F a\nT F \nT F b\n");
    }

    #[test]
    fn a_line_in_pieces_is_one_entry() {
        assert_eq!(framed(&[b"he", b"llo\nwo"], false), "T F hello\n");
    }

    #[test]
    fn an_unfinished_last_line_is_partial() {
        assert_eq!(framed(&[b"a\nb"], true), "T F a\nT P b\n");
        assert_eq!(framed(&[b"a\n"], true), "T F a\n");
    }

    #[test]
    fn a_line_longer_than_16_kib_is_cut_into_partials_and_a_full_end() {
        let line = [vec![b'x'; MAX_LINE * 2 + 3], b"\n".to_vec()].concat();
        let text = framed(&[&line], false);
        let tags: Vec<_> = text
            .lines()
            .map(|line| (&line[..3], line.len() - 4))
            .collect();
        assert_eq!(tags, [("T P", MAX_LINE), ("T P", MAX_LINE), ("T F", 3)]);
        let exact = [vec![b'x'; MAX_LINE], b"\n".to_vec()].concat();
        assert_eq!(framed(&[&exact], false).lines().count(), 1);
    }
}
