//! The node daemon: everything on the node that does I/O.
//!
//! One direction: `watch → model (pure) → reconcile → drivers → kernel and containerd`.

pub mod cni_server;
pub mod dataplane;
pub mod ipam;
pub mod netlink;
pub mod network;
pub mod reconcile;
pub mod runtime;
pub mod watch;
