//! A watch: a bounded queue of shared events between a back-end and one reader.
//!
//! A reader that does not keep up is cut off instead of growing the queue: it learns so from
//! [`WatchEnd::Overflow`] and starts again from the last revision it saw.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

use tokio::sync::mpsc;

use crate::event::Event;
use crate::store::Revision;

/// Events that may wait for one reader.
const QUEUE_EVENTS: usize = 4096;
/// Bytes that may wait for one reader. Values are shared between readers, so this bounds what one
/// slow reader alone can keep alive.
const QUEUE_BYTES: usize = 8 << 20;

/// Set once events were dropped.
const OVERFLOW: u8 = 1;

/// Why a watch delivers nothing more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchEnd {
    /// The reader was too slow and events were dropped.
    Overflow,
    /// The store was closed.
    Closed,
}

#[derive(Debug, Default)]
struct Shared {
    end: AtomicU8,
    queued_bytes: AtomicUsize,
}

/// The reader's end of a watch.
#[derive(Debug)]
pub struct Watch {
    start: Revision,
    replay: VecDeque<Arc<Event>>,
    live: mpsc::Receiver<Arc<Event>>,
    shared: Arc<Shared>,
}

/// The back-end's end of a watch.
#[derive(Debug)]
pub struct WatchSender {
    live: mpsc::Sender<Arc<Event>>,
    shared: Arc<Shared>,
}

impl Watch {
    /// A watch that first delivers `replay`, then what is sent to the returned sender.
    ///
    /// `start` is the revision up to which the reader already knows everything.
    #[must_use]
    pub fn new(start: Revision, replay: VecDeque<Arc<Event>>) -> (WatchSender, Self) {
        let (sender, live) = mpsc::channel(QUEUE_EVENTS);
        let shared = Arc::new(Shared::default());
        (
            WatchSender {
                live: sender,
                shared: Arc::clone(&shared),
            },
            Self {
                start,
                replay,
                live,
                shared,
            },
        )
    }

    /// The revision this watch was started after.
    #[must_use]
    pub fn start_revision(&self) -> Revision {
        self.start
    }

    /// The next event. Cancel safe.
    pub async fn next(&mut self) -> Result<Arc<Event>, WatchEnd> {
        if let Some(event) = self.replay.pop_front() {
            return Ok(event);
        }
        match self.live.recv().await {
            Some(event) => Ok(self.taken(event)),
            None => Err(self.end()),
        }
    }

    /// The next event if one is already there. `None` after reading the store's current revision
    /// means that every event up to that revision was delivered (what a bookmark asserts).
    pub fn try_next(&mut self) -> Option<Result<Arc<Event>, WatchEnd>> {
        if let Some(event) = self.replay.pop_front() {
            return Some(Ok(event));
        }
        match self.live.try_recv() {
            Ok(event) => Some(Ok(self.taken(event))),
            Err(mpsc::error::TryRecvError::Empty) => None,
            Err(mpsc::error::TryRecvError::Disconnected) => Some(Err(self.end())),
        }
    }

    fn taken(&self, event: Arc<Event>) -> Arc<Event> {
        self.shared
            .queued_bytes
            .fetch_sub(event.weight(), Ordering::Relaxed);
        event
    }

    fn end(&self) -> WatchEnd {
        if self.shared.end.load(Ordering::Acquire) == OVERFLOW {
            WatchEnd::Overflow
        } else {
            WatchEnd::Closed
        }
    }
}

impl WatchSender {
    /// Hands an event to the reader. `false`: this watch is over and must be dropped.
    #[must_use]
    pub fn send(&self, event: &Arc<Event>) -> bool {
        let weight = event.weight();
        let queued = self
            .shared
            .queued_bytes
            .fetch_add(weight, Ordering::Relaxed);
        // One oversized event still passes through an empty queue.
        let fits = queued == 0 || queued + weight <= QUEUE_BYTES;
        if fits {
            match self.live.try_send(Arc::clone(event)) {
                Ok(()) => return true,
                Err(mpsc::error::TrySendError::Closed(_)) => return false,
                Err(mpsc::error::TrySendError::Full(_)) => (),
            }
        }
        self.shared.end.store(OVERFLOW, Ordering::Release);
        false
    }

    /// Whether the reader is gone.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.live.is_closed()
    }
}
