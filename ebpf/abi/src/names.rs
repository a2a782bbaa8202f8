//! Names and default capacities of maps and programs. The kernel keeps 15 characters of a name.

/// `HASH` without preallocation, [`crate::FrontendKey`] to [`crate::FrontendValue`].
pub const FRONTENDS: &str = "FRONTENDS";
/// `ARRAY` of [`crate::SlotValue`].
pub const BACKEND_SLOTS: &str = "BACKEND_SLOTS";
/// `ARRAY` of [`crate::BackendValue`], by backend id.
pub const BACKENDS: &str = "BACKENDS";
/// `LRU_HASH`, [`crate::FlowKey`] to [`crate::ConntrackEntry`].
pub const CONNTRACK: &str = "CONNTRACK";
/// `ARRAY`, [`crate::workload_index`] of an address to [`crate::WorkloadValue`].
pub const WORKLOADS: &str = "WORKLOADS";
/// `LPM_TRIE`, [`crate::RouteKey`] to [`crate::RouteValue`].
pub const POD_ROUTES: &str = "POD_ROUTES";
/// `LRU_HASH`, [`crate::FragmentKey`] to [`crate::FragmentValue`].
pub const FRAGMENTS: &str = "FRAGMENTS";
/// `LRU_HASH`, [`crate::AffinityKey`] to [`crate::AffinityValue`].
pub const AFFINITY: &str = "AFFINITY";
/// `LPM_TRIE`, [`crate::SourceRangeKey`] to [`crate::SourceRangeValue`].
pub const SOURCE_RANGES: &str = "SOURCE_RANGES";
/// `LPM_TRIE`, [`crate::PolicyPeerKey`] to [`crate::PolicyPeerValue`].
pub const POLICY_PEERS: &str = "POLICY_PEERS";
/// `LPM_TRIE`, [`crate::PolicyPortKey`] to [`crate::PolicyPortValue`].
pub const POLICY_PORTS: &str = "POLICY_PORTS";
/// `SK_STORAGE`, [`crate::SocketValue`] of a socket whose traffic goes to a Service.
pub const SOCKETS: &str = "SOCKETS";
/// `HASH`, [`crate::SocketNetnsKey`] to [`crate::SocketNetnsValue`].
pub const SOCKET_NETNS: &str = "SOCKET_NETNS";
/// `PERCPU_ARRAY`, [`crate::DropReason`] code to a packet count (`u64`).
pub const DROPS: &str = "DROPS";
/// `RINGBUF` of [`crate::Event`]: single packets, while somebody listens.
pub const EVENTS: &str = "EVENTS";
/// `ARRAY` of one [`crate::EventSwitch`]: what somebody listens to.
pub const EVENT_SWITCH: &str = "EVENT_SWITCH";

/// `ARRAY` of one [`crate::FlowStats`]. Not pinned: it belongs to the [`CLEANER`] that fills it.
pub const FLOW_STATS: &str = "FLOW_STATS";

/// Every pinned map.
pub const MAPS: [&str; 16] = [
    FRONTENDS,
    BACKEND_SLOTS,
    BACKENDS,
    CONNTRACK,
    WORKLOADS,
    POD_ROUTES,
    FRAGMENTS,
    AFFINITY,
    SOURCE_RANGES,
    POLICY_PEERS,
    POLICY_PORTS,
    SOCKETS,
    SOCKET_NETNS,
    DROPS,
    EVENTS,
    EVENT_SWITCH,
];

/// Ingress hook of a pod's host-side interface: what the pod sends.
pub const POD_EGRESS: &str = "pod_egress";
/// Egress hook of the node's own interface into the pod network: what the node sends to it.
pub const HOST_EGRESS: &str = "host_egress";
/// Ingress hook of the VXLAN device: what other nodes send.
pub const OVERLAY_IN: &str = "overlay_in";

/// Ingress hook of an underlay interface: answers to what left the pod network.
pub const UNDERLAY_IN: &str = "underlay_in";

/// Of type `RAW_TRACEPOINT` and at none: walks through `CONNTRACK` and removes flows that are over. The
/// agent runs it.
pub const CLEANER: &str = "cleaner";
/// Egress hook of the loopback device: what the node sends to Services at its own addresses.
pub const LOCAL_OUT: &str = "local_out";

/// Every program of type `SCHED_CLS`.
pub const PROGRAMS: [&str; 5] = [POD_EGRESS, HOST_EGRESS, OVERLAY_IN, UNDERLAY_IN, LOCAL_OUT];

/// Service load balancing at the socket: what `connect` is told, in both families.
pub const SOCKET_CONNECT: [&str; 2] = ["sock_connect4", "sock_connect6"];
/// Where a socket asks for its peer's address.
pub const SOCKET_GETPEERNAME: [&str; 2] = ["sock_getpeer4", "sock_getpeer6"];
/// Datagrams of sockets that are not connected.
pub const SOCKET_SENDMSG: [&str; 2] = ["sock_sendmsg4", "sock_sendmsg6"];
/// The source of a received datagram.
pub const SOCKET_RECVMSG: [&str; 2] = ["sock_recvmsg4", "sock_recvmsg6"];

/// Every program of type `CGROUP_SOCK_ADDR`.
pub const SOCKET_PROGRAMS: [&str; 8] = [
    SOCKET_CONNECT[0],
    SOCKET_CONNECT[1],
    SOCKET_GETPEERNAME[0],
    SOCKET_GETPEERNAME[1],
    SOCKET_SENDMSG[0],
    SOCKET_SENDMSG[1],
    SOCKET_RECVMSG[0],
    SOCKET_RECVMSG[1],
];

/// What an underlay interface receives, before there is a socket buffer. Of type `XDP`.
pub const XDP_FRONT: &str = "xdp_front";

/// Default capacity of `FRONTENDS`.
pub const FRONTENDS_CAPACITY: usize = 65_536;
/// Default capacity of `BACKEND_SLOTS`.
pub const BACKEND_SLOTS_CAPACITY: usize = 262_144;
/// Default capacity of `BACKENDS`.
pub const BACKENDS_CAPACITY: usize = 131_072;
/// Default capacity of `CONNTRACK`: two entries per flow. The kernel takes the memory for all of them
/// at once, 176 bytes each.
pub const CONNTRACK_CAPACITY: usize = 65_536;
/// Capacity of `WORKLOADS`: both families' host parts.
pub const WORKLOADS_CAPACITY: usize = 2 * crate::workload::WORKLOAD_HOSTS as usize;
/// Default capacity of `POD_ROUTES`: two families of a few thousand nodes.
pub const POD_ROUTES_CAPACITY: usize = 16_384;
/// Default capacity of `FRAGMENTS`.
pub const FRAGMENTS_CAPACITY: usize = 8_192;
/// Default capacity of `AFFINITY`.
pub const AFFINITY_CAPACITY: usize = 16_384;
/// Default capacity of `SOURCE_RANGES`.
pub const SOURCE_RANGES_CAPACITY: usize = 16_384;
/// Default capacity of `POLICY_PEERS`.
pub const POLICY_PEERS_CAPACITY: usize = 131_072;
/// Default capacity of `POLICY_PORTS`.
pub const POLICY_PORTS_CAPACITY: usize = 16_384;

/// Default capacity of `SOCKET_NETNS`: a namespace per pod.
pub const SOCKET_NETNS_CAPACITY: usize = 4_096;

/// MAC of every host-side device of the pod network, on every node. One address everywhere means
/// that what a pod sends is already addressed to whatever device it is redirected to.
pub const HOST_MAC: [u8; 6] = [0x02, 0x74, 0x68, 0x70, 0x00, 0x01];
/// Inner source MAC of packets in the overlay. It differs from [`HOST_MAC`], because a VXLAN device
/// discards what carries its own address as source.
pub const OVERLAY_SOURCE_MAC: [u8; 6] = [0x02, 0x74, 0x68, 0x70, 0x00, 0x02];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_fit_into_what_the_kernel_keeps() {
        for name in MAPS
            .iter()
            .chain(&PROGRAMS)
            .chain(&SOCKET_PROGRAMS)
            .chain([&XDP_FRONT])
        {
            assert!(name.len() <= 15, "{name}");
        }
    }
}
