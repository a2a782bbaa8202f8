//! VERSION: which versions of the specification the plugin speaks.

use serde_json::{Value, json};

use crate::config::SUPPORTED;
use crate::error::CniError;

pub(crate) fn run(input: &[u8]) -> Result<String, CniError> {
    // Old runtimes send nothing.
    let asked = if input.iter().all(u8::is_ascii_whitespace) {
        None
    } else {
        let value: Value =
            serde_json::from_slice(input).map_err(|source| CniError::Decode { source })?;
        value
            .get("cniVersion")
            .and_then(Value::as_str)
            .map(str::to_owned)
    };
    let version = asked.filter(|v| SUPPORTED.contains(&v.as_str()));
    let version = version.unwrap_or_else(|| "1.1.0".to_owned());
    Ok(json!({"cniVersion": version, "supportedVersions": SUPPORTED}).to_string())
}
