//! `FRONTENDS`: the addresses and ports under which Services are reached.
//!
//! Write order: backends, slots, then the frontend's counts. The reverse to remove. A reader then
//! never sees a count that covers a slot which is not there yet.

use crate::{Address, Be16};

map_type! {
    /// Key of `FRONTENDS`.
    pub struct FrontendKey {
        /// The Service's address.
        pub address: Address,
        /// The Service's port.
        pub port: Be16,
        /// IANA protocol number: 6 or 17 (132 is reserved for later).
        pub protocol: u8,
        /// One of the `SCOPE_*` values.
        pub scope: u8,
    }
}

map_type! {
    /// Value of `FRONTENDS`.
    pub struct FrontendValue {
        /// Identifies the Service port; part of every [`crate::SlotKey`]. Kept across restarts.
        pub service_id: u32,
        /// Slots `0..backend_count` hold the eligible backends, local ones first.
        pub backend_count: u16,
        /// Slots `0..local_count` hold backends on this node.
        pub local_count: u16,
        /// `FRONTEND_*` bits.
        pub flags: u16,
        /// Zero.
        pub _pad: u16,
    }
}

/// The scope of ClusterIP traffic: clients are pods and nodes.
pub const SCOPE_CLUSTER: u8 = 0;

/// Only slots `0..local_count` may be chosen; with none of them but `backend_count > 0`, traffic
/// is dropped and not spilled to other nodes (`internalTrafficPolicy: Local`).
pub const FRONTEND_LOCAL_ONLY: u16 = 1;
