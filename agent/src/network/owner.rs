//! The one task that owns the pod network, and the handles others talk to it with.

use std::future::Future;
use std::path::PathBuf;

use async_trait::async_trait;
use ipnet::IpNet;
use tholepin_model::desired::Desired;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::MissedTickBehavior;
use tokio_util::sync::CancellationToken;

use crate::dataplane::cleaner::{self, FlowTable};
use crate::dataplane::maps::workloads::Workloads;
use crate::dataplane::{NetworkConfig, NetworkStatus, chain};
use crate::ipam::{Owner, write_durably};
use crate::reconcile::policies::PolicyGate;

use super::node::NodeNetwork;
use super::{AttachRequest, Attachment, AttachmentKey, NetworkError, PodNetwork};

type Reply<T> = oneshot::Sender<Result<T, NetworkError>>;

enum Command {
    Attach(Box<AttachRequest>, Owner, Reply<Attachment>),
    Detach(AttachmentKey, Reply<()>),
    Check(AttachmentKey, Reply<Attachment>),
    List(Owner, Reply<Vec<Attachment>>),
}

/// A [`PodNetwork`] that asks the owner task. Clones share it.
#[derive(Clone, Debug)]
pub struct OwnerHandle {
    commands: mpsc::Sender<Command>,
    status: watch::Receiver<NetworkStatus>,
    owner: Owner,
}

impl OwnerHandle {
    /// The same network for CNI callers: their attachments are listed apart from the agent's own.
    #[must_use]
    pub fn for_cni(&self) -> Self {
        Self {
            owner: Owner::Cni,
            ..self.clone()
        }
    }

    /// The same network for the agent's own pods.
    #[must_use]
    pub fn for_agent(&self) -> Self {
        Self {
            owner: Owner::Agent,
            ..self.clone()
        }
    }

    async fn ask<T>(&self, command: impl FnOnce(Reply<T>) -> Command) -> Result<T, NetworkError> {
        let (reply, answer) = oneshot::channel();
        let stopping = || NetworkError::NotReady {
            reason: "the agent is stopping".to_owned(),
        };
        self.commands
            .send(command(reply))
            .await
            .map_err(|_| stopping())?;
        answer.await.unwrap_or_else(|_| Err(stopping()))
    }
}

#[async_trait]
impl PodNetwork for OwnerHandle {
    async fn attach(&self, request: &AttachRequest) -> Result<Attachment, NetworkError> {
        self.ask(|reply| Command::Attach(Box::new(request.clone()), self.owner, reply))
            .await
    }

    async fn detach(&self, key: &AttachmentKey) -> Result<(), NetworkError> {
        self.ask(|reply| Command::Detach(key.clone(), reply)).await
    }

    async fn check(&self, key: &AttachmentKey) -> Result<Attachment, NetworkError> {
        self.ask(|reply| Command::Check(key.clone(), reply)).await
    }

    async fn attachments(&self) -> Result<Vec<Attachment>, NetworkError> {
        self.ask(|reply| Command::List(self.owner, reply)).await
    }

    async fn ready(&self) -> Result<(), NetworkError> {
        match &*self.status.borrow() {
            NetworkStatus::Ready { .. } => Ok(()),
            NetworkStatus::Starting { reason } => Err(NetworkError::NotReady {
                reason: reason.clone(),
            }),
        }
    }
}

/// The task behind [`OwnerHandle`].
pub(crate) struct NetworkTask {
    config: NetworkConfig,
    desired: watch::Receiver<Desired>,
    commands: mpsc::Receiver<Command>,
    status: watch::Sender<NetworkStatus>,
    workloads: Workloads,
    flows: watch::Sender<FlowTable>,
    policies: PolicyGate,
}

/// How long a failed start-up waits before the next attempt.
const RETRY: std::time::Duration = std::time::Duration::from_secs(5);

impl NetworkTask {
    pub(crate) fn new(
        config: NetworkConfig,
        desired: watch::Receiver<Desired>,
        workloads: Workloads,
        policies: PolicyGate,
        flows: watch::Sender<FlowTable>,
    ) -> (Self, OwnerHandle, watch::Receiver<NetworkStatus>) {
        let reason = "waiting for this node's pod ranges (spec.podCIDRs)".to_owned();
        let (status_sender, status) = watch::channel(NetworkStatus::Starting { reason });
        let (sender, commands) = mpsc::channel(64);
        let task = Self {
            config,
            desired,
            commands,
            status: status_sender,
            workloads,
            flows,
            policies,
        };
        let handle = OwnerHandle {
            commands: sender,
            status: status.clone(),
            owner: Owner::Agent,
        };
        (task, handle, status)
    }

    pub(crate) async fn run(mut self, cancel: CancellationToken) {
        while !cancel.is_cancelled() {
            let Some(ranges) = self.pod_ranges(&cancel).await else {
                return;
            };
            match NodeNetwork::bring_up(
                &self.config,
                &ranges,
                self.workloads.clone(),
                self.policies.clone(),
            )
            .await
            {
                Ok(network) => {
                    tracing::info!(ranges = ?ranges, tcx = network.features.tcx, "pod network is up");
                    self.status.send_replace(NetworkStatus::Ready {
                        pod_ranges: ranges.clone(),
                    });
                    self.serve(network, &ranges, &cancel).await;
                }
                Err(error) => {
                    let reason = chain(&error);
                    tracing::error!(error = reason, "failed to bring up the pod network");
                    self.status.send_replace(NetworkStatus::Starting { reason });
                    self.refuse_until(tokio::time::sleep(RETRY), &cancel).await;
                }
            }
        }
    }

    /// Ranges of a former run, or those the control plane hands out. `None` when cancelled.
    async fn pod_ranges(&mut self, cancel: &CancellationToken) -> Option<Vec<IpNet>> {
        loop {
            let assigned = self
                .desired
                .borrow_and_update()
                .pod_ranges(&self.config.node_name);
            if let Some(ranges) = assigned.or_else(|| self.persisted_ranges()) {
                self.persist_ranges(&ranges);
                return Some(ranges);
            }
            let mut desired = self.desired.clone();
            let changed = async move {
                if desired.changed().await.is_err() {
                    // The watches have ended: the agent is stopping.
                    std::future::pending::<()>().await;
                }
            };
            self.refuse_until(changed, cancel).await;
            if cancel.is_cancelled() {
                return None;
            }
        }
    }

    fn ranges_path(&self) -> PathBuf {
        self.config.state_dir.join("pod-ranges.json")
    }

    fn persisted_ranges(&self) -> Option<Vec<IpNet>> {
        let text = std::fs::read(self.ranges_path()).ok()?;
        serde_json::from_slice(&text)
            .ok()
            .filter(|ranges: &Vec<IpNet>| !ranges.is_empty())
    }

    /// A node restarts without an API server only if this was written; that is worth a warning, no more.
    fn persist_ranges(&self, ranges: &[IpNet]) {
        if self.persisted_ranges().as_deref() == Some(ranges) {
            return;
        }
        let text = serde_json::to_vec(ranges).expect("ranges are representable in JSON");
        let written = std::fs::create_dir_all(&self.config.state_dir)
            .map_err(|error| error.to_string())
            .and_then(|()| write_durably(&self.ranges_path(), &text).map_err(|e| chain(&e)));
        if let Err(error) = written {
            tracing::warn!(error, "failed to persist the pod ranges");
        }
    }

    /// Answers every command with "not ready" until `event` happens or the agent stops.
    async fn refuse_until(&mut self, event: impl Future<Output = ()>, cancel: &CancellationToken) {
        tokio::pin!(event);
        loop {
            let command = tokio::select! {
                () = cancel.cancelled() => return,
                () = &mut event => return,
                command = self.commands.recv() => command,
            };
            let reason = match &*self.status.borrow() {
                NetworkStatus::Starting { reason } => reason.clone(),
                NetworkStatus::Ready { .. } => "restarting".to_owned(),
            };
            match command {
                Some(command) => command.refuse(NetworkError::NotReady { reason }),
                None => cancel.cancelled().await,
            }
        }
    }

    /// Serves commands until cancelled, or until other ranges are assigned and nothing uses the old.
    async fn serve(
        &mut self,
        mut network: NodeNetwork,
        ranges: &[IpNet],
        cancel: &CancellationToken,
    ) {
        let mut cleaning = tokio::time::interval(cleaner::PERIOD);
        cleaning.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = cancel.cancelled() => return,
                command = self.commands.recv() => match command {
                    Some(command) => command.execute(&mut network).await,
                    None => return cancel.cancelled().await,
                },
                _ = cleaning.tick() => match network.clean_flows() {
                    Ok(table) => drop(self.flows.send_replace(table)),
                    // The table evicts by itself when it is full.
                    Err(error) => tracing::warn!(error = chain(&error), "flows were not cleaned"),
                },
                Ok(()) = self.desired.changed() => {
                    let name = &self.config.node_name;
                    let assigned = self.desired.borrow_and_update().pod_ranges(name);
                    let Some(assigned) = assigned.filter(|assigned| assigned != ranges) else {
                        continue;
                    };
                    if !network.has_leases() {
                        tracing::warn!(old = ?ranges, new = ?assigned, "pod ranges have changed");
                        return;
                    }
                    tracing::error!(
                        old = ?ranges, new = ?assigned,
                        "pod ranges have changed under running pods; drain the node"
                    );
                }
            }
        }
    }
}

impl Command {
    async fn execute(self, network: &mut NodeNetwork) {
        // A caller that gave up is no reason not to do the work: it will ask again.
        match self {
            Self::Attach(request, owner, reply) => {
                drop(reply.send(network.attach(&request, owner).await));
            }
            Self::Detach(key, reply) => drop(reply.send(network.detach(&key).await)),
            Self::Check(key, reply) => drop(reply.send(network.check(&key).await)),
            Self::List(owner, reply) => drop(reply.send(Ok(network.attachments(owner)))),
        }
    }

    fn refuse(self, error: NetworkError) {
        match self {
            Self::Attach(_, _, reply) | Self::Check(_, reply) => drop(reply.send(Err(error))),
            Self::Detach(_, reply) => drop(reply.send(Err(error))),
            Self::List(_, reply) => drop(reply.send(Err(error))),
        }
    }
}
