//! `exec` and `attach`: from an upgraded request to the streams of a process.

use std::future::Future;
use std::sync::Arc;

use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use tholepin_streaming::{ExecOutcome, SessionStreams, accept, serve_websocket};

use super::route::{Query, Target};
use super::{ApiContext, Body, plain};
use crate::errors::chain;
use crate::runtime::{AttachRequest, ExecRequest, ExecSession, RuntimeError};

/// What the client wants connected.
#[derive(Clone, Copy, Debug)]
struct Wanted {
    stdin: bool,
    stdout: bool,
    stderr: bool,
    tty: bool,
}

impl Wanted {
    /// The names of the API and those of the kubelet both count.
    fn of(query: &Query) -> Result<Self, String> {
        let wants = |name: &str, kubelet: &str| query.flag(name) || query.flag(kubelet);
        let wanted = Self {
            stdin: wants("stdin", "input"),
            stdout: wants("stdout", "output"),
            stderr: wants("stderr", "error"),
            tty: query.flag("tty"),
        };
        if wanted.stdin || wanted.stdout || wanted.stderr {
            Ok(wanted)
        } else {
            Err("you must specify at least 1 of stdin, stdout, stderr".to_owned())
        }
    }
}

pub(super) async fn exec(
    request: &mut Request<Incoming>,
    context: &ApiContext,
    (namespace, pod, container): (&str, &str, &str),
    query: &Query,
) -> Response<Body> {
    let command = query.all("command").to_vec();
    if command.is_empty() {
        let text = "you must specify at least one command to run";
        return plain(StatusCode::BAD_REQUEST, text);
    }
    let wanted = match Wanted::of(query) {
        Ok(wanted) => wanted,
        Err(text) => return plain(StatusCode::BAD_REQUEST, text),
    };
    let target = Target::find(context, namespace, pod, container)
        .and_then(|target| target.running(context, "exec in"));
    let container = match target {
        Ok(container) => container,
        Err((status, text)) => return plain(status, text),
    };
    let exec = ExecRequest {
        container_id: container.id,
        command,
        stdin: wanted.stdin,
        tty: wanted.tty,
    };
    let runtime = Arc::clone(&context.runtime);
    let open = async move { runtime.exec(exec).await };
    serve(request, wanted, open, |result| match result {
        Ok(code) => ExecOutcome::Exited(code),
        Err(error) => ExecOutcome::Failed {
            message: format!("error executing command in container: {}", chain(&error)),
        },
    })
}

pub(super) async fn attach(
    request: &mut Request<Incoming>,
    context: &ApiContext,
    (namespace, pod, container): (&str, &str, &str),
    query: &Query,
) -> Response<Body> {
    let mut wanted = match Wanted::of(query) {
        Ok(wanted) => wanted,
        Err(text) => return plain(StatusCode::BAD_REQUEST, text),
    };
    let target = Target::find(context, namespace, pod, container).and_then(|target| {
        // The terminal was made, or not, when the container was.
        wanted.tty = target.container.tty;
        target.running(context, "attach to")
    });
    let container = match target {
        Ok(container) => container,
        Err((status, text)) => return plain(status, text),
    };
    let attach = AttachRequest {
        container_id: container.id,
        stdin: wanted.stdin,
    };
    let runtime = Arc::clone(&context.runtime);
    let open = async move { runtime.attach(attach).await };
    serve(request, wanted, open, |result| match result {
        // Attaching has succeeded whatever the container ends with; kubectl asks the pod for that.
        Ok(_) => ExecOutcome::Exited(0),
        Err(error) => ExecOutcome::Failed {
            message: format!("error attaching to container: {}", chain(&error)),
        },
    })
}

/// Answers the upgrade, then connects the client with what `open` gives.
fn serve(
    request: &mut Request<Incoming>,
    wanted: Wanted,
    open: impl Future<Output = Result<ExecSession, RuntimeError>> + Send + 'static,
    outcome: fn(Result<i32, RuntimeError>) -> ExecOutcome,
) -> Response<Body> {
    let accepted = match accept(request.headers()) {
        Ok(accepted) => accepted,
        Err(error) => return plain(StatusCode::BAD_REQUEST, error.to_string()),
    };
    let upgrade = hyper::upgrade::on(&mut *request);
    let protocol = accepted.protocol;
    tokio::spawn(async move {
        let connection = match upgrade.await {
            Ok(connection) => TokioIo::new(connection),
            Err(error) => {
                tracing::debug!(%error, "the client did not complete the upgrade");
                return;
            }
        };
        // Errors from here on travel in the session: the HTTP answer is long gone.
        let (streams, exit) = match open.await {
            Ok(session) => split(session, wanted),
            Err(error) => (no_streams(), Err(error)),
        };
        let exit = async move {
            match exit {
                Ok(exit) => match exit.await {
                    Ok(result) => outcome(result),
                    Err(panic) => ExecOutcome::Failed {
                        message: panic.to_string(),
                    },
                },
                Err(error) => outcome(Err(error)),
            }
        };
        let end = serve_websocket(connection, protocol, streams, exit).await;
        tracing::debug!(?end, "session ended");
    });
    accepted
        .response
        .map(|()| Empty::new().map_err(|never| match never {}).boxed_unsync())
}

type Exit = tokio::task::JoinHandle<Result<i32, RuntimeError>>;

fn split(session: ExecSession, wanted: Wanted) -> (SessionStreams, Result<Exit, RuntimeError>) {
    let streams = SessionStreams {
        stdin: session.stdin.filter(|_| wanted.stdin),
        stdout: wanted.stdout.then_some(session.stdout),
        // A terminal has one output.
        stderr: session.stderr.filter(|_| wanted.stderr && !wanted.tty),
        resize: wanted.tty.then_some(session.resize),
    };
    (streams, Ok(session.exit))
}

fn no_streams() -> SessionStreams {
    SessionStreams {
        stdin: None,
        stdout: None,
        stderr: None,
        resize: None,
    }
}
