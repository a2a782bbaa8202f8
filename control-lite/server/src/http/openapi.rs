//! OpenAPI v3: the index and one document per group version. Documents are made when somebody asks
//! and kept compressed only: `kubectl explain` is rare, memory is not free.

mod document;

use std::io::Read as _;
use std::sync::OnceLock;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, ETAG, IF_NONE_MATCH, VARY};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use serde_json::{Map, Value, json};
use sha2::{Digest as _, Sha256};
use tholepin_apimachinery::{ApiError, kinds};

use super::body::{self, Body};
use super::query::Query;

/// The documents that were asked for.
#[derive(Debug, Default)]
pub(super) struct OpenApi {
    documents: OnceLock<Vec<Document>>,
}

#[derive(Debug)]
struct Document {
    /// `api/v1` or `apis/<group>/<version>`.
    path: String,
    gzipped: Bytes,
    hash: String,
}

pub(super) fn is_openapi(path: &str) -> bool {
    path == "/openapi/v3" || path.starts_with("/openapi/v3/")
}

impl OpenApi {
    pub(super) fn serve(
        &self,
        path: &str,
        query: &Query<'_>,
        headers: &HeaderMap,
    ) -> Result<Response<Body>, ApiError> {
        let documents = self.documents()?;
        let path = path.trim_start_matches("/openapi/v3").trim_matches('/');
        if path.is_empty() {
            return Ok(super::encode::json(200, &index(documents)));
        }
        let document = documents
            .iter()
            .find(|document| document.path == path)
            .ok_or_else(ApiError::unknown_path)?;
        document.respond(query, headers)
    }

    fn documents(&self) -> Result<&[Document], ApiError> {
        if let Some(documents) = self.documents.get() {
            return Ok(documents);
        }
        let made = kinds::group_versions()
            .into_iter()
            .map(|(group, version)| Document::make(group, version))
            .collect::<Result<Vec<_>, _>>()?;
        Ok(self.documents.get_or_init(|| made))
    }
}

fn index(documents: &[Document]) -> Value {
    let mut paths = Map::new();
    for Document { path, hash, .. } in documents {
        let url = format!("/openapi/v3/{path}?hash={hash}");
        paths.insert(path.clone(), json!({"serverRelativeURL": url}));
    }
    json!({"paths": paths})
}

impl Document {
    fn make(group: &'static str, version: &'static str) -> Result<Self, ApiError> {
        let path = match group {
            "" => format!("api/{version}"),
            group => format!("apis/{group}/{version}"),
        };
        let text = document::document(group, version).to_string();
        let hash: String = Sha256::digest(text.as_bytes())
            .iter()
            .map(|byte| format!("{byte:02X}"))
            .collect();
        let gzipped = body::gzip(text.as_bytes()).map_err(ApiError::internal)?;
        Ok(Self {
            path,
            gzipped,
            hash,
        })
    }

    fn respond(&self, query: &Query<'_>, request: &HeaderMap) -> Result<Response<Body>, ApiError> {
        let etag = format!("\"{}\"", self.hash);
        let is_known = request
            .get(IF_NONE_MATCH)
            .is_some_and(|known| known == etag.as_str());
        let takes_gzip = body::takes_gzip(request);
        let bytes = match (is_known, takes_gzip) {
            (true, _) => Bytes::new(),
            (false, true) => self.gzipped.clone(),
            (false, false) => self.text()?,
        };
        let mut response = Response::new(body::full(bytes));
        if is_known {
            *response.status_mut() = StatusCode::NOT_MODIFIED;
        }
        let headers = response.headers_mut();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(VARY, HeaderValue::from_static("Accept, Accept-Encoding"));
        headers.insert(
            ETAG,
            HeaderValue::from_str(&etag).map_err(ApiError::internal)?,
        );
        if takes_gzip && !is_known {
            headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        // The hash is in the address: what is there never changes.
        if query.get("hash").is_some_and(|hash| hash == self.hash) {
            headers.insert(CACHE_CONTROL, HeaderValue::from_static("public, immutable"));
        }
        Ok(response)
    }

    fn text(&self) -> Result<Bytes, ApiError> {
        let mut text = Vec::new();
        flate2::read::GzDecoder::new(&*self.gzipped)
            .read_to_end(&mut text)
            .map_err(ApiError::internal)?;
        Ok(text.into())
    }
}
