//! Planners: what to change so that the kernel says what the cluster says. Pure.

pub mod admission;
pub mod pods;
pub mod routes;
pub mod services;
