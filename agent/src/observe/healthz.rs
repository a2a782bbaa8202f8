//! `/healthz` on loopback, plain HTTP, as the kubelet has it on 10248.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Shows that the pod loop is alive: it bumps this at least every [`HEARTBEAT`].
pub type Heartbeat = watch::Sender<Instant>;

/// Longest time between two beats of a healthy agent.
pub const HEARTBEAT: Duration = Duration::from_secs(10);
const STALE: Duration = Duration::from_secs(60);

/// Why the agent is not healthy, if it is not.
#[must_use]
pub fn problem(beat: Instant) -> Option<String> {
    let age = beat.elapsed();
    (age > STALE).then(|| format!("the pod loop has not run for {} s", age.as_secs()))
}

/// Binds 127.0.0.1:`port`.
pub async fn bind(port: u16) -> std::io::Result<TcpListener> {
    TcpListener::bind(SocketAddr::from((Ipv4Addr::LOCALHOST, port))).await
}

/// Serves until cancelled.
pub async fn serve(
    listener: TcpListener,
    heartbeat: watch::Receiver<Instant>,
    cancel: CancellationToken,
) {
    loop {
        let accepted = tokio::select! {
            () = cancel.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else {
            // Out of descriptors: give others a chance to close some.
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let heartbeat = heartbeat.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request: Request<hyper::body::Incoming>| {
                let response = respond(request.uri().path(), *heartbeat.borrow());
                async move { Ok::<_, std::convert::Infallible>(response) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(Duration::from_secs(10))
                .serve_connection(TokioIo::new(stream), service);
            if let Err(error) = connection.await {
                tracing::debug!(%error, "healthz connection ended");
            }
        });
    }
}

fn respond(path: &str, beat: Instant) -> Response<Full<Bytes>> {
    let (status, text) = match (path, problem(beat)) {
        ("/healthz", None) => (StatusCode::OK, "ok".to_owned()),
        ("/healthz", Some(problem)) => (StatusCode::INTERNAL_SERVER_ERROR, problem),
        _ => (StatusCode::NOT_FOUND, "404 page not found\n".to_owned()),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_pod_loop_that_stands_still_is_unhealthy() {
        let beat = Instant::now();
        assert_eq!(respond("/healthz", beat).status(), StatusCode::OK);
        tokio::time::advance(STALE + Duration::from_secs(1)).await;
        assert_eq!(
            respond("/healthz", beat).status(),
            StatusCode::INTERNAL_SERVER_ERROR
        );
        assert_eq!(respond("/other", beat).status(), StatusCode::NOT_FOUND);
    }
}
