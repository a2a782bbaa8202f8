//! The engine behind ReplicaSet and ReplicationController: keep so many pods of one template.
//!
//! Both kinds become a [`Target`]; everything below knows only that. Decisions are in `replicas/plan.rs`,
//! `replicas/rank.rs` and `replicas/status.rs`; this file asks and writes.

mod controller;
pub(crate) mod plan;
pub(crate) mod rank;
mod status;
mod target;

pub(crate) use controller::spawn;
