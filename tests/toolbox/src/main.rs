//! The program in the project's container images: HTTP and UDP echo, load client, signals.

fn main() {}
