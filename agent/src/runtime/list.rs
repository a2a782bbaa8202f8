//! What exists: containers and their states, put together from containerd, the journal and the records
//! of sandboxes.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use containerd_client::services::v1::{Container, ListContainersRequest, ListTasksRequest};
use containerd_client::types::v1::{Process, Status};

use super::connect::{CallError, QUICK, call};
use super::containerd::{Driver, blocking};
use super::exits::{UNKNOWN_EXIT_CODE, time};
use super::journal::{Exit, Record};
use super::labels;
use super::sandbox::{Sandbox, operation_failed};
use super::{ContainerExit, ContainerState, RealizedContainer, RealizedSandbox, RuntimeError};

/// How long a look waits for an exit that is being written down.
const SETTLING: Duration = Duration::from_secs(10);

impl Driver {
    /// Containers of one pod, or all.
    pub(super) async fn containers(
        &self,
        pod_uid: Option<&str>,
    ) -> Result<Vec<Container>, RuntimeError> {
        let mut filter = format!("labels.\"{}\"=={}", labels::KIND, labels::KIND_CONTAINER);
        if let Some(uid) = pod_uid {
            filter = format!("{filter},labels.\"{}\"==\"{uid}\"", labels::POD_UID);
        }
        let request = ListContainersRequest {
            filters: vec![filter],
        };
        let mut client = self.connection.containers();
        call(QUICK, client.list(self.connection.request(request)))
            .await
            .map(|response| response.containers)
            .map_err(self.connection.failed("list", "containers"))
    }

    async fn tasks(&self) -> Result<HashMap<String, Process>, CallError> {
        let mut client = self.connection.tasks();
        let request = self.connection.request(ListTasksRequest::default());
        let tasks = call(QUICK, client.list(request)).await?.tasks;
        Ok(tasks
            .into_iter()
            .map(|task| (task.id.clone(), task))
            .collect())
    }

    /// Follows every container that has a task, also those a former agent started.
    pub(super) async fn resume(self: &Arc<Self>) -> Result<(), CallError> {
        let request = ListContainersRequest {
            filters: vec![format!(
                "labels.\"{}\"=={}",
                labels::KIND,
                labels::KIND_CONTAINER
            )],
        };
        let mut client = self.connection.containers();
        let containers = call(QUICK, client.list(self.connection.request(request)))
            .await?
            .containers;
        let tasks = self.tasks().await?;
        self.holder.look_again(!tasks.is_empty()).await;
        for container in containers {
            match tasks.get(&container.id) {
                Some(task) => self.resume_one(&container, Some(task)),
                // It ended while containerd was away, and containerd 2.x has cleaned up behind it.
                None if self.tracked(&container.id).is_some() => self.resume_one(&container, None),
                None => self.finish(&container).await,
            }
        }
        Ok(())
    }

    /// Reads to its end what the agent that saw the exit could not: its FIFOs are still there.
    async fn finish(self: &Arc<Self>, container: &Container) {
        let follow = labels::parse(&container.id, &container.labels).follow;
        let has_started = || async {
            let record = self.record(&container.id).await;
            record.is_ok_and(|record| record.started_at.is_some())
        };
        if self.fifos(&follow).exist() && has_started().await {
            self.resume_one(container, None);
        }
    }

    fn resume_one(self: &Arc<Self>, container: &Container, task: Option<&Process>) {
        if task.is_some_and(|task| task.status() == Status::Created) {
            return;
        }
        let follow = labels::parse(&container.id, &container.labels).follow;
        match (self.follow(follow), task) {
            (Ok(tracked), Some(task)) if task.status() == Status::Running => tracked.hold(task.pid),
            (Ok(_), _) => {}
            (Err(error), _) => {
                tracing::warn!(container = container.id, %error, "cannot follow a container");
            }
        }
    }

    pub(super) async fn list(self: &Arc<Self>) -> Result<Vec<RealizedSandbox>, RuntimeError> {
        let sandboxes = self.sandboxes.clone();
        let recorded = blocking(move || {
            let all = sandboxes.list()?;
            Ok(all
                .into_iter()
                .map(|sandbox| (sandboxes.is_ready(&sandbox), sandbox))
                .collect::<Vec<_>>())
        })
        .await
        .map_err(operation_failed("list", "sandboxes".into()))?;
        let mut found: BTreeMap<String, RealizedSandbox> = recorded
            .into_iter()
            .map(|(is_ready, sandbox)| (sandbox.uid.clone(), self.realized(&sandbox, is_ready)))
            .collect();
        for container in self.containers(None).await? {
            let parsed = labels::parse(&container.id, &container.labels);
            // A record that is gone (its directory was wiped by a reboot) leaves the containers.
            let sandbox = found
                .entry(parsed.pod.uid.clone())
                .or_insert_with(|| RealizedSandbox {
                    pod: parsed.pod.clone(),
                    netns: None,
                    ready: false,
                    created_at: time(container.created_at),
                    containers: Vec::new(),
                });
            let realized = self.realize(&container).await?;
            sandbox.containers.push(realized);
        }
        Ok(found.into_values().collect())
    }

    pub(super) fn realized(&self, sandbox: &Sandbox, ready: bool) -> RealizedSandbox {
        RealizedSandbox {
            pod: sandbox.pod(),
            netns: (!sandbox.host_network)
                .then(|| self.sandboxes.namespace_pin(&sandbox.uid, "net")),
            ready,
            created_at: sandbox.created_at,
            containers: Vec::new(),
        }
    }

    /// A container with its state.
    pub(super) async fn realize(
        self: &Arc<Self>,
        container: &Container,
    ) -> Result<RealizedContainer, RuntimeError> {
        let parsed = labels::parse(&container.id, &container.labels);
        let state = self.state(container).await?;
        Ok(RealizedContainer {
            id: container.id.clone(),
            name: parsed.name,
            attempt: parsed.attempt,
            image: container.image.clone(),
            image_id: parsed.image_id,
            state,
            labels: parsed.callers,
        })
    }

    /// Waits while an exit is being dealt with.
    async fn settling(&self, id: &str) {
        if let Some(tracked) = self.tracked(id)
            && tokio::time::timeout(SETTLING, tracked.settled())
                .await
                .is_err()
        {
            tracing::warn!(container = id, "an exit is not dealt with yet");
        }
    }

    async fn state(
        self: &Arc<Self>,
        container: &Container,
    ) -> Result<ContainerState, RuntimeError> {
        let id = &container.id;
        let read_failed = || operation_failed("read the journal of", format!("container {id}"));
        // The journal is read before the task: a container that starts in between is "created", never
        // "lost".
        let before = self.record(id).await.map_err(read_failed())?;
        if let Some(exit) = &before.exit {
            // Written down, but the log may not be complete yet.
            self.finish(container).await;
            self.settling(id).await;
            return Ok(exited(&before, exit, container));
        }
        let task = self
            .task(id)
            .await
            .map_err(self.connection.failed("look at", format!("container {id}")))?;
        match task {
            Some(task) if task.status() == Status::Created => Ok(ContainerState::Created),
            Some(task) if task.status() == Status::Stopped => {
                self.resume_one(container, Some(&task));
                if let Some(tracked) = self.tracked(id) {
                    tokio::time::timeout(SETTLING, tracked.settled()).await.ok();
                }
                let after = self.record(id).await.map_err(read_failed())?;
                let exit = after
                    .exit
                    .clone()
                    .unwrap_or_else(|| unknown(task.exit_status, time(task.exited_at)));
                Ok(exited(&after, &exit, container))
            }
            Some(task) => {
                self.resume_one(container, Some(&task));
                let started_at = before
                    .started_at
                    .unwrap_or_else(|| time(container.created_at));
                Ok(ContainerState::Running {
                    pid: task.pid,
                    started_at,
                })
            }
            None if before.started_at.is_none() => Ok(ContainerState::Created),
            None => {
                self.finish(container).await;
                if let Some(tracked) = self.tracked(id) {
                    tokio::time::timeout(SETTLING, tracked.settled()).await.ok();
                }
                let after = self.record(id).await.map_err(read_failed())?;
                if let Some(exit) = &after.exit {
                    return Ok(exited(&after, exit, container));
                }
                // A reboot, or the shim died with nobody looking.
                let exit = unknown(UNKNOWN_EXIT_CODE, SystemTime::now());
                self.record_exit(id, exit.clone())
                    .await
                    .map_err(operation_failed(
                        "record the exit of",
                        format!("container {id}"),
                    ))?;
                Ok(exited(&after, &exit, container))
            }
        }
    }
}

fn unknown(code: u32, at: SystemTime) -> Exit {
    Exit {
        exit_code: i32::try_from(code).unwrap_or(-1),
        oom_killed: false,
        finished_at: at,
    }
}

fn exited(record: &Record, exit: &Exit, container: &Container) -> ContainerState {
    ContainerState::Exited(ContainerExit {
        exit_code: exit.exit_code,
        signal: if (129..=192).contains(&exit.exit_code) {
            exit.exit_code - 128
        } else {
            0
        },
        oom_killed: exit.oom_killed,
        started_at: record
            .started_at
            .unwrap_or_else(|| time(container.created_at)),
        finished_at: exit.finished_at,
    })
}
