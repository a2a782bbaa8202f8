//! `containerLogs`: CRI log files as a stream, followed by inotify, across rotation, until the container
//! has ended.

use std::io::{BufRead, BufReader, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;

use super::route::{Query, Refusal, Target};
use super::{ApiContext, Body, plain};
use crate::reconcile::pods::runtime_view::RuntimeView;
use crate::runtime::ContainerState;
use crate::runtime::log_file::rotated as rotated_files;

/// What part of the log is wanted, and how.
#[derive(Clone, Debug, Default, PartialEq)]
struct LogOptions {
    follow: bool,
    previous: bool,
    timestamps: bool,
    tail_lines: Option<usize>,
    since: Option<jiff::Timestamp>,
    limit_bytes: Option<u64>,
}

impl LogOptions {
    fn parse(query: &Query, now: SystemTime) -> Result<Self, String> {
        let number = |name: &str, least: i64| {
            query
                .get(name)
                .map(|text| {
                    text.parse::<i64>()
                        .ok()
                        .filter(|value| *value >= least)
                        .ok_or_else(|| format!("{name}: Invalid value: {text:?}: must be an integer of at least {least}"))
                })
                .transpose()
        };
        let since_seconds = number("sinceSeconds", 1)?;
        let since_time = query
            .get("sinceTime")
            .map(|text| {
                text.parse::<jiff::Timestamp>()
                    .map_err(|error| format!("sinceTime: Invalid value: {text:?}: {error}"))
            })
            .transpose()?;
        let since = match (since_seconds, since_time) {
            (Some(_), Some(_)) => {
                return Err(
                    "at most one of `sinceTime` or `sinceSeconds` may be specified".to_owned(),
                );
            }
            (Some(seconds), None) => {
                let ago = Duration::from_secs(u64::try_from(seconds).unwrap_or(0));
                now.checked_sub(ago)
                    .and_then(|time| jiff::Timestamp::try_from(time).ok())
            }
            (None, since) => since,
        };
        Ok(Self {
            follow: query.flag("follow"),
            previous: query.flag("previous"),
            timestamps: query.flag("timestamps"),
            tail_lines: number("tailLines", 0)?.and_then(|lines| usize::try_from(lines).ok()),
            since,
            limit_bytes: number("limitBytes", 1)?.and_then(|bytes| u64::try_from(bytes).ok()),
        })
    }
}

pub(super) async fn handle(
    context: &ApiContext,
    namespace: &str,
    pod: &str,
    container: &str,
    query: &Query,
) -> Response<Body> {
    let options = match LogOptions::parse(query, SystemTime::now()) {
        Ok(options) => options,
        Err(text) => return plain(StatusCode::UNPROCESSABLE_ENTITY, text),
    };
    let (path, attempt) = match locate(context, namespace, pod, container, &options) {
        Ok(found) => found,
        Err((status, text)) => return plain(status, text),
    };
    let (uid, name) = {
        let view = context.pods.borrow();
        let found = view
            .pods
            .values()
            .find(|object| object.pod.namespace == namespace && object.pod.name == pod);
        (
            found
                .map(|object| object.pod.uid.clone())
                .unwrap_or_default(),
            container.to_owned(),
        )
    };
    let (sender, mut receiver) = mpsc::channel::<Result<Frame<Bytes>, std::io::Error>>(8);
    let view = context.view.clone();
    tokio::spawn(async move {
        let mut sink = Sink {
            sender,
            left: options.limit_bytes,
        };
        let running = RunningCheck {
            view,
            uid,
            name,
            attempt,
        };
        if let Err(error) = stream(&path, &options, &running, &mut sink).await {
            // The client sees a cut stream; the status line is long gone.
            sink.sender.send(Err(error)).await.ok();
        }
    });
    let body = StreamBody::new(futures::stream::poll_fn(move |task| {
        receiver.poll_recv(task)
    }));
    let mut response = Response::new(body.boxed_unsync());
    let kind = http::HeaderValue::from_static("text/plain");
    response
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, kind);
    response
}

fn locate(
    context: &ApiContext,
    namespace: &str,
    pod: &str,
    container: &str,
    options: &LogOptions,
) -> Result<(PathBuf, u32), Refusal> {
    let target = Target::find(context, namespace, pod, container)?;
    let identity = crate::runtime::PodIdentity {
        uid: target.pod().uid.clone(),
        namespace: namespace.to_owned(),
        name: pod.to_owned(),
    };
    let directory = context.config.log_path(&identity, container, 0);
    let newest_log = directory.parent().and_then(newest_attempt);
    let newest = target
        .attempts(context)
        .last()
        .map(|found| found.attempt)
        .max(newest_log);
    let Some(newest) = newest else {
        let reason = target.waiting_reason();
        return Err((
            StatusCode::BAD_REQUEST,
            format!("container \"{container}\" in pod \"{pod}\" is waiting to start: {reason}"),
        ));
    };
    let attempt = if options.previous {
        newest.checked_sub(1).ok_or_else(|| {
            (
                StatusCode::BAD_REQUEST,
                format!("previous terminated container \"{container}\" in pod \"{pod}\" not found"),
            )
        })?
    } else {
        newest
    };
    Ok((
        context.config.log_path(&identity, container, attempt),
        attempt,
    ))
}

/// Highest attempt that left a log.
fn newest_attempt(directory: &Path) -> Option<u32> {
    std::fs::read_dir(directory)
        .ok()?
        .flatten()
        .filter_map(|entry| {
            entry
                .file_name()
                .to_str()?
                .strip_suffix(".log")?
                .parse()
                .ok()
        })
        .max()
}

/// Whether the attempt still writes.
struct RunningCheck {
    view: RuntimeView,
    uid: String,
    name: String,
    attempt: u32,
}

impl RunningCheck {
    fn is_running(&self, snapshot: &crate::reconcile::pods::runtime_view::Snapshot) -> bool {
        snapshot.sandboxes.get(&self.uid).is_some_and(|sandbox| {
            sandbox.containers.iter().any(|container| {
                container.name == self.name
                    && container.attempt == self.attempt
                    && !matches!(container.state, ContainerState::Exited(_))
            })
        })
    }
}

/// Where lines go: at most `left` bytes.
struct Sink {
    sender: mpsc::Sender<Result<Frame<Bytes>, std::io::Error>>,
    left: Option<u64>,
}

impl Sink {
    /// False when no more is wanted.
    async fn write(&mut self, mut bytes: Vec<u8>) -> bool {
        if let Some(left) = &mut self.left {
            let fits = u64::try_from(bytes.len()).unwrap_or(u64::MAX).min(*left);
            bytes.truncate(usize::try_from(fits).unwrap_or(0));
            *left -= fits;
        }
        let goes_on = self.left != Some(0);
        if bytes.is_empty() {
            return goes_on;
        }
        self.sender
            .send(Ok(Frame::data(Bytes::from(bytes))))
            .await
            .is_ok()
            && goes_on
    }
}

/// One CRI line: time, content with its line end.
fn parse_line(line: &[u8]) -> Option<(&[u8], Vec<u8>)> {
    let mut parts = line.splitn(4, |byte| *byte == b' ');
    let (time, _stream, tag) = (parts.next()?, parts.next()?, parts.next()?);
    let content = parts.next().unwrap_or_default();
    let content = content.strip_suffix(b"\n").unwrap_or(content);
    let mut out = content.to_vec();
    // A partial line goes on in the next one.
    if !tag.starts_with(b"P") {
        out.push(b'\n');
    }
    Some((time, out))
}

fn rendered(line: &[u8], options: &LogOptions) -> Option<Vec<u8>> {
    let (time, content) = parse_line(line)?;
    if let Some(since) = options.since {
        let at: jiff::Timestamp = std::str::from_utf8(time).ok()?.parse().ok()?;
        if at < since {
            return None;
        }
    }
    if !options.timestamps {
        return Some(content);
    }
    let mut out = time.to_vec();
    out.push(b' ');
    out.extend(content);
    Some(out)
}

/// Position of the first of the last `lines` lines.
fn tail_position(file: &mut std::fs::File, lines: usize) -> std::io::Result<u64> {
    const BLOCK: u64 = 64 * 1024;
    let length = file.metadata()?.len();
    if lines == 0 {
        return Ok(length);
    }
    let mut end = length;
    let mut missing = lines + 1; // The last line has a line end of its own.
    let mut block = vec![0; usize::try_from(BLOCK).unwrap_or(65536)];
    while end > 0 {
        let start = end.saturating_sub(BLOCK);
        let size = usize::try_from(end - start).unwrap_or(block.len());
        file.seek(SeekFrom::Start(start))?;
        file.read_exact(&mut block[..size])?;
        for (index, byte) in block[..size].iter().enumerate().rev() {
            if *byte == b'\n' {
                missing -= 1;
                if missing == 0 {
                    return Ok(start + u64::try_from(index).unwrap_or(0) + 1);
                }
            }
        }
        end = start;
    }
    Ok(0)
}

async fn stream(
    path: &Path,
    options: &LogOptions,
    running: &RunningCheck,
    sink: &mut Sink,
) -> std::io::Result<()> {
    let watcher = if options.follow {
        Some(Watcher::new(path)?)
    } else {
        None
    };
    let mut snapshots = running.view.subscribe();
    let mut file = loop {
        match std::fs::File::open(path) {
            Ok(file) => break file,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => match &watcher {
                Some(watcher) if running.is_running(&snapshots.borrow().clone()) => {
                    watcher.changed().await?;
                }
                _ => return Ok(()),
            },
            Err(error) => return Err(error),
        }
    };
    if let Some(lines) = options.tail_lines {
        let position = tail_position(&mut file, lines)?;
        file.seek(SeekFrom::Start(position))?;
    }
    let mut reader = BufReader::new(file);
    let mut line = Vec::new();
    // Once more after the end, for what was written before it.
    let mut ended = false;
    let mut is_drained = false;
    loop {
        loop {
            let before = line.len();
            if reader.read_until(b'\n', &mut line)? == 0 {
                break;
            }
            if !line.ends_with(b"\n") {
                // Half a line: the writer is in the middle of it.
                if line.len() == before {
                    break;
                }
                continue;
            }
            let out = rendered(&line, options);
            line.clear();
            if let Some(out) = out
                && !sink.write(out).await
            {
                return Ok(());
            }
        }
        let Some(watcher) = &watcher else {
            return Ok(());
        };
        if let Some(next) = rotated(path, reader.get_ref())? {
            if is_drained {
                // All of the old file was read; the new one goes on where it stopped.
                reader = BufReader::new(next);
            }
            // Once more, for what was written before it was renamed.
            is_drained = !is_drained;
            continue;
        }
        if ended {
            return Ok(());
        }
        let snapshot = snapshots.borrow_and_update().clone();
        if !running.is_running(&snapshot) {
            // The listing may be older than the container: make sure, then read to the end.
            let fresh = running.view.fresh(running.view.request()).await;
            ended = !running.is_running(&fresh);
            continue;
        }
        tokio::select! {
            changed = watcher.changed() => changed?,
            _ = snapshots.changed() => {}
            () = sink.sender.closed() => return Ok(()),
        }
    }
}

/// The file that came after `open`: the one that has taken the path since, or an older one when the log
/// was rotated more than once.
fn rotated(path: &Path, open: &std::fs::File) -> std::io::Result<Option<std::fs::File>> {
    use std::os::unix::fs::MetadataExt;
    let inode = open.metadata()?.ino();
    // Opened before the others are listed: a rotation in between must not hide the one being read.
    let mut next = match std::fs::File::open(path) {
        Ok(file) if file.metadata()?.ino() == inode => return Ok(None),
        Ok(file) => Some(file),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
        Err(error) => return Err(error),
    };
    // Newest first, until the one that is being read. If that was removed, the oldest is next.
    for candidate in rotated_files(path)?.into_iter().rev() {
        match std::fs::File::open(&candidate) {
            Ok(file) if file.metadata()?.ino() == inode => return Ok(next),
            Ok(file) => next = Some(file),
            // Removed since it was listed.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error),
        }
    }
    Ok(next)
}

/// Changes in the directory of a log: writes, and new files after a rotation.
struct Watcher {
    inotify: AsyncFd<InotifyFd>,
}

struct InotifyFd(Inotify);

impl AsRawFd for InotifyFd {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

impl Watcher {
    fn new(path: &Path) -> std::io::Result<Self> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let directory = path.parent().unwrap_or(path);
        let events = AddWatchFlags::IN_MODIFY
            | AddWatchFlags::IN_CREATE
            | AddWatchFlags::IN_MOVED_TO
            | AddWatchFlags::IN_DELETE;
        inotify.add_watch(directory, events)?;
        #[expect(
            deprecated,
            reason = "the new constructor is unsafe; InotifyFd owns its descriptor"
        )]
        let inotify = AsyncFd::new(InotifyFd(inotify))?;
        Ok(Self { inotify })
    }

    /// Completes when something was written since the last call.
    async fn changed(&self) -> std::io::Result<()> {
        loop {
            let mut ready = self.inotify.readable().await?;
            match self.inotify.get_ref().0.read_events() {
                Ok(_) => return Ok(()),
                Err(nix::errno::Errno::EAGAIN) => ready.clear_ready(),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_checked_like_the_kubelets() {
        let parse = |text: &str| LogOptions::parse(&Query::parse(text), SystemTime::now());
        let options = parse("follow=true&tailLines=5&timestamps=1&limitBytes=9").unwrap();
        assert!(options.follow && options.timestamps);
        assert_eq!(
            (options.tail_lines, options.limit_bytes),
            (Some(5), Some(9))
        );
        assert!(parse("tailLines=-1").unwrap_err().contains("tailLines"));
        assert!(parse("sinceSeconds=5&sinceTime=2026-01-01T00:00:00Z").is_err());
    }

    #[test]
    fn partial_lines_join_and_old_ones_are_left_out() {
        let line = b"2026-01-01T00:00:01.5Z stdout F hello world\n";
        let plain = LogOptions::default();
        assert_eq!(rendered(line, &plain).unwrap(), b"hello world\n");
        assert_eq!(
            rendered(b"2026-01-01T00:00:01Z stdout P half\n", &plain).unwrap(),
            b"half"
        );
        let stamped = LogOptions {
            timestamps: true,
            ..LogOptions::default()
        };
        assert_eq!(
            rendered(line, &stamped).unwrap(),
            b"2026-01-01T00:00:01.5Z hello world\n"
        );
        let since = LogOptions {
            since: Some("2026-01-01T00:00:02Z".parse().unwrap()),
            ..LogOptions::default()
        };
        assert_eq!(rendered(line, &since), None);
    }

    #[test]
    fn a_follower_goes_through_every_rotated_file_in_order() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("0.log");
        std::fs::write(&path, "a").unwrap();
        let mut open = std::fs::File::open(&path).unwrap();
        assert!(rotated(&path, &open).unwrap().is_none());
        for (suffix, text) in [("1", "b"), ("2", "c"), ("3", "d")] {
            std::fs::rename(&path, dir.path().join(format!("0.log.{suffix}"))).unwrap();
            std::fs::write(&path, text).unwrap();
        }
        // The first was surplus: it is read on while it is open.
        std::fs::remove_file(dir.path().join("0.log.1")).unwrap();
        let mut seen = String::new();
        loop {
            open.read_to_string(&mut seen).unwrap();
            match rotated(&path, &open).unwrap() {
                Some(next) => open = next,
                None => break,
            }
        }
        assert_eq!(seen, "abcd");
    }

    #[test]
    fn the_tail_starts_at_a_line() {
        let mut file = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut file, b"one\ntwo\nthree\n").unwrap();
        assert_eq!(tail_position(&mut file, 0).unwrap(), 14);
        assert_eq!(tail_position(&mut file, 1).unwrap(), 8);
        assert_eq!(tail_position(&mut file, 2).unwrap(), 4);
        assert_eq!(tail_position(&mut file, 9).unwrap(), 0);
    }
}
