//! The agent's side of the output holder: a process of the node that keeps container output which nobody
//! has read yet while no agent runs.
//!
//! A pipe loses its bytes with its last open end, and a shim closes its own ends when the container ends.
//! The holder opens the reading end of every output FIFO and never reads. A reading end keeps the bytes,
//! and neither hides the end of file from the agent nor makes anybody wait. Protocol, one connection per
//! message: `<pod uid>/<container>\n` (look at this directory again) or `\n` (look at all of them), answered by
//! one byte when that is done. FIFOs that are there are held, others let go.

pub mod process;

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::process::{Child, Command};
use tokio::sync::{mpsc, oneshot};
use tracing::{debug, warn};

/// First argument that makes the agent's binary the holder. Its second is the run directory.
pub const ARGUMENT: &str = "hold-output";

/// What `ps` shows.
const NAME: &str = "tholepin-holder";

/// Short, because the path of a unix socket is limited.
const SOCKET: &str = "io.sock";
const NEW_SOCKET: &str = "io.new";
const ANSWER: u8 = b'.';
/// The holder answers in microseconds; a container must not wait for one that cannot.
const DEADLINE: Duration = Duration::from_secs(2);
const RESTART_PAUSE: Duration = Duration::from_secs(1);

/// Talks to the task that owns the connection to the holder, and the holder itself if this agent started
/// it.
#[derive(Clone, Debug)]
pub(super) struct Holder {
    requests: Option<mpsc::Sender<Request>>,
}

#[derive(Debug)]
struct Request {
    /// `<pod uid>/<container>`, or nothing for all.
    directory: String,
    /// Whether to start a holder if there is none.
    is_needed: bool,
    done: oneshot::Sender<()>,
}

impl Holder {
    /// `program` is the agent's binary. Without one nothing is held.
    pub(super) fn new(program: Option<PathBuf>, run_dir: PathBuf) -> (Self, Option<HolderTask>) {
        let Some(program) = program else {
            return (Self { requests: None }, None);
        };
        let (requests, received) = mpsc::channel(16);
        let task = HolderTask {
            program,
            run_dir,
            received,
            child: None,
            has_failed: false,
        };
        let requests = Some(requests);
        (Self { requests }, Some(task))
    }

    /// Returns when the output of a container cannot be lost any more, or after a warning.
    pub(super) async fn hold(&self, pod_uid: &str, container: &str) {
        self.request(format!("{pod_uid}/{container}"), true).await;
    }

    /// To be called after the FIFOs of a container were removed.
    pub(super) async fn release(&self, pod_uid: &str, container: &str) {
        self.request(format!("{pod_uid}/{container}"), false).await;
    }

    /// Compares everything. `is_needed` says that there are containers.
    pub(super) async fn look_again(&self, is_needed: bool) {
        self.request(String::new(), is_needed).await;
    }

    async fn request(&self, directory: String, is_needed: bool) {
        let Some(requests) = &self.requests else {
            return;
        };
        let (done, answered) = oneshot::channel();
        let request = Request {
            directory,
            is_needed,
            done,
        };
        // The task ends with the driver: then nobody waits for an answer either.
        if requests.send(request).await.is_ok() {
            answered.await.ok();
        }
    }
}

/// The only one that starts holders, so that there is never a second one.
#[derive(Debug)]
pub(super) struct HolderTask {
    program: PathBuf,
    run_dir: PathBuf,
    received: mpsc::Receiver<Request>,
    child: Option<Child>,
    has_failed: bool,
}

impl HolderTask {
    pub(super) async fn run(mut self) {
        loop {
            let request = tokio::select! {
                request = self.received.recv() => request,
                ended = end_of(&mut self.child) => {
                    self.child = None;
                    self.note_end(ended).await;
                    continue;
                }
            };
            let Some(request) = request else {
                return;
            };
            let outcome = self.ask(&request.directory, request.is_needed).await;
            self.report(outcome);
            request.done.send(()).ok();
        }
    }

    /// A holder that ended by itself had nothing to hold. One that was killed is replaced.
    async fn note_end(&mut self, ended: io::Result<ExitStatus>) {
        match ended {
            Ok(status) if status.success() => {}
            ended => {
                warn!(
                    ?ended,
                    "the holder of container output was ended; starting it again"
                );
                tokio::time::sleep(RESTART_PAUSE).await;
                let outcome = self.ask("", true).await;
                self.report(outcome);
            }
        }
    }

    /// Says a failure once, not at every container.
    fn report(&mut self, outcome: io::Result<()>) {
        match outcome {
            Ok(()) => self.has_failed = false,
            Err(error) if !self.has_failed => {
                self.has_failed = true;
                warn!(%error, "cannot hold container output: what is printed while no agent runs may be lost");
            }
            Err(error) => debug!(%error, "cannot hold container output"),
        }
    }

    async fn ask(&mut self, directory: &str, is_needed: bool) -> io::Result<()> {
        let socket = self.run_dir.join(SOCKET);
        match tell(&socket, directory).await {
            Err(error) if has_no_holder(&error) => {}
            other => return other,
        }
        if !is_needed {
            return Ok(());
        }
        self.child = Some(self.start()?);
        tell(&socket, directory).await
    }

    /// The socket listens before the holder runs, so there is nothing to wait for.
    fn start(&self) -> io::Result<Child> {
        let fresh = self.run_dir.join(NEW_SOCKET);
        match std::fs::remove_file(&fresh) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let listener = UnixListener::bind(&fresh)?;
        std::fs::set_permissions(&fresh, PermissionsExt::from_mode(0o600))?;
        std::fs::rename(&fresh, self.run_dir.join(SOCKET))?;
        Command::new(&self.program)
            .arg0(NAME)
            .arg(ARGUMENT)
            .arg(&self.run_dir)
            .env_clear()
            .current_dir("/")
            .stdin(Stdio::from(OwnedFd::from(listener)))
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(false)
            .spawn()
    }
}

async fn end_of(child: &mut Option<Child>) -> io::Result<ExitStatus> {
    match child {
        Some(child) => child.wait().await,
        None => std::future::pending().await,
    }
}

/// Nobody listens, or the listener has just ended.
fn has_no_holder(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    matches!(
        error.kind(),
        Kind::NotFound
            | Kind::ConnectionRefused
            | Kind::ConnectionReset
            | Kind::BrokenPipe
            | Kind::UnexpectedEof
    )
}

async fn tell(socket: &Path, directory: &str) -> io::Result<()> {
    let telling = async {
        let mut stream = UnixStream::connect(socket).await?;
        stream
            .write_all(format!("{directory}\n").as_bytes())
            .await?;
        match stream.read_u8().await? {
            ANSWER => Ok(()),
            _ => Err(io::Error::other("the holder could not open a FIFO")),
        }
    };
    tokio::time::timeout(DEADLINE, telling)
        .await
        .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}
