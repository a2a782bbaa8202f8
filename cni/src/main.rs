//! The CNI plugin: asks the agent over its unix socket.

fn main() {}
