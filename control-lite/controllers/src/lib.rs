//! The controllers of control-lite, one file each, over the caches of `tholepin-informer`.
//!
//! Every controller is the same shape: handlers put keys into its queue, workers take a key, look at the
//! caches, let a pure function decide, and write. [`spawn`] lists them all. A lost event is harmless:
//! a round starts from the present state and not from the event.

mod context;
#[cfg(test)]
mod convergence_tests;
mod deployment;
mod endpoint_slice;
mod endpoints;
mod garbage_collector;
mod kubernetes_service;
mod namespace;
mod node_ipam;
mod node_lifecycle;
mod ownership;
mod patch;
mod pod_gc;
mod replicas;
mod runner;
mod service_account;
mod service_pods;
mod system_namespaces;
mod taint_eviction;

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

pub use context::{Context, ReconcileError, Settings};

/// Registers every controller's handlers and starts its workers. Call it before the caches are started,
/// so that no handler misses the first list.
pub fn spawn(
    context: &Context,
    settings: &Settings,
    tasks: &mut JoinSet<()>,
    cancel: &CancellationToken,
) {
    system_namespaces::spawn(context, tasks, cancel);
    kubernetes_service::spawn(context, settings, tasks, cancel);
    service_account::spawn(context, tasks, cancel);
    namespace::spawn(context, tasks, cancel);
    garbage_collector::spawn(context, tasks, cancel);
    deployment::spawn(context, tasks, cancel);
    replicas::spawn(context, tasks, cancel);
    endpoint_slice::spawn(context, tasks, cancel);
    endpoints::spawn(context, tasks, cancel);
    node_ipam::spawn(context, settings, tasks, cancel);
    node_lifecycle::spawn(context, settings, tasks, cancel);
    taint_eviction::spawn(context, tasks, cancel);
    pod_gc::spawn(context, tasks, cancel);
}
