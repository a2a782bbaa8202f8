//! One source per file: API objects become domain types at the edge and are folded into desired state.

pub mod changes;
pub mod endpoint_slices;
mod follow;
pub mod host_ports;
pub mod namespaces;
pub mod network_policies;
pub mod nodes;
pub mod objects;
pub mod pods;
pub mod policy_pods;
pub mod service_links;
pub mod services;

pub use follow::Change;
