//! `WORKLOADS`: the pod interfaces of this node, in an array.
//!
//! An address's place follows from the host part of it, so that finding it is a few instructions
//! and no hash. The value carries the whole address: a place is empty, or another's, unless that
//! address is the one looked for. Addresses of pods have host parts below [`WORKLOAD_HOSTS`].

use crate::Address;
use crate::byte_order::MAPPED_V4_WORD;

/// Host parts that a pod's address may have, in each family.
pub const WORKLOAD_HOSTS: u32 = 4096;

/// Where an address is in `WORKLOADS`: IPv4 by its last 12 bits, IPv6 by its own behind those.
#[must_use]
#[inline(always)]
pub const fn workload_index(address: &Address) -> u32 {
    let [_, _, third, last] = address.words();
    let host = u32::from_be(last) % WORKLOAD_HOSTS;
    // An IPv6 address that has this word as well is at the wrong place, and therefore unknown.
    if third == MAPPED_V4_WORD {
        host
    } else {
        WORKLOAD_HOSTS + host
    }
}

map_type! {
    /// Value of `WORKLOADS`.
    pub struct WorkloadValue {
        /// Cookie of the pod's network namespace: what a socket program knows its client by.
        pub netns_cookie: u64,
        /// The pod's address; unspecified where there is no pod.
        pub address: Address,
        /// The host side of the pod's veth pair.
        pub ifindex: u32,
        /// Rules for what may come in: 0 lets everything in, [`POLICY_DENY_ALL`] nothing, any other
        /// number is [`crate::PolicyPeerKey::policy_id`].
        pub ingress_policy: u32,
        /// Rules for what may go out, likewise.
        pub egress_policy: u32,
        /// Changes with every change of what the two policies allow; verdicts of running flows are
        /// stamped with it.
        pub policy_generation: u32,
        /// MAC of the pod's own interface.
        pub mac: [u8; 6],
        /// `WORKLOAD_*` bits.
        pub flags: u16,
    }
}

/// The address is, or was at some time since the pod got it, that of a backend of some Service:
/// what the pod sends may be an answer. Set before the backend is, and never cleared while the pod
/// has the address, because flows may outlive the backend.
pub const WORKLOAD_BACKEND: u16 = 1;
/// The host side of the pod's interface has a queue that limits its bandwidth, so packets must not
/// be handed past it into the pod.
pub const WORKLOAD_SHAPED: u16 = 1 << 1;
/// The pod is not to be reached by socket load balancing, or does not want it.
pub const WORKLOAD_NO_SOCKET_LB: u16 = 1 << 2;

/// [`WorkloadValue::ingress_policy`] or `egress_policy` of a pod that is isolated and allowed nothing.
pub const POLICY_DENY_ALL: u32 = u32::MAX;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_family_has_its_half_of_the_array() {
        let v4 = Address::from_v4([10, 244, 31, 7]);
        assert_eq!(workload_index(&v4), 0xf07);
        let v6 = Address::from(
            "fd00:10:244:1::1f07"
                .parse::<core::net::Ipv6Addr>()
                .unwrap(),
        );
        assert_eq!(workload_index(&v6), WORKLOAD_HOSTS + 0xf07);
        assert!(workload_index(&Address::from_words([u32::MAX; 4])) < 2 * WORKLOAD_HOSTS);
    }
}
