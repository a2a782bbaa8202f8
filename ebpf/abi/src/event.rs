//! `EVENTS` and `EVENT_SWITCH`: what the programs tell a listener about single packets.
//!
//! Nobody listens as a rule: the switch is off, and the only cost is one look at it where a packet is
//! dropped or a flow is made. A listener sets it with a time to end at, so that a killed one leaves nothing
//! switched on.

map_type! {
    /// The one value of `EVENT_SWITCH`.
    pub struct EventSwitch {
        /// Bit n: drops with the [`crate::DropReason`] of code n.
        pub drops: u64,
        /// On the clock of [`crate::conntrack::TICK_SHIFT`]: off from then on. 0 is off.
        pub until: u32,
        /// New flows are reported with a chance of one in this; 0 reports none.
        pub flow_sample: u32,
    }
}

/// Bytes of the packet in an event.
pub const EVENT_CAPTURE: usize = 128;

map_type! {
    /// A record in `EVENTS`.
    pub struct Event {
        /// Coarse monotonic clock.
        pub at_ns: u64,
        /// One of the `EVENT_*` kinds.
        pub kind: u32,
        /// [`crate::DropReason`] of a drop; the Service port of a new flow.
        pub detail: u32,
        /// The backend chosen for a new flow.
        pub backend_id: u32,
        /// The interface the packet was on.
        pub ifindex: u32,
        /// Bytes of the whole packet, link-layer header included.
        pub packet_len: u32,
        /// Bytes of `packet` that are the packet's.
        pub captured: u32,
        /// The start of the packet, as its sender sent it.
        pub packet: [[u8; 32]; EVENT_CAPTURE / 32],
    }
}

impl Event {
    /// The bytes of the packet that are there.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        let all = self.packet.as_flattened();
        &all[..(self.captured as usize).min(EVENT_CAPTURE)]
    }
}

/// [`Event::kind`]: a packet was dropped or rejected.
pub const EVENT_DROP: u32 = 1;
/// [`Event::kind`]: a flow was made.
pub const EVENT_FLOW: u32 = 2;

/// Bytes of `EVENTS`, a power of two and whole pages: room for some 1,500 events.
pub const EVENTS_BYTES: usize = 256 * 1024;
