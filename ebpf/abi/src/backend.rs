//! `BACKENDS` and `BACKEND_SLOTS`: where Service traffic goes.

use crate::{Address, Be16};

map_type! {
    /// Key of `BACKEND_SLOTS`.
    pub struct SlotKey {
        /// [`crate::FrontendValue::service_id`].
        pub service_id: u32,
        /// `0..backend_count`; local backends take the lowest ordinals.
        pub ordinal: u32,
    }
}

map_type! {
    /// Value of `BACKEND_SLOTS`.
    pub struct SlotValue {
        /// Key of `BACKENDS`; 0 is never a backend.
        pub backend_id: u32,
    }
}

map_type! {
    /// Key of `BACKENDS`.
    pub struct BackendKey {
        /// Chosen by the agent; never 0.
        pub backend_id: u32,
    }
}

map_type! {
    /// Value of `BACKENDS`.
    pub struct BackendValue {
        /// The endpoint's address.
        pub address: Address,
        /// The endpoint's port.
        pub port: Be16,
        /// IANA protocol number, the frontend's.
        pub protocol: u8,
        /// `BACKEND_*` bits.
        pub flags: u8,
        /// Changes whenever the id is given to another endpoint, or the endpoint comes back after
        /// it had stopped serving. A UDP flow follows its backend only while this is what it was
        /// when the flow was made.
        pub generation: u32,
    }
}

/// The endpoint serves (it is ready, or terminating and still serving). Without this bit a UDP
/// flow to it is re-balanced with its next packet, and TCP connections run on.
pub const BACKEND_SERVING: u8 = 1;
