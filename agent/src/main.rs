//! The node daemon: pods through containerd, the dataplane through eBPF.

fn main() {}
