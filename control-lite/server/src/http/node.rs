//! Requests that a node answers: logs, exec, attach. Finds the node, connects to its kubelet API
//! with our certificate, and hands the answer through.

mod connect;
mod target;

use std::sync::Arc;

use http::{Method, Request, Response};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use rustls::ClientConfig;
use tholepin_apimachinery::{ApiError, Kind};

use super::Frontend;
use super::body::{Body, BodyError};
use super::query::Query;
use super::route::ResourcePath;
use crate::registry::{ApiResult, Registry};
use target::Target;

/// Connections to nodes.
#[derive(Debug)]
pub(crate) struct NodeProxy {
    registry: Registry,
    tls: Arc<ClientConfig>,
}

impl NodeProxy {
    pub(crate) fn new(registry: Registry, tls: Arc<ClientConfig>) -> Self {
        Self { registry, tls }
    }
}

/// Whether a subresource is answered by the pod's node.
pub(super) fn is_node_call(kind: &Kind, subresource: &str) -> bool {
    kind.kind == "Pod" && matches!(subresource, "log" | "exec" | "attach")
}

pub(super) async fn handle(
    frontend: &Arc<Frontend>,
    path: &ResourcePath<'_>,
    query: &Query<'_>,
    request: &mut Request<Incoming>,
) -> ApiResult<Response<Body>> {
    let is_allowed = match path.subresource {
        "log" => *request.method() == Method::GET,
        _ => matches!(*request.method(), Method::GET | Method::POST),
    };
    if !is_allowed {
        return Err(ApiError::method_not_allowed());
    }
    let proxy = &frontend.node_proxy;
    let target = Target::find(&proxy.registry, path, query).await?;
    match path.subresource {
        "log" => proxy.log(&target).await,
        _ => proxy.stream(&target, request).await,
    }
}

impl NodeProxy {
    async fn log(&self, target: &Target) -> ApiResult<Response<Body>> {
        let answer = connect::get(&self.tls, target).await?;
        if !answer.status().is_success() {
            return Err(refusal(target, answer).await);
        }
        let mut response = answer.map(|body| body.map_err(boxed).boxed_unsync());
        response
            .headers_mut()
            .remove(http::header::TRANSFER_ENCODING);
        response.headers_mut().remove(http::header::CONNECTION);
        Ok(response)
    }

    async fn stream(
        &self,
        target: &Target,
        request: &mut Request<Incoming>,
    ) -> ApiResult<Response<Body>> {
        if !tholepin_streaming::is_websocket_upgrade(request.headers()) {
            // kubectl falls back to SPDY whatever the node said to its WebSocket, and shows the last
            // answer only. So that this is the reason, the node is asked again: without an upgrade it
            // looks for the container but runs nothing.
            let answer = connect::get(&self.tls, target).await?;
            return Err(refusal(target, answer).await);
        }
        let stream = connect::tls(&self.tls, target).await?;
        let uri = target.uri.clone();
        let relayed =
            tholepin_streaming::proxy_upgrade(request, stream, &target.authority(), &uri).await;
        let answer = relayed.map_err(|error| connect::failed(target, &error))?;
        Ok(answer.map(|body| body.map_err(boxed).boxed_unsync()))
    }
}

fn boxed(error: hyper::Error) -> BodyError {
    Box::new(error)
}

/// What the node said, as the API says it.
async fn refusal(target: &Target, answer: Response<Incoming>) -> ApiError {
    let status = answer.status();
    let bytes = match http_body_util::Limited::new(answer.into_body(), 64 << 10)
        .collect()
        .await
    {
        Ok(collected) => collected.to_bytes(),
        Err(_) => bytes::Bytes::new(),
    };
    let text = String::from_utf8_lossy(&bytes).trim().to_owned();
    let text = if text.is_empty() {
        format!("the node answered {status}")
    } else {
        text
    };
    match status.as_u16() {
        400 => ApiError::bad_request(text),
        404 => {
            let mut error = ApiError::not_found("", "pods", &target.pod);
            error.message = text;
            error
        }
        _ => ApiError::internal(text),
    }
}
