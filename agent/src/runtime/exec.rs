//! Running a command in a container: FIFOs of its own, terminal size, stdin's end, exit code.

use std::sync::Arc;

use containerd_client::services::v1::{
    CloseIoRequest, DeleteProcessRequest, ExecProcessRequest, ResizePtyRequest, StartRequest,
    WaitRequest,
};
use prost_types::Any;
use serde_json::Value;
use tokio::io::{AsyncWriteExt, DuplexStream};
use tokio::net::unix::pipe::Sender;
use tokio::sync::mpsc;

use super::connect::{CallError, Idempotent, QUICK, SLOW, call};
use super::containerd::{Driver, blocking};
use super::io::Fifos;
use super::sandbox::operation_failed;
use super::{ExecRequest, ExecSession, RuntimeError};

const PROCESS_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";
const STDIN_BUFFER: usize = 64 << 10;

/// One exec process.
#[derive(Clone, Debug)]
struct Running {
    driver: Arc<Driver>,
    container_id: String,
    container_name: String,
    exec_id: String,
}

impl Driver {
    pub(super) async fn exec(
        self: &Arc<Self>,
        request: ExecRequest,
    ) -> Result<ExecSession, RuntimeError> {
        let id = &request.container_id;
        let subject = || format!("container {id}");
        let (container, parsed) = self
            .running_container(id, |container, message| RuntimeError::Exec {
                container,
                message,
            })
            .await?;
        let running = Running {
            driver: self.clone(),
            container_id: id.clone(),
            container_name: parsed.name.clone(),
            exec_id: uuid::Uuid::new_v4().simple().to_string(),
        };
        let directory = self
            .sandboxes
            .io(&parsed.pod.uid, &format!("exec-{}", running.exec_id));
        let fifos = Fifos::new(directory, request.stdin, request.tty);
        fifos.create().map_err(operation_failed(
            "make the streams of an exec in",
            subject(),
        ))?;
        let outcome = running.begin(&request, container.spec, &fifos).await;
        // Both sides have them open, or nobody ever will.
        let unlinked = blocking(move || fifos.remove()).await;
        if let Err(error) = unlinked {
            tracing::debug!(%error, "cannot remove the streams of an exec");
        }
        outcome
    }
}

impl Running {
    async fn begin(
        &self,
        request: &ExecRequest,
        spec: Option<Any>,
        fifos: &Fifos,
    ) -> Result<ExecSession, RuntimeError> {
        let ends = fifos.open().map_err(operation_failed(
            "open the streams of an exec in",
            format!("container {}", self.container_name),
        ))?;
        let process = process(request, spec.as_ref()).ok_or_else(|| RuntimeError::Exec {
            container: self.container_name.clone(),
            message: "the container's spec is not readable".into(),
        })?;
        let connection = &self.driver.connection;
        let message = ExecProcessRequest {
            container_id: self.container_id.clone(),
            stdin: Fifos::text(&fifos.stdin),
            stdout: Fifos::text(&fifos.stdout),
            stderr: Fifos::text(&fifos.stderr),
            terminal: request.tty,
            spec: Some(Any {
                type_url: PROCESS_TYPE.into(),
                value: process.to_string().into_bytes(),
            }),
            exec_id: self.exec_id.clone(),
        };
        let mut client = connection.tasks();
        call(SLOW, client.exec(connection.request(message)))
            .await
            .map_err(|error| self.failed("failed to create exec", error))?;
        // Armed before the start, so that the shortest command is not missed.
        let wait = tokio::spawn(self.clone().wait());
        let message = StartRequest {
            container_id: self.container_id.clone(),
            exec_id: self.exec_id.clone(),
        };
        if let Err(error) = call(SLOW, client.start(connection.request(message))).await {
            wait.abort();
            self.delete().await.ok();
            return Err(self.failed("failed to start exec", error));
        }
        let (resize, sizes) = mpsc::channel(4);
        let resizer = tokio::spawn(self.clone().resize(sizes));
        let (stdin, feeder) = match ends.stdin {
            Some(fifo) => {
                let (near, far) = tokio::io::duplex(STDIN_BUFFER);
                (Some(near), Some(tokio::spawn(self.clone().feed(far, fifo))))
            }
            None => (None, None),
        };
        let this = self.clone();
        let exit = tokio::spawn(async move {
            let outcome = wait.await.unwrap_or_else(|error| {
                Err(RuntimeError::Exec {
                    container: this.container_name.clone(),
                    message: error.to_string(),
                })
            });
            resizer.abort();
            if let Some(feeder) = feeder {
                feeder.abort();
            }
            // Closes the shim's ends, which is what ends the output streams.
            this.delete().await.ok();
            outcome
        });
        Ok(ExecSession {
            stdin: stdin.map(|stdin| Box::new(stdin) as _),
            stdout: Box::new(ends.stdout.expect("an exec always has stdout")),
            stderr: ends.stderr.map(|stderr| Box::new(stderr) as _),
            resize,
            exit,
        })
    }

    async fn wait(self) -> Result<i32, RuntimeError> {
        let connection = &self.driver.connection;
        let message = WaitRequest {
            container_id: self.container_id.clone(),
            exec_id: self.exec_id.clone(),
        };
        let outcome = connection.waits().wait(connection.request(message)).await;
        match outcome.map_err(CallError::from) {
            Ok(response) => Ok(i32::try_from(response.into_inner().exit_status).unwrap_or(-1)),
            Err(error) => Err(self.failed("lost the exit code of exec", error)),
        }
    }

    async fn resize(self, mut sizes: mpsc::Receiver<(u16, u16)>) {
        let connection = &self.driver.connection;
        while let Some((width, height)) = sizes.recv().await {
            let message = ResizePtyRequest {
                container_id: self.container_id.clone(),
                exec_id: self.exec_id.clone(),
                width: width.into(),
                height: height.into(),
            };
            let mut client = connection.tasks();
            if let Err(error) = call(QUICK, client.resize_pty(connection.request(message))).await {
                tracing::debug!(%error, "cannot resize a terminal");
            }
        }
    }

    /// Copies until the client closes its side, then closes the process's.
    async fn feed(self, mut from: DuplexStream, mut fifo: Sender) {
        if let Err(error) = tokio::io::copy(&mut from, &mut fifo).await {
            tracing::debug!(%error, "stdin of an exec ended");
        }
        fifo.flush().await.ok();
        drop(fifo);
        let connection = &self.driver.connection;
        let message = CloseIoRequest {
            container_id: self.container_id.clone(),
            exec_id: self.exec_id.clone(),
            stdin: true,
        };
        let mut client = connection.tasks();
        if let Err(error) = call(QUICK, client.close_io(connection.request(message))).await {
            tracing::debug!(%error, "cannot close the stdin of an exec");
        }
    }

    async fn delete(&self) -> Result<(), CallError> {
        let connection = &self.driver.connection;
        let message = DeleteProcessRequest {
            container_id: self.container_id.clone(),
            exec_id: self.exec_id.clone(),
        };
        let mut client = connection.tasks();
        call(SLOW, client.delete_process(connection.request(message)))
            .await
            .or_gone()
    }

    fn failed(&self, step: &str, error: CallError) -> RuntimeError {
        match error {
            CallError::Status(status) => RuntimeError::Exec {
                container: self.container_name.clone(),
                message: format!("{step} {:?}: {}", self.exec_id, status.message()),
            },
            other => self
                .driver
                .connection
                .failed("exec in", format!("container {}", self.container_name))(
                other
            ),
        }
    }
}

/// The container's own process with another command: same user, environment, directory, privileges.
fn process(request: &ExecRequest, spec: Option<&Any>) -> Option<Value> {
    let spec: Value = serde_json::from_slice(&spec?.value).ok()?;
    let mut process = spec.get("process")?.clone();
    process["args"] = request.command.clone().into();
    process["terminal"] = request.tty.into();
    if request.tty {
        let env = process.get_mut("env")?.as_array_mut()?;
        if !env
            .iter()
            .any(|entry| entry.as_str().is_some_and(|text| text.starts_with("TERM=")))
        {
            env.push("TERM=xterm".into());
        }
    }
    Some(process)
}
