//! `CONNTRACK`: one entry per direction of a translated flow.
//!
//! The forward half is keyed by the packet as the client sends it, the reply half by the packet as
//! the backend sends it. Each half says how its packet looks after translation, so both directions
//! are one lookup by the packet's own tuple and one rewrite, and the key of the other half is the
//! translated tuple reversed. Flows that are not translated have no entry.

#![expect(unsafe_code, reason = "a tuple as words")]

use core::mem::transmute;

use crate::{Address, Be16};

map_type! {
    /// Key of `CONNTRACK`: a packet's tuple.
    pub struct FlowKey {
        /// Source address.
        pub source: Address,
        /// Destination address.
        pub destination: Address,
        /// Source port.
        pub source_port: Be16,
        /// Destination port.
        pub destination_port: Be16,
        /// IANA protocol number.
        pub protocol: u8,
        /// Zero.
        pub _pad: [u8; 3],
    }
}

impl FlowKey {
    /// From words in memory order, each of which is written at once: a key that is put together from
    /// smaller parts is slow to read back by words, which is what hashing does.
    #[must_use]
    #[inline(always)]
    pub const fn from_words(
        source: [u32; 4],
        destination: [u32; 4],
        ports: u32,
        protocol: u8,
    ) -> Self {
        let [a, b, c, d] = source;
        let [e, f, g, h] = destination;
        let protocol = u32::from_ne_bytes([protocol, 0, 0, 0]);
        // SAFETY: both are 40 bytes without padding, for which every bit pattern is valid.
        unsafe { transmute::<[u32; 10], Self>([a, b, c, d, e, f, g, h, ports, protocol]) }
    }

    /// The tuple of a packet in the other direction.
    #[must_use]
    #[inline(always)]
    pub const fn reversed(&self) -> Self {
        Self {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
            protocol: self.protocol,
            _pad: [0; 3],
        }
    }
}

map_type! {
    /// Value of `CONNTRACK`: one direction of a tracked flow.
    pub struct ConntrackEntry {
        /// When a packet of this direction was last seen, in ticks of the coarse monotonic clock.
        /// Refreshed at most once per tick, and then in both halves.
        pub last_seen: u32,
        /// [`crate::WorkloadValue::policy_generation`] of the pods that judged the flow (source's
        /// and destination's, added) when it was allowed; 0 while no policy had a say.
        pub policy_generation: u32,
        /// Source after translation.
        pub source: Address,
        /// Destination after translation.
        pub destination: Address,
        /// Source port after translation.
        pub source_port: Be16,
        /// Destination port after translation.
        pub destination_port: Be16,
        /// The Service port; 0 for a flow that is only masqueraded.
        pub service_id: u32,
        /// The backend chosen for the flow; 0 for a flow that is only masqueraded.
        pub backend_id: u32,
        /// [`crate::BackendValue::generation`] when it was chosen.
        pub backend_generation: u32,
        /// The pod interface the packets of this direction enter by, whose right to use the source
        /// address was checked. 0 while none was.
        pub ifindex: u32,
        /// `FLOW_*` bits; the TCP ones are what was seen in this direction.
        pub flags: u32,
    }
}

const _: () = assert!(
    size_of::<ConntrackEntry>() == 64,
    "an entry is one cache line"
);

/// This is the reply half.
pub const FLOW_REPLY: u32 = 1;
/// The client's own address or port is translated too (hairpin, masquerade, or a port collision).
pub const FLOW_SOURCE_TRANSLATED: u32 = 1 << 1;
/// TCP: a SYN went this way.
pub const FLOW_SYN: u32 = 1 << 2;
/// TCP: a segment other than a SYN went this way.
pub const FLOW_ESTABLISHED: u32 = 1 << 3;
/// TCP: a FIN went this way.
pub const FLOW_FIN: u32 = 1 << 4;
/// TCP: an RST went this way.
pub const FLOW_RST: u32 = 1 << 5;
/// UDP: a datagram went this way. Set in the reply half once the backend has answered.
pub const FLOW_SEEN: u32 = 1 << 6;

/// First of the ports (and ICMP identifiers) that masqueraded flows use on the node's underlay
/// address; the last is 65,535. The agent reserves them, so that the kernel gives none to a socket.
pub const MASQUERADE_FIRST_PORT: u16 = 0xf000;

/// NetworkPolicy: the flow is tracked for its verdict only and not translated. Both halves are
/// there, so answers are let through.
pub const FLOW_DIRECT: u32 = 1 << 7;
/// The flow came through the overlay as its client sent it, by a node that is no end of it; the
/// answers go straight to the client (direct server return).
pub const FLOW_DSR: u32 = 1 << 8;
/// The client is outside of the cluster, and its answers leave by the node's routes.
pub const FLOW_EXTERNAL: u32 = 1 << 10;
/// The packets of the client are handed to the backend's node as they are, which answers the client
/// itself. There is no reply half: no answer comes this way.
pub const FLOW_HANDED: u32 = 1 << 11;
/// The client is this node itself, by an address that does not show it: policies leave it alone.
pub const FLOW_FROM_NODE: u32 = 1 << 9;
/// What is said of a flow as a whole, and so in both halves.
pub const FLOW_OF_BOTH: u32 =
    FLOW_SOURCE_TRANSLATED | FLOW_DIRECT | FLOW_FROM_NODE | FLOW_DSR | FLOW_EXTERNAL;

/// One tick is 2^30 ns, about 1.07 s: what [`ConntrackEntry::last_seen`] counts.
pub const TICK_SHIFT: u32 = 30;

/// The ticks that make up at least `seconds`.
#[must_use]
pub const fn ticks(seconds: u64) -> u32 {
    ((seconds * 1_000_000_000).div_ceil(1 << TICK_SHIFT)) as u32
}

/// No flow is over that has been idle for less.
pub const SHORTEST_IDLE: u32 = ticks(120);
/// A UDP flow idle for longer is a new flow, as with the kernel's own connection tracking.
pub const UDP_IDLE: u32 = ticks(120);
/// A TCP flow that never got past its SYN is dead after this.
pub const TCP_OPENING_IDLE: u32 = ticks(120);
/// A TCP flow that has seen a FIN or an RST is dead after this.
pub const TCP_CLOSING_IDLE: u32 = ticks(120);
/// An established TCP flow idle for longer is dead: five days, the kernel's default.
pub const TCP_ESTABLISHED_IDLE: u32 = ticks(5 * 24 * 3600);
/// An SCTP association that never got past its INIT is dead after this.
pub const SCTP_OPENING_IDLE: u32 = ticks(10);
/// An SCTP association that shuts down is dead after this.
pub const SCTP_CLOSING_IDLE: u32 = ticks(3);
/// An SCTP association without even a heartbeat is dead after this, the kernel's default.
pub const SCTP_ESTABLISHED_IDLE: u32 = ticks(210);
