//! The containerd driver against a real containerd that each test starts for itself. Needs root.

#![expect(clippy::unwrap_used, reason = "a test fails where it stands")]

mod attaches;
mod containers;
mod execs;
mod images;
mod privileges;
mod restarts;
mod world;
