//! The `continue` parameter of paged lists: base64url of `{"v":"meta.k8s.io/v1","rv":N,"start":"key\0"}`, as upstream.

use crate::error::ApiError;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};

const VERSION: &str = "meta.k8s.io/v1";

/// Where a paged list goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContinueToken {
    /// Revision of the first page; `None` asks for the latest (an inconsistent continuation after expiry).
    pub revision: Option<u64>,
    /// First key that is not yet sent, relative to the list's prefix.
    pub start: String,
}

#[derive(Serialize, Deserialize)]
struct Wire {
    v: String,
    rv: i64,
    start: String,
}

impl ContinueToken {
    /// The token that goes on after `last_key` (relative to the list's prefix).
    pub fn after(last_key: &str, revision: Option<u64>) -> Self {
        Self {
            revision,
            start: format!("{last_key}\0"),
        }
    }

    /// The parameter's text.
    pub fn encode(&self) -> String {
        let rv = self
            .revision
            .map_or(-1, |r| i64::try_from(r).unwrap_or(i64::MAX));
        let wire = Wire {
            v: VERSION.to_owned(),
            rv,
            start: self.start.clone(),
        };
        URL_SAFE_NO_PAD.encode(serde_json::to_vec(&wire).expect("strings and a number serialize"))
    }

    /// Reads the parameter.
    pub fn decode(text: &str) -> Result<Self, ApiError> {
        let refuse = |why: &str| {
            ApiError::bad_request(format!(
                "invalid continue token: continue key is not valid: {why}"
            ))
        };
        let bytes = URL_SAFE_NO_PAD
            .decode(text.trim_end_matches('='))
            .map_err(|e| refuse(&e.to_string()))?;
        let wire: Wire = serde_json::from_slice(&bytes).map_err(|e| refuse(&e.to_string()))?;
        if wire.v != VERSION {
            return Err(refuse(&format!(
                "server does not recognize this encoded version \"{}\"",
                wire.v
            )));
        }
        if wire.rv == 0 {
            return Err(refuse(
                "incorrect encoded start resourceVersion (version meta.k8s.io/v1)",
            ));
        }
        // A key that climbs out of the list's prefix would read another namespace.
        if wire.start.is_empty() || wire.start.split('/').any(|s| s == "..") {
            return Err(refuse(&format!("{:?}", wire.start)));
        }
        Ok(Self {
            revision: u64::try_from(wire.rv).ok(),
            start: wire.start,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_token_is_upstreams_json_in_base64() {
        let token = ContinueToken::after("default/web", Some(7));
        let json = URL_SAFE_NO_PAD.decode(token.encode()).expect("base64");
        assert_eq!(
            json,
            b"{\"v\":\"meta.k8s.io/v1\",\"rv\":7,\"start\":\"default/web\\u0000\"}"
        );
        assert_eq!(ContinueToken::decode(&token.encode()), Ok(token));
    }

    #[test]
    fn tokens_that_were_not_ours_are_refused() {
        let encode = |json: &str| URL_SAFE_NO_PAD.encode(json);
        for bad in [
            "%%".to_owned(),
            encode("{}"),
            encode(r#"{"v":"v0","rv":1,"start":"a"}"#),
            encode(r#"{"v":"meta.k8s.io/v1","rv":0,"start":"a"}"#),
            encode(r#"{"v":"meta.k8s.io/v1","rv":1,"start":"../a"}"#),
        ] {
            assert_eq!(
                ContinueToken::decode(&bad).expect_err("refused").code(),
                400
            );
        }
    }

    proptest! {
        #[test]
        fn every_token_round_trips(start in "[a-z0-9./-]{1,30}", revision in proptest::option::of(1..i64::MAX as u64)) {
            prop_assume!(!start.split('/').any(|s| s == ".."));
            let token = ContinueToken { revision, start };
            prop_assert_eq!(ContinueToken::decode(&token.encode()), Ok(token));
        }
    }
}
