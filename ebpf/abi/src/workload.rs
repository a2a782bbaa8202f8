//! `WORKLOADS`: the pod interfaces of this node.

use crate::Address;

map_type! {
    /// Key of `WORKLOADS`: an address that belongs to a pod of this node.
    pub struct WorkloadKey {
        /// The pod's address.
        pub address: Address,
    }
}

map_type! {
    /// Value of `WORKLOADS`.
    pub struct WorkloadValue {
        /// Cookie of the pod's network namespace: what a socket program knows its client by.
        pub netns_cookie: u64,
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

/// The address is that of a backend of some Service: what the pod sends may be an answer.
pub const WORKLOAD_BACKEND: u16 = 1;
/// The host side of the pod's interface has a queue that limits its bandwidth, so packets must not
/// be handed past it into the pod.
pub const WORKLOAD_SHAPED: u16 = 1 << 1;
/// The pod is not to be reached by socket load balancing, or does not want it.
pub const WORKLOAD_NO_SOCKET_LB: u16 = 1 << 2;

/// [`WorkloadValue::ingress_policy`] or `egress_policy` of a pod that is isolated and allowed nothing.
pub const POLICY_DENY_ALL: u32 = u32::MAX;
