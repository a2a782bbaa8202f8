//! Discovery: what this server serves, aggregated (v2, v2beta1) and plain. Made once from the kinds
//! table; what is not in the table is not advertised.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, ETAG, IF_NONE_MATCH, VARY};
use http::{HeaderMap, HeaderValue, Response, StatusCode};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tholepin_apimachinery::{ApiError, Kind, kinds};

use super::body::{self, Body};
use super::negotiate;

const GROUP: &str = "apidiscovery.k8s.io";
const LIST_KIND: &str = "APIGroupDiscoveryList";

/// The documents, made once.
#[derive(Debug)]
pub(super) struct Discovery {
    core: Aggregated,
    groups: Aggregated,
}

/// One aggregated document in its two versions.
#[derive(Debug)]
struct Aggregated {
    v2: Document,
    v2beta1: Document,
}

#[derive(Debug)]
struct Document {
    text: Bytes,
    etag: HeaderValue,
}

impl Document {
    fn new(value: &Value) -> Self {
        let text = value.to_string();
        let hash = Sha256::digest(text.as_bytes());
        let hex: String = hash.iter().map(|byte| format!("{byte:02X}")).collect();
        let etag = HeaderValue::from_str(&format!("\"{hex}\"")).expect("hexadecimal digits");
        Self {
            text: text.into(),
            etag,
        }
    }
}

impl Aggregated {
    fn new(groups: &[&'static str]) -> Self {
        let items: Vec<Value> = groups.iter().map(|group| group_discovery(group)).collect();
        let document = |version: &str| {
            Document::new(&json!({
                "kind": LIST_KIND, "apiVersion": format!("{GROUP}/{version}"),
                "metadata": {}, "items": items,
            }))
        };
        Self {
            v2: document("v2"),
            v2beta1: document("v2beta1"),
        }
    }
}

impl Discovery {
    pub(super) fn new() -> Self {
        Self {
            core: Aggregated::new(&[""]),
            groups: Aggregated::new(&named_groups()),
        }
    }

    pub(super) fn serve(
        &self,
        path: &str,
        headers: &HeaderMap,
    ) -> Result<Response<Body>, ApiError> {
        let segments: Vec<&str> = path.trim_matches('/').split('/').collect();
        let plain = match segments.as_slice() {
            [""] => json!({"paths": root_paths()}),
            ["api"] => return Ok(self.negotiated(&self.core, headers, &api_versions())),
            ["apis"] => return Ok(self.negotiated(&self.groups, headers, &api_group_list())),
            ["api", version] => resource_list("", version)?,
            ["apis", group] => api_group(group).ok_or_else(ApiError::unknown_path)?,
            ["apis", group, version] if !group.is_empty() => resource_list(group, version)?,
            _ => return Err(ApiError::unknown_path()),
        };
        Ok(super::encode::json(200, &plain))
    }

    /// The aggregated form for who asks for it, the old one otherwise.
    fn negotiated(
        &self,
        aggregated: &Aggregated,
        headers: &HeaderMap,
        plain: &Value,
    ) -> Response<Body> {
        for clause in negotiate::clauses(headers) {
            let is_aggregated = clause.group == GROUP && clause.target_kind == LIST_KIND;
            let (document, content_type) = match clause.version {
                "v2" if is_aggregated => (
                    &aggregated.v2,
                    "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList",
                ),
                "v2beta1" if is_aggregated => (
                    &aggregated.v2beta1,
                    "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList",
                ),
                _ if clause.target_kind.is_empty() => break,
                _ => continue,
            };
            return respond(document, content_type, headers);
        }
        let mut response = super::encode::json(200, plain);
        response
            .headers_mut()
            .insert(VARY, HeaderValue::from_static("Accept"));
        response
    }
}

fn respond(document: &Document, content_type: &'static str, request: &HeaderMap) -> Response<Body> {
    let is_known = request.get(IF_NONE_MATCH) == Some(&document.etag);
    let mut response = if is_known {
        let mut response = Response::new(body::full(Bytes::new()));
        *response.status_mut() = StatusCode::NOT_MODIFIED;
        response
    } else {
        body::maybe_gzip(request, Response::new(document.text.clone()))
    };
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    headers.insert(ETAG, document.etag.clone());
    headers.append(VARY, HeaderValue::from_static("Accept"));
    response
}

fn named_groups() -> Vec<&'static str> {
    let mut groups: Vec<&'static str> = Vec::new();
    for (group, _) in kinds::group_versions() {
        if !group.is_empty() && !groups.contains(&group) {
            groups.push(group);
        }
    }
    groups
}

/// The versions of a group, the preferred one first.
fn versions(group: &str) -> Vec<&'static str> {
    let served = kinds::group_versions().into_iter();
    served
        .filter(|(served, _)| *served == group)
        .map(|(_, version)| version)
        .collect()
}

fn kinds_of<'a>(group: &'a str, version: &'a str) -> impl Iterator<Item = &'static Kind> + 'a {
    kinds::all()
        .iter()
        .copied()
        .filter(move |kind| kind.group == group && kind.version == version)
}

fn group_discovery(group: &str) -> Value {
    let versions: Vec<Value> = versions(group)
        .into_iter()
        .map(|version| {
            let resources: Vec<Value> = kinds_of(group, version).map(resource_discovery).collect();
            json!({"version": version, "resources": resources, "freshness": "Current"})
        })
        .collect();
    let mut metadata = json!({"creationTimestamp": null});
    if !group.is_empty() {
        metadata["name"] = group.into();
    }
    json!({"metadata": metadata, "versions": versions})
}

fn resource_discovery(kind: &'static Kind) -> Value {
    let mut resource = json!({
        "resource": kind.plural,
        "responseKind": {"group": kind.group, "version": kind.version, "kind": kind.kind},
        "scope": if kind.is_namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": kind.singular,
        "verbs": kind.verbs,
    });
    if !kind.short_names.is_empty() {
        resource["shortNames"] = json!(kind.short_names);
    }
    if !kind.categories.is_empty() {
        resource["categories"] = json!(kind.categories);
    }
    if !kind.subresources.is_empty() {
        let subresources = kind.subresources.iter().map(|sub| {
            json!({
                "subresource": sub.name, "verbs": sub.verbs,
                "responseKind": {"group": sub.group, "version": sub.version, "kind": sub.kind},
            })
        });
        resource["subresources"] = subresources.collect();
    }
    resource
}

fn api_versions() -> Value {
    json!({
        "kind": "APIVersions", "versions": versions(""),
        // Clients find the server by the address they already use.
        "serverAddressByClientCIDRs": [],
    })
}

fn api_group(group: &str) -> Option<Value> {
    let versions: Vec<Value> = versions(group)
        .into_iter()
        .map(|version| json!({"groupVersion": format!("{group}/{version}"), "version": version}))
        .collect();
    let preferred = versions.first()?.clone();
    Some(json!({
        "kind": "APIGroup", "apiVersion": "v1", "name": group,
        "versions": versions, "preferredVersion": preferred,
    }))
}

fn api_group_list() -> Value {
    let groups: Vec<Value> = named_groups()
        .into_iter()
        .filter_map(api_group)
        .map(|mut group| {
            // Inside of the list, groups carry no type of their own.
            if let Some(map) = group.as_object_mut() {
                drop(map.shift_remove("kind"));
                drop(map.shift_remove("apiVersion"));
            }
            group
        })
        .collect();
    json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups})
}

fn resource_list(group: &str, version: &str) -> Result<Value, ApiError> {
    let mut resources = Vec::new();
    for kind in kinds_of(group, version) {
        resources.push(plain_resource(kind));
        for sub in kind.subresources {
            let mut resource = json!({
                "name": format!("{}/{}", kind.plural, sub.name), "singularName": "",
                "namespaced": kind.is_namespaced, "kind": sub.kind, "verbs": sub.verbs,
            });
            if (sub.group, sub.version) != (kind.group, kind.version) {
                resource["group"] = sub.group.into();
                resource["version"] = sub.version.into();
            }
            resources.push(resource);
        }
    }
    if resources.is_empty() {
        return Err(ApiError::unknown_path());
    }
    let group_version = if group.is_empty() {
        version.to_owned()
    } else {
        format!("{group}/{version}")
    };
    Ok(json!({
        "kind": "APIResourceList", "apiVersion": "v1",
        "groupVersion": group_version, "resources": resources,
    }))
}

fn plain_resource(kind: &Kind) -> Value {
    let mut resource = json!({
        "name": kind.plural, "singularName": kind.singular, "namespaced": kind.is_namespaced,
        "kind": kind.kind, "verbs": kind.verbs,
    });
    if !kind.short_names.is_empty() {
        resource["shortNames"] = json!(kind.short_names);
    }
    if !kind.categories.is_empty() {
        resource["categories"] = json!(kind.categories);
    }
    resource
}

fn root_paths() -> Vec<String> {
    let mut paths = vec!["/api".to_owned()];
    paths.extend(versions("").iter().map(|version| format!("/api/{version}")));
    paths.push("/apis".to_owned());
    for group in named_groups() {
        paths.push(format!("/apis/{group}"));
        paths.extend(
            versions(group)
                .iter()
                .map(|version| format!("/apis/{group}/{version}")),
        );
    }
    let others = [
        "/healthz",
        "/livez",
        "/metrics",
        "/openapi/v2",
        "/openapi/v3",
        "/readyz",
        "/version",
    ];
    paths.extend(others.map(str::to_owned));
    paths
}
