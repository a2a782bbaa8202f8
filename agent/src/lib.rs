//! The node daemon: everything on the node that does I/O.
//!
//! One direction: `watch → model (pure) → reconcile → drivers → kernel and containerd`.

pub mod dataplane;
pub mod network;
pub mod runtime;
