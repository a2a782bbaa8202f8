//! `.rodata` globals, set by the agent when it loads the object (see the ABI crate's `globals`).

use aya_ebpf::Global;
use tholepin_ebpf_abi::Address;
use tholepin_ebpf_abi::globals::DEFAULT_VNI;

macro_rules! globals {
    ($($name:ident: $ty:ty = $default:expr;)+) => {$(
        #[expect(unsafe_code, reason = "the loader finds globals by their symbol")]
        // SAFETY: no other symbol of the object has this name.
        #[unsafe(no_mangle)]
        pub static $name: Global<$ty> = Global::new($default);
    )+};
}

globals! {
    GATEWAY_V4: [u32; 4] = [0; 4];
    GATEWAY_V6: [u32; 4] = [0; 4];
    NODE_V4: [u32; 4] = [0; 4];
    NODE_V6: [u32; 4] = [0; 4];
    HOST_IFINDEX: u32 = 0;
    OVERLAY_IFINDEX: u32 = 0;
    VNI: u32 = DEFAULT_VNI;
    OVERLAY_PORT: u32 = 0;
    OVERLAY_MTU: u32 = 0;
    ENFORCE_SOURCE: u32 = 1;
    REDIRECT_PEER: u32 = 1;
    CSUM_IPV6: u32 = 0;
}

/// Whether a switch is on.
#[inline(always)]
pub fn enabled(switch: &Global<u32>) -> bool {
    switch.load() != 0
}

/// The node's own IPv4 address in the pod network.
#[inline(always)]
pub fn gateway_v4() -> Address {
    Address::from_words(GATEWAY_V4.load())
}

/// The node's IPv4 underlay address.
#[inline(always)]
pub fn node_v4() -> Address {
    Address::from_words(NODE_V4.load())
}

/// The node's IPv6 underlay address.
#[inline(always)]
pub fn node_v6() -> Address {
    Address::from_words(NODE_V6.load())
}

/// The node's own IPv6 address in the pod network.
#[inline(always)]
pub fn gateway_v6() -> Address {
    Address::from_words(GATEWAY_V6.load())
}
