//! Secret. Values never appear in errors.

use super::config_map::{DATA_BYTES_LIMIT, decoded_length, immutable_parts};
use super::{ALL_VERBS, Kind, Strategy, cells};
use crate::field::{ErrorList, FieldError, Path};
use crate::value::{bool_at, default_to, ensure_map, map_at, remove, str_at};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

/// The table entry.
pub static SECRET: Kind = Kind {
    group: "",
    version: "v1",
    kind: "Secret",
    plural: "secrets",
    singular: "secret",
    short_names: &[],
    categories: &[],
    is_namespaced: true,
    verbs: ALL_VERBS,
    subresources: &[],
    message: "core.Secret",
    storage: "/secrets",
    is_volatile: false,
    columns: &[
        cells::NAME,
        cells::text("Type", 0, "What the data is for."),
        cells::text("Data", 0, "Number of keys."),
        cells::AGE,
    ],
    cells: |object, now| {
        let count = map_at(object, "data").map_or(0, serde_json::Map::len);
        vec![
            cells::name(object),
            cells::text_or(object, "type", ""),
            count.into(),
            cells::age(object, now),
        ]
    },
    field_selectors: &["type"],
    name_rule: crate::names::dns_subdomain,
    strategy: Strategy {
        default,
        validate,
        validate_update,
        ..Strategy::PLAIN
    },
};

fn default(object: &mut Value) {
    // stringData is write-only: it goes into data and is never stored or shown.
    if let Some(Value::Object(texts)) = remove(object, "stringData") {
        let data = ensure_map(object, "data");
        for (key, value) in texts {
            data.insert(
                key,
                STANDARD.encode(value.as_str().unwrap_or_default()).into(),
            );
        }
    }
    default_to(ensure_map(object, ""), "type", "Opaque");
}

const ACCOUNT_ANNOTATION: &str = "kubernetes.io/service-account.name";

fn is_of_account(secret: &Value) -> bool {
    crate::meta::annotation(secret, ACCOUNT_ANNOTATION).is_some_and(|name| !name.is_empty())
}

fn validate(object: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    let data = map_at(object, "data");
    let path = Path::new("data");
    let mut size = 0;
    for (key, value) in data.into_iter().flatten() {
        errors.extend(crate::names::errors(
            &path.key(key),
            key,
            crate::names::config_key(key),
        ));
        size += decoded_length(value);
    }
    if size > DATA_BYTES_LIMIT {
        errors.push(FieldError::too_long(&path, DATA_BYTES_LIMIT));
    }
    let has = |key: &str| data.is_some_and(|d| d.contains_key(key));
    let mut require = |key: &str| {
        if !has(key) {
            errors.push(FieldError::required(&path.key(key), ""));
        }
    };
    match str_at(object, "type") {
        "kubernetes.io/service-account-token" if !is_of_account(object) => {
            let annotations = Path::new("metadata").child("annotations");
            errors.push(FieldError::required(
                &annotations.key(ACCOUNT_ANNOTATION),
                "",
            ));
        }
        "kubernetes.io/dockercfg" => require(".dockercfg"),
        "kubernetes.io/dockerconfigjson" => require(".dockerconfigjson"),
        "kubernetes.io/basic-auth" if !has("username") && !has("password") => {
            require("username");
            require("password");
        }
        "kubernetes.io/ssh-auth" => require("ssh-privatekey"),
        "kubernetes.io/tls" => {
            require("tls.crt");
            require("tls.key");
        }
        _ => {}
    }
    for key in [".dockercfg", ".dockerconfigjson"] {
        let is_meant = str_at(object, "type") == format!("kubernetes.io/{}", &key[1..]);
        let content = data
            .and_then(|d| d.get(key))
            .and_then(Value::as_str)
            .and_then(|t| STANDARD.decode(t).ok());
        if let (true, Some(content)) = (is_meant, content)
            && let Err(error) = serde_json::from_slice::<serde_json::Map<String, Value>>(&content)
        {
            // The position tells enough; the content is a credential.
            let detail = format!(
                "not a JSON object (line {}, column {})",
                error.line(),
                error.column()
            );
            errors.push(FieldError::invalid(
                &path.key(key),
                "<secret contents redacted>",
                detail,
            ));
        }
    }
    errors
}

fn validate_update(new: &Value, old: &Value) -> ErrorList {
    let mut errors = ErrorList::new();
    if str_at(new, "type") != str_at(old, "type") {
        errors.push(FieldError::invalid(
            &Path::new("type"),
            str_at(new, "type"),
            "field is immutable",
        ));
    }
    if bool_at(old, "immutable") {
        errors.extend(immutable_parts(new, old, &["data"]));
    }
    errors.extend(validate(new));
    errors
}
