//! Paths of the kubelet API, and finding the container a request is about.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use tholepin_model::pod::{Container, Pod};

use super::{ApiContext, Body, exec, logs, plain};
use crate::runtime::{ContainerState, RealizedContainer};
use crate::watch::pods::PodObject;

/// Answers one request of the authorised client.
pub(super) async fn handle(
    mut request: Request<Incoming>,
    context: Arc<ApiContext>,
) -> Response<Body> {
    let path = request.uri().path().to_owned();
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let query = Query::parse(request.uri().query().unwrap_or_default());
    match (request.method(), parts.as_slice()) {
        (&Method::GET, ["healthz"]) => {
            match crate::observe::healthz::problem(*context.heartbeat.borrow()) {
                None => plain(StatusCode::OK, "ok"),
                Some(problem) => plain(StatusCode::INTERNAL_SERVER_ERROR, problem),
            }
        }
        (&Method::GET, ["metrics"]) => plain(StatusCode::OK, context.metrics.render()),
        (&Method::GET, ["pods"]) => pods(&context),
        (&Method::GET, ["containerLogs", namespace, pod, container]) => {
            logs::handle(&context, namespace, pod, container, &query).await
        }
        (&Method::GET | &Method::POST, ["exec", namespace, pod, container]) => {
            let target = (*namespace, *pod, *container);
            exec::exec(&mut request, &context, target, &query).await
        }
        (&Method::GET | &Method::POST, ["attach", namespace, pod, container]) => {
            let target = (*namespace, *pod, *container);
            exec::attach(&mut request, &context, target, &query).await
        }
        (
            _,
            [
                "healthz" | "metrics" | "pods" | "containerLogs" | "exec" | "attach",
                ..,
            ],
        ) => plain(StatusCode::METHOD_NOT_ALLOWED, "405: Method Not Allowed"),
        _ => plain(StatusCode::NOT_FOUND, "404 page not found\n"),
    }
}

fn pods(context: &ApiContext) -> Response<Body> {
    let view = context.pods.borrow().clone();
    let items: Vec<_> = view
        .pods
        .values()
        .map(|object| object.object.as_ref())
        .collect();
    let list = serde_json::json!({
        "kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": items,
    });
    let body = Full::new(Bytes::from(list.to_string()))
        .map_err(|never| match never {})
        .boxed_unsync();
    let mut response = Response::new(body);
    let kind = http::HeaderValue::from_static("application/json");
    response
        .headers_mut()
        .insert(http::header::CONTENT_TYPE, kind);
    response
}

/// Query parameters; repeated ones keep their order.
#[derive(Debug, Default)]
pub(super) struct Query {
    values: HashMap<String, Vec<String>>,
}

impl Query {
    pub(super) fn parse(text: &str) -> Self {
        let mut query = Self::default();
        for (name, value) in url::form_urlencoded::parse(text.as_bytes()) {
            query
                .values
                .entry(name.into_owned())
                .or_default()
                .push(value.into_owned());
        }
        query
    }

    pub(super) fn all(&self, name: &str) -> &[String] {
        self.values.get(name).map(Vec::as_slice).unwrap_or_default()
    }

    pub(super) fn get(&self, name: &str) -> Option<&str> {
        self.all(name)
            .first()
            .map(String::as_str)
            .filter(|value| !value.is_empty())
    }

    /// `true` and `1` in the spellings Go accepts.
    pub(super) fn flag(&self, name: &str) -> bool {
        self.get(name)
            .is_some_and(|value| matches!(value, "1" | "t" | "T" | "true" | "TRUE" | "True"))
    }
}

/// A pod of this node by name, with one of its containers.
pub(super) struct Target {
    pub(super) object: Arc<PodObject>,
    pub(super) container: Container,
}

/// Status and text of a request that cannot be served.
pub(super) type Refusal = (StatusCode, String);

impl Target {
    pub(super) fn find(
        context: &ApiContext,
        namespace: &str,
        name: &str,
        container: &str,
    ) -> Result<Self, Refusal> {
        let view = context.pods.borrow();
        let object = view
            .pods
            .values()
            .find(|object| object.pod.namespace == namespace && object.pod.name == name)
            .ok_or_else(|| {
                (
                    StatusCode::NOT_FOUND,
                    format!("pod \"{name}\" not found in namespace \"{namespace}\""),
                )
            })?;
        let found = object.pod.container(container).cloned().ok_or_else(|| {
            (
                StatusCode::NOT_FOUND,
                format!("container {container} not found in pod {name}"),
            )
        })?;
        Ok(Self {
            object: Arc::clone(object),
            container: found,
        })
    }

    pub(super) fn pod(&self) -> &Pod {
        &self.object.pod
    }

    /// Attempts of the container in the runtime, newest last.
    pub(super) fn attempts(&self, context: &ApiContext) -> Vec<RealizedContainer> {
        let snapshot = Arc::clone(&context.view.subscribe().borrow());
        let mut attempts: Vec<RealizedContainer> = snapshot
            .sandboxes
            .get(&self.pod().uid)
            .map(|sandbox| {
                let own = |one: &&RealizedContainer| one.name == self.container.name;
                sandbox.containers.iter().filter(own).cloned().collect()
            })
            .unwrap_or_default();
        attempts.sort_by_key(|container| container.attempt);
        attempts
    }

    /// The running container, or why there is none, in the kubelet's words.
    pub(super) fn running(
        &self,
        context: &ApiContext,
        verb: &str,
    ) -> Result<RealizedContainer, Refusal> {
        match self.attempts(context).pop() {
            Some(container) if matches!(container.state, ContainerState::Running { .. }) => {
                Ok(container)
            }
            Some(container) if matches!(container.state, ContainerState::Exited(_)) => Err((
                StatusCode::INTERNAL_SERVER_ERROR,
                format!("cannot {verb} a stopped container: {}", container.name),
            )),
            _ => Err((
                StatusCode::NOT_FOUND,
                format!("container not found (\"{}\")", self.container.name),
            )),
        }
    }

    /// Reason the container waits with, as the API last had it.
    pub(super) fn waiting_reason(&self) -> String {
        let statuses = self.object.object.status.as_ref();
        statuses
            .and_then(|status| status.container_statuses.as_ref())
            .and_then(|list| {
                list.iter()
                    .find(|status| status.name == self.container.name)
            })
            .and_then(|status| status.state.as_ref()?.waiting.as_ref()?.reason.clone())
            .unwrap_or_else(|| "ContainerCreating".to_owned())
    }
}
