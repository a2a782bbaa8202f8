//! `FLOW_STATS`: what the cleaner found in `CONNTRACK` when it last walked through it.

map_type! {
    /// The only value of `FLOW_STATS`. States of TCP are as the client's direction shows them.
    pub struct FlowStats {
        /// Entries that stay, two for most flows.
        pub entries: u64,
        /// Entries that were removed, because their flows were over.
        pub removed: u64,
        /// TCP flows that are not past their SYN.
        pub tcp_opening: u64,
        /// TCP flows that are.
        pub tcp_established: u64,
        /// TCP flows that have seen a FIN or an RST.
        pub tcp_closing: u64,
        /// UDP flows.
        pub udp: u64,
        /// Flows of other protocols: SCTP, and echoes to the outside.
        pub other: u64,
    }
}
