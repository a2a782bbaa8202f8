//! Domain types, desired state and pure planners of the node agent. No async, no I/O, no serde.

#![forbid(unsafe_code)]

pub mod desired;
pub mod plan;
pub mod pod;
pub mod policy;
pub mod route;
pub mod service;
