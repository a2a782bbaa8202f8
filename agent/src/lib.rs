//! The node daemon: everything on the node that does I/O.
//!
//! One direction: `watch → model (pure) → reconcile → drivers → kernel and containerd`.

pub mod allocator;
pub mod cni_server;
pub mod config;
pub mod dataplane;
pub mod errors;
pub mod events;
pub mod ipam;
pub mod journal;
pub mod kubelet_api;
pub mod netlink;
pub mod network;
pub mod node;
pub mod observe;
pub mod reconcile;
pub mod runtime;
pub mod status;
pub mod supervisor;
pub mod time;
pub mod volumes;
pub mod watch;
