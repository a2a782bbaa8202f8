//! Interpreting a pod's plan: each step against volumes, runtime and network, with events and reasons.

use std::sync::Arc;
use std::time::Instant;

use futures::future::join_all;
use tholepin_model::plan::pods::{PodOp, PullGate, restart_key};
use tholepin_model::pod::resources::{cgroup_path, qos_class};
use tholepin_model::pod::status::Waiting;
use tholepin_model::pod::{Container, ContainerRecord, Exit, ExitKind, RecordState, VolumeSource};

use super::container_logs::remove_log;
use super::container_spec::{Attempt, pod_limits, prepare};
use super::sources::FIRST_READ;
use super::worker::Worker;
use crate::errors::chain;
use crate::events::{Severity, Subject};
use crate::network::{AttachRequest, AttachmentKey, NetworkError, SOCKET_LB_ANNOTATION};
use crate::runtime::{RuntimeError, SandboxSpec};
use crate::volumes;
use crate::volumes::VolumeError;
use crate::volumes::pod_files::PodFiles;

/// At least one step failed; its reason is in the worker's state and in an event.
#[derive(Debug)]
pub(super) struct StepFailed;

type Step = Result<(), StepFailed>;

impl Worker {
    /// Applies steps in order. A failed frame step ends the round; a failed container does not keep the
    /// others from starting.
    pub(super) async fn apply_all(&mut self, ops: Vec<PodOp>) -> Step {
        let mut result = Ok(());
        for op in ops {
            match op {
                PodOp::MountVolumes => self.mount_volumes().await?,
                PodOp::EnsureSandbox => self.ensure_sandbox().await?,
                PodOp::AttachNetwork => self.attach_network().await?,
                PodOp::StartContainer {
                    name,
                    attempt,
                    pull,
                } => {
                    if self.start(&name, attempt, pull).await.is_err() {
                        result = Err(StepFailed);
                    }
                }
                PodOp::RemoveContainer { id, name, attempt } => {
                    self.remove_container(&id, &name, attempt).await?;
                }
                PodOp::StopContainers { containers, grace } => {
                    self.stop(&containers, grace).await?;
                }
                PodOp::DetachNetwork => self.detach_network().await?,
                PodOp::RemoveSandbox => self.remove_sandbox().await?,
                PodOp::UnmountVolumes => self.unmount_volumes().await?,
            }
        }
        result
    }

    async fn mount_volumes(&mut self) -> Step {
        let Some(object) = self.object() else {
            return Err(StepFailed);
        };
        self.sources.settled().await;
        let lookup = self.sources.lookup(self.facts());
        let pod_dir = self.pod_dir.clone();
        let mounted = tokio::task::spawn_blocking(move || {
            let pod = &object.pod;
            pod.volumes
                .iter()
                .filter_map(|volume| {
                    let error = volumes::ensure(&pod_dir, pod, volume, &lookup).err()?;
                    Some(mount_failure(&volume.name, &error))
                })
                .collect::<Vec<_>>()
        });
        let failures = mounted
            .await
            .unwrap_or_else(|panic| vec![panic.to_string()]);
        let succeeded = failures.is_empty();
        for message in failures {
            self.pod_event(Severity::Warning, "FailedMount", message);
        }
        if succeeded {
            self.volumes_mounted = true;
            // Offline restarts need what was just resolved.
            self.remember().await;
            return Ok(());
        }
        Err(StepFailed)
    }

    /// Renders file volumes again after a source or the pod's metadata changed.
    pub(super) async fn update_volumes(&mut self) {
        let Some(object) = self.object() else { return };
        let lookup = self.sources.lookup(self.facts());
        let pod_dir = self.pod_dir.clone();
        let updated = tokio::task::spawn_blocking(move || {
            let pod = &object.pod;
            for volume in &pod.volumes {
                if !matches!(volume.source, VolumeSource::Files { .. }) {
                    continue;
                }
                match volumes::ensure(&pod_dir, pod, volume, &lookup) {
                    Ok(true) => {
                        tracing::info!(pod = %pod.name, volume = %volume.name, "volume updated");
                    }
                    Ok(false) => {}
                    // A source that was deleted leaves the files as they are, as in the kubelet.
                    Err(error) => tracing::warn!(
                        pod = %pod.name, volume = %volume.name, error = %chain(&error),
                        "volume keeps its former contents"
                    ),
                }
            }
        });
        if let Err(error) = updated.await {
            tracing::error!(%error, "updating volumes panicked");
        }
    }

    async fn ensure_sandbox(&mut self) -> Step {
        let Some(object) = self.object() else {
            return Err(StepFailed);
        };
        let pod = &object.pod;
        let spec = SandboxSpec {
            pod: self.identity.clone(),
            hostname: volumes::pod_files::hostname(pod),
            host_network: pod.host_network,
            host_pid: pod.host_pid,
            host_ipc: pod.host_ipc,
            cgroup_path: cgroup_path(
                &self.context.config.cgroup_parent,
                qos_class(&pod.containers),
                &pod.uid,
            ),
            resources: pod_limits(pod),
            sysctls: pod.sysctls.clone(),
        };
        let began = Instant::now();
        let result = self
            .context
            .limited(self.context.runtime.ensure_sandbox(&spec))
            .await;
        self.context
            .metrics
            .runtime_operation("run_podsandbox", began.elapsed(), result.is_err());
        match result {
            Ok(sandbox) => {
                self.sandbox = true;
                self.netns = sandbox.netns;
                Ok(())
            }
            Err(error) => {
                self.sandbox_failed(&chain(&error));
                Err(StepFailed)
            }
        }
    }

    fn sandbox_failed(&self, error: &str) {
        let message = format!("Failed to create pod sandbox: {error}");
        self.pod_event(Severity::Warning, "FailedCreatePodSandBox", message);
    }

    fn attachment_key(&self) -> AttachmentKey {
        AttachmentKey {
            container_id: self.identity.uid.clone(),
            interface: "eth0".to_owned(),
        }
    }

    /// What the pod's annotation says; anything that cannot be read is reported and means yes.
    fn wants_socket_lb(&self) -> bool {
        let annotations = self.pod().map(|pod| &pod.annotations);
        let value = annotations.and_then(|all| all.get(SOCKET_LB_ANNOTATION));
        match value.map(String::as_str) {
            None | Some("true") => true,
            Some("false") => false,
            Some(other) => {
                let message =
                    format!("annotation {SOCKET_LB_ANNOTATION}: {other:?} is not true or false");
                self.pod_event(Severity::Warning, "InvalidAnnotation", message);
                true
            }
        }
    }

    async fn attach_network(&mut self) -> Step {
        let Some(netns) = self.netns.clone() else {
            self.sandbox_failed("the sandbox has no network namespace");
            return Err(StepFailed);
        };
        // Before the call: if this agent dies inside it, the next one must detach.
        self.memory.attached = true;
        self.remember().await;
        let request = AttachRequest {
            key: self.attachment_key(),
            netns,
            pod_namespace: self.identity.namespace.clone(),
            pod_name: self.identity.name.clone(),
            pod_uid: self.identity.uid.clone(),
            socket_lb: self.wants_socket_lb(),
        };
        let began = Instant::now();
        let result = self
            .context
            .limited(self.context.network.attach(&request))
            .await;
        self.context
            .metrics
            .runtime_operation("attach_network", began.elapsed(), result.is_err());
        match result {
            Ok(attachment) => {
                self.memory.addresses = attachment.addresses;
                self.remember().await;
                Ok(())
            }
            Err(error @ NetworkError::NotReady { .. }) => {
                let message = format!("network is not ready: {}", chain(&error));
                self.pod_event(Severity::Warning, "NetworkNotReady", message);
                Err(StepFailed)
            }
            Err(error) => {
                let id = &self.identity.uid;
                let error = chain(&error);
                self.sandbox_failed(&format!(
                    "failed to setup network for sandbox \"{id}\": {error}"
                ));
                Err(StepFailed)
            }
        }
    }

    async fn start(&mut self, name: &str, attempt: u32, pull: PullGate) -> Step {
        let Some(object) = self.object() else {
            return Err(StepFailed);
        };
        let Some(container) = object.pod.container(name) else {
            return Ok(());
        };
        match self.try_start(container, attempt, pull).await {
            Ok(()) => {
                self.waiting.remove(name);
                Ok(())
            }
            Err(waiting) => {
                tracing::info!(
                    pod = %self.identity.name, container = name, reason = %waiting.reason,
                    message = %waiting.message, "container not started"
                );
                self.waiting.insert(name.to_owned(), waiting);
                Err(StepFailed)
            }
        }
    }

    async fn try_start(
        &mut self,
        container: &Container,
        attempt: u32,
        pull: PullGate,
    ) -> Result<(), Waiting> {
        let image = self.ensure_image(container, pull).await?;
        self.sources.settled().await;
        self.services_read().await;
        let spec = match self
            .container_spec(container, attempt, image.reference)
            .await
        {
            Ok(spec) => spec,
            Err(message) => {
                self.failed_event(container, &message);
                return Err(Waiting::new("CreateContainerConfigError", message));
            }
        };
        let began = Instant::now();
        let result = self
            .context
            .limited(self.context.runtime.start_container(&spec))
            .await;
        self.context
            .metrics
            .runtime_operation("start_container", began.elapsed(), result.is_err());
        match result {
            Ok(started) => {
                if attempt > 0 {
                    let now = self.context.clock.now();
                    self.backoff.advance(&restart_key(&container.name), now);
                }
                let name = &container.name;
                let message = format!("Created container: {name}");
                self.container_event(container, Severity::Normal, "Created", message);
                let message = format!("Started container {name}");
                self.container_event(container, Severity::Normal, "Started", message);
                self.link_log(&started, &spec.log_path);
                let now = self.context.clock.wall_now();
                super::records::merge_one(&mut self.records, &started, now);
                Ok(())
            }
            Err(error) => Err(self.start_failed(container, attempt, &image.id, &error)),
        }
    }

    /// Waits for the Services, whose variables every container gets; not for ever, pods run offline too.
    async fn services_read(&self) {
        let mut links = self.context.links.clone();
        let read = tokio::time::timeout(FIRST_READ, links.wait_for(|links| links.synced));
        if !matches!(read.await, Ok(Ok(_))) {
            tracing::warn!(pod = %self.identity.name, "the Services were not read yet: their variables may be missing");
        }
    }

    async fn container_spec(
        &mut self,
        container: &Container,
        attempt: u32,
        image: String,
    ) -> Result<crate::runtime::ContainerSpec, String> {
        let object = self.object().ok_or("the pod has no spec")?;
        let lookup = self.sources.lookup(self.facts());
        let services = {
            let links = self.context.links.borrow();
            links.variables(&self.identity.namespace, object.pod.enable_service_links)
        };
        let context = Arc::clone(&self.context);
        let identity = self.identity.clone();
        let addresses = self.memory.addresses.clone();
        let pod_dir = self.pod_dir.clone();
        let name = container.name.clone();
        tokio::task::spawn_blocking(move || {
            let pod = &object.pod;
            let container = pod
                .container(&name)
                .ok_or("the container is not in the spec")?;
            PodFiles::of(&pod_dir)
                .write(pod, &addresses, &context.dns)
                .map_err(|error| format!("failed to write the pod's /etc files: {error}"))?;
            let attempt = Attempt {
                config: &context.config,
                identity: &identity,
                attempt,
                image,
                services,
                node_memory_bytes: context.node_memory_bytes,
            };
            prepare(pod, container, &attempt, &lookup).map_err(|error| chain(&error))
        })
        .await
        .map_err(|panic| panic.to_string())?
    }

    fn start_failed(
        &mut self,
        container: &Container,
        attempt: u32,
        image_id: &str,
        error: &RuntimeError,
    ) -> Waiting {
        let text = chain(error);
        match error {
            // The message alone, as the kubelet words it: status and event name the container already.
            RuntimeError::InvalidSpec { message, .. } => {
                self.failed_event(container, message);
                Waiting::new("CreateContainerConfigError", message.as_str())
            }
            RuntimeError::Start { message: text, .. } => {
                let message = format!("Created container: {}", container.name);
                self.container_event(container, Severity::Normal, "Created", message);
                self.failed_event(container, text);
                let now = self.context.clock.wall_now();
                // The attempt is spent: the restart policy and its back-off decide what is next. As with
                // any exit, the first restart does not wait.
                if attempt > 0 {
                    let now = self.context.clock.now();
                    self.backoff.advance(&restart_key(&container.name), now);
                }
                self.records
                    .retain(|record| record.name != container.name || record.attempt != attempt);
                self.records.push(ContainerRecord {
                    name: container.name.clone(),
                    id: String::new(),
                    attempt,
                    image: container.image.clone(),
                    image_id: image_id.to_owned(),
                    state: RecordState::Exited(Exit {
                        exit_code: 128,
                        signal: 0,
                        oom_killed: false,
                        started_at: now,
                        finished_at: now,
                        message: text.clone(),
                        kind: ExitKind::StartError,
                    }),
                });
                Waiting::new("RunContainerError", text.as_str())
            }
            _ => {
                self.failed_event(container, &text);
                Waiting::new("CreateContainerError", text)
            }
        }
    }

    async fn remove_container(&mut self, id: &str, name: &str, attempt: u32) -> Step {
        match self.context.runtime.remove_container(id).await {
            Ok(()) | Err(RuntimeError::NotFound { .. }) => {
                self.records
                    .retain(|record| record.name != name || record.attempt != attempt);
                let log = self.context.config.log_path(&self.identity, name, attempt);
                remove_log(&log, &self.context.config.container_log_dir);
                Ok(())
            }
            Err(error) => {
                tracing::warn!(pod = %self.identity.name, container = name, error = %chain(&error), "old container not removed");
                Err(StepFailed)
            }
        }
    }

    async fn stop(&mut self, containers: &[(String, String)], grace: std::time::Duration) -> Step {
        for (id, name) in containers {
            if self.killed.insert(id.clone()) {
                let subject = Subject::container(&self.identity, name);
                let message = format!("Stopping container {name}");
                self.context
                    .recorder
                    .record(subject, Severity::Normal, "Killing", message);
            }
        }
        let runtime = &self.context.runtime;
        let stops = containers.iter().map(|(id, name)| async move {
            let began = Instant::now();
            let result = match runtime.stop_container(id, grace).await {
                Err(RuntimeError::NotFound { .. }) => Ok(()),
                other => other,
            };
            (name, began.elapsed(), result)
        });
        let mut step = Ok(());
        for (name, took, result) in join_all(stops).await {
            self.context
                .metrics
                .runtime_operation("stop_container", took, result.is_err());
            if let Err(error) = result {
                let message = format!("error killing container {name}: {}", chain(&error));
                self.pod_event(Severity::Warning, "FailedKillPod", message);
                step = Err(StepFailed);
            }
        }
        step
    }

    async fn detach_network(&mut self) -> Step {
        match self.context.network.detach(&self.attachment_key()).await {
            Ok(()) => {
                self.memory.attached = false;
                if self.memory.terminating.is_none() && self.sandbox_broken {
                    self.memory.addresses.clear();
                }
                self.remember().await;
                Ok(())
            }
            Err(error) => {
                let message = format!(
                    "error killing pod: network detach failed: {}",
                    chain(&error)
                );
                self.pod_event(Severity::Warning, "FailedKillPod", message);
                Err(StepFailed)
            }
        }
    }

    async fn remove_sandbox(&mut self) -> Step {
        let began = Instant::now();
        let result = self.context.runtime.remove_sandbox(&self.identity).await;
        self.context.metrics.runtime_operation(
            "remove_podsandbox",
            began.elapsed(),
            result.is_err(),
        );
        match result {
            Ok(()) | Err(RuntimeError::NotFound { .. }) => {
                self.sandbox = false;
                self.netns = None;
                Ok(())
            }
            Err(error) => {
                let message = format!("error killing pod: {}", chain(&error));
                self.pod_event(Severity::Warning, "FailedKillPod", message);
                Err(StepFailed)
            }
        }
    }

    async fn unmount_volumes(&mut self) -> Step {
        let pod_dir = self.pod_dir.clone();
        let removed = tokio::task::spawn_blocking(move || volumes::remove_all(&pod_dir)).await;
        match removed {
            Ok(Ok(())) => {
                self.volumes_mounted = false;
                Ok(())
            }
            Ok(Err(error)) => {
                let message = format!("volumes are still in use: {}", chain(&error));
                self.pod_event(Severity::Warning, "FailedUnMount", message);
                Err(StepFailed)
            }
            Err(panic) => {
                tracing::error!(%panic, "removing volumes panicked");
                Err(StepFailed)
            }
        }
    }
}

/// The event of a volume that could not be mounted, in upstream's words.
fn mount_failure(volume: &str, error: &VolumeError) -> String {
    match error {
        VolumeError::Unsupported { kind } => format!(
            "Unable to attach or mount volumes: unmounted volumes=[{volume}], unattached volumes=[{volume}], \
             failed to process volumes=[{volume}]: failed to get Plugin from volumeSpec for volume \"{volume}\" \
             err=no volume plugin matched: this node does not support {kind}"
        ),
        other => format!(
            "MountVolume.SetUp failed for volume \"{volume}\" : {}",
            chain(other)
        ),
    }
}
