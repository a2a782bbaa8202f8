//! The eBPF hooks: thin shells around `tholepin-ebpf-core`.
//!
//! Packet order: `parse` → `pipeline` (`conntrack` for known flows, `balance` for new ones,
//! `related` for ICMP errors) → `policy` → `deliver` (with `nat`), or `refuse`. See docs/design/dataplane.md.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)]
#![expect(
    unreachable_pub,
    reason = "in a binary, `pub` is what other modules use"
)]

mod balance;
mod choose;
mod clean;
mod conntrack;
mod deliver;
mod events;
mod fast;
mod frame;
mod gate;
mod globals;
mod head;
mod lookup;
mod lpm;
mod maps;
mod nat;
mod parse;
mod pipeline;
mod policy;
mod record;
mod refuse;
mod related;
mod scratch;
mod skb;
mod sock;
mod sock_addr;
mod underlay;
mod xdp;

use core::ffi::c_void;

use aya_ebpf::bindings::__sk_buff;
use tholepin_ebpf_core::Origin;

use crate::skb::Skb;

/// Declares TC programs. aya's own attribute puts a function call between the hook and its body.
macro_rules! hooks {
    ($($(#[$doc:meta])* $name:ident: $origin:expr;)+) => {$(
        $(#[$doc])*
        #[expect(unsafe_code, reason = "the loader finds programs by section and symbol")]
        // SAFETY: no other symbol has the name, and the section is for programs of this type.
        #[unsafe(no_mangle)]
        #[unsafe(link_section = "classifier")]
        pub extern "C" fn $name(context: *mut __sk_buff) -> i32 {
            pipeline::run(&Skb::new(context), $origin)
        }
    )+};
}

hooks! {
    /// Ingress of a pod's host-side interface: everything the pod sends.
    pod_egress: Origin::Pod;
    /// Egress of the node's interface into the pod network: what the node sends or routes to pods
    /// and Services.
    host_egress: Origin::Host;
    /// Ingress of the VXLAN device: what other nodes send.
    overlay_in: Origin::Overlay;
}

#[expect(
    unsafe_code,
    reason = "the loader finds programs by section and symbol"
)]
// SAFETY: no other symbol has the name, and the section is for programs of this type.
#[unsafe(no_mangle)]
#[unsafe(link_section = "classifier")]
/// Ingress of the node's interface to the other nodes: clients outside the cluster, and answers to what
/// left the pod network.
pub extern "C" fn underlay_in(context: *mut __sk_buff) -> i32 {
    underlay::run(&Skb::new(context))
}

#[expect(
    unsafe_code,
    reason = "the loader finds programs by section and symbol"
)]
// SAFETY: no other symbol has the name, and the section is for programs of this type.
#[unsafe(no_mangle)]
#[unsafe(link_section = "raw_tracepoint/cleaner")]
/// At no tracepoint: the agent runs it to remove flows that are over. A run of a program for packets
/// would keep the processor from taking packets meanwhile.
pub extern "C" fn cleaner(_context: *mut c_void) -> i32 {
    clean::run()
}

#[expect(
    unsafe_code,
    reason = "the loader finds programs by section and symbol"
)]
// SAFETY: no other symbol has the name, and the section is for programs of this type.
#[unsafe(no_mangle)]
#[unsafe(link_section = "classifier")]
/// Egress of the loopback device: processes of the node that ask for a Service at an address of its own.
pub extern "C" fn local_out(context: *mut __sk_buff) -> i32 {
    underlay::run_local(&Skb::new(context))
}

#[expect(unsafe_code, reason = "the kernel reads the licence from this section")]
// SAFETY: nothing else is in the section, and no other symbol has the name.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
