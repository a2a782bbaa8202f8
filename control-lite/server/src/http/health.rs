//! `/healthz`, `/livez`, `/readyz`: this process answers, and its store with it.

use http::Response;
use http::header::CONTENT_TYPE;
use http::{HeaderValue, StatusCode};

use super::body::{self, Body};
use super::query::Query;

/// What is checked. A server that answers has opened its store and its registry: it does not
/// listen before.
const CHECKS: [&str; 2] = ["ping", "store"];

pub(super) fn is_health(path: &str) -> bool {
    let first = path
        .trim_start_matches('/')
        .split('/')
        .next()
        .unwrap_or_default();
    matches!(first, "healthz" | "livez" | "readyz")
}

pub(super) fn check(path: &str, query: &Query<'_>) -> Response<Body> {
    let mut words = path.trim_start_matches('/').split('/');
    let endpoint = words.next().unwrap_or_default();
    let (status, text) = match words.next() {
        Some(check) if CHECKS.contains(&check) => (StatusCode::OK, "ok".to_owned()),
        Some(_) => (StatusCode::NOT_FOUND, "404 page not found\n".to_owned()),
        None if query.has("verbose") => {
            let lines: String = CHECKS
                .iter()
                .map(|check| format!("[+]{check} ok\n"))
                .collect();
            (StatusCode::OK, format!("{lines}{endpoint} check passed\n"))
        }
        None => (StatusCode::OK, "ok".to_owned()),
    };
    let mut response = Response::new(body::full(text));
    *response.status_mut() = status;
    let plain = HeaderValue::from_static("text/plain; charset=utf-8");
    response.headers_mut().insert(CONTENT_TYPE, plain);
    response
}
