//! FIFOs between shims and the agent.
//!
//! The shim opens both ends of an output FIFO, so that an agent that goes away makes it wait and lose
//! nothing; the next agent opens the same path and reads on.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::stat::Mode;
use tokio::net::unix::pipe::{OpenOptions, Receiver, Sender};

/// How much a container may write while no agent reads. The kernel's limit for unprivileged users.
const PIPE_SIZE: i32 = 1 << 20;

/// File names of the outputs.
pub(super) const OUTPUTS: [&str; 2] = ["stdout", "stderr"];

/// Name of the mark of a `stdinOnce` container whose input was closed.
const STDIN_CLOSED: &str = "stdin.closed";

/// The three paths of one process. Empty ones are not connected.
#[derive(Clone, Debug, Default)]
pub(super) struct Fifos {
    directory: PathBuf,
    pub(super) stdin: Option<PathBuf>,
    pub(super) stdout: Option<PathBuf>,
    pub(super) stderr: Option<PathBuf>,
}

/// The agent's ends.
#[derive(Debug)]
pub(super) struct Ends {
    pub(super) stdin: Option<Sender>,
    pub(super) stdout: Option<Receiver>,
    pub(super) stderr: Option<Receiver>,
}

impl Fifos {
    /// Paths only. A terminal has one stream for both outputs.
    pub(super) fn new(directory: PathBuf, stdin: bool, tty: bool) -> Self {
        Self {
            stdin: stdin.then(|| directory.join("stdin")),
            stdout: Some(directory.join(OUTPUTS[0])),
            stderr: (!tty).then(|| directory.join(OUTPUTS[1])),
            directory,
        }
    }

    /// Makes what is missing.
    pub(super) fn create(&self) -> io::Result<()> {
        fs::create_dir_all(&self.directory)?;
        for path in [&self.stdin, &self.stdout, &self.stderr]
            .into_iter()
            .flatten()
        {
            match nix::unistd::mkfifo(path, Mode::S_IRUSR | Mode::S_IWUSR) {
                Ok(()) | Err(nix::errno::Errno::EEXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Opens the agent's ends. Never blocks: reading waits for the first writer by itself.
    pub(super) fn open(&self) -> io::Result<Ends> {
        let reader = |path: &Option<PathBuf>| path.as_deref().map(open_reader).transpose();
        // Read-write, because a FIFO without a reader cannot be opened for writing only.
        let writer = |path: &PathBuf| OpenOptions::new().read_write(true).open_sender(path);
        let is_closed = self.directory.join(STDIN_CLOSED).exists();
        let stdin = self.stdin.as_ref().filter(|_| !is_closed);
        Ok(Ends {
            stdin: stdin.map(writer).transpose()?,
            stdout: reader(&self.stdout)?,
            stderr: reader(&self.stderr)?,
        })
    }

    /// From now on [`Self::open`] gives no stdin: nobody reads it any more.
    pub(super) fn mark_stdin_closed(&self) -> io::Result<()> {
        fs::write(self.directory.join(STDIN_CLOSED), [])
    }

    /// Whether output may be left to read.
    pub(super) fn exist(&self) -> bool {
        self.stdout.as_ref().is_some_and(|path| path.exists())
    }

    pub(super) fn remove(&self) -> io::Result<()> {
        match fs::remove_dir_all(&self.directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    /// Path as containerd takes it.
    pub(super) fn text(path: &Option<PathBuf>) -> String {
        path.as_ref()
            .map(|path| path.display().to_string())
            .unwrap_or_default()
    }
}

fn open_reader(path: &Path) -> io::Result<Receiver> {
    let receiver = OpenOptions::new().open_receiver(path)?;
    let widened = fcntl(receiver.as_fd(), FcntlArg::F_SETPIPE_SZ(PIPE_SIZE));
    if let Err(error) = widened {
        // Only the time a container can go on without an agent gets shorter.
        tracing::debug!(path = %path.display(), %error, "cannot widen a container's output pipe");
    }
    Ok(receiver)
}
