//! eBPF programs through `BPF_PROG_TEST_RUN` against a reference model.
//!
//! `stage` loads the real object and runs packets through it, `wire` builds and reads packets,
//! `model` says what must come out. The model and the wire format are written from the rules
//! (kube-proxy's semantics, the dataplane contract, the RFCs) and share no code with `ebpf/core`.

pub mod model;
pub mod stage;
pub mod uplink;
pub mod wire;

pub use stage::{Hook, Stage, stage};
pub use wire::{Packet, tcp, udp};
