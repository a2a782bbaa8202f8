//! OpenAPI v3 documents, made from the schema and the kinds table on request: nothing is kept in memory.
//!
//! They are complete enough for `kubectl explain`, for client-side validation, and for apply's merge keys.

mod paths;
mod schemas;

use crate::kinds;
use serde_json::{Map, Value, json};

/// The index at `/openapi/v3`: where each group version's document is, with a hash that changes with its content.
pub fn index() -> Value {
    let mut paths = Map::new();
    for (group, version) in kinds::group_versions() {
        let path = path_of(group, version);
        let url = format!("/openapi/v3/{path}?hash={}", hash(group, version));
        paths.insert(path, json!({"serverRelativeURL": url}));
    }
    json!({"paths": paths})
}

/// `api/v1` or `apis/apps/v1`: the document's path below `/openapi/v3/`.
pub fn path_of(group: &str, version: &str) -> String {
    if group.is_empty() {
        format!("api/{version}")
    } else {
        format!("apis/{group}/{version}")
    }
}

/// The document at a path below `/openapi/v3/`; none for a group version that is not served.
pub fn document_at(path: &str) -> Option<Value> {
    let (group, version) = match path
        .trim_end_matches('/')
        .split('/')
        .collect::<Vec<_>>()
        .as_slice()
    {
        ["api", version] => ("", *version),
        ["apis", group, version] if !group.is_empty() => (*group, *version),
        _ => return None,
    };
    document(group, version)
}

/// The hash in the index: a document of one hash never changes, so clients may keep it for good.
pub fn hash(group: &str, version: &str) -> String {
    // FNV-1a: only has to differ between builds whose schema or version differs.
    let parts = [
        crate::schema::TEXT,
        schemas::DESCRIPTIONS,
        env!("CARGO_PKG_VERSION"),
        group,
        version,
    ];
    let bytes = parts.iter().flat_map(|p| p.bytes());
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |h, b| {
        (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3)
    });
    format!("{hash:016X}")
}

/// The document of a group version.
pub fn document(group: &str, version: &str) -> Option<Value> {
    let kinds: Vec<&kinds::Kind> = kinds::all()
        .iter()
        .copied()
        .filter(|k| k.group == group && k.version == version)
        .collect();
    if kinds.is_empty() {
        return None;
    }
    let mut paths = Map::new();
    for kind in &kinds {
        paths::add(kind, &mut paths);
    }
    Some(json!({
        "openapi": "3.0.0",
        "info": {"title": "Kubernetes", "version": "unversioned"},
        "paths": paths,
        "components": {"schemas": schemas::of(&kinds)},
    }))
}

#[cfg(test)]
mod tests;
