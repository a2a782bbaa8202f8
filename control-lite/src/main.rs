//! The control plane: API server, store, controllers and scheduler in one process.

fn main() {}
