//! A container runtime and a pod network in memory, with failures, hangs and crashes on demand.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{Notify, watch};

use crate::network::{AttachRequest, Attachment, AttachmentKey, NetworkError, PodNetwork};
use crate::runtime::{
    AttachRequest as StreamsRequest, ContainerExit, ContainerSpec, ContainerState, ExecRequest,
    ExecSession, ImageInfo, PodIdentity, PullError, RealizedContainer, RealizedSandbox,
    RegistryAuth, Runtime, RuntimeError, SandboxSpec,
};
use crate::time::Clock;

/// What goes wrong at one operation, counted over runtime and network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// Fails without an effect.
    Fails,
    /// Has its effect, and the answer is lost.
    LosesAnswer,
    /// Never answers, without an effect; then the agent is killed.
    Hangs,
    /// Has its effect and never answers; then the agent is killed.
    HangsAfter,
}

/// How a container behaves once started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Behaviour {
    ExitsAtOnce(i32),
    /// The process cannot be started; whether the runtime lists the attempt afterwards.
    CannotStart {
        listed: bool,
    },
    /// The start call never returns.
    Hangs,
    /// The start call panics.
    Panics,
    IgnoresTerm,
}

#[derive(Default)]
pub(super) struct State {
    pub(super) sandboxes: BTreeMap<String, RealizedSandbox>,
    pub(super) attached: BTreeMap<String, Attachment>,
    pub(super) images: BTreeSet<String>,
    pub(super) missing_images: BTreeSet<String>,
    /// By pod name.
    pub(super) behaviour: BTreeMap<String, Behaviour>,
    /// Every operation with its time since the world began.
    pub(super) calls: Vec<(Duration, String)>,
    pub(super) fault: Option<(usize, Fault)>,
    pub(super) operations: usize,
    pub(super) list_fails: bool,
}

pub(super) struct FakeNode {
    state: Mutex<State>,
    clock: Clock,
    began: tokio::time::Instant,
    changes: watch::Sender<u64>,
    /// Told when an operation hangs for good.
    pub(super) hung: Notify,
}

#[derive(Debug, thiserror::Error)]
#[error("injected")]
struct Injected;

fn injected(operation: &'static str) -> RuntimeError {
    RuntimeError::Operation {
        operation,
        subject: "it".to_owned(),
        source: Box::new(Injected),
    }
}

impl FakeNode {
    pub(super) fn new(clock: Clock) -> Self {
        Self {
            state: Mutex::default(),
            clock,
            began: tokio::time::Instant::now(),
            changes: watch::channel(0).0,
            hung: Notify::new(),
        }
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Times of the calls whose text starts with `prefix`.
    pub(super) fn times(&self, prefix: &str) -> Vec<Duration> {
        let state = self.state();
        let calls = state.calls.iter();
        calls
            .filter(|(_, call)| call.starts_with(prefix))
            .map(|(at, _)| *at)
            .collect()
    }

    pub(super) fn bump(&self) {
        self.changes.send_modify(|count| *count += 1);
    }

    /// Ends a running container from inside.
    pub(super) fn exit(&self, pod: &str, code: i32) {
        let now = self.clock.wall_now();
        let mut state = self.state();
        let sandbox = state
            .sandboxes
            .values_mut()
            .find(|sandbox| sandbox.pod.name == pod)
            .unwrap();
        for container in &mut sandbox.containers {
            if let ContainerState::Running { started_at, .. } = container.state {
                container.state = ContainerState::Exited(ContainerExit {
                    exit_code: code,
                    signal: 0,
                    oom_killed: false,
                    started_at,
                    finished_at: now,
                });
            }
        }
        drop(state);
        self.bump();
    }

    /// Runs one operation with the fault that is due.
    async fn operation<T>(
        &self,
        name: String,
        effect: impl FnOnce(&mut State) -> T,
    ) -> Result<T, Injected> {
        let fault = {
            let mut state = self.state();
            let index = state.operations;
            state.operations += 1;
            let at = self.began.elapsed();
            state.calls.push((at, name));
            state
                .fault
                .filter(|(due, _)| *due == index)
                .map(|(_, fault)| fault)
        };
        // As a call over a socket: others run in between.
        tokio::task::yield_now().await;
        match fault {
            None => Ok(effect(&mut self.state())),
            Some(Fault::Fails) => Err(Injected),
            Some(Fault::LosesAnswer) => {
                effect(&mut self.state());
                Err(Injected)
            }
            Some(fault) => {
                if fault == Fault::HangsAfter {
                    effect(&mut self.state());
                }
                self.hung.notify_one();
                std::future::pending().await
            }
        }
    }
}

#[async_trait]
impl Runtime for FakeNode {
    async fn version(&self) -> Result<String, RuntimeError> {
        Ok("containerd://fake".to_owned())
    }

    async fn list(&self) -> Result<Vec<RealizedSandbox>, RuntimeError> {
        let state = self.state();
        if state.list_fails {
            return Err(injected("list"));
        }
        Ok(state.sandboxes.values().cloned().collect())
    }

    async fn ensure_sandbox(&self, spec: &SandboxSpec) -> Result<RealizedSandbox, RuntimeError> {
        let made = RealizedSandbox {
            pod: spec.pod.clone(),
            netns: (!spec.host_network).then(|| PathBuf::from("/run/netns/fake")),
            ready: true,
            created_at: self.clock.wall_now(),
            containers: Vec::new(),
        };
        self.operation(format!("sandbox {}", spec.pod.name), |state| {
            let uid = spec.pod.uid.clone();
            state.sandboxes.entry(uid).or_insert(made).clone()
        })
        .await
        .map_err(|_| injected("make"))
    }

    async fn remove_sandbox(&self, pod: &PodIdentity) -> Result<(), RuntimeError> {
        self.operation(format!("remove {}", pod.name), |state| {
            assert!(
                !state.attached.contains_key(&pod.uid),
                "the namespace went before its address was given back"
            );
            state.sandboxes.remove(&pod.uid);
        })
        .await
        .map_err(|_| injected("remove"))
    }

    async fn image(&self, reference: &str) -> Result<Option<ImageInfo>, PullError> {
        let found = self.state().images.contains(reference);
        Ok(found.then(|| info(reference)))
    }

    async fn pull(&self, reference: &str, _: Option<RegistryAuth>) -> Result<ImageInfo, PullError> {
        let pulled = self
            .operation(format!("pull {reference}"), |state| {
                let exists = !state.missing_images.contains(reference);
                if exists {
                    state.images.insert(reference.to_owned());
                }
                exists
            })
            .await;
        match pulled {
            Ok(true) => Ok(info(reference)),
            _ => Err(PullError::Pull {
                reference: reference.to_owned(),
                message: "not found".to_owned(),
            }),
        }
    }

    async fn images(&self) -> Result<Vec<ImageInfo>, RuntimeError> {
        Ok(Vec::new())
    }

    async fn start_container(
        &self,
        spec: &ContainerSpec,
    ) -> Result<RealizedContainer, RuntimeError> {
        let behaviour = self.state().behaviour.get(&spec.pod.name).copied();
        let started_at = self.clock.wall_now();
        let exited = |exit_code| {
            ContainerState::Exited(ContainerExit {
                exit_code,
                signal: 0,
                oom_killed: false,
                started_at,
                finished_at: started_at,
            })
        };
        let running = ContainerState::Running { pid: 7, started_at };
        let (state, is_listed) = match behaviour {
            Some(Behaviour::Hangs) => return std::future::pending().await,
            Some(Behaviour::Panics) => panic!("injected"),
            Some(Behaviour::ExitsAtOnce(code)) => (exited(code), true),
            Some(Behaviour::CannotStart { listed }) => (ContainerState::Created, listed),
            Some(Behaviour::IgnoresTerm) | None => (running, true),
        };
        let made = RealizedContainer {
            id: format!("{}-{}-{}", spec.pod.uid, spec.name, spec.attempt),
            name: spec.name.clone(),
            attempt: spec.attempt,
            image: spec.image.clone(),
            image_id: "repo@sha256:1".to_owned(),
            state,
            labels: BTreeMap::new(),
        };
        let name = format!("start {} {}", spec.pod.name, spec.attempt);
        let started = self.operation(name, |state| {
            let sandbox = state.sandboxes.get_mut(&spec.pod.uid).expect("a sandbox");
            if let Some(found) = sandbox.containers.iter().find(|one| one.id == made.id) {
                return found.clone();
            }
            if is_listed {
                sandbox.containers.push(made.clone());
            }
            made.clone()
        });
        let started = started.await.map_err(|_| injected("start"))?;
        self.bump();
        if matches!(behaviour, Some(Behaviour::CannotStart { .. })) {
            return Err(RuntimeError::Start {
                container: spec.name.clone(),
                message: "exec: \"nothing\": executable file not found in $PATH".to_owned(),
            });
        }
        Ok(started)
    }

    async fn stop_container(&self, id: &str, grace: Duration) -> Result<(), RuntimeError> {
        let owner = {
            let state = self.state();
            let mut sandboxes = state.sandboxes.values();
            sandboxes
                .find(|sandbox| sandbox.containers.iter().any(|one| one.id == id))
                .map(|sandbox| sandbox.pod.name.clone())
        };
        let Some(owner) = owner else {
            return Err(RuntimeError::NotFound {
                subject: id.to_owned(),
            });
        };
        let ignores = self.state().behaviour.get(&owner) == Some(&Behaviour::IgnoresTerm);
        self.operation(format!("stop {owner} {}s", grace.as_secs()), |_| ())
            .await
            .map_err(|_| injected("stop"))?;
        if ignores {
            tokio::time::sleep(grace).await;
        }
        self.exit(&owner, if ignores || grace.is_zero() { 137 } else { 0 });
        Ok(())
    }

    async fn remove_container(&self, id: &str) -> Result<(), RuntimeError> {
        self.operation(format!("forget {id}"), |state| {
            for sandbox in state.sandboxes.values_mut() {
                sandbox.containers.retain(|container| container.id != id);
            }
        })
        .await
        .map_err(|_| injected("remove"))
    }

    async fn exec(&self, _: ExecRequest) -> Result<ExecSession, RuntimeError> {
        Err(injected("exec"))
    }

    async fn attach(&self, _: StreamsRequest) -> Result<ExecSession, RuntimeError> {
        Err(injected("attach"))
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

#[async_trait]
impl PodNetwork for FakeNode {
    async fn attach(&self, request: &AttachRequest) -> Result<Attachment, NetworkError> {
        let uid = request.pod_uid.clone();
        let made = Attachment {
            key: request.key.clone(),
            addresses: vec![
                "10.244.1.9".parse().unwrap(),
                "fd00:10:244:1::9".parse().unwrap(),
            ],
            host_interface: "thp0".to_owned(),
            mac: [2; 6],
            mtu: 1450,
        };
        self.operation(format!("attach {}", request.pod_name), |state| {
            state.attached.entry(uid).or_insert(made).clone()
        })
        .await
        .map_err(|error| lost("attach", error))
    }

    async fn detach(&self, key: &AttachmentKey) -> Result<(), NetworkError> {
        self.operation(format!("detach {}", key.container_id), |state| {
            state.attached.remove(&key.container_id);
        })
        .await
        .map_err(|error| lost("detach", error))
    }

    async fn check(&self, key: &AttachmentKey) -> Result<Attachment, NetworkError> {
        let found = self.state().attached.get(&key.container_id).cloned();
        found.ok_or_else(|| NetworkError::Unknown {
            subject: key.container_id.clone(),
        })
    }

    async fn attachments(&self) -> Result<Vec<Attachment>, NetworkError> {
        Ok(self.state().attached.values().cloned().collect())
    }

    async fn ready(&self) -> Result<(), NetworkError> {
        Ok(())
    }
}

fn lost(operation: &'static str, error: Injected) -> NetworkError {
    NetworkError::Operation {
        operation,
        subject: "it".to_owned(),
        source: Box::new(error),
    }
}

fn info(reference: &str) -> ImageInfo {
    ImageInfo {
        reference: reference.to_owned(),
        id: "repo@sha256:1".to_owned(),
        size_bytes: 1,
        user: String::new(),
    }
}
