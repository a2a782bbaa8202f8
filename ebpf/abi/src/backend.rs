//! `BACKENDS` and `BACKEND_SLOTS`: where Service traffic goes. Both are arrays.

use crate::{Address, Be16};

map_type! {
    /// Value of `BACKEND_SLOTS`; the index is one of the frontend's range, see
    /// [`crate::FrontendValue::first_slot`]. What is in no frontend's range means nothing.
    pub struct SlotValue {
        /// Index into `BACKENDS`; 0 is never a backend.
        pub backend_id: u32,
        /// [`crate::FrontendValue::service_id`] of the list. A reader that finds another one has
        /// read its frontend while that was replaced, and reads it again.
        pub service_id: u32,
    }
}

map_type! {
    /// Value of `BACKENDS`, at the index that is the backend's id. A value without flags is free,
    /// or about to be.
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
        /// [`crate::FrontendValue::service_id`] of the Service port it is a backend of (of its
        /// first list, where it has two). Two Services with one endpoint have two backends: one may
        /// lose it while it goes on to serve the other.
        pub service_id: u32,
    }
}

/// The endpoint serves (it is ready, or terminating and still serving). Without this bit a UDP
/// flow to it is re-balanced with its next packet, and TCP connections run on.
pub const BACKEND_SERVING: u8 = 1;
