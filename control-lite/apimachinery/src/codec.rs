//! Request bodies: JSON, YAML and Kubernetes protobuf to a checked, normalised object.
//!
//! Whatever the format, the result is what upstream would have after decoding into its typed objects: unknown fields are
//! gone (and reported as the request asks), types are right, nulls and omitted zero values are absent, quantities are canonical.

mod check;
mod parse;
mod protobuf;
mod scalar;

pub use protobuf::InvalidProtobuf;

use crate::Kind;
use crate::error::ApiError;
use crate::schema::{Message, schema};
use serde_json::Value;

/// The media types that are read, for error texts.
pub const MEDIA_TYPES: &[&str] = &[
    "application/json",
    "application/yaml",
    "application/vnd.kubernetes.protobuf",
];

/// What happens to unknown and duplicate fields.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum FieldValidation {
    /// Dropped in silence: the client asked for it.
    Ignore,
    /// Dropped, with a warning each; the default.
    #[default]
    Warn,
    /// Refused.
    Strict,
}

impl FieldValidation {
    /// Reads the query parameter.
    pub fn parse(text: &str) -> Result<Self, ApiError> {
        match text {
            "" | "Warn" => Ok(Self::Warn),
            "Ignore" => Ok(Self::Ignore),
            "Strict" => Ok(Self::Strict),
            other => {
                let path = crate::field::Path::new("fieldValidation");
                let error = crate::field::FieldError::not_supported(
                    &path,
                    other,
                    &["", "Ignore", "Strict", "Warn"],
                );
                Err(ApiError::invalid(
                    "meta.k8s.io",
                    "CreateOptions",
                    "",
                    &vec![error],
                ))
            }
        }
    }
}

/// How a body is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// JSON.
    Json,
    /// YAML.
    Yaml,
    /// Kubernetes protobuf.
    Protobuf,
}

impl Format {
    /// From a `Content-Type`; an absent one is JSON, as upstream.
    pub fn from_content_type(header: &str) -> Result<Self, ApiError> {
        match header.split(';').next().unwrap_or_default().trim() {
            "" | "application/json" => Ok(Self::Json),
            "application/yaml" => Ok(Self::Yaml),
            "application/vnd.kubernetes.protobuf" => Ok(Self::Protobuf),
            _ => Err(ApiError::unsupported_media_type(MEDIA_TYPES)),
        }
    }
}

/// What a body must hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expected<'a> {
    /// API group.
    pub group: &'a str,
    /// Version.
    pub version: &'a str,
    /// Kind.
    pub kind: &'a str,
    /// Message in the schema.
    pub message: &'a str,
}

impl Expected<'static> {
    /// `autoscaling/v1` Scale.
    pub const SCALE: Self = Self {
        group: "autoscaling",
        version: "v1",
        kind: "Scale",
        message: "autoscaling.Scale",
    };
    /// `v1` Binding.
    pub const BINDING: Self = Self {
        group: "",
        version: "v1",
        kind: "Binding",
        message: "core.Binding",
    };
}

impl<'a> From<&'a Kind> for Expected<'a> {
    fn from(kind: &'a Kind) -> Self {
        Self {
            group: kind.group,
            version: kind.version,
            kind: kind.kind,
            message: kind.message,
        }
    }
}

impl Expected<'_> {
    fn api_version(&self) -> String {
        if self.group.is_empty() {
            self.version.to_owned()
        } else {
            format!("{}/{}", self.group, self.version)
        }
    }

    fn message(&self) -> &'static Message {
        schema()
            .find(self.message)
            .expect("the kinds table names messages of the schema; a test checks it")
    }

    /// `Pod in version "v1" cannot be handled as a Pod: cause`.
    fn refuse(&self, cause: impl std::fmt::Display) -> ApiError {
        let (kind, version) = (self.kind, self.version);
        ApiError::bad_request(format!(
            "{kind} in version \"{version}\" cannot be handled as a {kind}: {cause}"
        ))
    }
}

/// A decoded body.
#[derive(Debug, Clone, PartialEq)]
pub struct Decoded {
    /// With `apiVersion` and `kind` first.
    pub object: Value,
    /// For `Warning` headers.
    pub warnings: Vec<String>,
}

/// Decodes a body that must hold `expected`.
pub fn decode<'a>(
    expected: impl Into<Expected<'a>>,
    format: Format,
    body: &[u8],
    validation: FieldValidation,
) -> Result<Decoded, ApiError> {
    let expected = expected.into();
    match format {
        Format::Protobuf => {
            let (api_version, kind, object) = protobuf::decode(body, &expected)?;
            check_type(&expected, &api_version, &kind)?;
            Ok(Decoded {
                object: with_type(&expected, object),
                warnings: Vec::new(),
            })
        }
        Format::Json | Format::Yaml => {
            let (value, duplicates) = parse::parse(format, body).map_err(|e| expected.refuse(e))?;
            finish(&expected, value, duplicates, validation)
        }
    }
}

/// Checks and normalises an object that was made here, as by a patch.
pub fn check<'a>(
    expected: impl Into<Expected<'a>>,
    object: Value,
    validation: FieldValidation,
) -> Result<Decoded, ApiError> {
    finish(&expected.into(), object, Vec::new(), validation)
}

/// JSON with its duplicate fields, for bodies that are not objects of a kind.
pub(crate) fn parse_json(body: &[u8]) -> Result<(Value, Vec<String>), String> {
    parse::parse(Format::Json, body).map_err(|e| e.to_string())
}

/// Checks a patched object; `problems` were found in the patch already.
pub(crate) fn check_patched(
    expected: &Expected<'_>,
    object: Value,
    problems: Vec<String>,
    validation: FieldValidation,
) -> Result<Decoded, ApiError> {
    finish(expected, object, problems, validation)
}

/// Decodes the body of a DELETE; an empty one has no options.
pub fn decode_delete_options(format: Format, body: &[u8]) -> Result<Value, ApiError> {
    if body.iter().all(u8::is_ascii_whitespace) {
        return Ok(Value::Object(serde_json::Map::new()));
    }
    // Clients send it as v1, meta.k8s.io/v1 or the resource's own version: upstream registers it in every group.
    let expected = Expected {
        group: "",
        version: "v1",
        kind: "DeleteOptions",
        message: "meta.DeleteOptions",
    };
    let object = match format {
        Format::Protobuf => protobuf::decode(body, &expected)?.2,
        _ => {
            let (mut value, _) = parse::parse(format, body).map_err(|e| expected.refuse(e))?;
            if let Some(map) = value.as_object_mut() {
                map.shift_remove("apiVersion");
            }
            finish(&expected, value, Vec::new(), FieldValidation::Ignore)?.object
        }
    };
    let errors = check_delete_options(&object);
    if errors.is_empty() {
        Ok(object)
    } else {
        Err(ApiError::invalid(
            "meta.k8s.io",
            "DeleteOptions",
            "",
            &errors,
        ))
    }
}

fn check_delete_options(options: &Value) -> crate::field::ErrorList {
    use crate::field::{FieldError, Path};
    let mut errors = Vec::new();
    let policy = crate::value::str_at(options, "propagationPolicy");
    let path = Path::new("propagationPolicy");
    let is_given = crate::value::at(options, "propagationPolicy").is_some();
    if is_given && crate::value::at(options, "orphanDependents").is_some() {
        errors.push(FieldError::invalid(
            &path,
            policy,
            "orphanDependents and deletionPropagation cannot be both set",
        ));
    }
    if is_given && !["Foreground", "Background", "Orphan"].contains(&policy) {
        errors.push(FieldError::not_supported(
            &path,
            policy,
            &["Foreground", "Background", "Orphan", "nil"],
        ));
    }
    for (i, value) in crate::value::list_at(options, "dryRun").iter().enumerate() {
        if value != "All" {
            errors.push(FieldError::not_supported(
                &Path::new("dryRun").index(i),
                value.clone(),
                &["All"],
            ));
        }
    }
    errors
}

fn finish(
    expected: &Expected<'_>,
    mut value: Value,
    mut problems: Vec<String>,
    validation: FieldValidation,
) -> Result<Decoded, ApiError> {
    let Some(map) = value.as_object_mut() else {
        return Err(expected.refuse(format!(
            "json: cannot unmarshal {} into Go value of type {}",
            check::word(&value),
            expected.kind
        )));
    };
    let mut take = |key: &str| {
        map.shift_remove(key)
            .and_then(|v| v.as_str().map(str::to_owned))
            .unwrap_or_default()
    };
    let (api_version, kind) = (take("apiVersion"), take("kind"));
    check_type(expected, &api_version, &kind)?;
    let object =
        check::check(value, expected.message(), &mut problems).map_err(|e| expected.refuse(e))?;
    let warnings = match validation {
        FieldValidation::Ignore => Vec::new(),
        FieldValidation::Warn => problems,
        FieldValidation::Strict if problems.is_empty() => problems,
        FieldValidation::Strict => {
            return Err(expected.refuse(format!("strict decoding error: {}", problems.join(", "))));
        }
    };
    Ok(Decoded {
        object: with_type(expected, object),
        warnings,
    })
}

/// A body may leave its type out; it may not have another one.
fn check_type(expected: &Expected<'_>, api_version: &str, kind: &str) -> Result<(), ApiError> {
    let wanted = expected.api_version();
    if !api_version.is_empty() && api_version != wanted {
        return Err(ApiError::bad_request(format!(
            "the API version in the data ({api_version}) does not match the expected API version ({wanted})"
        )));
    }
    if !kind.is_empty() && kind != expected.kind {
        return Err(ApiError::bad_request(format!(
            "{kind} in version \"{}\" cannot be handled as a {}: the kind in the data does not match the expected kind",
            expected.version, expected.kind
        )));
    }
    Ok(())
}

fn with_type(expected: &Expected<'_>, object: Value) -> Value {
    let mut typed = serde_json::Map::new();
    typed.insert("apiVersion".to_owned(), expected.api_version().into());
    typed.insert("kind".to_owned(), expected.kind.into());
    if let Value::Object(map) = object {
        typed.extend(map);
    }
    Value::Object(typed)
}

#[cfg(test)]
mod tests;
