//! Containers: create, start, remove. Every step finds what an interrupted one has left.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::SystemTime;

use containerd_client::services::v1::container::Runtime as ContainerRuntime;
use containerd_client::services::v1::snapshots::{
    MountsRequest, PrepareSnapshotRequest, RemoveSnapshotRequest, ViewSnapshotRequest,
};
use containerd_client::services::v1::{
    Container, CreateContainerRequest, CreateTaskRequest, DeleteContainerRequest,
    GetContainerRequest, KillRequest, StartRequest,
};
use containerd_client::types::Mount;
use containerd_client::types::v1::Status;
use prost_types::Any;

use super::connect::{CallError, Idempotent, QUICK, SLOW, call};
use super::containerd::{Driver, blocking};
use super::image::ImageDetail;
use super::io::Fifos;
use super::journal::Record;
use super::labels::{self, Parsed};
use super::lease::Lease;
use super::reference::Reference;
use super::sandbox::{Sandbox, operation_failed};
use super::spec::{self, UserDatabase};
use super::{
    ContainerSpec, PodIdentity, RealizedContainer, RuntimeError, devices, log_file, rootfs, runc,
};

const SPEC_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/Spec";

impl Driver {
    pub(super) async fn start(
        self: &Arc<Self>,
        spec: &ContainerSpec,
    ) -> Result<RealizedContainer, RuntimeError> {
        let id = labels::container_id(&spec.pod.uid, &spec.name, spec.attempt);
        let subject = || format!("container {}", spec.name);
        let sandbox = self.sandbox_of(&spec.pod).await?;
        let container = match self.container(&id).await? {
            Some(container) => container,
            None => self.create(&id, spec, &sandbox).await?,
        };
        let parsed = labels::parse(&id, &container.labels);
        let record = self
            .record(&id)
            .await
            .map_err(operation_failed("read the journal of", subject()))?;
        if record.exit.is_none() {
            let task = self
                .task(&id)
                .await
                .map_err(self.connection.failed("look at", subject()))?;
            match task.map(|task| task.status()) {
                Some(Status::Running | Status::Stopped | Status::Paused | Status::Pausing) => {}
                // Started, and the task is gone without an exit: it is not started twice.
                None if record.started_at.is_some() => {}
                task => {
                    let is_made = task.is_some();
                    if let Err(error) = self.run(spec, &container, &parsed, is_made).await {
                        // The same attempt can then be made again from the start.
                        if let Err(left) = self.remove(&id).await {
                            tracing::warn!(container = id, error = %left, "a failed start left something behind");
                        }
                        return Err(error);
                    }
                }
            }
        }
        self.realize(&container).await
    }

    pub(super) async fn container(&self, id: &str) -> Result<Option<Container>, RuntimeError> {
        let request = GetContainerRequest { id: id.into() };
        let mut client = self.connection.containers();
        match call(QUICK, client.get(self.connection.request(request))).await {
            Ok(response) => Ok(response.container),
            Err(error) if error.is_not_found() => Ok(None),
            Err(error) => Err(self.connection.failed("look up", format!("container {id}"))(error)),
        }
    }

    /// A container that runs, with what its labels say; `refused` makes the caller's error of one
    /// that does not.
    pub(super) async fn running_container(
        &self,
        id: &str,
        refused: impl FnOnce(String, String) -> RuntimeError,
    ) -> Result<(Container, Parsed), RuntimeError> {
        let subject = format!("container {id}");
        let Some(container) = self.container(id).await? else {
            return Err(RuntimeError::NotFound { subject });
        };
        let parsed = labels::parse(id, &container.labels);
        let task = self
            .task(id)
            .await
            .map_err(self.connection.failed("look at", subject))?;
        if task.is_none_or(|task| task.status() != Status::Running) {
            return Err(refused(parsed.name, "container is not running".into()));
        }
        Ok((container, parsed))
    }

    async fn sandbox_of(&self, pod: &PodIdentity) -> Result<Sandbox, RuntimeError> {
        let subject = super::sandbox::subject(pod);
        let (sandboxes, uid) = (self.sandboxes.clone(), pod.uid.clone());
        let (sandbox, is_ready) = blocking(move || {
            let sandbox = sandboxes.read(&uid)?;
            let is_ready = sandbox
                .as_ref()
                .is_some_and(|sandbox| sandboxes.is_ready(sandbox));
            Ok((sandbox, is_ready))
        })
        .await
        .map_err(operation_failed("read", subject.clone()))?;
        match sandbox {
            Some(sandbox) if is_ready => Ok(sandbox),
            _ => Err(RuntimeError::NotFound { subject }),
        }
    }

    /// Writes the container record. The snapshot follows at the start: the record refers to it by key,
    /// so the garbage collector never sees it without an owner.
    async fn create(
        &self,
        id: &str,
        spec: &ContainerSpec,
        sandbox: &Sandbox,
    ) -> Result<Container, RuntimeError> {
        let (image_id, detail) = self.image_of(spec).await?;
        spec::verify_non_root(spec, &detail.config)?;
        let users = self.users_of(spec, &detail).await?;
        let user = spec::resolve_user(spec, &detail.config, &users)?;
        let cgroup_path = format!("{}/{id}", sandbox.cgroup_path.trim_end_matches('/'));
        let uid = &sandbox.uid;
        let pin = |kind: &str| self.sandboxes.namespace_pin(uid, kind);
        let wanted = sandbox.wanted();
        let shm = self.sandboxes.shm(uid);
        let cgroups = self.sandboxes.cgroups();
        let host_devices = if spec.privileged {
            blocking(devices::of_host).await.map_err(operation_failed(
                "list host devices for",
                format!("container {}", spec.name),
            ))?
        } else {
            Vec::new()
        };
        let config = spec::build(&spec::Inputs {
            container: spec,
            image: &detail.config,
            user: &user,
            hostname: &sandbox.hostname,
            network_namespace: wanted.net.then(|| pin("net")),
            ipc_namespace: wanted.ipc.then(|| pin("ipc")),
            uts_namespace: wanted.uts.then(|| pin("uts")),
            host_pid: sandbox.host_pid,
            shm: if sandbox.host_ipc {
                std::path::Path::new("/dev/shm")
            } else {
                &shm
            },
            cgroup_path: &cgroup_path,
            cgroup_v2: cgroups.is_v2(),
            swap_limit: cgroups.has_swap_limit(),
            held: &self.held,
            host_devices: &host_devices,
        })?;
        let facts = labels::Facts {
            image_id: &image_id,
            cgroup_path: &cgroup_path,
            stop_signal: &detail.config.stop_signal,
        };
        let container = Container {
            id: id.into(),
            labels: labels::build(spec, &facts),
            image: spec.image.clone(),
            runtime: Some(ContainerRuntime {
                name: self.config.runtime.clone(),
                options: runc::options(&self.config.runtime, &self.config.run_dir),
            }),
            spec: Some(Any {
                type_url: SPEC_TYPE.into(),
                value: config.to_string().into_bytes(),
            }),
            snapshotter: self.config.snapshotter.clone(),
            snapshot_key: id.into(),
            ..Container::default()
        };
        let request = CreateContainerRequest {
            container: Some(container.clone()),
        };
        let mut client = self.connection.containers();
        call(QUICK, client.create(self.connection.request(request)))
            .await
            .map(|response| response.container.unwrap_or(container))
            .map_err(
                self.connection
                    .failed("create", format!("container {}", spec.name)),
            )
    }

    /// The image's id and detail, unpacked.
    async fn image_of(&self, spec: &ContainerSpec) -> Result<(String, ImageDetail), RuntimeError> {
        let missing = || RuntimeError::NotFound {
            subject: format!("image {:?}", spec.image),
        };
        let reference =
            Reference::parse(&spec.image).map_err(|error| RuntimeError::InvalidSpec {
                subject: format!("container {}", spec.name),
                message: error.to_string(),
            })?;
        let image = self
            .images
            .record(&reference)
            .await
            .map_err(
                self.connection
                    .failed("look up image of", format!("container {}", spec.name)),
            )?
            .ok_or_else(missing)?;
        let target = image.target.clone().ok_or_else(missing)?;
        let failed = |operation| {
            let name = spec.image.clone();
            move |error| self.images.failed(operation, &name, error)
        };
        let detail = self.images.detail(&target).await.map_err(failed("read"))?;
        self.images
            .ensure_unpacked(&detail)
            .await
            .map_err(failed("unpack"))?;
        let info = self.images.info(&image).await.map_err(failed("read"))?;
        Ok((info.id, detail))
    }

    /// The image's passwd and group files, read once per root file system.
    async fn users_of(
        &self,
        spec: &ContainerSpec,
        detail: &ImageDetail,
    ) -> Result<Arc<UserDatabase>, RuntimeError> {
        let known = self
            .users
            .lock()
            .expect("never poisoned")
            .get(&detail.chain_id)
            .cloned();
        if let Some(users) = known {
            return Ok(users);
        }
        if detail.chain_id.is_empty() {
            return Ok(Arc::default());
        }
        let failed = || format!("image {:?}", spec.image);
        let lease = Lease::acquire(&self.connection)
            .await
            .map_err(self.connection.failed("lease a view of", failed()))?;
        let key = format!("tholepin-view-{}", uuid::Uuid::new_v4());
        let request = ViewSnapshotRequest {
            snapshotter: self.config.snapshotter.clone(),
            key: key.clone(),
            parent: detail.chain_id.clone(),
            labels: HashMap::new(),
        };
        let mut client = self.connection.snapshots();
        let view = call(
            QUICK,
            client.view(self.connection.leased(request, lease.id())),
        )
        .await
        .map_err(self.connection.failed("view", failed()));
        let users = match view {
            Ok(view) => {
                let mount_point = self.config.run_dir.join("view");
                let users =
                    blocking(move || rootfs::read_user_database(&view.mounts, &mount_point))
                        .await
                        .map_err(operation_failed("read users of", failed()));
                self.remove_snapshot(&key).await?;
                users
            }
            Err(error) => Err(error),
        };
        lease.release().await;
        let users = Arc::new(users?);
        self.users
            .lock()
            .expect("never poisoned")
            .insert(detail.chain_id.clone(), users.clone());
        Ok(users)
    }

    /// Makes the task unless it is there, starts it and follows it.
    async fn run(
        self: &Arc<Self>,
        spec: &ContainerSpec,
        container: &Container,
        parsed: &Parsed,
        is_made: bool,
    ) -> Result<(), RuntimeError> {
        let subject = format!("container {}", spec.name);
        let follow = &parsed.follow;
        log_file::create(&follow.log_path)
            .await
            .map_err(operation_failed("make the log of", subject.clone()))?;
        self.track(follow)
            .map_err(operation_failed("open the output of", subject.clone()))?;
        if !is_made {
            let (rootfs, ()) = tokio::join!(
                self.rootfs(container, spec),
                self.holder.hold(&follow.pod_uid, &follow.id)
            );
            let rootfs = rootfs?;
            let fifos = self.fifos(follow);
            let request = CreateTaskRequest {
                container_id: container.id.clone(),
                rootfs,
                stdin: Fifos::text(&fifos.stdin),
                stdout: Fifos::text(&fifos.stdout),
                stderr: Fifos::text(&fifos.stderr),
                terminal: follow.tty,
                ..CreateTaskRequest::default()
            };
            let mut client = self.connection.tasks();
            match call(SLOW, client.create(self.connection.request(request))).await {
                Err(error) if !error.is_already_exists() => {
                    return Err(self.start_failed(spec, "failed to create containerd task", error));
                }
                _ => {}
            }
        }
        let tracked = self
            .follow(follow.clone())
            .map_err(operation_failed("follow", subject.clone()))?;
        // Before the start, so that the process cannot be seen running without a start time.
        let (journal, id) = (self.journal.clone(), container.id.clone());
        blocking(move || {
            let record = Record {
                started_at: Some(SystemTime::now()),
                exit: None,
            };
            journal.write(&id, &record, false)
        })
        .await
        .map_err(operation_failed("record the start of", subject))?;
        let request = StartRequest {
            container_id: container.id.clone(),
            exec_id: String::new(),
        };
        let mut client = self.connection.tasks();
        match call(SLOW, client.start(self.connection.request(request))).await {
            Ok(started) => {
                tracked.hold(started.pid);
                Ok(())
            }
            Err(error) => Err(self.start_failed(spec, "failed to start containerd task", error)),
        }
    }

    fn start_failed(&self, spec: &ContainerSpec, step: &str, error: CallError) -> RuntimeError {
        match error {
            CallError::Status(status) => RuntimeError::Start {
                container: spec.name.clone(),
                message: format!("{step}: {}", status.message()),
            },
            other => self
                .connection
                .failed("start", format!("container {}", spec.name))(other),
        }
    }

    /// The container's own writable snapshot, made or found.
    async fn rootfs(
        &self,
        container: &Container,
        spec: &ContainerSpec,
    ) -> Result<Vec<Mount>, RuntimeError> {
        let (_, detail) = self.image_of(spec).await?;
        let mut client = self.connection.snapshots();
        let request = PrepareSnapshotRequest {
            snapshotter: container.snapshotter.clone(),
            key: container.snapshot_key.clone(),
            parent: detail.chain_id,
            labels: HashMap::new(),
        };
        let prepared = call(QUICK, client.prepare(self.connection.request(request))).await;
        let mounts = match prepared {
            Ok(response) => Ok(response.mounts),
            Err(error) if error.is_already_exists() => {
                let request = MountsRequest {
                    snapshotter: container.snapshotter.clone(),
                    key: container.snapshot_key.clone(),
                };
                call(QUICK, client.mounts(self.connection.request(request)))
                    .await
                    .map(|response| response.mounts)
            }
            Err(error) => Err(error),
        };
        mounts.map_err(self.connection.failed(
            "prepare the file system of",
            format!("container {}", spec.name),
        ))
    }

    async fn remove_snapshot(&self, key: &str) -> Result<(), RuntimeError> {
        let request = RemoveSnapshotRequest {
            snapshotter: self.config.snapshotter.clone(),
            key: key.into(),
        };
        let mut client = self.connection.snapshots();
        call(SLOW, client.remove(self.connection.request(request)))
            .await
            .or_gone()
            .map_err(self.connection.failed("remove snapshot", key))
    }

    pub(super) async fn record(&self, id: &str) -> std::io::Result<Record> {
        let (journal, id) = (self.journal.clone(), id.to_owned());
        blocking(move || journal.read(&id)).await
    }

    /// Deletes an exited container; one that still runs is killed first.
    pub(super) async fn remove(self: &Arc<Self>, id: &str) -> Result<(), RuntimeError> {
        let subject = || format!("container {id}");
        let Some(container) = self.container(id).await? else {
            // Its task and record are gone; what is below may be what an interrupted removal left.
            return self.remove_rest(id, None).await;
        };
        let parsed = labels::parse(id, &container.labels);
        let task = self
            .task(id)
            .await
            .map_err(self.connection.failed("look at", subject()))?;
        if let Some(task) = task {
            if task.status() != Status::Stopped {
                let request = KillRequest {
                    container_id: id.into(),
                    signal: nix::libc::SIGKILL as u32,
                    all: true,
                    ..KillRequest::default()
                };
                let mut client = self.connection.tasks();
                match call(QUICK, client.kill(self.connection.request(request)))
                    .await
                    .or_gone()
                {
                    // It ended in between.
                    Err(error) if error.is_failed_precondition() => {}
                    outcome => outcome.map_err(self.connection.failed("kill", subject()))?,
                }
            }
            if task.status() == Status::Created {
                // Never ran: there is no exit to wait for.
                self.untrack(id);
                self.delete_task(id)
                    .await
                    .map_err(self.connection.failed("delete", subject()))?;
            } else {
                let tracked = self
                    .follow(parsed.follow.clone())
                    .map_err(operation_failed("follow", subject()))?;
                if tokio::time::timeout(SLOW, tracked.settled()).await.is_err() {
                    return Err(RuntimeError::Operation {
                        operation: "await the end of",
                        subject: subject(),
                        source: Box::new(CallError::Deadline(SLOW)),
                    });
                }
            }
            // Settling already deleted it, unless that failed.
            self.delete_task(id)
                .await
                .map_err(self.connection.failed("delete", subject()))?;
        }
        self.untrack(id);
        let request = DeleteContainerRequest { id: id.into() };
        let mut client = self.connection.containers();
        call(QUICK, client.delete(self.connection.request(request)))
            .await
            .or_gone()
            .map_err(self.connection.failed("delete", subject()))?;
        self.remove_rest(id, Some(&parsed)).await
    }

    async fn remove_rest(&self, id: &str, parsed: Option<&Parsed>) -> Result<(), RuntimeError> {
        self.remove_snapshot(id).await?;
        let fifos = parsed.map(|parsed| self.fifos(&parsed.follow));
        let (journal, owned) = (self.journal.clone(), id.to_owned());
        blocking(move || {
            if let Some(fifos) = fifos {
                fifos.remove()?;
            }
            journal.remove(&owned)
        })
        .await
        .map_err(operation_failed(
            "remove the files of",
            format!("container {id}"),
        ))?;
        if let Some(parsed) = parsed {
            self.holder.release(&parsed.follow.pod_uid, id).await;
        }
        Ok(())
    }
}
