//! The server half of the WebSocket handshake with Kubernetes' sub-protocol negotiation. No I/O.

use http::header::{
    CONNECTION, HeaderName, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY,
    SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION, UPGRADE,
};
use http::{HeaderMap, Response, StatusCode};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;

/// Version of the remote-command protocol that both ends speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// `v5.channel.k8s.io`: v4 plus the CLOSE signal on channel 255.
    V5,
    /// `v4.channel.k8s.io`: the exit status is a `Status` object on channel 3.
    V4,
}

impl Protocol {
    /// The token of `Sec-WebSocket-Protocol`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::V5 => "v5.channel.k8s.io",
            Self::V4 => "v4.channel.k8s.io",
        }
    }

    fn from_token(token: &str) -> Option<Self> {
        [Self::V5, Self::V4]
            .into_iter()
            .find(|protocol| protocol.as_str() == token)
    }
}

/// Why a request cannot be upgraded. The text goes to the client with status 400 (403 upstream's habit is
/// not copied: nothing is forbidden here).
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    #[error(
        "Upgrade request required: this server speaks WebSocket (v5.channel.k8s.io, v4.channel.k8s.io); missing or wrong header `{header}`"
    )]
    NotWebSocket { header: HeaderName },
    #[error("unsupported WebSocket version: only 13 is supported")]
    Version,
    #[error(
        "unable to negotiate the sub-protocol: client offers [{offered}], server supports [v5.channel.k8s.io v4.channel.k8s.io]"
    )]
    Protocol { offered: String },
}

/// A handshake that may go on: send `response`, then take the upgraded connection.
#[derive(Debug)]
pub struct Accepted {
    pub protocol: Protocol,
    /// `101 Switching Protocols` with the headers the client checks.
    pub response: Response<()>,
}

/// Whether the request asks for a WebSocket at all.
#[must_use]
pub fn is_websocket_upgrade(headers: &HeaderMap) -> bool {
    has_token(headers, CONNECTION, "upgrade") && has_token(headers, UPGRADE, "websocket")
}

/// Checks the request's headers and picks the newest protocol that the client offers.
pub fn accept(headers: &HeaderMap) -> Result<Accepted, HandshakeError> {
    for (header, token) in [(CONNECTION, "upgrade"), (UPGRADE, "websocket")] {
        if !has_token(headers, header.clone(), token) {
            return Err(HandshakeError::NotWebSocket { header });
        }
    }
    if headers
        .get(SEC_WEBSOCKET_VERSION)
        .is_none_or(|version| version != "13")
    {
        return Err(HandshakeError::Version);
    }
    let key = headers
        .get(SEC_WEBSOCKET_KEY)
        .ok_or(HandshakeError::NotWebSocket {
            header: SEC_WEBSOCKET_KEY,
        })?;
    let offered = tokens(headers, SEC_WEBSOCKET_PROTOCOL);
    let offers = |wanted: Protocol| {
        offered
            .iter()
            .any(|token| Protocol::from_token(token) == Some(wanted))
    };
    let protocol = [Protocol::V5, Protocol::V4]
        .into_iter()
        .find(|protocol| offers(*protocol))
        .ok_or_else(|| HandshakeError::Protocol {
            offered: offered.join(" "),
        })?;
    let accept_key = derive_accept_key(key.as_bytes());
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    let headers = response.headers_mut();
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
    headers.insert(
        SEC_WEBSOCKET_PROTOCOL,
        HeaderValue::from_static(protocol.as_str()),
    );
    headers.insert(
        SEC_WEBSOCKET_ACCEPT,
        HeaderValue::try_from(accept_key).expect("base64 is a valid header value"),
    );
    Ok(Accepted { protocol, response })
}

fn tokens(headers: &HeaderMap, name: HeaderName) -> Vec<String> {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|token| token.trim().to_owned())
        .filter(|token| !token.is_empty())
        .collect()
}

fn has_token(headers: &HeaderMap, name: HeaderName, wanted: &str) -> bool {
    tokens(headers, name)
        .iter()
        .any(|token| token.eq_ignore_ascii_case(wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(protocols: &str) -> HeaderMap {
        let mut headers = HeaderMap::new();
        headers.insert(CONNECTION, HeaderValue::from_static("keep-alive, Upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
        // The example key and its answer are RFC 6455's own.
        headers.insert(
            SEC_WEBSOCKET_KEY,
            HeaderValue::from_static("dGhlIHNhbXBsZSBub25jZQ=="),
        );
        headers.insert(
            SEC_WEBSOCKET_PROTOCOL,
            HeaderValue::from_str(protocols).unwrap(),
        );
        headers
    }

    #[test]
    fn the_newest_common_protocol_is_chosen_whatever_the_order() {
        let accepted = accept(&request("v4.channel.k8s.io, v5.channel.k8s.io")).unwrap();
        assert_eq!(accepted.protocol, Protocol::V5);
        assert_eq!(
            accepted.response.headers()[SEC_WEBSOCKET_PROTOCOL],
            "v5.channel.k8s.io"
        );
        assert_eq!(
            accepted.response.headers()[SEC_WEBSOCKET_ACCEPT],
            "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
        );
        assert_eq!(
            accept(&request("v4.channel.k8s.io")).unwrap().protocol,
            Protocol::V4
        );
    }

    #[test]
    fn a_client_without_a_known_protocol_is_told_what_is_supported() {
        let error = accept(&request("channel.k8s.io, base64.channel.k8s.io")).unwrap_err();
        assert!(
            error
                .to_string()
                .contains("client offers [channel.k8s.io base64.channel.k8s.io]")
        );
        assert!(error.to_string().contains("v5.channel.k8s.io"));
    }

    #[test]
    fn a_plain_request_is_not_an_upgrade() {
        let mut headers = request("v5.channel.k8s.io");
        headers.remove(UPGRADE);
        assert!(!is_websocket_upgrade(&headers));
        assert_eq!(
            accept(&headers).unwrap_err(),
            HandshakeError::NotWebSocket { header: UPGRADE }
        );
    }
}
