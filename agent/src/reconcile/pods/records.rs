//! What is remembered of containers, merged with what the runtime has. Mostly pure.

use std::io::{Read, Seek, SeekFrom};
use std::path::Path;
use std::time::SystemTime;

use tholepin_model::pod::{ContainerRecord, Exit, ExitKind, RecordState, current};

use crate::runtime::{ContainerState, RealizedContainer};

const MESSAGE_LIMIT: u64 = 4096;
const LOG_LIMIT: u64 = 2048;
const LOG_LINES: usize = 80;

/// Updates `records` from a listing. `message` is asked once per exit, with name, attempt and whether
/// the container failed.
pub(super) fn merge(
    records: &mut Vec<ContainerRecord>,
    found: &[RealizedContainer],
    now: SystemTime,
    message: impl Fn(&str, u32, bool) -> Option<String>,
) {
    for container in found {
        let index = records.iter().position(|record| {
            record.name == container.name && record.attempt == container.attempt
        });
        let before = index.map(|index| &records[index].state);
        let state = match (&container.state, before) {
            // A failed start stays failed, whatever containerd still has of it.
            (ContainerState::Created, Some(exited @ RecordState::Exited(_))) => exited.clone(),
            (ContainerState::Created, _) => RecordState::Created,
            (ContainerState::Running { started_at, .. }, _) => RecordState::Running {
                started_at: *started_at,
            },
            (ContainerState::Exited(_), Some(known @ RecordState::Exited(exit)))
                if exit.kind != ExitKind::Unknown =>
            {
                known.clone()
            }
            (ContainerState::Exited(exit), _) => RecordState::Exited(Exit {
                exit_code: exit.exit_code,
                signal: exit.signal,
                oom_killed: exit.oom_killed,
                started_at: exit.started_at,
                finished_at: exit.finished_at,
                message: message(&container.name, container.attempt, exit.exit_code != 0)
                    .unwrap_or_default(),
                kind: ExitKind::Process,
            }),
        };
        let record = ContainerRecord {
            name: container.name.clone(),
            id: container.id.clone(),
            attempt: container.attempt,
            image: container.image.clone(),
            image_id: container.image_id.clone(),
            state,
        };
        match index {
            Some(index) => records[index] = record,
            None => records.push(record),
        }
    }
    let is_found = |record: &ContainerRecord| {
        found
            .iter()
            .any(|container| container.name == record.name && container.attempt == record.attempt)
    };
    for record in records.iter_mut() {
        if !is_found(record) && !matches!(record.state, RecordState::Exited(_)) {
            let started_at = match record.state {
                RecordState::Running { started_at } => started_at,
                _ => now,
            };
            record.state = RecordState::Exited(lost(started_at, now));
        }
    }
    let newest: Vec<(String, u32)> = records
        .iter()
        .filter_map(|record| current(records, &record.name))
        .map(|record| (record.name.clone(), record.attempt))
        .collect();
    records.retain(|record| {
        let newest = newest.iter().find(|(name, _)| *name == record.name);
        is_found(record) || newest.is_none_or(|(_, attempt)| record.attempt + 1 >= *attempt)
    });
    records.sort_by(|a, b| (&a.name, a.attempt).cmp(&(&b.name, b.attempt)));
}

/// Notes a container that was just started; the next listing confirms it.
pub(super) fn merge_one(
    records: &mut Vec<ContainerRecord>,
    started: &RealizedContainer,
    now: SystemTime,
) {
    let started_at = match &started.state {
        ContainerState::Running { started_at, .. } => *started_at,
        // Ended already: the listing brings how.
        _ => now,
    };
    records.retain(|record| record.name != started.name || record.attempt != started.attempt);
    records.push(ContainerRecord {
        name: started.name.clone(),
        id: started.id.clone(),
        attempt: started.attempt,
        image: started.image.clone(),
        image_id: started.image_id.clone(),
        state: RecordState::Running { started_at },
    });
}

/// The exit of a container that the runtime has forgotten, in upstream's words.
fn lost(started_at: SystemTime, now: SystemTime) -> Exit {
    Exit {
        exit_code: 137,
        signal: 0,
        oom_killed: false,
        started_at,
        finished_at: now,
        message: "The container could not be located when the pod was terminated".to_owned(),
        kind: ExitKind::Unknown,
    }
}

/// What the container left in its termination message file, or the tail of its log.
pub(super) fn termination_message(file: &Path, log: Option<&Path>) -> Option<String> {
    let mut text = Vec::new();
    if let Ok(file) = std::fs::File::open(file) {
        // An unreadable message is no message; the exit itself matters more.
        file.take(MESSAGE_LIMIT).read_to_end(&mut text).ok()?;
    }
    if text.is_empty() {
        return log.and_then(log_tail);
    }
    Some(String::from_utf8_lossy(&text).into_owned())
}

fn log_tail(path: &Path) -> Option<String> {
    let mut file = std::fs::File::open(path).ok()?;
    let length = file.metadata().ok()?.len();
    // CRI prefixes take about 40 bytes per line; twice the limit is enough to start from.
    let from = length.saturating_sub(LOG_LIMIT * 4);
    file.seek(SeekFrom::Start(from)).ok()?;
    let mut text = Vec::new();
    file.read_to_end(&mut text).ok()?;
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text
        .lines()
        .skip(usize::from(from > 0))
        .filter_map(|line| line.splitn(4, ' ').nth(3))
        .collect();
    let tail = lines[lines.len().saturating_sub(LOG_LINES)..].join("\n");
    let mut start = tail
        .len()
        .saturating_sub(usize::try_from(LOG_LIMIT).unwrap_or(0));
    while !tail.is_char_boundary(start) {
        start += 1;
    }
    (!tail.is_empty()).then(|| format!("{}\n", &tail[start..]))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::runtime::ContainerExit;

    fn found(name: &str, attempt: u32, state: ContainerState) -> RealizedContainer {
        RealizedContainer {
            id: format!("{name}{attempt}"),
            name: name.to_owned(),
            attempt,
            image: "img".to_owned(),
            image_id: String::new(),
            state,
            labels: BTreeMap::new(),
        }
    }

    fn running() -> ContainerState {
        ContainerState::Running {
            pid: 1,
            started_at: SystemTime::UNIX_EPOCH,
        }
    }

    fn exited() -> ContainerState {
        ContainerState::Exited(ContainerExit {
            exit_code: 3,
            signal: 0,
            oom_killed: false,
            started_at: SystemTime::UNIX_EPOCH,
            finished_at: SystemTime::UNIX_EPOCH,
        })
    }

    #[test]
    fn a_container_that_vanished_has_ended_in_an_unknown_way() {
        let mut records = Vec::new();
        merge(
            &mut records,
            &[found("a", 0, running())],
            SystemTime::UNIX_EPOCH,
            |_, _, _| None,
        );
        merge(&mut records, &[], SystemTime::UNIX_EPOCH, |_, _, _| None);
        let RecordState::Exited(exit) = &records[0].state else {
            panic!("still running")
        };
        assert_eq!(
            (exit.exit_code, exit.reason()),
            (137, "ContainerStatusUnknown")
        );
    }

    #[test]
    fn the_message_of_an_exit_is_read_once() {
        let mut records = Vec::new();
        merge(
            &mut records,
            &[found("a", 0, exited())],
            SystemTime::UNIX_EPOCH,
            |_, _, _| Some("first".to_owned()),
        );
        merge(
            &mut records,
            &[found("a", 0, exited())],
            SystemTime::UNIX_EPOCH,
            |_, _, _| Some("second".to_owned()),
        );
        let RecordState::Exited(exit) = &records[0].state else {
            panic!("not exited")
        };
        assert_eq!(exit.message, "first");
    }

    #[test]
    fn only_the_last_two_attempts_are_remembered() {
        let mut records = Vec::new();
        for attempt in 0..4 {
            merge(
                &mut records,
                &[found("a", attempt, exited())],
                SystemTime::UNIX_EPOCH,
                |_, _, _| None,
            );
        }
        let attempts: Vec<u32> = records.iter().map(|record| record.attempt).collect();
        assert_eq!(attempts, [2, 3]);
    }

    #[test]
    fn the_log_is_the_message_of_a_failure_that_left_none() {
        let directory = tempfile::tempdir().unwrap();
        let log = directory.path().join("0.log");
        std::fs::write(
            &log,
            "2026-01-01T00:00:00Z stderr F boom one\n2026-01-01T00:00:00Z stderr F two\n",
        )
        .unwrap();
        let message = directory.path().join("0");
        assert_eq!(
            termination_message(&message, Some(&log)).unwrap(),
            "boom one\ntwo\n"
        );
        std::fs::write(&message, "own words").unwrap();
        assert_eq!(
            termination_message(&message, Some(&log)).unwrap(),
            "own words"
        );
    }
}
