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
        /// The host side of the pod's veth pair.
        pub ifindex: u32,
        /// MAC of the pod's own interface.
        pub mac: [u8; 6],
        /// Zero; reserved for `WORKLOAD_*` bits.
        pub flags: u16,
    }
}
