//! The HTTP layer: from a request on an authenticated connection to a response.
//!
//! Holds no state of the API. It parses, negotiates and encodes; the registry decides.

mod authenticate;
mod authorize;
mod body;
mod decode;
mod discovery;
mod encode;
mod health;
mod metrics;
mod negotiate;
mod node;
mod objects;
mod openapi;
mod openapi_v2;
mod query;
mod route;
mod watch;

use std::sync::Arc;
use std::time::Instant;

use http::header::{CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response};
use hyper::body::Incoming;
use serde_json::json;
use tholepin_apimachinery::ApiError;
use tokio_util::sync::CancellationToken;

pub(crate) use authenticate::Peer;
pub(crate) use node::NodeProxy;

use crate::registry::{Registry, RequestContext};
use body::Body;
use metrics::{Metrics, RequestLabels};
use route::Route;

/// The version the API is compatible with.
const GIT_VERSION: &str = concat!("v1.35.0+tholepin", env!("CARGO_PKG_VERSION"));

/// What every request needs.
#[derive(Debug)]
pub(crate) struct Frontend {
    registry: Registry,
    node_proxy: NodeProxy,
    metrics: Metrics,
    discovery: discovery::Discovery,
    openapi: openapi::OpenApi,
    /// Ends watches and other long requests when the server stops.
    stopping: CancellationToken,
}

impl Frontend {
    pub(crate) fn new(
        registry: Registry,
        node_proxy: NodeProxy,
        stopping: CancellationToken,
    ) -> Arc<Self> {
        Arc::new(Self {
            registry,
            node_proxy,
            metrics: Metrics::default(),
            discovery: discovery::Discovery::new(),
            openapi: openapi::OpenApi::default(),
            stopping,
        })
    }

    /// Answers one request. Failures are answers too: a `Status`.
    pub(crate) async fn serve(
        self: &Arc<Self>,
        peer: &Peer,
        request: Request<Incoming>,
    ) -> Response<Body> {
        let started = Instant::now();
        let is_head = request.method() == Method::HEAD;
        let labels = RequestLabels::of(&request);
        let in_flight = self.metrics.begin(&labels);
        let ctx = RequestContext::default();
        let warnings = ctx.warnings.clone();
        let outcome = self.dispatch(peer, ctx, request).await;
        let mut response = outcome.unwrap_or_else(|error| encode::error(&error));
        encode::add_warnings(response.headers_mut(), warnings.take());
        let headers = response.headers_mut();
        if !headers.contains_key(CACHE_CONTROL) {
            headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
        }
        if is_head {
            body::drop_for_head(&mut response);
        }
        in_flight.end(&labels, response.status().as_u16(), started.elapsed());
        response
    }

    async fn dispatch(
        self: &Arc<Self>,
        peer: &Peer,
        mut ctx: RequestContext,
        request: Request<Incoming>,
    ) -> Result<Response<Body>, ApiError> {
        let path = request.uri().path().to_owned();
        match authenticate::user(peer) {
            Some(user) => ctx.user = user,
            None if authenticate::is_public(&path) => (),
            None => return Err(ApiError::unauthorized()),
        }
        let route = route::parse(&path);
        authorize::authorize(&ctx.user, request.method(), &route)?;
        match route {
            Route::Resource(resource) => objects::handle(self, ctx, &resource, request).await,
            Route::Other => self.other(&path, &request),
        }
    }

    fn other(&self, path: &str, request: &Request<Incoming>) -> Result<Response<Body>, ApiError> {
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return Err(ApiError::method_not_allowed());
        }
        let headers = request.headers();
        let query = query::Query::parse(request.uri().query());
        match path.trim_end_matches('/') {
            "/version" => Ok(encode::json(200, &version())),
            "/metrics" => Ok(text(
                "text/plain; version=0.0.4",
                self.metrics.render(&self.registry),
            )),
            path if health::is_health(path) => Ok(health::check(path, &query)),
            "/openapi/v2" => openapi_v2::serve(headers),
            path if openapi::is_openapi(path) => self.openapi.serve(path, &query, headers),
            path => self.discovery.serve(path, headers),
        }
    }
}

fn version() -> serde_json::Value {
    json!({
        "major": "1", "minor": "35", "emulationMajor": "1", "emulationMinor": "35",
        "minCompatibilityMajor": "1", "minCompatibilityMinor": "34",
        "gitVersion": GIT_VERSION, "gitCommit": "", "gitTreeState": "clean", "buildDate": "",
        "goVersion": "", "compiler": "rustc",
        "platform": format!("{}/{}", std::env::consts::OS, go_arch()),
    })
}

/// The architecture in the words clients expect.
fn go_arch() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn text(content_type: &'static str, text: String) -> Response<Body> {
    let mut response = Response::new(body::full(text));
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}
