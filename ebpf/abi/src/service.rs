//! `FRONTENDS`: the addresses and ports under which Services are reached.
//!
//! A frontend names one range of `BACKEND_SLOTS`:
//!
//! | from `first_slot` | holds |
//! |---|---|
//! | `-spare_count` | backends of this node that other nodes may still choose and this one does not |
//! | `+0` | `backend_count` backends for new flows, the `local_count` of this node first |
//! | `+backend_count` | the Maglev table, `maglev_size` entries |
//!
//! Write order: backends, slots, then the frontend, whose update is atomic. A list that changes its
//! length or its counts gets a range of its own; the old one is given to others only after every
//! packet under way has left the programs.

use crate::{Address, Be16};

map_type! {
    /// Key of `FRONTENDS`.
    pub struct FrontendKey {
        /// The Service's address.
        pub address: Address,
        /// The Service's port.
        pub port: Be16,
        /// IANA protocol number: 6, 17 or 132.
        pub protocol: u8,
        /// One of the `SCOPE_*` values.
        pub scope: u8,
    }
}

map_type! {
    /// Value of `FRONTENDS`.
    pub struct FrontendValue {
        /// Identifies the Service port's list of backends. Kept across restarts.
        pub service_id: u32,
        /// Index into `BACKEND_SLOTS` of the first eligible backend.
        pub first_slot: u32,
        /// How many backends are eligible for new flows, local ones first.
        pub backend_count: u16,
        /// How many of them, from the front, are on this node.
        pub local_count: u16,
        /// `FRONTEND_*` bits.
        pub flags: u16,
        /// Entries of the Maglev table, a prime; 0 without [`FRONTEND_MAGLEV`].
        pub maglev_size: u16,
        /// Seconds for which a client keeps its backend after its last new flow, with
        /// [`FRONTEND_AFFINITY`].
        pub affinity_timeout_s: u32,
        /// Backends of this node right before `first_slot`: they serve, but this node would choose
        /// others (they terminate, or topology leaves them out). Only a flow that another node sent
        /// here by direct server return may have one, and only if `local_count` is 0.
        pub spare_count: u16,
        /// Zero.
        pub _pad: u16,
    }
}

/// What pods and processes of nodes look up, for every kind of frontend.
pub const SCOPE_CLUSTER: u8 = 0;
/// What clients outside the cluster look up: NodePort, external, LoadBalancer and hostPort addresses.
/// The same address has an entry in [`SCOPE_CLUSTER`] as well, because `externalTrafficPolicy` binds
/// only clients that are no pods and no nodes.
pub const SCOPE_EXTERNAL: u8 = 1;

/// Only the first `local_count` slots may be chosen; with none of them but `backend_count > 0`, traffic
/// is dropped and not spilled to other nodes (`internalTrafficPolicy: Local`).
pub const FRONTEND_LOCAL_ONLY: u16 = 1;
/// `sessionAffinity: ClientIP`: see `AFFINITY`.
pub const FRONTEND_AFFINITY: u16 = 1 << 1;
/// Only clients with an entry in `SOURCE_RANGES` may come in; others are dropped.
pub const FRONTEND_SOURCE_RANGES: u16 = 1 << 2;
/// The backend follows from the flow's tuple by the Maglev table and not from chance.
pub const FRONTEND_MAGLEV: u16 = 1 << 3;
/// Clients from outside get the node's address as source. Without it a remote backend's node is
/// handed the packet as it is and answers the client itself (direct server return).
pub const FRONTEND_MASQUERADE: u16 = 1 << 4;
/// An address of this node (NodePort, hostPort): other nodes have the same port under theirs.
pub const FRONTEND_NODE_PORT: u16 = 1 << 5;
