//! `exec` and `attach`: from an upgraded request to the streams of a process.

use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tholepin_streaming::{ExecOutcome, SessionStreams, accept, serve_websocket};

use super::route::{Query, Target};
use super::{ApiContext, Body, plain};
use crate::errors::chain;
use crate::runtime::{ExecRequest, RuntimeError};

pub(super) async fn exec(
    request: &mut Request<Incoming>,
    context: &ApiContext,
    (namespace, pod, container): (&str, &str, &str),
    query: &Query,
) -> Response<Body> {
    let command = query.all("command").to_vec();
    let wants = |name: &str, kubelet: &str| query.flag(name) || query.flag(kubelet);
    let (stdin, tty) = (wants("stdin", "input"), query.flag("tty"));
    let (stdout, stderr) = (wants("stdout", "output"), wants("stderr", "error"));
    if command.is_empty() {
        return plain(
            StatusCode::BAD_REQUEST,
            "you must specify at least one command to run",
        );
    }
    if !(stdin || stdout || stderr) {
        return plain(
            StatusCode::BAD_REQUEST,
            "you must specify at least 1 of stdin, stdout, stderr",
        );
    }
    let target =
        Target::find(context, namespace, pod, container).and_then(|target| target.running(context));
    let container = match target {
        Ok(container) => container,
        Err((status, text)) => return plain(status, text),
    };
    let accepted = match accept(request.headers()) {
        Ok(accepted) => accepted,
        Err(error) => return plain(StatusCode::BAD_REQUEST, error.to_string()),
    };
    let upgrade = hyper::upgrade::on(&mut *request);
    let runtime = std::sync::Arc::clone(&context.runtime);
    let protocol = accepted.protocol;
    tokio::spawn(async move {
        let connection = match upgrade.await {
            Ok(connection) => TokioIo::new(connection),
            Err(error) => {
                tracing::debug!(%error, "the client did not complete the upgrade");
                return;
            }
        };
        let request = ExecRequest {
            container_id: container.id.clone(),
            command,
            stdin,
            tty,
        };
        let (streams, outcome) = match runtime.exec(request).await {
            Ok(session) => {
                let streams = SessionStreams {
                    stdin: session.stdin,
                    stdout: stdout.then_some(session.stdout),
                    stderr: if stderr && !tty { session.stderr } else { None },
                    resize: tty.then_some(session.resize),
                };
                (streams, Ok(session.exit))
            }
            Err(error) => {
                let none = SessionStreams {
                    stdin: None,
                    stdout: None,
                    stderr: None,
                    resize: None,
                };
                (none, Err(error))
            }
        };
        let exit = async move {
            match outcome {
                Ok(exit) => match exit.await {
                    Ok(Ok(code)) => ExecOutcome::Exited(code),
                    Ok(Err(error)) => failed(&error),
                    Err(panic) => ExecOutcome::Failed {
                        message: panic.to_string(),
                    },
                },
                Err(error) => failed(&error),
            }
        };
        let end = serve_websocket(connection, protocol, streams, exit).await;
        tracing::debug!(container = %container.name, ?end, "exec session ended");
    });
    accepted
        .response
        .map(|()| Empty::new().map_err(|never| match never {}).boxed_unsync())
}

/// Attaching needs the runtime to hand out a running container's streams, which it cannot yet: refused
/// with a clear text, never a silent empty stream.
pub(super) async fn attach(
    _request: &mut Request<Incoming>,
    context: &ApiContext,
    (namespace, pod, container): (&str, &str, &str),
    _query: &Query,
) -> Response<Body> {
    match Target::find(context, namespace, pod, container)
        .and_then(|target| target.running(context))
    {
        Ok(_) => plain(
            StatusCode::NOT_IMPLEMENTED,
            "attach is not supported by this node yet; use kubectl logs -f and kubectl exec",
        ),
        Err((status, text)) => plain(status, text),
    }
}

fn failed(error: &RuntimeError) -> ExecOutcome {
    ExecOutcome::Failed {
        message: format!("error executing command in container: {}", chain(error)),
    }
}
