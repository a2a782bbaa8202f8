//! eBPF programs through `BPF_PROG_TEST_RUN` against a reference model.
//!
//! `stage` loads the real object and runs packets through it, `wire` builds and reads packets,
//! `model` says what must come out of a hook, `reference` what may become of a packet for a Service,
//! and `cases` are kube-proxy's own. The models and the wire format are written from the rules
//! (kube-proxy's semantics, the dataplane contract, the RFCs) and share no code with `ebpf/core`.

pub mod address_plan;
pub mod cases;
mod family;
pub mod front;
pub mod frontends;
pub mod model;
pub mod policies;
pub mod reference;
pub mod stage;
pub mod uplink;
pub mod wire;

pub use frontends::Frontend;
pub use stage::{Hook, Stage, stage};
pub use wire::{Packet, sctp, tcp, udp};
