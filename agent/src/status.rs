//! Writing pod status back to the API: latest wins, lost updates are retried, one writer per pod.

use std::time::Duration;

use async_trait::async_trait;
use k8s_openapi::api::core::v1::Pod as ApiPod;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, Client};
use serde_json::{Value, json};
use tholepin_model::pod::Exit;
use tholepin_model::pod::status::{ContainerState, PodStatus};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::errors::chain;
use crate::runtime::PodIdentity;
use crate::time::rfc3339;

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Written {
    Done,
    /// The API has no such pod (any more), or another one of that name.
    Gone,
}

/// Why a write failed and may be tried again.
#[derive(Debug, thiserror::Error)]
#[error("failed to {operation} of pod {pod}")]
pub struct WriteError {
    pub operation: &'static str,
    pub pod: String,
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// The pods of the API, as the workers write to them. A fake stands in for it in tests.
#[async_trait]
pub trait PodApi: Send + Sync + 'static {
    async fn patch_status(&self, pod: &PodIdentity, status: &Value) -> Result<Written, WriteError>;
    /// Removes the object at once, if it is still this very pod.
    async fn delete_now(&self, pod: &PodIdentity) -> Result<Written, WriteError>;
}

/// The real API.
#[derive(Clone)]
pub struct KubePodApi {
    client: Client,
}

impl std::fmt::Debug for KubePodApi {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KubePodApi").finish_non_exhaustive()
    }
}

impl KubePodApi {
    #[must_use]
    pub fn new(client: Client) -> Self {
        Self { client }
    }

    fn api(&self, pod: &PodIdentity) -> Api<ApiPod> {
        Api::namespaced(self.client.clone(), &pod.namespace)
    }

    /// What an answer means. A conflict is the UID check (another pod has taken the name) or a write
    /// that came in between; only a look at the object tells which.
    async fn outcome<T>(
        &self,
        result: Result<T, kube::Error>,
        operation: &'static str,
        pod: &PodIdentity,
    ) -> Result<Written, WriteError> {
        let source = match result {
            Ok(_) => return Ok(Written::Done),
            Err(error) => error,
        };
        let failed = |source| WriteError {
            operation,
            pod: format!("{}/{}", pod.namespace, pod.name),
            source: Box::new(source),
        };
        match &source {
            kube::Error::Api(status) if status.code == 404 => Ok(Written::Gone),
            kube::Error::Api(status) if status.code == 409 => {
                let found = self.api(pod).get_opt(&pod.name).await.map_err(failed)?;
                let is_ours = found
                    .is_some_and(|found| found.metadata.uid.as_deref() == Some(pod.uid.as_str()));
                if is_ours {
                    Err(failed(source))
                } else {
                    Ok(Written::Gone)
                }
            }
            _ => Err(failed(source)),
        }
    }
}

#[async_trait]
impl PodApi for KubePodApi {
    async fn patch_status(&self, pod: &PodIdentity, status: &Value) -> Result<Written, WriteError> {
        let patch = json!({"metadata": {"uid": pod.uid}, "status": status});
        let api = self.api(pod);
        let result = api
            .patch_status(&pod.name, &PatchParams::default(), &Patch::Merge(&patch))
            .await;
        self.outcome(result, "write the status", pod).await
    }

    async fn delete_now(&self, pod: &PodIdentity) -> Result<Written, WriteError> {
        let parameters = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(Preconditions {
                uid: Some(pod.uid.clone()),
                resource_version: None,
            }),
            ..DeleteParams::default()
        };
        let result = self.api(pod).delete(&pod.name, &parameters).await;
        self.outcome(result, "finish the deletion", pod).await
    }
}

/// One pod's status on its way to the API.
#[derive(Debug)]
pub struct StatusWriter {
    latest: watch::Sender<Option<Value>>,
    delivered: watch::Receiver<Option<Value>>,
    cancel: CancellationToken,
}

impl Drop for StatusWriter {
    fn drop(&mut self) {
        self.cancel.cancel();
    }
}

impl StatusWriter {
    /// Starts the writer's task; it ends when the writer is dropped.
    pub fn spawn(api: std::sync::Arc<dyn PodApi>, pod: PodIdentity) -> Self {
        let (latest, input) = watch::channel(None);
        let (done, delivered) = watch::channel(None);
        let cancel = CancellationToken::new();
        let stop = cancel.clone();
        tokio::spawn(async move {
            stop.run_until_cancelled(write_all(api, pod, input, done))
                .await;
        });
        Self {
            latest,
            delivered,
            cancel,
        }
    }

    /// Publishes a status; equal ones are not written twice.
    pub fn set(&self, status: &PodStatus) {
        let value = to_json(status);
        self.latest.send_if_modified(|latest| {
            if latest.as_ref() == Some(&value) {
                return false;
            }
            *latest = Some(value);
            true
        });
    }

    /// Writes the latest status again if somebody else has changed the pod's readiness since: the node
    /// controller does when a node was silent, and only the agent can take that back.
    pub fn correct(&self, seen: &ApiPod) {
        let latest = self.latest.borrow();
        // What has not been delivered yet is on its way; a write that changes nothing costs nothing.
        let is_delivered = latest.is_some() && *self.delivered.borrow() == *latest;
        let ours = latest.as_ref().and_then(ready_condition);
        drop(latest);
        let status = seen
            .status
            .as_ref()
            .and_then(|status| serde_json::to_value(status).ok());
        if is_delivered && status.as_ref().and_then(ready_condition) != ours {
            self.latest.send_modify(|_| {});
        }
    }

    /// Waits until the latest status has reached the API (or the pod is gone there).
    pub async fn flushed(&mut self) {
        let wanted = self.latest.borrow().clone();
        // The task only ends with us; an error here would mean it has panicked, and there is nothing
        // to wait for then.
        self.delivered
            .wait_for(|delivered| *delivered == wanted)
            .await
            .ok();
    }
}

/// The status of the Ready condition in a pod's status.
fn ready_condition(status: &Value) -> Option<String> {
    let conditions = status["conditions"].as_array()?;
    let ready = conditions
        .iter()
        .find(|condition| condition["type"] == "Ready")?;
    ready["status"].as_str().map(str::to_owned)
}

async fn write_all(
    api: std::sync::Arc<dyn PodApi>,
    pod: PodIdentity,
    mut input: watch::Receiver<Option<Value>>,
    done: watch::Sender<Option<Value>>,
) {
    let mut delay = MIN_DELAY;
    while input.changed().await.is_ok() {
        loop {
            let Some(status) = input.borrow_and_update().clone() else {
                break;
            };
            match api.patch_status(&pod, &status).await {
                Ok(_) => {
                    delay = MIN_DELAY;
                    done.send_replace(Some(status));
                    break;
                }
                Err(error) => {
                    tracing::warn!(pod = %pod.name, error = %chain(&error), "pod status not written, trying again");
                    tokio::time::sleep(delay).await;
                    delay = (delay * 2).min(MAX_DELAY);
                }
            }
        }
    }
}

const MIN_DELAY: Duration = Duration::from_millis(200);
const MAX_DELAY: Duration = Duration::from_secs(10);

/// The status as the API has it. Fields that are empty are `null`, which a merge patch removes.
#[must_use]
pub fn to_json(status: &PodStatus) -> Value {
    let text = |text: &str| {
        if text.is_empty() {
            Value::Null
        } else {
            json!(text)
        }
    };
    let conditions: Vec<Value> = status
        .conditions
        .iter()
        .map(|condition| {
            let mut object = json!({
                "type": condition.kind,
                "status": if condition.status { "True" } else { "False" },
                "lastProbeTime": null,
                "lastTransitionTime": rfc3339(condition.transition),
            });
            for (field, value) in [
                ("reason", &condition.reason),
                ("message", &condition.message),
            ] {
                if !value.is_empty() {
                    object[field] = json!(value);
                }
            }
            if let Some(generation) = status.observed_generation {
                object["observedGeneration"] = json!(generation);
            }
            object
        })
        .collect();
    let containers: Vec<Value> = status
        .containers
        .iter()
        .map(|container| {
            let mut object = json!({
                "name": container.name,
                "state": state(&container.state),
                "lastState": container.last_state.as_ref().map_or_else(|| json!({}), state),
                "ready": container.ready,
                "started": container.started,
                "restartCount": container.restart_count,
                "image": container.image,
                "imageID": container.image_id,
            });
            if !container.container_id.is_empty() {
                object["containerID"] = json!(container.container_id);
            }
            object
        })
        .collect();
    let pod_ips = &status.addresses.pod;
    let host_ips = &status.addresses.host;
    json!({
        "phase": status.phase.as_str(),
        "reason": text(&status.reason),
        "message": text(&status.message),
        "startTime": rfc3339(status.start_time),
        "observedGeneration": status.observed_generation,
        "conditions": conditions,
        "containerStatuses": containers,
        "podIP": pod_ips.first().map(ToString::to_string),
        "podIPs": (!pod_ips.is_empty())
            .then(|| pod_ips.iter().map(|ip| json!({"ip": ip})).collect::<Vec<_>>()),
        "hostIP": host_ips.first().map(ToString::to_string),
        "hostIPs": host_ips.iter().map(|ip| json!({"ip": ip})).collect::<Vec<_>>(),
        "qosClass": status.qos_class.as_str(),
    })
}

fn state(state: &ContainerState) -> Value {
    match state {
        ContainerState::Waiting(waiting) => {
            let mut object = json!({"reason": waiting.reason});
            if !waiting.message.is_empty() {
                object["message"] = json!(waiting.message);
            }
            json!({"waiting": object})
        }
        ContainerState::Running { started_at } => {
            json!({"running": {"startedAt": rfc3339(*started_at)}})
        }
        ContainerState::Terminated { exit, container_id } => {
            json!({"terminated": terminated(exit, container_id)})
        }
    }
}

fn terminated(exit: &Exit, container_id: &str) -> Value {
    let mut object = json!({
        "exitCode": exit.exit_code,
        "reason": exit.reason(),
        "startedAt": rfc3339(exit.started_at),
        "finishedAt": rfc3339(exit.finished_at),
    });
    if exit.signal != 0 && exit.exit_code == 0 {
        object["signal"] = json!(exit.signal);
    }
    if !exit.message.is_empty() {
        object["message"] = json!(exit.message);
    }
    if !container_id.is_empty() {
        object["containerID"] = json!(format!("containerd://{container_id}"));
    }
    object
}

#[cfg(test)]
mod tests {
    use http_body_util::Full;

    use super::*;

    /// An API server that refuses every write with `code` and has a pod with `uid`, if any.
    fn api(code: u16, uid: Option<&'static str>) -> KubePodApi {
        let service = tower::service_fn(
            move |request: http::Request<kube::client::Body>| async move {
                let refusal = |code: u16| {
                    json!({
                        "apiVersion": "v1", "kind": "Status", "status": "Failure", "code": code,
                        "reason": if code == 404 { "NotFound" } else { "Conflict" }, "message": "no",
                    })
                };
                let (code, body) = match (request.method() == http::Method::GET, uid) {
                    (false, _) => (code, refusal(code)),
                    (true, None) => (404, refusal(404)),
                    (true, Some(uid)) => (
                        200,
                        json!({
                            "apiVersion": "v1", "kind": "Pod",
                            "metadata": {"name": "web", "namespace": "default", "uid": uid},
                        }),
                    ),
                };
                let body = Full::new(bytes::Bytes::from(body.to_string()));
                let response = http::Response::builder().status(code).body(body);
                Ok::<_, std::convert::Infallible>(response.unwrap())
            },
        );
        KubePodApi::new(Client::new(service, "default"))
    }

    #[tokio::test]
    async fn a_conflict_means_gone_only_if_the_name_is_another_pods() {
        let pod = PodIdentity {
            uid: "ours".to_owned(),
            namespace: "default".to_owned(),
            name: "web".to_owned(),
        };
        for (code, uid, is_gone) in [
            (404, None, true),
            (409, None, true),
            (409, Some("another"), true),
            (409, Some("ours"), false),
            (500, Some("ours"), false),
        ] {
            let api = api(code, uid);
            let written = api.patch_status(&pod, &json!({})).await;
            assert_eq!(
                written.is_ok_and(|it| it == Written::Gone),
                is_gone,
                "{code} {uid:?}"
            );
            let deleted = api.delete_now(&pod).await;
            assert_eq!(
                deleted.is_ok_and(|it| it == Written::Gone),
                is_gone,
                "{code} {uid:?}"
            );
        }
    }
}
