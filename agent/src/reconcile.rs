//! One loop per resource class: snapshot, plan, apply, report, wait for a change.

pub mod pods;
pub mod policies;
pub mod routes;
pub mod services;
