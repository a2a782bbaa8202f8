//! Clusters on one machine, for tests and for `cargo xtask up`: nodes are network namespaces with a
//! containerd and an agent each, joined by a bridge in a fabric namespace where the control plane runs.
//!
//! A test says `Cluster::start(Options::new(&my_id())).await` (feature `client`) and gets a cluster
//! that removes itself on drop, on a panic, and, after a kill, when the next cluster starts. Nothing
//! here sends a packet from the machine's own network namespace to an address of a test namespace:
//! clients talk to 127.0.0.1, where control-lite listens on a socket that was opened for it.

pub mod binaries;
pub mod cleanup;
#[cfg(feature = "client")]
pub mod client;
pub mod cluster;
pub mod command;
pub mod containerd;
pub mod image;
pub mod kubectl;
pub mod layout;
pub mod netns;
pub mod process;
pub mod registry;
pub mod skip;
pub mod state;
pub mod tools;
pub mod topology;

pub use binaries::{Binaries, Profile};
pub use cluster::{Cluster, Node, Options};
pub use kubectl::Kubectl;
pub use layout::{ClusterId, Layout, NodeLayout, workspace_root};
pub use process::{Process, ProcessRef};
