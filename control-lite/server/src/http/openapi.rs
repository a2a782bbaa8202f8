//! OpenAPI v3: the index and one document per group version.

use http::{HeaderMap, Response};
use tholepin_apimachinery::ApiError;

use super::body::Body;
use super::query::Query;

#[derive(Debug, Default)]
pub(super) struct OpenApi {}

pub(super) fn is_openapi(path: &str) -> bool {
    path == "/openapi/v3" || path.starts_with("/openapi/v3/")
}

impl OpenApi {
    pub(super) fn serve(
        &self,
        _path: &str,
        _query: &Query<'_>,
        _headers: &HeaderMap,
    ) -> Result<Response<Body>, ApiError> {
        Err(ApiError::unknown_path())
    }
}
