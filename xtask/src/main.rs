//! The one entry point for development.

fn main() {}
