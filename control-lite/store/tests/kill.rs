//! kill -9 in a write loop: every acknowledged write is there afterwards, revisions never go back.
//!
//! The test runs its own binary again as the writer, which prints a line per acknowledged write.

#![expect(clippy::unwrap_used, reason = "a test panics")]

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tholepin_store::{Class, EmbeddedOptions, EmbeddedStore, Expected, PutRequest, Store};

const FOLDER: &str = "THOLEPIN_STORE_KILL_FOLDER";
const ROUNDS: usize = 6;

/// Not a test by itself: the child process of the one below.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writer_child() {
    let Ok(folder) = std::env::var(FOLDER) else {
        return;
    };
    let store = EmbeddedStore::open(&EmbeddedOptions::new(Path::new(&folder).join("s.redb")));
    let store = Arc::new(store.expect("the store opens after a kill"));
    let writers: Vec<_> = (0..8)
        .map(|writer| tokio::spawn(write_until_killed(Arc::clone(&store), writer)))
        .collect();
    for writer in writers {
        writer.await.expect("the writer ends only by the kill");
    }
}

async fn write_until_killed(store: Arc<EmbeddedStore>, writer: usize) {
    for number in 0.. {
        let key = format!("/w/{}-{writer}-{number}", std::process::id());
        let class = if number % 4 == 3 {
            Class::Volatile
        } else {
            Class::Durable
        };
        let value = Bytes::from(format!("value of {key}"));
        let request = PutRequest {
            key: key.clone(),
            value,
            expected: Expected::Absent,
            class,
        };
        let revision = store.put(request).await.expect("the put succeeds");
        let kind = if class == Class::Durable {
            "durable"
        } else {
            "volatile"
        };
        let line = format!("ack {kind} {revision} {key}\n");
        // One write call per line, so that lines of several writers do not mix.
        std::io::stderr()
            .lock()
            .write_all(line.as_bytes())
            .expect("the parent reads");
    }
}

#[tokio::test]
async fn kill_9_loses_no_acknowledged_write_and_revisions_only_grow() {
    let folder = tempfile::tempdir().unwrap();
    let mut acknowledged: Vec<String> = Vec::new();
    let mut highest = 0_u64;
    for round in 0..ROUNDS {
        let lines = run_child_and_kill(
            folder.path(),
            Duration::from_millis(150 + 70 * round as u64),
        );
        assert!(
            !lines.is_empty(),
            "the child acknowledged nothing in round {round}"
        );
        let before = highest;
        for line in &lines {
            let mut words = line.split(' ').skip(1);
            let class = words.next().unwrap();
            let revision: u64 = words.next().unwrap().parse().unwrap();
            assert!(
                revision > before,
                "{revision} was below {before}, seen before the last kill"
            );
            highest = highest.max(revision);
            if class == "durable" {
                acknowledged.push(words.next().unwrap().to_owned());
            }
        }
    }
    let store = EmbeddedStore::open(&EmbeddedOptions::new(folder.path().join("s.redb"))).unwrap();
    assert!(store.current_revision() >= highest);
    for key in &acknowledged {
        let stored = store.get(key).await.unwrap().stored;
        let stored = stored.unwrap_or_else(|| panic!("{key} was acknowledged and is gone"));
        assert_eq!(stored.value, format!("value of {key}").as_bytes());
    }
    assert!(
        acknowledged.len() > 100,
        "only {} writes",
        acknowledged.len()
    );
}

fn run_child_and_kill(folder: &Path, after: Duration) -> Vec<String> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "writer_child", "--nocapture"])
        .env(FOLDER, folder)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let stderr = child.stderr.take().unwrap();
    let (first, started) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || {
        let mut lines = Vec::new();
        for line in BufReader::new(stderr).lines().map_while(Result::ok) {
            if line.starts_with("ack ") && line.split(' ').count() == 4 {
                if lines.is_empty() {
                    first.send(()).unwrap();
                }
                lines.push(line);
            }
        }
        lines
    });
    started
        .recv_timeout(Duration::from_secs(60))
        .expect("the child starts to write");
    // The kill has to come at a moment that has nothing to do with the child's own events.
    std::thread::park_timeout(after);
    child.kill().unwrap();
    child.wait().unwrap();
    reader.join().unwrap()
}
