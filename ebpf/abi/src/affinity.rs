//! `AFFINITY`: which backend a client of a Service with session affinity has.

use crate::Address;

map_type! {
    /// Key of `AFFINITY`.
    pub struct AffinityKey {
        /// The client: the address of one outside this node; for a pod of this node its
        /// [`crate::WorkloadValue::netns_cookie`] in the first two words and zeros, which is what
        /// socket programs know as well; for the node's processes the unspecified address.
        pub client: Address,
        /// [`crate::FrontendValue::service_id`].
        pub service_id: u32,
    }
}

map_type! {
    /// Value of `AFFINITY`.
    pub struct AffinityValue {
        /// When the client last opened a flow, on the clock of [`crate::conntrack::TICK_SHIFT`].
        pub last_used: u32,
        /// The backend.
        pub backend_id: u32,
        /// [`crate::BackendValue::generation`] when it was chosen.
        pub backend_generation: u32,
    }
}
