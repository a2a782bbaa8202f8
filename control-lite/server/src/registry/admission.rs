//! Admission: what is decided about an object in view of other objects, and what is filled in.

use std::time::Duration;

use serde_json::{Value, json};
use tholepin_apimachinery::error::Cause;
use tholepin_apimachinery::value::{default_to, ensure_map, list_at, set, str_at};
use tholepin_apimachinery::{ApiError, Kind, meta};

use super::{ApiResult, Registry, Resource, key, resources, store_error};

/// How long a pod's creation waits for its service account, which a new namespace gets a moment
/// after it was made.
const SERVICE_ACCOUNT_PATIENCE: Duration = Duration::from_secs(1);
/// Seconds a pod stays on a node that is not ready, unless it says otherwise.
const DEFAULT_TOLERATION_SECS: i64 = 300;
/// Namespaces that the cluster cannot do without.
const IMMORTAL_NAMESPACES: [&str; 3] = ["default", "kube-system", "kube-public"];

impl Registry {
    pub(super) async fn admit_create(
        &self,
        kind: &'static Kind,
        namespace: &str,
        object: &mut Value,
    ) -> ApiResult<()> {
        if kind.is_namespaced {
            self.admit_namespace(kind, namespace, object).await?;
        }
        match kind.kind {
            "Namespace" => prepare_namespace(object),
            "Pod" => {
                self.admit_service_account(kind, namespace, object).await?;
                fill_in_pod(object);
            }
            _ => (),
        }
        Ok(())
    }

    /// Nothing is created in a namespace that is not there or on its way out.
    async fn admit_namespace(
        &self,
        kind: &'static Kind,
        namespace: &str,
        object: &Value,
    ) -> ApiResult<()> {
        let namespaces = resources::NAMESPACES.kind()?;
        let Some(found) = self.find(namespaces, "", namespace).await? else {
            return Err(ApiError::not_found("", "namespaces", namespace));
        };
        if !meta::is_deleting(&found.object)
            && str_at(&found.object, "status.phase") != "Terminating"
        {
            return Ok(());
        }
        let cause = format!(
            "unable to create new content in namespace {namespace} because it is being terminated"
        );
        let mut error = ApiError::forbidden(kind.group, kind.plural, meta::name(object), &cause);
        if let Some(details) = error.details.as_mut() {
            details.causes.push(Cause {
                reason: "NamespaceTerminating".to_owned(),
                message: format!("namespace {namespace} is being terminated"),
                field: "metadata.namespace".to_owned(),
            });
        }
        Err(error)
    }

    async fn admit_service_account(
        &self,
        kind: &'static Kind,
        namespace: &str,
        pod: &mut Value,
    ) -> ApiResult<()> {
        let spec = ensure_map(pod, "spec");
        let old_name = spec
            .get("serviceAccount")
            .and_then(Value::as_str)
            .unwrap_or_default();
        let chosen = if old_name.is_empty() {
            "default"
        } else {
            old_name
        }
        .to_owned();
        default_to(spec, "serviceAccountName", chosen);
        let name = str_at(pod, "spec.serviceAccountName").to_owned();
        set(pod, "spec.serviceAccount", name.as_str());
        // Every namespace has (or is about to get) `default`; a chosen one has to be there.
        if name == "default" || self.has_service_account(namespace, &name).await? {
            return Ok(());
        }
        let cause = format!(
            "error looking up service account {namespace}/{name}: serviceaccount \"{name}\" not found"
        );
        Err(ApiError::forbidden(
            kind.group,
            kind.plural,
            meta::name(pod),
            &cause,
        ))
    }

    async fn has_service_account(&self, namespace: &str, name: &str) -> ApiResult<bool> {
        let kind = resources::SERVICE_ACCOUNTS.kind()?;
        let key = key(kind, namespace, name);
        let store = &self.shared.store;
        // Watch first, then look: an account made in between is seen by one of the two.
        let after = store.current_revision();
        let mut watch = store.watch(&key, after).await.map_err(store_error)?;
        if self.find(kind, namespace, name).await?.is_some() {
            return Ok(true);
        }
        let appeared = tokio::time::timeout(SERVICE_ACCOUNT_PATIENCE, watch.next()).await;
        Ok(matches!(appeared, Ok(Ok(event)) if event.value.is_some()))
    }
}

fn prepare_namespace(namespace: &mut Value) {
    let finalizers = list_at(namespace, "spec.finalizers");
    if !finalizers.iter().any(|finalizer| finalizer == "kubernetes") {
        let mut finalizers = finalizers.to_vec();
        finalizers.push("kubernetes".into());
        set(namespace, "spec.finalizers", Value::Array(finalizers));
    }
}

/// What upstream's admission plugins for priority and default tolerations fill in.
fn fill_in_pod(pod: &mut Value) {
    let spec = ensure_map(pod, "spec");
    if !spec.contains_key("priority") && !spec.contains_key("priorityClassName") {
        spec.insert("priority".to_owned(), 0.into());
    }
    default_to(spec, "preemptionPolicy", "PreemptLowerPriority");
    for taint in [
        "node.kubernetes.io/not-ready",
        "node.kubernetes.io/unreachable",
    ] {
        let tolerations = spec.entry("tolerations").or_insert_with(|| json!([]));
        let Some(list) = tolerations.as_array_mut() else {
            return;
        };
        if !list
            .iter()
            .any(|toleration| tolerates_no_execute(toleration, taint))
        {
            list.push(json!({
                "key": taint, "operator": "Exists", "effect": "NoExecute",
                "tolerationSeconds": DEFAULT_TOLERATION_SECS,
            }));
        }
    }
}

fn tolerates_no_execute(toleration: &Value, taint: &str) -> bool {
    let key = str_at(toleration, "key");
    let effect = str_at(toleration, "effect");
    (key == taint || key.is_empty()) && (effect == "NoExecute" || effect.is_empty())
}

/// Some namespaces may not be deleted.
pub(super) fn admit_delete(kind: &Kind, name: &str) -> ApiResult<()> {
    if kind.kind == "Namespace" && IMMORTAL_NAMESPACES.contains(&name) {
        let cause = "this namespace may not be deleted";
        return Err(ApiError::forbidden(kind.group, kind.plural, name, cause));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_that_tolerates_a_taint_in_its_own_way_keeps_it() {
        let mut pod = json!({"spec": {"tolerations": [
            {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute"},
        ]}});
        fill_in_pod(&mut pod);
        let tolerations = pod["spec"]["tolerations"].as_array().unwrap();
        assert_eq!(tolerations.len(), 2);
        assert!(tolerations[0].get("tolerationSeconds").is_none());
        assert_eq!(tolerations[1]["key"], "node.kubernetes.io/unreachable");
        assert_eq!(pod["spec"]["priority"], 0);
    }

    #[test]
    fn a_namespace_gets_its_finalizer_once() {
        let mut namespace = json!({"metadata": {"name": "a"}});
        prepare_namespace(&mut namespace);
        prepare_namespace(&mut namespace);
        assert_eq!(namespace["spec"]["finalizers"], json!(["kubernetes"]));
    }
}
