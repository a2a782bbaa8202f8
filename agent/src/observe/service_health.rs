//! What load balancers ask a node about Services: `healthCheckNodePort`s, and `/healthz` on 10256.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::json;
use tholepin_model::desired::Desired;
use tholepin_model::service::ServiceName;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::reconcile::services::ServicesStatus;
use crate::time::rfc3339;

/// How long rounds may fail before the node says that it is not healthy: kube-proxy's two sync periods.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long a port that could not be bound waits before the next try.
const RETRY: Duration = Duration::from_secs(5);

/// What the answers are made of.
#[derive(Clone, Debug)]
pub struct Health {
    pub node_name: String,
    pub services: watch::Receiver<ServicesStatus>,
    pub desired: watch::Receiver<Desired>,
}

impl Health {
    fn is_healthy(&self) -> bool {
        let failing = self.services.borrow().failing_since;
        failing.is_none_or(|since| since.elapsed().unwrap_or_default() < PATIENCE)
    }

    /// Load balancers should not send new connections to a node that is being removed.
    fn is_eligible(&self) -> bool {
        let desired = self.desired.borrow();
        desired
            .nodes
            .get(&self.node_name)
            .is_none_or(|node| !node.is_leaving)
    }

    /// The answer at the proxy's own port. `/livez` does not ask about the node.
    fn proxy(&self, path: &str) -> Response<Full<Bytes>> {
        let (healthy, eligible) = (self.is_healthy(), self.is_eligible());
        let good = match path {
            "/healthz" => healthy && eligible,
            "/livez" => healthy,
            _ => return answer(StatusCode::NOT_FOUND, "404 page not found\n".to_owned()),
        };
        let now = SystemTime::now();
        let updated = self.services.borrow().updated_at.unwrap_or(now);
        let body = json!({
            "lastUpdated": rfc3339(updated), "currentTime": rfc3339(now), "nodeEligible": eligible,
        });
        answer(status_of(good), body.to_string())
    }

    /// The answer at a Service's health check port.
    fn service(&self, name: &ServiceName) -> Response<Full<Bytes>> {
        let known = self.services.borrow().health_checks.get(name).copied();
        let (count, healthy) = (known.map_or(0, |(_, count)| count), self.is_healthy());
        let body = json!({
            "service": {"namespace": name.namespace, "name": name.name},
            "localEndpoints": count,
            "serviceProxyHealthy": healthy,
        });
        let mut response = answer(status_of(count > 0 && healthy), body.to_string());
        let headers = response.headers_mut();
        headers.insert("x-load-balancing-endpoint-weight", count.into());
        response
    }
}

fn status_of(good: bool) -> StatusCode {
    match good {
        true => StatusCode::OK,
        false => StatusCode::SERVICE_UNAVAILABLE,
    }
}

fn answer(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(Bytes::from(body)));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(
        "content-type",
        http::HeaderValue::from_static("application/json"),
    );
    headers.insert(
        "x-content-type-options",
        http::HeaderValue::from_static("nosniff"),
    );
    response
}

/// Serves `/healthz` and `/livez` on every address until cancelled.
pub async fn serve_proxy(health: Health, port: u16, cancel: CancellationToken) {
    // A socket of IPv6 takes IPv4 too, unless there is no IPv6.
    let any = [
        IpAddr::from(Ipv6Addr::UNSPECIFIED),
        IpAddr::from([0, 0, 0, 0]),
    ];
    let mut failed = false;
    loop {
        for address in any {
            if let Ok(listener) = TcpListener::bind(SocketAddr::new(address, port)).await {
                let health = health.clone();
                return accept(listener, move |path| health.proxy(path), cancel).await;
            }
        }
        if !std::mem::replace(&mut failed, true) {
            tracing::error!(
                port,
                "cannot listen for the Services' /healthz; trying again"
            );
        }
        tokio::select! {
            () = cancel.cancelled() => return,
            () = tokio::time::sleep(RETRY) => (),
        }
    }
}

/// Serves the health check ports of Services at `addresses` until cancelled.
pub async fn serve_services(mut health: Health, addresses: Vec<IpAddr>, cancel: CancellationToken) {
    let mut open: HashMap<(ServiceName, SocketAddr), CancellationToken> = HashMap::new();
    loop {
        let wanted: BTreeMap<ServiceName, (u16, usize)> =
            health.services.borrow_and_update().health_checks.clone();
        open.retain(|(name, at), running| {
            let keeps = wanted.get(name).is_some_and(|(port, _)| *port == at.port());
            if !keeps {
                running.cancel();
            }
            keeps
        });
        let mut all_bound = true;
        for (name, (port, _)) in wanted {
            for address in &addresses {
                let at = SocketAddr::new(*address, port);
                let key = (name.clone(), at);
                if open.contains_key(&key) {
                    continue;
                }
                match TcpListener::bind(at).await {
                    Ok(listener) => {
                        let running = cancel.child_token();
                        let (health, name) = (health.clone(), name.clone());
                        let respond = move |_: &str| health.service(&name);
                        tokio::spawn(accept(listener, respond, running.clone()));
                        open.insert(key, running);
                    }
                    Err(error) => {
                        all_bound = false;
                        tracing::warn!(service = %name, %at, %error, "cannot serve healthCheckNodePort");
                    }
                }
            }
        }
        tokio::select! {
            () = cancel.cancelled() => return,
            changed = health.services.changed() => if changed.is_err() {
                return cancel.cancelled().await;
            },
            () = tokio::time::sleep(RETRY), if !all_bound => (),
        }
    }
}

async fn accept(
    listener: TcpListener,
    respond: impl Fn(&str) -> Response<Full<Bytes>> + Clone + Send + 'static,
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
        let respond = respond.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request: Request<hyper::body::Incoming>| {
                let response = respond(request.uri().path());
                async move { Ok::<_, std::convert::Infallible>(response) }
            });
            let connection = hyper::server::conn::http1::Builder::new()
                .timer(TokioTimer::new())
                .header_read_timeout(Duration::from_secs(10))
                .serve_connection(TokioIo::new(stream), service);
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a health check's connection ended");
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tholepin_model::route::Node;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    fn name() -> ServiceName {
        ServiceName {
            namespace: "default".to_owned(),
            name: "web".to_owned(),
        }
    }

    fn health(status: ServicesStatus, is_leaving: bool) -> (Health, watch::Sender<ServicesStatus>) {
        let (sender, services) = watch::channel(status);
        let mut desired = Desired::default();
        let node = Node {
            name: "n1".to_owned(),
            created_at_secs: 0,
            pod_ranges: vec![],
            addresses: vec![],
            zone: None,
            is_leaving,
        };
        desired.nodes.insert("n1".to_owned(), Arc::new(node));
        let (_, desired) = watch::channel(desired);
        let node_name = "n1".to_owned();
        (
            Health {
                node_name,
                services,
                desired,
            },
            sender,
        )
    }

    #[test]
    fn a_node_that_leaves_is_alive_and_not_healthy() {
        for (is_leaving, expected) in [(false, 200), (true, 503)] {
            let (health, _sender) = health(ServicesStatus::default(), is_leaving);
            assert_eq!(health.proxy("/healthz").status(), expected);
            assert_eq!(health.proxy("/livez").status(), 200);
            assert_eq!(health.proxy("/").status(), 404);
        }
    }

    #[test]
    fn a_node_that_could_not_program_for_a_while_is_neither() {
        for (secs, expected) in [(1, 200), (61, 503)] {
            let status = ServicesStatus {
                failing_since: Some(SystemTime::now() - Duration::from_secs(secs)),
                ..ServicesStatus::default()
            };
            let (health, _sender) = health(status, false);
            assert_eq!(health.proxy("/healthz").status(), expected);
            assert_eq!(health.proxy("/livez").status(), expected);
        }
    }

    async fn ask(at: SocketAddr) -> Option<String> {
        let mut stream = tokio::net::TcpStream::connect(at).await.ok()?;
        let request = b"GET / HTTP/1.1\r\nHost: n\r\nConnection: close\r\n\r\n";
        stream.write_all(request).await.ok()?;
        let mut text = String::new();
        stream.read_to_string(&mut text).await.ok()?;
        Some(text)
    }

    #[tokio::test]
    async fn a_services_port_says_how_many_endpoints_are_here_and_closes_with_it() {
        let probe = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let at = probe.local_addr().unwrap();
        drop(probe);
        let with = |count| ServicesStatus {
            health_checks: [(name(), (at.port(), count))].into(),
            ..ServicesStatus::default()
        };
        let (health, sender) = health(with(2), false);
        let cancel = CancellationToken::new();
        let server = tokio::spawn(serve_services(health, vec![at.ip()], cancel.clone()));
        let answer = loop {
            match ask(at).await {
                Some(answer) => break answer,
                None => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        };
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(
            answer.contains("x-load-balancing-endpoint-weight: 2"),
            "{answer}"
        );
        assert!(
            answer.ends_with(
                "{\"service\":{\"namespace\":\"default\",\"name\":\"web\"},\"localEndpoints\":2,\
             \"serviceProxyHealthy\":true}"
            ),
            "{answer}"
        );
        sender.send_replace(with(0));
        assert!(ask(at).await.unwrap().starts_with("HTTP/1.1 503"));
        sender.send_replace(ServicesStatus::default());
        while ask(at).await.is_some() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        cancel.cancel();
        server.await.unwrap();
    }
}
