//! Bodies: what is read (bounded) and what is written (whole or streamed, gzip where it pays).

use std::io::Write as _;

use bytes::Bytes;
use futures::Stream;
use http::header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_LENGTH, VARY};
use http::{HeaderMap, HeaderValue, Response};
use http_body::{Body as _, Frame};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited, StreamBody};
use hyper::body::Incoming;
use tholepin_apimachinery::ApiError;

/// Whatever ends a streamed body early.
pub(crate) type BodyError = Box<dyn std::error::Error + Send + Sync>;

/// Every response body.
pub(crate) type Body = UnsyncBoxBody<Bytes, BodyError>;

/// Requests larger than this are refused, as upstream does.
pub(crate) const MAX_REQUEST_BYTES: usize = 3 << 20;

/// Smaller answers are not worth compressing: same as upstream.
const GZIP_ABOVE: usize = 128 << 10;

/// A body that is already there.
pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into())
        .map_err(|never| match never {})
        .boxed_unsync()
}

/// A body that comes in pieces.
pub(crate) fn streamed(
    pieces: impl Stream<Item = Result<Bytes, BodyError>> + Send + 'static,
) -> Body {
    use futures::TryStreamExt as _;
    StreamBody::new(pieces.map_ok(Frame::data)).boxed_unsync()
}

/// Leaves the head of an answer, with the length the body would have: hyper does it for HTTP/1 only, and a
/// body after HEAD breaks an HTTP/2 stream.
pub(crate) fn drop_for_head(response: &mut Response<Body>) {
    if let Some(length) = response.body().size_hint().exact() {
        let headers = response.headers_mut();
        headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    }
    *response.body_mut() = full(Bytes::new());
}

/// Reads a request body of at most [`MAX_REQUEST_BYTES`].
pub(crate) async fn read(headers: &HeaderMap, body: Incoming) -> Result<Bytes, ApiError> {
    let announced = headers
        .get(CONTENT_LENGTH)
        .and_then(|length| length.to_str().ok())
        .and_then(|length| length.parse::<usize>().ok());
    if announced.is_some_and(|length| length > MAX_REQUEST_BYTES) {
        return Err(ApiError::request_entity_too_large(MAX_REQUEST_BYTES));
    }
    match Limited::new(body, MAX_REQUEST_BYTES).collect().await {
        Ok(collected) => Ok(collected.to_bytes()),
        Err(error) if error.is::<LengthLimitError>() => {
            Err(ApiError::request_entity_too_large(MAX_REQUEST_BYTES))
        }
        Err(error) => Err(ApiError::bad_request(format!(
            "failed to read the request body: {error}"
        ))),
    }
}

/// Whether the client takes gzip.
pub(crate) fn takes_gzip(headers: &HeaderMap) -> bool {
    let values = headers
        .get_all(ACCEPT_ENCODING)
        .iter()
        .filter_map(|value| value.to_str().ok());
    let mut codings = values.flat_map(|value| value.split(','));
    codings.any(|coding| {
        let mut parts = coding.split(';').map(str::trim);
        let name = parts.next().unwrap_or_default();
        let refused = parts.any(|part| part == "q=0" || part == "q=0.0");
        name.eq_ignore_ascii_case("gzip") && !refused
    })
}

/// A response with a large body, compressed if the client takes it.
pub(crate) fn maybe_gzip(request: &HeaderMap, mut response: Response<Bytes>) -> Response<Body> {
    let is_large = response.body().len() > GZIP_ABOVE;
    if is_large
        && takes_gzip(request)
        && let Ok(compressed) = gzip(response.body())
    {
        let headers = response.headers_mut();
        headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        headers.append(VARY, HeaderValue::from_static("Accept-Encoding"));
        *response.body_mut() = compressed;
    }
    response.map(full)
}

/// Compresses quickly: the network is seldom slower than level 1.
pub(crate) fn gzip(bytes: &[u8]) -> std::io::Result<Bytes> {
    let out = Vec::with_capacity(bytes.len() / 4);
    let mut encoder = flate2::write::GzEncoder::new(out, flate2::Compression::new(1));
    encoder.write_all(bytes)?;
    Ok(encoder.finish()?.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(accept_encoding: &'static str) -> HeaderMap {
        HeaderMap::from_iter([(ACCEPT_ENCODING, HeaderValue::from_static(accept_encoding))])
    }

    #[test]
    fn gzip_is_taken_only_when_it_is_offered() {
        assert!(takes_gzip(&headers("gzip")));
        assert!(takes_gzip(&headers("deflate, gzip;q=0.5")));
        assert!(!takes_gzip(&headers("identity")));
        assert!(!takes_gzip(&headers("gzip;q=0")));
        assert!(!takes_gzip(&HeaderMap::new()));
    }

    #[test]
    fn only_large_answers_are_compressed() {
        let small = maybe_gzip(&headers("gzip"), Response::new(Bytes::from_static(b"{}")));
        assert!(!small.headers().contains_key(CONTENT_ENCODING));
        let large = maybe_gzip(
            &headers("gzip"),
            Response::new(vec![b'x'; 200 << 10].into()),
        );
        assert_eq!(large.headers()[CONTENT_ENCODING], "gzip");
    }
}
