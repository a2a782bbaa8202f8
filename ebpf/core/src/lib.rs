//! Pure packet logic of the eBPF programs, tested on the host.
//!
//! Nothing here touches a packet, a map or the kernel: the hooks in `ebpf/programs` read words out
//! of a packet, ask this crate what they mean and what to do, and write what it answers. Words are
//! `u32` in memory order, so that the bytes `10.0.0.1` are the same word on every machine.
#![cfg_attr(not(test), no_std)]
#![forbid(unsafe_code)]
#![warn(missing_docs)]

pub mod answer;
pub mod crc32c;
pub mod csum;
pub mod flow;
pub mod icmp;
pub mod packet;
pub mod policy;
pub mod rewrite;
pub mod select;
pub mod socket;
pub mod verdict;
pub mod vxlan;

pub use packet::{Fragment, Network, Transport};
pub use rewrite::Translation;
pub use verdict::{Origin, Verdict};
