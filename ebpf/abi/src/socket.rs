//! `SOCKETS` and `SOCKET_NETNS`: Service load balancing where sockets are, not packets.

use crate::{Address, Be16};

map_type! {
    /// Value of `SOCKETS`, which the kernel keeps with the socket and frees with it. Its key is the
    /// socket itself.
    ///
    /// Everything but `last_used` is written once: a socket that gets another backend gets another
    /// value, so that no reader sees half of each.
    pub struct SocketValue {
        /// What the application asked for.
        pub frontend: Address,
        /// Where its traffic goes.
        pub backend: Address,
        /// The Service's port.
        pub frontend_port: Be16,
        /// The backend's port.
        pub backend_port: Be16,
        /// Key of `BACKENDS`.
        pub backend_id: u32,
        /// [`crate::BackendValue::generation`] when it was chosen.
        pub backend_generation: u32,
        /// UDP: when a datagram was last sent, on the clock of [`crate::conntrack::TICK_SHIFT`].
        pub last_used: u32,
        /// IANA protocol number: 6 or 17.
        pub protocol: u32,
    }
}

map_type! {
    /// Key of `SOCKET_NETNS`.
    pub struct SocketNetnsKey {
        /// Cookie of a network namespace.
        pub netns_cookie: u64,
    }
}

map_type! {
    /// Value of `SOCKET_NETNS`: that there is an entry lets sockets of the namespace be balanced. So
    /// a program may be attached above cgroups that are not ours, and a pod is left out by having no
    /// entry.
    pub struct SocketNetnsValue {
        /// `SOCKET_NETNS_*` bits.
        pub flags: u32,
    }
}

/// The namespace is the node's own: its sockets are one client to session affinity.
pub const SOCKET_NETNS_NODE: u32 = 1;
