//! OpenAPI v3: the index and one document per group version. Documents are made when somebody asks
//! and kept compressed only: `kubectl explain` is rare, memory is not free.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_ENCODING, CONTENT_TYPE, ETAG, IF_NONE_MATCH, VARY};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use tholepin_apimachinery::{ApiError, openapi};

use super::body::{self, Body};
use super::query::Query;

/// The documents that were asked for, compressed, by their path.
#[derive(Debug, Default)]
pub(super) struct OpenApi {
    documents: Mutex<BTreeMap<String, Document>>,
}

#[derive(Clone, Debug)]
struct Document {
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
        let path = path.trim_start_matches("/openapi/v3").trim_matches('/');
        if path.is_empty() {
            return Ok(super::encode::json(200, &openapi::index()));
        }
        self.document(path)?.respond(query, headers)
    }

    fn document(&self, path: &str) -> Result<Document, ApiError> {
        let known = self
            .documents
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(document) = known.get(path) {
            return Ok(document.clone());
        }
        drop(known);
        let document = Document::make(path)?;
        let mut known = self
            .documents
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        Ok(known.entry(path.to_owned()).or_insert(document).clone())
    }
}

impl Document {
    fn make(path: &str) -> Result<Self, ApiError> {
        let document = openapi::document_at(path).ok_or_else(ApiError::unknown_path)?;
        let (group, version) = match path.split('/').collect::<Vec<_>>().as_slice() {
            ["api", version] => ("", *version),
            ["apis", group, version] => (*group, *version),
            _ => return Err(ApiError::unknown_path()),
        };
        let hash = openapi::hash(group, version);
        let text = serde_json::to_vec(&document).map_err(ApiError::internal)?;
        let gzipped = body::gzip(&text).map_err(ApiError::internal)?;
        Ok(Self { gzipped, hash })
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
