//! Binding: a pod gets its node, once.

use jiff::Timestamp;
use serde_json::{Value, json};
use tholepin_apimachinery::value::{ensure_map, list_at, map_at, set, str_at};
use tholepin_apimachinery::{ApiError, meta, time};
use tholepin_store::Expected;

use super::{ApiResult, Registry, RequestContext, Resource, resources};

const CONFLICT_RETRIES: usize = 100;

impl Registry {
    /// Assigns a pod to the node a `v1` Binding names.
    pub async fn bind(
        &self,
        ctx: &RequestContext,
        namespace: &str,
        pod: &str,
        binding: Value,
    ) -> ApiResult<()> {
        let kind = resources::PODS.kind()?;
        let node = target(&binding)?.to_owned();
        for _ in 0..CONFLICT_RETRIES {
            let current = self.read(kind, namespace, pod).await?;
            check(pod, &current.object, &node, &binding)?;
            let mut object = current.object;
            assign(&mut object, &node, &binding);
            if ctx.dry_run {
                return Ok(());
            }
            let expected = Expected::Revision(current.revision);
            if self
                .write(kind, namespace, pod, &mut object, expected)
                .await?
                .is_ok()
            {
                return Ok(());
            }
        }
        Err(ApiError::stale("", "pods/binding", pod))
    }
}

fn target(binding: &Value) -> ApiResult<&str> {
    let kind = str_at(binding, "target.kind");
    if !kind.is_empty() && kind != "Node" {
        let message =
            format!("target.kind: Unsupported value: {kind:?}: supported values: \"Node\"");
        return Err(ApiError::bad_request(message));
    }
    match str_at(binding, "target.name") {
        "" => Err(ApiError::bad_request("target.name: Required value")),
        name => Ok(name),
    }
}

fn check(name: &str, pod: &Value, node: &str, binding: &Value) -> ApiResult<()> {
    let refuse = |cause: String| Err(ApiError::conflict("", "pods/binding", name, &cause));
    let uid = str_at(binding, "metadata.uid");
    if !uid.is_empty() && uid != meta::uid(pod) {
        let actual = meta::uid(pod);
        return Err(ApiError::precondition_failed(
            "",
            "pods/binding",
            name,
            "UID",
            uid,
            actual,
        ));
    }
    if meta::is_deleting(pod) {
        return refuse(format!(
            "pod {name} is being deleted, cannot be assigned to a host"
        ));
    }
    let present = str_at(pod, "spec.nodeName");
    if !present.is_empty() {
        return refuse(format!(
            "pod {name} is already assigned to node {present:?}"
        ));
    }
    if !list_at(pod, "spec.schedulingGates").is_empty() {
        return refuse(format!(
            "pod {name} has non-empty .spec.schedulingGates, cannot be assigned to node {node:?}"
        ));
    }
    Ok(())
}

fn assign(pod: &mut Value, node: &str, binding: &Value) {
    set(pod, "spec.nodeName", node);
    for field in ["annotations", "labels"] {
        let Some(added) = map_at(binding, &format!("metadata.{field}")) else {
            continue;
        };
        let map = ensure_map(pod, &format!("metadata.{field}"));
        for (key, value) in added {
            map.insert(key.clone(), value.clone());
        }
    }
    let condition = json!({
        "type": "PodScheduled", "status": "True",
        "lastProbeTime": null, "lastTransitionTime": time::format(Timestamp::now()),
    });
    let conditions = ensure_map(pod, "status")
        .entry("conditions")
        .or_insert_with(|| Value::Array(Vec::new()));
    if let Some(list) = conditions.as_array_mut() {
        list.retain(|condition| str_at(condition, "type") != "PodScheduled");
        list.push(condition);
    }
}
