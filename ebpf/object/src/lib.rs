//! The compiled eBPF object, built by this crate's build script and embedded.
