//! Output of one container to everybody who is attached, beside its log.
//!
//! A client gets what was written last, then all that follows. It may be slow for a while, which slows
//! the container as a terminal would; one that stands still is cut off, because a container must never
//! hang for somebody who watches it.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::Mutex;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// What a new client sees of the past, per stream.
const REPLAY: usize = 16 << 10;
/// Reads that a client may be behind.
const BACKLOG: usize = 32;
/// How long one read may wait for a client, and how long once the container has ended.
const PATIENCE: Duration = Duration::from_secs(10);
const LAST_PATIENCE: Duration = Duration::from_millis(500);

/// Which of the two outputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stream {
    Stdout,
    Stderr,
}

impl Stream {
    /// As it stands in a log entry.
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Stdout => "stdout",
            Self::Stderr => "stderr",
        }
    }
}

/// The clients of both streams and what they are shown first.
#[derive(Debug, Default)]
pub(super) struct Fanout {
    streams: [Mutex<Output>; 2],
}

#[derive(Debug, Default)]
struct Output {
    recent: VecDeque<u8>,
    /// Whether bytes before `recent` were forgotten: it may then begin in the middle of a line.
    is_cut: bool,
    clients: Vec<mpsc::Sender<Bytes>>,
    has_ended: bool,
}

impl Fanout {
    fn output(&self, stream: Stream) -> std::sync::MutexGuard<'_, Output> {
        self.streams[stream as usize]
            .lock()
            .expect("never poisoned")
    }

    /// Joins a stream. It ends with the container.
    pub(super) fn subscribe(&self, stream: Stream) -> OutputReader {
        let mut output = self.output(stream);
        let (sender, receiver) = mpsc::channel(BACKLOG);
        let reader = OutputReader {
            current: output.replay(),
            receiver,
        };
        if !output.has_ended {
            output.clients.push(sender);
        }
        reader
    }

    /// Hands `bytes` to every client. `ended` cuts the patience short: the exit waits for this.
    pub(super) async fn publish(&self, stream: Stream, bytes: &[u8], ended: &CancellationToken) {
        if bytes.is_empty() {
            return;
        }
        let clients = {
            let mut output = self.output(stream);
            output.remember(bytes);
            output.clients.clone()
        };
        if clients.is_empty() {
            return;
        }
        let bytes = Bytes::copy_from_slice(bytes);
        for client in clients {
            if !deliver(&client, &bytes, ended).await {
                self.output(stream)
                    .clients
                    .retain(|other| !other.same_channel(&client));
            }
        }
    }

    /// Ends the streams of all clients once they have read what is theirs.
    pub(super) fn end(&self) {
        for stream in [Stream::Stdout, Stream::Stderr] {
            let mut output = self.output(stream);
            output.has_ended = true;
            output.clients.clear();
        }
    }
}

impl Output {
    fn remember(&mut self, bytes: &[u8]) {
        let bytes = match bytes.len().checked_sub(REPLAY) {
            Some(surplus) if surplus > 0 => {
                self.is_cut = true;
                &bytes[surplus..]
            }
            _ => bytes,
        };
        let surplus = (self.recent.len() + bytes.len()).saturating_sub(REPLAY);
        self.is_cut |= surplus > 0;
        self.recent.drain(..surplus);
        self.recent.extend(bytes);
    }

    /// From the start of a line if there is one.
    fn replay(&self) -> Bytes {
        let first_line = self.recent.iter().position(|&byte| byte == b'\n');
        let skip = match first_line {
            Some(newline) if self.is_cut => newline + 1,
            _ => 0,
        };
        self.recent.range(skip..).copied().collect()
    }
}

/// False when the client has gone or stands still.
async fn deliver(client: &mpsc::Sender<Bytes>, bytes: &Bytes, ended: &CancellationToken) -> bool {
    match client.try_send(bytes.clone()) {
        Ok(()) => return true,
        Err(mpsc::error::TrySendError::Closed(_)) => return false,
        Err(mpsc::error::TrySendError::Full(_)) => {}
    }
    let last_call = async {
        ended.cancelled().await;
        tokio::time::sleep(LAST_PATIENCE).await;
    };
    tokio::select! {
        sent = client.send(bytes.clone()) => sent.is_ok(),
        () = last_call => false,
        () = tokio::time::sleep(PATIENCE) => {
            tracing::info!("an attached client does not read; it is cut off");
            false
        }
    }
}

/// One client's side of one stream.
#[derive(Debug)]
pub(super) struct OutputReader {
    current: Bytes,
    receiver: mpsc::Receiver<Bytes>,
}

impl AsyncRead for OutputReader {
    fn poll_read(
        mut self: Pin<&mut Self>,
        task: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        while self.current.is_empty() {
            match ready!(self.receiver.poll_recv(task)) {
                Some(bytes) => self.current = bytes,
                None => return Poll::Ready(Ok(())),
            }
        }
        let count = self.current.len().min(into.remaining());
        into.put_slice(&self.current[..count]);
        self.current.advance(count);
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;
    use tokio::time::Instant;

    use super::*;

    async fn rest(mut reader: OutputReader) -> String {
        let mut text = String::new();
        reader.read_to_string(&mut text).await.unwrap();
        text
    }

    #[tokio::test]
    async fn every_client_sees_what_was_and_what_comes() {
        let (fanout, ended) = (Fanout::default(), CancellationToken::new());
        fanout.publish(Stream::Stdout, b"one\n", &ended).await;
        let early = fanout.subscribe(Stream::Stdout);
        let other = fanout.subscribe(Stream::Stderr);
        fanout.publish(Stream::Stdout, b"two\n", &ended).await;
        let late = fanout.subscribe(Stream::Stdout);
        drop(fanout.subscribe(Stream::Stdout));
        fanout.publish(Stream::Stdout, b"three", &ended).await;
        fanout.end();
        for reader in [early, late, fanout.subscribe(Stream::Stdout)] {
            assert_eq!(rest(reader).await, "one\ntwo\nthree");
        }
        assert_eq!(rest(other).await, "");
    }

    #[tokio::test]
    async fn the_past_is_bounded_and_begins_with_a_line() {
        let (fanout, ended) = (Fanout::default(), CancellationToken::new());
        for number in 0..10_000 {
            let line = format!("line {number}\n");
            fanout
                .publish(Stream::Stderr, line.as_bytes(), &ended)
                .await;
        }
        let huge = vec![b'x'; 3 * REPLAY];
        fanout.publish(Stream::Stdout, &huge, &ended).await;
        fanout.end();
        let text = rest(fanout.subscribe(Stream::Stderr)).await;
        assert!(text.len() <= REPLAY && text.len() > REPLAY - 16);
        assert!(text.starts_with("line ") && text.ends_with("line 9999\n"));
        assert_eq!(rest(fanout.subscribe(Stream::Stdout)).await.len(), REPLAY);
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_stands_still_is_cut_off_and_the_others_lose_nothing() {
        let (fanout, ended) = (Fanout::default(), CancellationToken::new());
        let stuck = fanout.subscribe(Stream::Stdout);
        let reader = tokio::spawn(rest(fanout.subscribe(Stream::Stdout)));
        let begin = Instant::now();
        for _ in 0..100 {
            fanout.publish(Stream::Stdout, b"0123456789", &ended).await;
        }
        assert_eq!(begin.elapsed().as_secs(), PATIENCE.as_secs(), "waits once");
        fanout.end();
        assert_eq!(reader.await.unwrap().len(), 1000);
        assert_eq!(rest(stuck).await.len(), BACKLOG * 10);
    }

    #[tokio::test(start_paused = true)]
    async fn the_end_of_the_container_does_not_wait_for_a_slow_client() {
        let (fanout, ended) = (Fanout::default(), CancellationToken::new());
        let _stuck = fanout.subscribe(Stream::Stdout);
        ended.cancel();
        let begin = Instant::now();
        for _ in 0..100 {
            fanout.publish(Stream::Stdout, b"x", &ended).await;
        }
        assert!(begin.elapsed() <= LAST_PATIENCE + Duration::from_millis(1));
    }
}
