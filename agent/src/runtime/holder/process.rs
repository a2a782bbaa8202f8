//! The output holder itself: one thread, no async runtime, nothing but open FIFOs.
//!
//! It ends when there is nothing left to hold, or when the run directory is removed. It must stay small:
//! one runs on every node for as long as there are containers.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, OpenOptionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::{ANSWER, ARGUMENT};
use crate::runtime::io::OUTPUTS;

const FAILED: u8 = b'!';
/// How long a holder waits for the agent that started it.
const FIRST_MESSAGE_MILLIS: u16 = 10_000;
const READ_LIMIT: Duration = Duration::from_secs(1);

/// The run directory if the arguments of this process make it a holder.
#[must_use]
pub fn run_dir_of(mut arguments: impl Iterator<Item = std::ffi::OsString>) -> Option<PathBuf> {
    let is_holder = arguments.nth(1)? == ARGUMENT;
    is_holder
        .then(|| arguments.next())
        .flatten()
        .map(PathBuf::from)
}

/// Holds output until there is none. Standard input is the listening socket.
pub fn run(run_dir: &Path) -> io::Result<()> {
    // A signal to the agent's terminal or group is not for the holder.
    nix::unistd::setsid().ok();
    nix::sys::prctl::set_name(c"tholepin-holder")?;
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)?;
    let listener = UnixListener::from(io::stdin().as_fd().try_clone_to_owned()?);
    let mut held = Held::new(run_dir.join("pods"));
    let removal = Inotify::init(InitFlags::IN_CLOEXEC)?;
    removal.add_watch(&held.pods, AddWatchFlags::IN_DELETE_SELF)?;
    // A holder that was killed may have left some.
    held.look_at_all();
    let mut patience = PollTimeout::from(FIRST_MESSAGE_MILLIS);
    loop {
        let mut sources = [
            PollFd::new(listener.as_fd(), PollFlags::POLLIN),
            PollFd::new(removal.as_fd(), PollFlags::POLLIN),
        ];
        match poll(&mut sources, patience) {
            Err(nix::errno::Errno::EINTR) => continue,
            outcome => outcome?,
        };
        let [message, removed] = sources.map(|source| source.any().unwrap_or(false));
        if removed {
            return Ok(());
        }
        if message && let Ok((stream, _)) = listener.accept() {
            // A client that went away in the middle is no reason to let anything go.
            serve(&mut held, &stream).ok();
        }
        if held.directories.is_empty() {
            // An agent that connects just now sees its connection end, and starts another holder.
            return Ok(());
        }
        patience = PollTimeout::NONE;
    }
}

fn serve(held: &mut Held, mut stream: &UnixStream) -> io::Result<()> {
    stream.set_read_timeout(Some(READ_LIMIT))?;
    let mut message = String::new();
    BufReader::with_capacity(512, stream).read_line(&mut message)?;
    let is_done = match message.trim_end() {
        "" => held.look_at_all(),
        directory => held.look_at(directory),
    };
    stream.write_all(&[if is_done { ANSWER } else { FAILED }])
}

/// Open FIFOs by `<pod uid>/<container>`.
struct Held {
    pods: PathBuf,
    directories: HashMap<String, Vec<OwnedFd>>,
}

impl Held {
    fn new(pods: PathBuf) -> Self {
        Self {
            pods,
            directories: HashMap::new(),
        }
    }

    /// Whether everything that is there could be opened.
    fn look_at(&mut self, directory: &str) -> bool {
        let Some((uid, container)) = directory.split_once('/') else {
            return false;
        };
        if [uid, container].iter().any(|part| !is_plain(part)) {
            return false;
        }
        let path = self.pods.join(uid).join("io").join(container);
        let mut is_done = true;
        let mut open = Vec::new();
        for name in OUTPUTS {
            match open_fifo(&path.join(name)) {
                Ok(fifo) => open.push(fifo),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(_) => is_done = false,
            }
        }
        // The new ends are open before the old ones close: they may be the same pipes.
        match open.is_empty() {
            true => drop(self.directories.remove(directory)),
            false => drop(self.directories.insert(directory.to_owned(), open)),
        }
        is_done
    }

    fn look_at_all(&mut self) -> bool {
        let mut all: Vec<String> = self.directories.keys().cloned().collect();
        for pod in entries(&self.pods) {
            let containers = entries(&self.pods.join(&pod).join("io"));
            // The FIFOs of an exec are gone with the agent that ran it.
            let containers = containers
                .into_iter()
                .filter(|name| !name.starts_with("exec-"));
            all.extend(containers.map(|container| format!("{pod}/{container}")));
        }
        let mut is_done = true;
        for directory in all {
            is_done &= self.look_at(&directory);
        }
        is_done
    }
}

fn is_plain(name: &str) -> bool {
    !name.is_empty() && !name.starts_with('.') && !name.contains('/')
}

fn entries(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .collect()
}

/// Reading only: a writing end would hide the end of the output from the agent.
fn open_fifo(path: &Path) -> io::Result<OwnedFd> {
    let file = File::options()
        .read(true)
        .custom_flags(nix::libc::O_NONBLOCK)
        .open(path)?;
    if file.metadata()?.file_type().is_fifo() {
        Ok(file.into())
    } else {
        Err(io::ErrorKind::InvalidInput.into())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use nix::sys::stat::Mode;

    use super::*;

    fn fifo(pods: &Path, directory: &str) -> PathBuf {
        let (uid, container) = directory.split_once('/').unwrap();
        let path = pods.join(uid).join("io").join(container);
        fs::create_dir_all(&path).unwrap();
        nix::unistd::mkfifo(&path.join("stdout"), Mode::S_IRWXU).unwrap();
        path.join("stdout")
    }

    fn write_and_close(path: &Path, text: &str) {
        // As a shim: both ends, so that opening does not wait.
        let mut both = File::options().read(true).write(true).open(path).unwrap();
        both.write_all(text.as_bytes()).unwrap();
    }

    fn read_to_end(path: &Path) -> String {
        let mut text = String::new();
        File::from(open_fifo(path).unwrap())
            .read_to_string(&mut text)
            .unwrap();
        text
    }

    #[test]
    fn held_output_outlives_its_writer_and_has_an_end() {
        let dir = tempfile::tempdir().unwrap();
        let mut held = Held::new(dir.path().into());
        let (kept, lost) = (fifo(dir.path(), "u/kept"), fifo(dir.path(), "u/lost"));
        assert!(held.look_at("u/kept"));
        for path in [&kept, &lost] {
            write_and_close(path, "last words");
        }
        assert_eq!(read_to_end(&lost), "");
        assert_eq!(read_to_end(&kept), "last words", "then end of file");
    }

    #[test]
    fn what_was_removed_is_let_go_and_what_appeared_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let mut held = Held::new(dir.path().into());
        let path = fifo(dir.path(), "u/one");
        fifo(dir.path(), "v/two");
        fifo(dir.path(), "v/exec-three");
        assert!(held.look_at_all());
        assert_eq!(held.directories.len(), 2);
        fs::remove_file(path).unwrap();
        assert!(held.look_at("u/one"));
        assert_eq!(held.directories.len(), 1);
        fs::remove_dir_all(dir.path().join("v")).unwrap();
        assert!(held.look_at_all());
        assert!(held.directories.is_empty());
    }

    #[test]
    fn only_fifos_below_the_run_directory_are_opened() {
        let dir = tempfile::tempdir().unwrap();
        let mut held = Held::new(dir.path().join("pods"));
        for bad in ["../x", "a", "a/../..", "a/", ".hidden/x"] {
            assert!(!held.look_at(bad), "{bad:?}");
        }
        let path = dir.path().join("pods/u/io/c");
        fs::create_dir_all(&path).unwrap();
        fs::write(path.join("stdout"), "a file").unwrap();
        assert!(!held.look_at("u/c"));
        assert!(held.directories.is_empty());
    }
}
