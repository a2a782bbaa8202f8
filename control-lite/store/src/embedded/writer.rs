//! The writer thread: takes what has queued up, commits it at once, then shows and acknowledges it.
//!
//! Owns the disk. It is a plain thread because it blocks in fsync.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, oneshot};

use super::disk::{Disk, Row};
use super::state::{Change, Entry, SharedState};
use crate::error::StoreError;
use crate::store::{Class, DeleteRequest, Deleted, Expected, PutRequest, Revision};

/// Writers that may wait for their turn; further ones wait before they queue.
const QUEUE: usize = 4096;
/// A commit takes at most this many writes, so that the first of them is not kept waiting.
const BATCH: usize = 1024;

type Reply<T> = oneshot::Sender<Result<T, StoreError>>;

#[derive(Debug)]
pub(super) enum Command {
    Put {
        request: PutRequest,
        reply: Reply<Revision>,
    },
    Delete {
        request: DeleteRequest,
        reply: Reply<Deleted>,
    },
    Close {
        reply: Reply<()>,
    },
}

#[derive(Debug)]
pub(super) struct WriterHandle {
    commands: mpsc::Sender<Command>,
}

impl WriterHandle {
    pub(super) fn start(
        state: Arc<SharedState>,
        disk: Disk,
        checkpoint_interval: Duration,
    ) -> std::io::Result<Self> {
        let (commands, queue) = mpsc::channel(QUEUE);
        let writer = Writer {
            revision: state.current_revision(),
            state,
            disk,
            dirty: HashSet::new(),
            checkpointed: Instant::now(),
            checkpoint_interval,
        };
        std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || writer.run(queue))?;
        Ok(Self { commands })
    }

    pub(super) async fn send(&self, command: Command) -> Result<(), StoreError> {
        self.commands
            .send(command)
            .await
            .map_err(|_| StoreError::Closed)
    }
}

struct Writer {
    state: Arc<SharedState>,
    disk: Disk,
    /// The last revision handed out.
    revision: Revision,
    /// Volatile keys whose present version is not on disk.
    dirty: HashSet<Arc<str>>,
    checkpointed: Instant,
    checkpoint_interval: Duration,
}

/// What a batch will do once it is durable.
#[derive(Default)]
struct Batch {
    /// Keys this batch has changed, which later commands of it must see.
    overlay: HashMap<Arc<str>, Option<Entry>>,
    rows: Vec<Row>,
    changes: Vec<Change>,
    puts: Vec<(Reply<Revision>, Result<Revision, StoreError>)>,
    deletes: Vec<(Reply<Deleted>, Result<Deleted, StoreError>)>,
}

impl Writer {
    fn run(mut self, mut queue: mpsc::Receiver<Command>) {
        let mut commands = Vec::with_capacity(64);
        // Zero: every handle is gone.
        while queue.blocking_recv_many(&mut commands, BATCH) > 0 {
            let mut closing = None;
            let mut batch = Batch::default();
            for command in commands.drain(..) {
                match command {
                    // What queued up behind a close finds its reply dropped: closed.
                    _ if closing.is_some() => (),
                    Command::Put { request, reply } => self.put(&mut batch, request, reply),
                    Command::Delete { request, reply } => self.delete(&mut batch, request, reply),
                    Command::Close { reply } => closing = Some(reply),
                }
            }
            self.finish(batch);
            if let Some(reply) = closing {
                queue.close();
                let outcome = self.close();
                drop(queue);
                // The closer may have given up waiting; the store is closed all the same.
                drop(reply.send(outcome));
                return;
            }
        }
        if let Err(error) = self.close() {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "closing the store failed"
            );
        }
    }

    fn lookup(&self, batch: &Batch, key: &str) -> Option<Entry> {
        match batch.overlay.get(key) {
            Some(entry) => entry.clone(),
            None => self.state.entry(key),
        }
    }

    fn put(&mut self, batch: &mut Batch, request: PutRequest, reply: Reply<Revision>) {
        let current = self.lookup(batch, &request.key);
        if !holds(request.expected, current.as_ref()) {
            let conflict = conflict(request.key, current.as_ref());
            batch.puts.push((reply, Err(conflict)));
            return;
        }
        self.revision += 1;
        let revision = self.revision;
        let key: Arc<str> = request.key.into();
        let entry = Entry {
            value: request.value,
            revision,
            class: request.class,
        };
        if request.class == Class::Durable {
            batch.rows.push(Row::Put(Arc::clone(&key), entry.clone()));
        }
        batch.change(key, revision, Some(entry), current);
        batch.puts.push((reply, Ok(revision)));
    }

    fn delete(&mut self, batch: &mut Batch, request: DeleteRequest, reply: Reply<Deleted>) {
        let current = self.lookup(batch, &request.key);
        let outcome = match &current {
            None if matches!(request.expected, Expected::Revision(_)) => {
                Err(conflict(request.key, None))
            }
            None => Ok(Deleted {
                revision: self.revision,
                previous: None,
            }),
            Some(entry) if !holds(request.expected, Some(entry)) => {
                Err(conflict(request.key, Some(entry)))
            }
            Some(entry) => {
                self.revision += 1;
                let key: Arc<str> = request.key.into();
                if entry.class == Class::Durable || self.disk.volatile_keys.contains(&key) {
                    batch.rows.push(Row::Remove(Arc::clone(&key)));
                }
                let previous = Some(entry.stored());
                batch.change(key, self.revision, None, current);
                Ok(Deleted {
                    revision: self.revision,
                    previous,
                })
            }
        };
        batch.deletes.push((reply, outcome));
    }

    /// Commit, publish, acknowledge: in this order and no other.
    fn finish(&mut self, batch: Batch) {
        if let Err(error) = self.commit(&batch) {
            let error = Arc::new(error);
            tracing::error!(
                error = &*error as &dyn std::error::Error,
                "store commit failed"
            );
            batch.fail(&error);
            // Revisions of the failed batch were shown to nobody; they are skipped, not reused.
            return;
        }
        self.note_volatile(&batch);
        let disk_was_written = !batch.rows.is_empty();
        self.state.publish(batch.changes);
        // A caller that is gone does not undo its write.
        for (reply, outcome) in batch.puts {
            drop(reply.send(outcome));
        }
        for (reply, outcome) in batch.deletes {
            drop(reply.send(outcome));
        }
        // After publishing: a key this batch removed must not be written again.
        if disk_was_written {
            self.checkpoint();
        }
    }

    fn commit(&mut self, batch: &Batch) -> Result<(), redb::Error> {
        if batch.rows.is_empty() {
            if self.disk.must_raise_ceiling(self.revision) {
                return self.disk.commit(&[], self.revision);
            }
            return Ok(());
        }
        self.disk.commit(&batch.rows, self.revision)
    }

    /// Writes volatile objects along with a durable commit: the disk is awake anyway.
    fn checkpoint(&mut self) {
        if self.dirty.is_empty() || self.checkpointed.elapsed() < self.checkpoint_interval {
            return;
        }
        let rows = self.checkpoint_rows();
        match self.disk.commit(&rows, self.revision) {
            Ok(()) => self.dirty.clear(),
            // Nothing acknowledged is at stake; the next durable commit tries again.
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "checkpoint failed"
                );
            }
        }
        self.checkpointed = Instant::now();
    }

    fn note_volatile(&mut self, batch: &Batch) {
        for change in &batch.changes {
            match &change.entry {
                Some(entry) if entry.class == Class::Volatile => {
                    self.dirty.insert(Arc::clone(&change.key));
                }
                _ => drop(self.dirty.remove(&change.key)),
            }
        }
    }

    /// Rows of the volatile objects that are there now and not on disk.
    fn checkpoint_rows(&self) -> Vec<Row> {
        let present = |key: &Arc<str>| {
            self.state
                .entry(key)
                .map(|entry| Row::Put(Arc::clone(key), entry))
        };
        self.dirty.iter().filter_map(present).collect()
    }

    fn close(self) -> Result<(), StoreError> {
        self.state.close();
        let rows = self.checkpoint_rows();
        let first = rows
            .first()
            .map(|row| row.key().to_string())
            .unwrap_or_default();
        self.disk
            .close(&rows, self.revision)
            .map_err(|source| StoreError::Write {
                key: first,
                source: Arc::new(source),
            })
    }
}

impl Batch {
    fn change(
        &mut self,
        key: Arc<str>,
        revision: Revision,
        entry: Option<Entry>,
        previous: Option<Entry>,
    ) {
        self.overlay.insert(Arc::clone(&key), entry.clone());
        let previous = previous.as_ref().map(Entry::stored);
        self.changes.push(Change {
            key,
            revision,
            entry,
            previous,
        });
    }

    fn fail(self, source: &Arc<redb::Error>) {
        let key = self
            .changes
            .first()
            .map(|change| change.key.to_string())
            .unwrap_or_default();
        let failure = || StoreError::Write {
            key: key.clone(),
            source: Arc::clone(source),
        };
        for (reply, _) in self.puts {
            drop(reply.send(Err(failure())));
        }
        for (reply, _) in self.deletes {
            drop(reply.send(Err(failure())));
        }
    }
}

fn holds(expected: Expected, current: Option<&Entry>) -> bool {
    match (expected, current) {
        (Expected::Any, _) | (Expected::Absent, None) => true,
        (Expected::Revision(revision), Some(entry)) => entry.revision == revision,
        (Expected::Absent, Some(_)) | (Expected::Revision(_), None) => false,
    }
}

fn conflict(key: String, current: Option<&Entry>) -> StoreError {
    StoreError::Conflict {
        key,
        current: current.map(Entry::stored),
    }
}
