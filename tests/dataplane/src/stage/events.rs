//! A listener to what the programs report.

use aya::maps::{Array, RingBuf};
use tholepin_ebpf_abi::{Event, EventSwitch, names};

use super::Stage;

impl Stage {
    /// Switches what the programs report.
    pub fn listen(&mut self, switch: EventSwitch) {
        let map = self
            .ebpf
            .map_mut(names::EVENT_SWITCH)
            .expect("the object has a switch");
        let mut map: Array<_, EventSwitch> = map.try_into().expect("an array");
        map.set(0, switch, 0).expect("its one entry");
    }

    /// What the programs have reported since the last call.
    pub fn events(&mut self) -> Vec<Event> {
        let map = self
            .ebpf
            .map_mut(names::EVENTS)
            .expect("the object has events");
        let mut ring = RingBuf::try_from(map).expect("a ring buffer");
        let mut events = Vec::new();
        while let Some(record) = ring.next() {
            events.push(event(&record));
        }
        events
    }
}

/// Field by field, at the offsets of the ABI.
fn event(record: &[u8]) -> Event {
    assert_eq!(record.len(), size_of::<Event>());
    let word = |at: usize| u32::from_ne_bytes(record[at..at + 4].try_into().expect("4 bytes"));
    Event {
        at_ns: u64::from_ne_bytes(record[..8].try_into().expect("8 bytes")),
        kind: word(8),
        detail: word(12),
        backend_id: word(16),
        ifindex: word(20),
        packet_len: word(24),
        captured: word(28),
        packet: std::array::from_fn(|row| {
            record[32 + 32 * row..][..32].try_into().expect("32 bytes")
        }),
    }
}
