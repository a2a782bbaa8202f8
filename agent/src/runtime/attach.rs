//! Attaching to a running container: its outputs from the log's reader, its input, its terminal's size.

use std::sync::Arc;

use containerd_client::services::v1::{CloseIoRequest, ResizePtyRequest};
use tokio::io::DuplexStream;
use tokio::sync::mpsc;
use tokio_util::task::AbortOnDropHandle;
use tracing::{debug, warn};

use super::connect::{QUICK, call};
use super::containerd::{Driver, blocking};
use super::exits::{Follow, Tracked};
use super::fanout::Stream;
use super::sandbox::operation_failed;
use super::{AttachRequest, ExecSession, RuntimeError};

const STDIN_BUFFER: usize = 16 << 10;

impl Driver {
    pub(super) async fn attach(
        self: &Arc<Self>,
        request: AttachRequest,
    ) -> Result<ExecSession, RuntimeError> {
        let id = &request.container_id;
        let subject = || format!("container {id}");
        let (_, parsed) = self
            .running_container(id, |container, message| RuntimeError::Attach {
                container,
                message,
            })
            .await?;
        let tracked = self
            .follow(parsed.follow.clone())
            .map_err(operation_failed("follow", subject()))?;
        let stdout = tracked.output.subscribe(Stream::Stdout);
        let stderr = (!parsed.follow.tty).then(|| tracked.output.subscribe(Stream::Stderr));
        let stdin = request.stdin
            && tracked
                .stdin
                .as_ref()
                .is_some_and(|stdin| !stdin.is_closed());
        let (stdin, feeder) = if stdin {
            let (near, far) = tokio::io::duplex(STDIN_BUFFER);
            let feeding = self
                .clone()
                .feed(parsed.follow.clone(), tracked.clone(), far);
            (Some(near), Some(tokio::spawn(feeding)))
        } else {
            (None, None)
        };
        let (resize, sizes) = mpsc::channel(4);
        let resizer = AbortOnDropHandle::new(tokio::spawn(self.clone().resize(id.clone(), sizes)));
        let exit = tokio::spawn(self.clone().ended(
            parsed.follow.id,
            parsed.name,
            tracked,
            resizer,
            feeder.map(AbortOnDropHandle::new),
        ));
        Ok(ExecSession {
            stdin: stdin.map(|stdin| Box::new(stdin) as _),
            stdout: Box::new(stdout),
            stderr: stderr.map(|stderr| Box::new(stderr) as _),
            resize,
            exit,
        })
    }

    /// The container's exit code once its log is complete. Ends the client's other tasks with it.
    async fn ended(
        self: Arc<Self>,
        id: String,
        name: String,
        tracked: Arc<Tracked>,
        resizer: AbortOnDropHandle<()>,
        feeder: Option<AbortOnDropHandle<()>>,
    ) -> Result<i32, RuntimeError> {
        let settled = self.cancel.run_until_cancelled(tracked.settled()).await;
        drop((resizer, feeder));
        if settled.is_none() {
            return Err(RuntimeError::Attach {
                container: name,
                message: "the node agent is stopping".into(),
            });
        }
        let record = self.record(&id).await.map_err(operation_failed(
            "read the journal of",
            format!("container {name}"),
        ))?;
        record.exit.map(|exit| exit.exit_code).ok_or_else(|| {
            let subject = format!("exit of container {name}");
            RuntimeError::NotFound { subject }
        })
    }

    /// Copies a client's input; with `stdinOnce` its end is the container's.
    async fn feed(self: Arc<Self>, follow: Follow, tracked: Arc<Tracked>, client: DuplexStream) {
        let Some(stdin) = &tracked.stdin else {
            return;
        };
        stdin.feed(client).await;
        if !follow.stdin_once || !stdin.close() {
            return;
        }
        let fifos = self.fifos(&follow);
        // On disk first: a later agent must not offer an input that leads nowhere.
        if let Err(error) = blocking(move || fifos.mark_stdin_closed()).await {
            warn!(container = follow.id, %error, "cannot note that an input is closed");
        }
        let message = CloseIoRequest {
            container_id: follow.id.clone(),
            exec_id: String::new(),
            stdin: true,
        };
        let mut client = self.connection.tasks();
        if let Err(error) = call(QUICK, client.close_io(self.connection.request(message))).await {
            debug!(container = follow.id, %error, "cannot close an input");
        }
    }

    async fn resize(self: Arc<Self>, id: String, mut sizes: mpsc::Receiver<(u16, u16)>) {
        while let Some((width, height)) = sizes.recv().await {
            let message = ResizePtyRequest {
                container_id: id.clone(),
                exec_id: String::new(),
                width: width.into(),
                height: height.into(),
            };
            let mut client = self.connection.tasks();
            let resized = call(QUICK, client.resize_pty(self.connection.request(message))).await;
            if let Err(error) = resized {
                debug!(container = id, %error, "cannot resize a terminal");
            }
        }
    }
}
