//! The connection to the agent, with the patience each verb has.

use std::path::Path;
use std::time::{Duration, Instant};

use tholepin_api::proto::cni_client::CniClient;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::error::CniError;

/// How long ADD waits for an agent that restarts.
pub(crate) const PATIENCE: Duration = Duration::from_secs(2);
/// No request may take longer than the runtime's own patience.
const DEADLINE: Duration = Duration::from_secs(60);

/// Connects, retrying until `patience` is over.
pub(crate) async fn connect(
    socket: &Path,
    patience: Duration,
) -> Result<CniClient<Channel>, CniError> {
    let give_up = Instant::now() + patience;
    loop {
        match tholepin_api::connect(socket).await {
            Ok(channel) => return Ok(CniClient::new(channel)),
            Err(source) if Instant::now() >= give_up => return Err(CniError::AgentDown { source }),
            Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
        }
    }
}

/// A request with a deadline.
pub(crate) fn request<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.set_timeout(DEADLINE);
    request
}

/// The agent's refusal as a CNI error.
pub(crate) fn refusal(status: &Status) -> CniError {
    let message = status.message().to_owned();
    match status.code() {
        Code::Unavailable | Code::ResourceExhausted | Code::DeadlineExceeded => {
            CniError::TryAgain { message }
        }
        Code::NotFound => CniError::Unknown { message },
        _ => CniError::Agent { message },
    }
}
