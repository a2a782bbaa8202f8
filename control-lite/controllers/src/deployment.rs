//! Deployments: rolls ReplicaSets over from one pod template to the next.
//!
//! A round is a pure function: `deployment/plan.rs` takes the Deployment and its ReplicaSets as they are,
//! changes copies of them, and the controller writes the differences.

mod controller;
mod plan;
mod revision;
mod rolling;
mod round;
mod scale;
mod status;
#[cfg(test)]
mod tests;

pub(crate) use controller::spawn;
