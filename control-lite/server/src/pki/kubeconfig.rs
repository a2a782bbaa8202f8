//! The kubeconfig of one user with embedded certificates. JSON is YAML, and needs no quoting rules.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use super::Credentials;

/// A kubeconfig for `user` at `server`.
#[must_use]
pub fn kubeconfig(server: &str, ca_pem: &str, user: &str, credentials: &Credentials) -> String {
    let context = format!("{user}@tholepin");
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "tholepin", "cluster": {
            "server": server, "certificate-authority-data": STANDARD.encode(ca_pem),
        }}],
        "contexts": [{"name": context, "context": {"cluster": "tholepin", "user": user}}],
        "current-context": context,
        "preferences": {},
        "users": [{"name": user, "user": {
            "client-certificate-data": STANDARD.encode(&credentials.certificate_pem),
            "client-key-data": STANDARD.encode(&credentials.key_pem),
        }}],
    });
    let mut text = serde_json::to_string_pretty(&config).expect("strings and maps serialize");
    text.push('\n');
    text
}
