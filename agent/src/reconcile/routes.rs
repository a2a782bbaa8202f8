//! Keeps `POD_ROUTES` as the cluster's nodes say: snapshot, plan, apply, report, wait.

use std::net::IpAddr;
use std::time::Duration;

use tholepin_model::desired::Desired;
use tholepin_model::plan::routes::{Op, plan};
use tholepin_model::route::RouteProblem;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::dataplane::chain;
use crate::dataplane::maps::MapAccessError;
use crate::dataplane::maps::pod_routes::PodRoutes;

const RESYNC: Duration = Duration::from_secs(60);
const RETRY: Duration = Duration::from_secs(2);

/// The reconciler; owns the map.
#[derive(Debug)]
pub struct RoutesTask {
    pub node_name: String,
    pub node_addresses: Vec<IpAddr>,
    pub routes: PodRoutes,
    pub desired: watch::Receiver<Desired>,
}

impl RoutesTask {
    /// Runs until cancelled.
    pub async fn run(mut self, cancel: CancellationToken) {
        let mut reported = Vec::new();
        loop {
            let desired = self.desired.borrow_and_update().clone();
            let next = match self.round(&desired, &mut reported) {
                Ok(()) => RESYNC,
                Err(error) => {
                    tracing::error!(error = chain(&error), "failed to change the pod routes");
                    RETRY
                }
            };
            tokio::select! {
                () = cancel.cancelled() => return,
                changed = self.desired.changed() => if changed.is_err() {
                    return cancel.cancelled().await;
                },
                () = tokio::time::sleep(next) => (),
            }
        }
    }

    /// One round. The table has an entry or two per node, so it is read back every time.
    fn round(
        &mut self,
        desired: &Desired,
        reported: &mut Vec<RouteProblem>,
    ) -> Result<(), MapAccessError> {
        let (table, problems) = desired.route_table(&self.node_name, &self.node_addresses);
        for problem in problems
            .iter()
            .filter(|problem| !reported.contains(problem))
        {
            tracing::warn!(reason = %problem, "a pod range is not reachable");
        }
        *reported = problems;
        let mut failure = None;
        for op in plan(&table, &self.routes.read()?, desired.sync.nodes) {
            let outcome = match op {
                Op::Upsert { range, endpoint } => self.routes.upsert(&range, endpoint),
                Op::Remove { range } => self.routes.remove(&range),
            };
            // One bad route does not keep the others from being set.
            if let Err(error) = outcome {
                failure.get_or_insert(error);
            }
        }
        failure.map_or(Ok(()), Err)
    }
}
