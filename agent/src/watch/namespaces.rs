//! Namespaces: their labels, by which policies select them.

use std::sync::Arc;

use k8s_openapi::api::core::v1 as core_v1;
use kube::{Api, Client, ResourceExt};
use tholepin_model::policy::Labels;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::follow::{Parsed, follow};
use crate::reconcile::policies::{Input, PolicyGate};

/// Follows namespaces until cancelled, as soon as there is a policy.
pub async fn watch(
    client: Client,
    gate: PolicyGate,
    wanted: watch::Receiver<bool>,
    cancel: CancellationToken,
) {
    if !is_wanted(wanted, &cancel).await {
        return;
    }
    let parse = |object: &core_v1::Namespace| {
        let labels = object.labels().clone().into_iter().collect::<Labels>();
        Parsed::Wanted(Arc::<str>::from(object.name_any()), labels)
    };
    let apply = |change| gate.send(Input::Namespace(change));
    follow(Api::all(client), parse, apply, cancel).await;
}

/// Waits for the first policy; no means that the agent is stopping.
pub(super) async fn is_wanted(
    mut wanted: watch::Receiver<bool>,
    cancel: &CancellationToken,
) -> bool {
    tokio::select! {
        () = cancel.cancelled() => false,
        wanted = wanted.wait_for(|wanted| *wanted) => wanted.is_ok(),
    }
}
