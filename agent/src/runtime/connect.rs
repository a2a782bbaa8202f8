//! The two connections to containerd: lazy, re-made by themselves, with a deadline on every call.
//!
//! Owns channels, the namespace header and the sorting of failures into "not reachable", "too slow"
//! and "containerd said no". Long-lived streams (events, waits) have a connection of their own, so that
//! hundreds of them never starve a call of HTTP/2 streams.

use std::error::Error;
use std::path::{Path, PathBuf};
use std::time::Duration;

use containerd_client::services::v1::containers_client::ContainersClient;
use containerd_client::services::v1::content_client::ContentClient;
use containerd_client::services::v1::diff_client::DiffClient;
use containerd_client::services::v1::events_client::EventsClient;
use containerd_client::services::v1::images_client::ImagesClient;
use containerd_client::services::v1::leases_client::LeasesClient;
use containerd_client::services::v1::snapshots::snapshots_client::SnapshotsClient;
use containerd_client::services::v1::tasks_client::TasksClient;
use containerd_client::services::v1::version_client::VersionClient;
use futures::future::BoxFuture;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::metadata::AsciiMetadataValue;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status};

use super::RuntimeError;

/// Metadata look-ups and other calls that touch no process and no disk tree.
pub(super) const QUICK: Duration = Duration::from_secs(15);
/// Calls that start or end processes, or mount and remove trees.
pub(super) const SLOW: Duration = Duration::from_secs(120);

/// containerd's own limit; tonic's default of 4 MiB is too small for a node full of specs.
const MESSAGE_LIMIT: usize = 16 << 20;

/// Clients over the two channels. Cheap to clone.
#[derive(Clone, Debug)]
pub(super) struct Connection {
    calls: Channel,
    streams: Channel,
    namespace: AsciiMetadataValue,
    socket: PathBuf,
}

macro_rules! client {
    ($name:ident, $client:ident) => {
        pub(super) fn $name(&self) -> $client<Channel> {
            $client::new(self.calls.clone())
                .max_decoding_message_size(MESSAGE_LIMIT)
                .max_encoding_message_size(MESSAGE_LIMIT)
        }
    };
}

impl Connection {
    /// Does not connect yet: the first call does, and every call after a loss tries again.
    pub(super) fn new(socket: &Path, namespace: &str) -> Result<Self, RuntimeError> {
        let namespace = namespace.parse().map_err(|_| RuntimeError::InvalidSpec {
            subject: "containerd namespace".into(),
            message: format!("{namespace:?} is not a valid namespace name"),
        })?;
        Ok(Self {
            calls: channel(socket),
            streams: channel(socket),
            namespace,
            socket: socket.into(),
        })
    }

    client!(containers, ContainersClient);
    client!(content, ContentClient);
    client!(diff, DiffClient);
    client!(images, ImagesClient);
    client!(leases, LeasesClient);
    client!(snapshots, SnapshotsClient);
    client!(tasks, TasksClient);
    client!(version, VersionClient);

    pub(super) fn events(&self) -> EventsClient<Channel> {
        EventsClient::new(self.streams.clone()).max_decoding_message_size(MESSAGE_LIMIT)
    }

    /// For `Wait` only, which answers when a process ends.
    pub(super) fn waits(&self) -> TasksClient<Channel> {
        TasksClient::new(self.streams.clone())
    }

    /// Wraps a message with our namespace.
    pub(super) fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request
            .metadata_mut()
            .insert("containerd-namespace", self.namespace.clone());
        request
    }

    /// [`Self::request`] under a lease, so that what the call makes is not garbage yet.
    pub(super) fn leased<T>(&self, message: T, lease: &AsciiMetadataValue) -> Request<T> {
        let mut request = self.request(message);
        request
            .metadata_mut()
            .insert("containerd-lease", lease.clone());
        request
    }

    pub(super) fn socket(&self) -> String {
        self.socket.display().to_string()
    }

    /// Turns a failed call into the driver's error.
    pub(super) fn failed(
        &self,
        operation: &'static str,
        subject: impl Into<String>,
    ) -> impl FnOnce(CallError) -> RuntimeError {
        let (socket, subject) = (self.socket(), subject.into());
        move |error| match error {
            CallError::Unreachable(status) => RuntimeError::Unreachable {
                socket,
                source: Box::new(Reason::of(&status)),
            },
            CallError::Status(status) if status.code() == Code::NotFound => {
                RuntimeError::NotFound { subject }
            }
            other => RuntimeError::Operation {
                operation,
                subject,
                source: Box::new(other),
            },
        }
    }
}

fn channel(socket: &Path) -> Channel {
    let socket = socket.to_path_buf();
    // The address is a placeholder: the connector below decides where bytes go.
    Endpoint::from_static("http://containerd").connect_with_connector_lazy(tower::service_fn(
        move |_| {
            let socket = socket.clone();
            async move { Ok::<_, std::io::Error>(TokioIo::new(UnixStream::connect(socket).await?)) }
        },
    ))
}

/// Awaits one call for at most `deadline`. Giving up resets the stream, which cancels it in containerd.
/// Boxed, because tonic's futures are kilobytes each and a caller has many of them.
pub(super) fn call<'a, T>(
    deadline: Duration,
    future: impl Future<Output = Result<Response<T>, Status>> + Send + 'a,
) -> BoxFuture<'a, Result<T, CallError>> {
    Box::pin(async move {
        match tokio::time::timeout(deadline, future).await {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(CallError::from(status)),
            Err(_) => Err(CallError::Deadline(deadline)),
        }
    })
}

/// Why a call gave no answer.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    #[error("{}", Reason::of(.0))]
    Unreachable(Box<Status>),
    #[error("no answer within {0:?}")]
    Deadline(Duration),
    #[error("{}", .0.message())]
    Status(Box<Status>),
}

impl From<Status> for CallError {
    fn from(status: Status) -> Self {
        // A status that containerd sent has no source; one that tonic made of a broken or refused
        // connection carries the transport's error.
        if Error::source(&status).is_some() {
            return Self::Unreachable(Box::new(status));
        }
        Self::Status(Box::new(status))
    }
}

impl CallError {
    pub(super) fn is_not_found(&self) -> bool {
        self.has_code(Code::NotFound)
    }

    pub(super) fn is_already_exists(&self) -> bool {
        self.has_code(Code::AlreadyExists)
    }

    pub(super) fn is_failed_precondition(&self) -> bool {
        self.has_code(Code::FailedPrecondition)
    }

    fn has_code(&self, code: Code) -> bool {
        matches!(self, Self::Status(status) if status.code() == code)
    }
}

/// The innermost text of a transport failure ("Connection refused"), tonic's own being "transport error".
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Reason(String);

impl Reason {
    fn of(status: &Status) -> Self {
        let mut error: &dyn Error = status;
        while let Some(source) = error.source() {
            error = source;
        }
        Self(error.to_string())
    }
}

/// Extension for "gone is as good as done".
pub(super) trait Idempotent {
    /// Treats `NotFound` as success.
    fn or_gone(self) -> Result<(), CallError>;
}

impl<T> Idempotent for Result<T, CallError> {
    fn or_gone(self) -> Result<(), CallError> {
        match self {
            Ok(_) => Ok(()),
            Err(error) if error.is_not_found() => Ok(()),
            Err(error) => Err(error),
        }
    }
}
