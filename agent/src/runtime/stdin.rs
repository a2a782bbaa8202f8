//! The standard input of a container: one FIFO, any number of attached clients.

use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};
use tokio::net::unix::pipe::Sender;
use tokio::sync::{mpsc, oneshot};
use tokio_util::task::AbortOnDropHandle;

const CHUNK: usize = 16 << 10;
/// Chunks that clients may be ahead of the container.
const BACKLOG: usize = 4;

/// The writing side. Dropping it closes the agent's end and nothing else: the shim has one of its own.
#[derive(Debug)]
pub(super) struct Stdin {
    input: mpsc::Sender<Input>,
    is_closed: AtomicBool,
    /// Aborted with the container: its FIFO may be full for ever.
    writer: AbortOnDropHandle<()>,
}

#[derive(Debug)]
enum Input {
    Bytes(Bytes),
    /// Answered when everything before it is in the FIFO.
    Flush(oneshot::Sender<()>),
}

impl Stdin {
    pub(super) fn new(fifo: Sender) -> Self {
        let (input, received) = mpsc::channel(BACKLOG);
        Self {
            input,
            is_closed: AtomicBool::new(false),
            writer: AbortOnDropHandle::new(tokio::spawn(write(fifo, received))),
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.is_closed.load(Ordering::Acquire)
    }

    /// Closes the agent's end for this and all later clients. False if it was closed already.
    pub(super) fn close(&self) -> bool {
        self.writer.abort();
        !self.is_closed.swap(true, Ordering::AcqRel)
    }

    /// Copies what a client writes until it closes its side and everything is in the FIFO.
    pub(super) async fn feed(&self, mut client: DuplexStream) {
        let mut chunk = vec![0; CHUNK];
        while let Ok(count @ 1..) = client.read(&mut chunk).await {
            let bytes = Bytes::copy_from_slice(&chunk[..count]);
            if self.input.send(Input::Bytes(bytes)).await.is_err() {
                return;
            }
        }
        let (flushed, written) = oneshot::channel();
        if self.input.send(Input::Flush(flushed)).await.is_ok() {
            written.await.ok();
        }
    }
}

async fn write(mut fifo: Sender, mut received: mpsc::Receiver<Input>) {
    while let Some(input) = received.recv().await {
        match input {
            Input::Bytes(bytes) => {
                if let Err(error) = fifo.write_all(&bytes).await {
                    tracing::debug!(%error, "the standard input of a container ended");
                    return;
                }
            }
            Input::Flush(flushed) => drop(flushed.send(())),
        }
    }
}
