//! The agent's unix socket: CNI requests of `tholepin-cni`, and a look into the dataplane.
//!
//! Translates between the protocol and [`PodNetwork`]; owns nothing but the socket and the queue of
//! deletions that came while no agent was there.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use tholepin_api::proto;
use tholepin_api::proto::cni_server::{Cni, CniServer};
use tholepin_api::proto::debug_server::{Debug, DebugServer};
use tholepin_model::plan::services::FrontendState;
use tholepin_model::service::{Owner, Service, ServicePort};
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio_stream::wrappers::UnixListenerStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::dataplane::maps::drops::Drops;
use crate::dataplane::maps::workloads::Workloads;
use crate::dataplane::pin::PinDirectory;
use crate::dataplane::{NetworkStatus, chain};
use crate::network::names::gateway_of;
use crate::network::owner::OwnerHandle;
use crate::network::{AttachRequest, Attachment, AttachmentKey, NetworkError, PodNetwork};
use crate::reconcile::services::{PinnedServiceMaps, ServiceMaps, ServicesStatus};
use crate::watch::changes::ServiceChanges;

/// How often the queue of deletions is looked at: it may be written just after we have.
const REPLAY_INTERVAL: Duration = Duration::from_secs(60);

/// Serves the socket.
#[derive(Clone, Debug)]
pub struct AgentServer {
    pub pod_network: OwnerHandle,
    pub bpffs_root: PathBuf,
    pub run_dir: PathBuf,
    pub status: watch::Receiver<NetworkStatus>,
    pub services: watch::Receiver<ServicesStatus>,
    /// Where the names of Services come from.
    pub names: ServiceChanges,
}

/// Why the socket is not served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("failed to listen on {}", path.display())]
    Listen { path: PathBuf, source: io::Error },
    #[error("the agent's socket failed")]
    Serve { source: tonic::transport::Error },
}

impl AgentServer {
    /// Serves until cancelled. A failure is logged and retried: pods of the agent do not need it.
    pub async fn run(self, cancel: CancellationToken) {
        let replay = tokio::spawn(self.clone().replay(cancel.clone()));
        while !cancel.is_cancelled() {
            if let Err(error) = self.serve(&cancel).await {
                tracing::error!(error = chain(&error), "CNI is off");
                tokio::select! {
                    () = cancel.cancelled() => (),
                    () = tokio::time::sleep(Duration::from_secs(5)) => (),
                }
            }
        }
        replay.await.ok();
    }

    async fn serve(&self, cancel: &CancellationToken) -> Result<(), ServeError> {
        let path = self.run_dir.join("agent.sock");
        let listener = listen(&path).map_err(|source| ServeError::Listen {
            path: path.clone(),
            source,
        })?;
        tonic::transport::Server::builder()
            .add_service(CniServer::new(self.clone()))
            .add_service(DebugServer::new(self.clone()))
            .serve_with_incoming_shutdown(
                UnixListenerStream::new(listener),
                cancel.clone().cancelled_owned(),
            )
            .await
            .map_err(|source| ServeError::Serve { source })
    }

    /// Does the deletions that were queued while no agent answered.
    async fn replay(self, cancel: CancellationToken) {
        let mut status = self.status.clone();
        loop {
            let ready = status.wait_for(|status| matches!(status, NetworkStatus::Ready { .. }));
            tokio::select! {
                () = cancel.cancelled() => return,
                ready = ready => if ready.is_err() { return },
            }
            self.replay_once().await;
            tokio::select! {
                () = cancel.cancelled() => return,
                () = tokio::time::sleep(REPLAY_INTERVAL) => (),
            }
        }
    }

    async fn replay_once(&self) {
        let Ok(entries) = fs::read_dir(self.run_dir.join("cni-del")) else {
            return;
        };
        for path in entries.flatten().map(|entry| entry.path()) {
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            let queued = fs::read(&path)
                .ok()
                .and_then(|text| serde_json::from_slice::<QueuedDeletion>(&text).ok());
            let outcome = match queued {
                Some(QueuedDeletion {
                    container_id,
                    interface,
                }) => {
                    let key = AttachmentKey {
                        container_id,
                        interface,
                    };
                    self.pod_network
                        .detach(&key)
                        .await
                        .map_err(|error| chain(&error))
                }
                // The plugin writes it aside and renames it, so this is nothing of the plugin's.
                None => Err("not a queued deletion".to_owned()),
            };
            let outcome = outcome.and_then(|()| fs::remove_file(&path).map_err(|e| e.to_string()));
            if let Err(error) = outcome {
                tracing::warn!(path = %path.display(), error, "a queued deletion stays queued");
            }
        }
    }
}

/// What `tholepin-cni` leaves in `<run-dir>/cni-del/`.
#[derive(Deserialize)]
struct QueuedDeletion {
    container_id: String,
    interface: String,
}

/// Listens, replacing a socket a former agent left; only root may connect.
fn listen(path: &Path) -> io::Result<UnixListener> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    // Made aside and renamed, so that it is never there with other permissions.
    let aside = path.with_extension("new");
    match fs::remove_file(&aside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => (),
    }
    let listener = UnixListener::bind(&aside)?;
    fs::set_permissions(&aside, fs::Permissions::from_mode(0o600))?;
    fs::rename(&aside, path)?;
    Ok(listener)
}

#[tonic::async_trait]
impl Cni for AgentServer {
    async fn add(
        &self,
        request: Request<proto::AddRequest>,
    ) -> Result<Response<proto::Attachment>, Status> {
        let request = request.into_inner();
        let request = AttachRequest {
            key: key_of(request.key)?,
            netns: request.netns.into(),
            pod_namespace: request.pod_namespace,
            pod_name: request.pod_name,
            pod_uid: request.pod_uid,
            // CNI does not bring annotations.
            socket_lb: true,
        };
        let attachment = self.pod_network.attach(&request).await.map_err(status_of)?;
        Ok(Response::new(attachment_to_proto(attachment)))
    }

    async fn del(
        &self,
        request: Request<proto::AttachmentKey>,
    ) -> Result<Response<proto::DelResponse>, Status> {
        let key = key_of(Some(request.into_inner()))?;
        self.pod_network.detach(&key).await.map_err(status_of)?;
        Ok(Response::new(proto::DelResponse {}))
    }

    async fn check(
        &self,
        request: Request<proto::AttachmentKey>,
    ) -> Result<Response<proto::Attachment>, Status> {
        let key = key_of(Some(request.into_inner()))?;
        let attachment = self.pod_network.check(&key).await.map_err(status_of)?;
        Ok(Response::new(attachment_to_proto(attachment)))
    }

    async fn status(
        &self,
        _request: Request<proto::StatusRequest>,
    ) -> Result<Response<proto::StatusResponse>, Status> {
        let pins = PinDirectory::at(&self.bpffs_root);
        let impaired = !pins.map(tholepin_ebpf_abi::names::WORKLOADS).exists();
        Ok(Response::new(match &*self.status.borrow() {
            NetworkStatus::Ready { .. } if !impaired => proto::StatusResponse {
                ready: true,
                reason: String::new(),
                impaired,
            },
            NetworkStatus::Ready { .. } => proto::StatusResponse {
                ready: false,
                reason: "the pinned maps of the dataplane are gone".to_owned(),
                impaired,
            },
            NetworkStatus::Starting { reason } => proto::StatusResponse {
                ready: false,
                reason: reason.clone(),
                impaired,
            },
        }))
    }

    async fn gc(
        &self,
        request: Request<proto::GcRequest>,
    ) -> Result<Response<proto::GcResponse>, Status> {
        let valid = request.into_inner().valid;
        let mut removed = Vec::new();
        let mut failure = None;
        for attachment in self.pod_network.attachments().await.map_err(status_of)? {
            let key = key_to_proto(&attachment.key);
            if valid.contains(&key) {
                continue;
            }
            match self.pod_network.detach(&attachment.key).await {
                Ok(()) => removed.push(key),
                // One that cannot be removed does not keep the others.
                Err(error) => drop(failure.get_or_insert(error)),
            }
        }
        match failure {
            None => Ok(Response::new(proto::GcResponse { removed })),
            Some(error) => Err(status_of(error)),
        }
    }
}

#[tonic::async_trait]
impl Debug for AgentServer {
    async fn services(
        &self,
        _request: Request<proto::ServicesRequest>,
    ) -> Result<Response<proto::ServicesResponse>, Status> {
        let root = self.bpffs_root.clone();
        let read = tokio::task::spawn_blocking(move || {
            // Only read, so nobody needs to learn of backends.
            PinnedServiceMaps::open(&PinDirectory::at(&root), Workloads::default())
                .and_then(|maps| maps.read(None))
        });
        let realized = read
            .await
            .map_err(|error| Status::internal(error.to_string()))?
            .map_err(|error| Status::unavailable(chain(&error)))?;
        let backends = |state: &FrontendState| {
            let index = |number: u32| usize::try_from(number).expect("usize holds a u32");
            let slots = realized.slots.iter().skip(index(state.first_slot));
            slots
                .take(state.backend_count.into())
                .filter_map(|slot| {
                    let backend = realized.backends.get(index(slot.backend_id))?;
                    Some((slot.backend_id, (*backend)?))
                })
                .map(|(id, backend)| proto::Backend {
                    id,
                    address: backend.address.address.to_string(),
                    port: backend.address.port.into(),
                    generation: backend.generation,
                })
                .collect()
        };
        let frontends = realized
            .frontends
            .iter()
            .map(|(frontend, state)| proto::Frontend {
                address: frontend.address.to_string(),
                port: frontend.port.into(),
                protocol: frontend.protocol.to_string(),
                service_id: state.service_id,
                local_count: state.local_count.into(),
                backends: backends(state),
            });
        let frontends = frontends.collect();
        let problems = self.services.borrow().problems.clone();
        let problems = problems
            .into_iter()
            .map(|((owner, port), reason)| proto::ServiceProblem {
                service: match owner {
                    Owner::Service(name) => name.to_string(),
                    Owner::Pod { .. } => owner.to_string(),
                },
                port,
                reason,
            });
        let problems = problems.collect();
        Ok(Response::new(proto::ServicesResponse {
            frontends,
            problems,
        }))
    }

    async fn workloads(
        &self,
        _request: Request<proto::WorkloadsRequest>,
    ) -> Result<Response<proto::WorkloadsResponse>, Status> {
        let mut workloads = Vec::new();
        for network in [self.pod_network.for_agent(), self.pod_network.for_cni()] {
            workloads.extend(network.attachments().await.map_err(status_of)?);
        }
        let workloads = workloads.into_iter().map(attachment_to_proto).collect();
        Ok(Response::new(proto::WorkloadsResponse { workloads }))
    }

    async fn names(
        &self,
        _request: Request<proto::NamesRequest>,
    ) -> Result<Response<proto::NamesResponse>, Status> {
        let services = self.names.known();
        Ok(Response::new(proto::NamesResponse {
            services: services
                .iter()
                .flat_map(|service| names_of(service))
                .collect(),
        }))
    }

    async fn drops(
        &self,
        _request: Request<proto::DropsRequest>,
    ) -> Result<Response<proto::DropsResponse>, Status> {
        let drops = Drops::open(&PinDirectory::at(&self.bpffs_root))
            .and_then(|drops| drops.read())
            .map_err(|error| Status::unavailable(chain(&error)))?;
        let drops = drops.into_iter().map(|(reason, packets)| proto::Drop {
            reason: reason.label().to_owned(),
            description: reason.description().to_owned(),
            packets,
        });
        Ok(Response::new(proto::DropsResponse {
            drops: drops.collect(),
        }))
    }
}

/// Every address and port by which a Service is reached.
fn names_of(service: &Service) -> Vec<proto::ServiceName> {
    let name = service.name.to_string();
    let at = |address: &std::net::IpAddr, port: &ServicePort| proto::ServiceName {
        address: address.to_string(),
        port: port.port.into(),
        protocol: port.protocol.to_string(),
        service: name.clone(),
        port_name: port.name.clone(),
    };
    let mut names = Vec::new();
    for port in &service.ports {
        let addresses = [
            &service.cluster_ips,
            &service.external_ips,
            &service.load_balancer_ips,
        ];
        names.extend(
            addresses
                .into_iter()
                .flatten()
                .map(|address| at(address, port)),
        );
    }
    names
}

fn key_of(key: Option<proto::AttachmentKey>) -> Result<AttachmentKey, Status> {
    let key = key.unwrap_or_default();
    if key.container_id.is_empty() || key.interface.is_empty() {
        return Err(Status::invalid_argument(
            "container id and interface name are required",
        ));
    }
    Ok(AttachmentKey {
        container_id: key.container_id,
        interface: key.interface,
    })
}

fn key_to_proto(key: &AttachmentKey) -> proto::AttachmentKey {
    proto::AttachmentKey::new(key.container_id.clone(), key.interface.clone())
}

fn attachment_to_proto(attachment: Attachment) -> proto::Attachment {
    let gateway = |address: &std::net::IpAddr| gateway_of(*address).to_string();
    proto::Attachment {
        key: Some(key_to_proto(&attachment.key)),
        gateways: attachment.addresses.iter().map(gateway).collect(),
        addresses: attachment
            .addresses
            .iter()
            .map(ToString::to_string)
            .collect(),
        host_interface: attachment.host_interface,
        mac: attachment.mac.to_vec(),
        mtu: attachment.mtu,
    }
}

fn status_of(error: NetworkError) -> Status {
    let text = chain(&error);
    match error {
        NetworkError::NotReady { .. } => Status::unavailable(text),
        NetworkError::Unknown { .. } => Status::not_found(text),
        NetworkError::Exhausted { .. } => Status::resource_exhausted(text),
        NetworkError::Operation { .. } => Status::internal(text),
    }
}
