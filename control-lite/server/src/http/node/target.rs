//! Which node, port and path a pod's log, exec or attach is at.

use std::net::IpAddr;

use http::Uri;
use serde_json::Value;
use tholepin_apimachinery::ApiError;
use tholepin_apimachinery::value::{i64_at, list_at, str_at};

use crate::http::query::Query;
use crate::http::route::ResourcePath;
use crate::registry::{ApiResult, Registry, RequestContext, resources};

const DEFAULT_KUBELET_PORT: u16 = 10250;
/// Parameters that are handed to the node as they are.
const LOG_PARAMETERS: [&str; 8] = [
    "follow",
    "previous",
    "sinceSeconds",
    "sinceTime",
    "timestamps",
    "tailLines",
    "limitBytes",
    "stream",
];

/// Where to ask.
#[derive(Clone, Debug)]
pub(super) struct Target {
    pub(super) pod: String,
    pub(super) node: String,
    pub(super) address: IpAddr,
    pub(super) port: u16,
    /// Path and query on the node.
    pub(super) uri: Uri,
}

impl Target {
    pub(super) async fn find(
        registry: &Registry,
        path: &ResourcePath<'_>,
        query: &Query<'_>,
    ) -> ApiResult<Self> {
        let ctx = RequestContext::component("system:apiserver");
        let pod = registry
            .get(&ctx, resources::PODS, path.namespace, path.name)
            .await?;
        let container = container(path.name, &pod, query.get("container").unwrap_or_default())?;
        let node = str_at(&pod, "spec.nodeName");
        if node.is_empty() {
            let message = format!("pod {} does not have a host assigned", path.name);
            return Err(ApiError::bad_request(message));
        }
        let node_object = registry.get(&ctx, resources::NODES, "", node).await?;
        let (address, port) = endpoint(node, &node_object)?;
        let uri = uri(path, &container, query)?;
        Ok(Self {
            pod: path.name.to_owned(),
            node: node.to_owned(),
            address,
            port,
            uri,
        })
    }

    /// What the `Host` header says.
    pub(super) fn authority(&self) -> String {
        match self.address {
            IpAddr::V4(address) => format!("{address}:{}", self.port),
            IpAddr::V6(address) => format!("[{address}]:{}", self.port),
        }
    }
}

/// The container that is meant, checked against the pod.
fn container(name: &str, pod: &Value, asked: &str) -> ApiResult<String> {
    let names = |field: &str| -> Vec<&str> {
        list_at(pod, field)
            .iter()
            .map(|container| str_at(container, "name"))
            .collect()
    };
    let main = names("spec.containers");
    let init = names("spec.initContainers");
    let ephemeral = names("spec.ephemeralContainers");
    if !asked.is_empty() {
        let known = [&main, &init, &ephemeral]
            .iter()
            .any(|names| names.contains(&asked));
        return if known {
            Ok(asked.to_owned())
        } else {
            Err(ApiError::bad_request(format!(
                "container {asked} is not valid for pod {name}"
            )))
        };
    }
    match main.as_slice() {
        [only] => Ok((*only).to_owned()),
        [] => Err(ApiError::bad_request(format!(
            "a container name must be specified for pod {name}"
        ))),
        several => {
            let mut choices = format!("choose one of: [{}]", several.join(" "));
            if !init.is_empty() {
                choices.push_str(&format!(
                    " or one of the init containers: [{}]",
                    init.join(" ")
                ));
            }
            Err(ApiError::bad_request(format!(
                "a container name must be specified for pod {name}, {choices}"
            )))
        }
    }
}

fn endpoint(name: &str, node: &Value) -> ApiResult<(IpAddr, u16)> {
    let addresses = list_at(node, "status.addresses");
    // The order in which upstream prefers a node's addresses; only those that need no DNS.
    let address = ["InternalIP", "ExternalIP"].iter().find_map(|kind| {
        addresses
            .iter()
            .filter(|address| str_at(address, "type") == *kind)
            .find_map(|address| str_at(address, "address").parse().ok())
    });
    let address = address.ok_or_else(|| {
        ApiError::internal(format!(
            "no preferred addresses found; node {name} has none"
        ))
    })?;
    let port = i64_at(node, "status.daemonEndpoints.kubeletEndpoint.Port")
        .and_then(|port| u16::try_from(port).ok())
        .filter(|port| *port > 0)
        .unwrap_or(DEFAULT_KUBELET_PORT);
    Ok((address, port))
}

fn uri(path: &ResourcePath<'_>, container: &str, query: &Query<'_>) -> ApiResult<Uri> {
    let (namespace, pod) = (path.namespace, path.name);
    let mut parameters = url::form_urlencoded::Serializer::new(String::new());
    let folder = match path.subresource {
        "log" => {
            let given = LOG_PARAMETERS
                .iter()
                .filter_map(|name| Some((*name, query.get(name)?)));
            for (name, value) in given {
                parameters.append_pair(name, value);
            }
            "containerLogs"
        }
        call => {
            // The API's names on the left, the kubelet's on the right.
            let streams = [
                ("stdin", "input"),
                ("stdout", "output"),
                ("stderr", "error"),
            ];
            for (ours, theirs) in streams.into_iter().chain([("tty", "tty")]) {
                if query.flag(ours) {
                    parameters.append_pair(theirs, "1");
                }
            }
            for word in query.all("command") {
                parameters.append_pair("command", word);
            }
            call
        }
    };
    let parameters = parameters.finish();
    let mut text = format!("/{folder}/{namespace}/{pod}/{container}");
    if !parameters.is_empty() {
        text.push('?');
        text.push_str(&parameters);
    }
    text.parse()
        .map_err(|error| ApiError::bad_request(format!("{text}: {error}")))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod() -> Value {
        json!({"spec": {
            "containers": [{"name": "a"}, {"name": "b"}], "initContainers": [{"name": "i"}],
        }})
    }

    #[test]
    fn a_container_has_to_be_named_when_there_are_several() {
        let error = container("p", &pod(), "").unwrap_err();
        assert_eq!(
            error.message,
            "a container name must be specified for pod p, choose one of: [a b] or one of the \
             init containers: [i]"
        );
        assert_eq!(container("p", &pod(), "i").unwrap(), "i");
        let error = container("p", &pod(), "x").unwrap_err();
        assert_eq!(error.message, "container x is not valid for pod p");
        let single = json!({"spec": {"containers": [{"name": "only"}]}});
        assert_eq!(container("p", &single, "").unwrap(), "only");
    }

    #[test]
    fn exec_speaks_the_kubelets_parameters() {
        let path = ResourcePath {
            namespace: "ns",
            name: "p",
            subresource: "exec",
            ..ResourcePath::default()
        };
        let query = Query::parse(Some(
            "command=ls&command=-l+x&stdin=true&stdout=true&tty=false",
        ));
        let uri = uri(&path, "c", &query).unwrap();
        assert_eq!(uri, "/exec/ns/p/c?input=1&output=1&command=ls&command=-l+x");
    }

    #[test]
    fn a_log_keeps_its_parameters_and_loses_foreign_ones() {
        let path = ResourcePath {
            namespace: "ns",
            name: "p",
            subresource: "log",
            ..ResourcePath::default()
        };
        let query = Query::parse(Some("follow=true&tailLines=5&container=c&x=y"));
        let uri = uri(&path, "c", &query).unwrap();
        assert_eq!(uri, "/containerLogs/ns/p/c?follow=true&tailLines=5");
    }

    #[test]
    fn a_nodes_internal_address_and_port_are_used() {
        let node = json!({"status": {
            "addresses": [
                {"type": "Hostname", "address": "n1"},
                {"type": "InternalIP", "address": "10.0.0.7"},
            ],
            "daemonEndpoints": {"kubeletEndpoint": {"Port": 10300}},
        }});
        assert_eq!(
            endpoint("n1", &node).unwrap(),
            ("10.0.0.7".parse().unwrap(), 10300)
        );
        assert!(endpoint("n1", &json!({})).is_err());
    }
}
