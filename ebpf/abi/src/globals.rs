//! `.rodata` globals by which the agent specialises the programs when it loads them.
//!
//! Each name is that of a static in the object. The kernel freezes the section, so the verifier
//! removes the branches a switch rules out.

/// `[u8; 16]`: the node's IPv4 gateway address in mapped form; zero when there is no IPv4.
pub const GATEWAY_V4: &str = "GATEWAY_V4";
/// `[u8; 16]`: the node's IPv6 gateway address; zero when there is no IPv6.
pub const GATEWAY_V6: &str = "GATEWAY_V6";
/// `[u8; 16]`: the node's IPv4 underlay address in mapped form, which pods' traffic to the outside
/// gets as source; zero leaves it as it is.
pub const NODE_V4: &str = "NODE_V4";
/// `[u8; 16]`: the node's IPv6 underlay address, likewise.
pub const NODE_V6: &str = "NODE_V6";
/// `u32`: interface index of `thp_host`.
pub const HOST_IFINDEX: &str = "HOST_IFINDEX";
/// `u32`: interface index of `thp_vxlan`; 0 means that there is no overlay.
pub const OVERLAY_IFINDEX: &str = "OVERLAY_IFINDEX";
/// `u32`: VXLAN network identifier.
pub const VNI: &str = "VNI";
/// `u32`: the overlay's UDP port in host order; 0 means that nothing is known of it.
pub const OVERLAY_PORT: &str = "OVERLAY_PORT";
/// `u32`: largest IP packet the overlay carries; 0 leaves the check to the devices.
pub const OVERLAY_MTU: &str = "OVERLAY_MTU";
/// `u32` switch, default 1: pods may send from their own addresses only.
pub const ENFORCE_SOURCE: &str = "ENFORCE_SOURCE";
/// `u32` switch, default 1: deliver to local pods with `bpf_redirect_peer` (kernel 5.10).
pub const REDIRECT_PEER: &str = "REDIRECT_PEER";
/// `u32` switch, default 0: the kernel knows `BPF_F_IPV6` of `bpf_l4_csum_replace` (6.16 and the
/// stable kernels it was carried to).
pub const CSUM_IPV6: &str = "CSUM_IPV6";

/// Every switch, each of which may be 0 or 1.
pub const SWITCHES: [&str; 3] = [ENFORCE_SOURCE, REDIRECT_PEER, CSUM_IPV6];

/// Default of [`VNI`].
pub const DEFAULT_VNI: u32 = 1;

/// The identifier under which a node is handed packets of clients outside, for a Service whose
/// backend it has (direct server return).
#[must_use]
#[inline(always)]
pub const fn dsr_vni(vni: u32) -> u32 {
    vni + 1
}
