//! Leases: what keeps half-made content and snapshots from containerd's garbage collector.

use std::collections::HashMap;
use std::time::Duration;

use containerd_client::services::v1::{CreateRequest, DeleteRequest};
use jiff::Timestamp;
use tonic::metadata::AsciiMetadataValue;

use super::connect::{CallError, Connection, QUICK, call};

/// A lease nobody releases (we were killed) ends by itself.
const EXPIRES_AFTER: Duration = Duration::from_secs(24 * 3600);

/// One lease. Release it when what it protects is referred to by something that lasts.
#[derive(Debug)]
pub(super) struct Lease {
    connection: Connection,
    id: AsciiMetadataValue,
}

impl Lease {
    pub(super) async fn acquire(connection: &Connection) -> Result<Self, CallError> {
        let id = format!("tholepin-{}", uuid::Uuid::new_v4());
        let expires = Timestamp::now() + EXPIRES_AFTER;
        let labels = HashMap::from([(
            "containerd.io/gc.expire".to_owned(),
            format!("{expires:.0}"),
        )]);
        let request = CreateRequest {
            id: id.clone(),
            labels,
        };
        call(
            QUICK,
            connection.leases().create(connection.request(request)),
        )
        .await?;
        let id = id.parse().expect("a uuid is ASCII");
        Ok(Self {
            connection: connection.clone(),
            id,
        })
    }

    pub(super) fn id(&self) -> &AsciiMetadataValue {
        &self.id
    }

    /// Failing is harmless: the lease expires.
    pub(super) async fn release(self) {
        let id = self.id.to_str().expect("a uuid is ASCII").to_owned();
        let request = DeleteRequest { id, sync: false };
        let mut client = self.connection.leases();
        if let Err(error) = call(QUICK, client.delete(self.connection.request(request))).await
            && !error.is_not_found()
        {
            tracing::debug!(%error, "could not release a lease; it expires by itself");
        }
    }
}
