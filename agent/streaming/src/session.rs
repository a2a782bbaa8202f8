//! The server side of one exec or attach session: channels in, channels out, and the final `Status`.
//!
//! Channel 0 is stdin, 1 stdout, 2 stderr, 3 the status, 4 terminal sizes; on v5 channel 255 closes the
//! channel named in its payload. Owns no process: the streams are the caller's.

use std::future::Future;
use std::pin::Pin;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use futures::{SinkExt, Stream, StreamExt};
use serde::Deserialize;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error as WsError, Message};

use crate::handshake::Protocol;
use crate::status::ExecOutcome;

const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const STATUS: u8 = 3;
const RESIZE: u8 = 4;
const CLOSE: u8 = 255;

/// Bytes read from a process at once; kubectl uses the same.
const CHUNK_BYTES: usize = 32 * 1024;
/// A message larger than this is a broken or hostile client.
const MAX_MESSAGE_BYTES: usize = 4 << 20;
/// After the exit of the process its pipes may be held open by a child it left behind. Output that still
/// flows is delivered; this long a silence ends the session.
const DRAIN_SILENCE: Duration = Duration::from_secs(1);
/// Keeps proxies and NAT tables from forgetting an idle shell.
const PING_INTERVAL: Duration = Duration::from_secs(30);

/// The streams of one session as the owner of the process holds them.
pub struct SessionStreams {
    /// Where channel 0 goes; `None` when the client did not ask for stdin.
    pub stdin: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    pub stdout: Option<Box<dyn AsyncRead + Send + Unpin>>,
    pub stderr: Option<Box<dyn AsyncRead + Send + Unpin>>,
    /// (columns, rows); `None` without a terminal.
    pub resize: Option<mpsc::Sender<(u16, u16)>>,
}

impl std::fmt::Debug for SessionStreams {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SessionStreams")
            .field("stdin", &self.stdin.is_some())
            .field("stdout", &self.stdout.is_some())
            .field("stderr", &self.stderr.is_some())
            .field("resize", &self.resize.is_some())
            .finish()
    }
}

/// Why a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SessionEnd {
    /// The status was delivered.
    Finished,
    /// The client went away first.
    Disconnected,
}

/// Runs a session over a connection whose handshake is done.
pub async fn serve_websocket<S>(
    connection: S,
    protocol: Protocol,
    streams: SessionStreams,
    exit: impl Future<Output = ExecOutcome> + Send,
) -> SessionEnd
where
    S: AsyncRead + AsyncWrite + Send + Unpin,
{
    let config = WebSocketConfig::default()
        .max_message_size(Some(MAX_MESSAGE_BYTES))
        .max_frame_size(Some(MAX_MESSAGE_BYTES))
        .read_buffer_size(16 * 1024);
    let socket = WebSocketStream::from_raw_socket(connection, Role::Server, Some(config)).await;
    run_session(socket, protocol, streams, exit).await
}

/// Pumps all channels until the process has exited and its output is delivered, or the client is gone.
pub async fn run_session<S>(
    socket: WebSocketStream<S>,
    protocol: Protocol,
    streams: SessionStreams,
    exit: impl Future<Output = ExecOutcome> + Send,
) -> SessionEnd
where
    S: AsyncRead + AsyncWrite + Send + Unpin,
{
    let (mut to_client, from_client) = socket.split();
    let (outgoing, mut queue) = mpsc::channel::<Message>(8);
    let SessionStreams {
        stdin,
        stdout,
        stderr,
        resize,
    } = streams;

    // Upstream announces the connection with an empty message on the first readable channel; clients
    // that wait for it exist.
    let first = if stdout.is_some() {
        STDOUT
    } else if stderr.is_some() {
        STDERR
    } else {
        STATUS
    };
    if to_client.send(framed(first, &[])).await.is_err() {
        return SessionEnd::Disconnected;
    }

    let output = async {
        let last_output = std::sync::atomic::AtomicU64::new(0);
        let pumps = async {
            tokio::join!(
                pump(STDOUT, stdout, &outgoing, &last_output),
                pump(STDERR, stderr, &outgoing, &last_output)
            );
        };
        tokio::pin!(pumps);
        let mut pumps_done = false;
        tokio::pin!(exit);
        let outcome = loop {
            tokio::select! {
                outcome = &mut exit => break outcome,
                () = &mut pumps, if !pumps_done => pumps_done = true,
            }
        };
        let mut seen = last_output.load(std::sync::atomic::Ordering::Relaxed);
        while !pumps_done {
            tokio::select! {
                () = &mut pumps => pumps_done = true,
                () = tokio::time::sleep(DRAIN_SILENCE) => {
                    let now = last_output.load(std::sync::atomic::Ordering::Relaxed);
                    if now == seen {
                        break;
                    }
                    seen = now;
                }
            }
        }
        let status = framed(STATUS, outcome.to_status().to_string().as_bytes());
        let close = Message::Close(Some(CloseFrame {
            code: CloseCode::Normal,
            reason: "".into(),
        }));
        // A closed queue means that the client is gone; there is nobody to tell.
        outgoing.send(status).await.is_ok() && outgoing.send(close).await.is_ok()
    };
    let input = read_input(from_client, protocol, stdin, resize);

    tokio::pin!(output, input);
    let mut ping =
        tokio::time::interval_at(tokio::time::Instant::now() + PING_INTERVAL, PING_INTERVAL);
    ping.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut output_done = false;
    let mut input_done = false;
    loop {
        tokio::select! {
            biased;
            Some(message) = queue.recv() => {
                let is_close = matches!(message, Message::Close(_));
                if to_client.send(message).await.is_err() {
                    return SessionEnd::Disconnected;
                }
                if is_close {
                    // Wait shortly for the client's half of the closing handshake, so that the last
                    // frames are not lost to a reset.
                    if !input_done {
                        drop(tokio::time::timeout(DRAIN_SILENCE, &mut input).await);
                    }
                    return SessionEnd::Finished;
                }
            }
            _delivered = &mut output, if !output_done => output_done = true,
            end = &mut input, if !input_done => {
                input_done = true;
                if end == InputEnd::Gone && !output_done {
                    return SessionEnd::Disconnected;
                }
            }
            _ = ping.tick() => {
                if to_client.send(Message::Ping(Bytes::new())).await.is_err() {
                    return SessionEnd::Disconnected;
                }
            }
        }
    }
}

/// Copies one output stream into frames of its channel. Read errors end the channel only.
async fn pump(
    channel: u8,
    source: Option<Box<dyn AsyncRead + Send + Unpin>>,
    outgoing: &mpsc::Sender<Message>,
    progress: &std::sync::atomic::AtomicU64,
) {
    let Some(mut source) = source else { return };
    let mut buffer = vec![0; CHUNK_BYTES];
    loop {
        match source.read(&mut buffer).await {
            Ok(0) => return,
            Ok(count) => {
                progress.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                if outgoing
                    .send(framed(channel, &buffer[..count]))
                    .await
                    .is_err()
                {
                    return;
                }
            }
            Err(error) => {
                // A terminal whose process is gone reads EIO; that is its end of file.
                tracing::debug!(channel, %error, "output stream ended");
                return;
            }
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum InputEnd {
    Gone,
}

#[derive(Deserialize)]
struct TerminalSize {
    #[serde(rename = "Width")]
    width: u16,
    #[serde(rename = "Height")]
    height: u16,
}

async fn read_input(
    mut from_client: impl Stream<Item = Result<Message, WsError>> + Unpin,
    protocol: Protocol,
    mut stdin: Option<Box<dyn AsyncWrite + Send + Unpin>>,
    resize: Option<mpsc::Sender<(u16, u16)>>,
) -> InputEnd {
    while let Some(message) = from_client.next().await {
        let payload: Bytes = match message {
            Ok(Message::Binary(bytes)) => bytes,
            Ok(Message::Text(text)) => Bytes::copy_from_slice(text.as_bytes()),
            // tungstenite answers pings by itself.
            Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_)) => continue,
            Ok(Message::Close(_)) => return InputEnd::Gone,
            Err(error) => {
                tracing::debug!(%error, "the client's half of the session ended");
                return InputEnd::Gone;
            }
        };
        let Some((&channel, data)) = payload.split_first() else {
            continue;
        };
        match channel {
            STDIN => {
                let failed = match stdin.as_mut() {
                    Some(writer) => write_all(writer, data).await.is_err(),
                    None => false,
                };
                if failed {
                    // The process closed its stdin: later bytes go nowhere, the session lives on.
                    stdin = None;
                }
            }
            RESIZE => {
                if let (Some(resize), Ok(size)) =
                    (&resize, serde_json::from_slice::<TerminalSize>(data))
                {
                    // A full queue already holds a newer size than the terminal has.
                    resize.try_send((size.width, size.height)).ok();
                }
            }
            CLOSE if protocol == Protocol::V5 => {
                if data.first() == Some(&STDIN)
                    && let Some(mut writer) = stdin.take()
                {
                    // The error says that the process closed it first.
                    writer.shutdown().await.ok();
                }
            }
            _ => tracing::debug!(channel, "message on a channel that clients do not write"),
        }
    }
    InputEnd::Gone
}

async fn write_all(
    writer: &mut Box<dyn AsyncWrite + Send + Unpin>,
    data: &[u8],
) -> std::io::Result<()> {
    let mut writer = Pin::new(writer);
    writer.write_all(data).await?;
    writer.flush().await
}

fn framed(channel: u8, data: &[u8]) -> Message {
    let mut frame = BytesMut::with_capacity(data.len() + 1);
    frame.put_u8(channel);
    frame.put_slice(data);
    Message::Binary(frame.freeze())
}

#[cfg(test)]
mod tests;
