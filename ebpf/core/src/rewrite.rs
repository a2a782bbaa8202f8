//! Translations of a packet's tuple and what they do to its checksums.

use tholepin_ebpf_abi::conntrack::{
    FLOW_OF_BOTH, FLOW_REPLY, FLOW_SOURCE_TRANSLATED, MASQUERADE_FIRST_PORT,
};
use tholepin_ebpf_abi::{Address, BackendValue, Be16, ConntrackEntry, FlowKey};

use crate::csum::{self, Sum};

/// How a packet's tuple looks after translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Translation {
    /// Source address.
    pub source: Address,
    /// Destination address.
    pub destination: Address,
    /// Source port.
    pub source_port: Be16,
    /// Destination port.
    pub destination_port: Be16,
}

impl Translation {
    /// The one an entry holds.
    #[must_use]
    #[inline(always)]
    pub const fn of_entry(entry: &ConntrackEntry) -> Self {
        Self {
            source: entry.source,
            destination: entry.destination,
            source_port: entry.source_port,
            destination_port: entry.destination_port,
        }
    }

    /// The one that changes nothing.
    #[must_use]
    #[inline(always)]
    pub const fn identity(flow: &FlowKey) -> Self {
        Self {
            source: flow.source,
            destination: flow.destination,
            source_port: flow.source_port,
            destination_port: flow.destination_port,
        }
    }

    /// Of a new flow: to `backend`, and from `source`.
    ///
    /// A pod that reaches itself would get a packet from its own address, which its kernel takes
    /// for a forgery and answers past us. So the Service's address becomes the source, and the
    /// reply comes back to be translated.
    #[must_use]
    #[inline(always)]
    pub fn to_backend(flow: &FlowKey, backend: &BackendValue, source: Address) -> Self {
        let hairpin = backend.address == flow.source;
        Self {
            source: if hairpin { flow.destination } else { source },
            destination: backend.address,
            source_port: flow.source_port,
            destination_port: backend.port,
        }
    }

    /// The same, sent from the node's own address and one of the ports that are kept for it.
    #[must_use]
    #[inline(always)]
    pub const fn masqueraded(self, node: Address, random: u32) -> Self {
        Self {
            source: node,
            source_port: masquerade_port(random),
            ..self
        }
    }

    /// The key of the other direction's half: the packet that answers the translated one.
    #[must_use]
    #[inline(always)]
    pub const fn reply_key(&self, protocol: u8) -> FlowKey {
        FlowKey {
            source: self.destination,
            destination: self.source,
            source_port: self.destination_port,
            destination_port: self.source_port,
            protocol,
            _pad: [0; 3],
        }
    }

    /// The `FLOW_*` bits that follow from the translation itself.
    #[must_use]
    #[inline(always)]
    pub fn flags(&self, flow: &FlowKey) -> u32 {
        if self.source != flow.source || self.source_port != flow.source_port {
            FLOW_SOURCE_TRANSLATED
        } else {
            0
        }
    }

    /// Change of the sum over both addresses.
    #[inline(always)]
    pub const fn address_change(&self, flow: &FlowKey) -> Sum {
        Sum::ZERO
            .remove_address(flow.source.words())
            .remove_address(flow.destination.words())
            .add_address(self.source.words())
            .add_address(self.destination.words())
    }

    /// Change of the sum over both ports.
    #[inline(always)]
    pub const fn port_change(&self, flow: &FlowKey) -> Sum {
        Sum::ZERO
            .remove(ports_word(flow.source_port, flow.destination_port))
            .add(ports_word(self.source_port, self.destination_port))
    }

    /// Both ports as they are in a header, one word in memory order.
    #[must_use]
    #[inline(always)]
    pub const fn ports(&self) -> u32 {
        ports_word(self.source_port, self.destination_port)
    }
}

/// One of the ports of masqueraded flows.
#[must_use]
#[inline(always)]
pub const fn masquerade_port(random: u32) -> Be16 {
    const {
        assert!(
            MASQUERADE_FIRST_PORT == 0xf000,
            "the range is the last 4,096 ports"
        )
    };
    Be16::new(MASQUERADE_FIRST_PORT | random as u16)
}

/// Two ports as one word in memory order.
#[must_use]
#[inline(always)]
pub const fn ports_word(source: Be16, destination: Be16) -> u32 {
    let ([a, b], [c, d]) = (source.be.to_ne_bytes(), destination.be.to_ne_bytes());
    u32::from_ne_bytes([a, b, c, d])
}

/// The two ports of a header word.
#[must_use]
#[inline(always)]
pub const fn ports_of_word(word: u32) -> (Be16, Be16) {
    let [a, b, c, d] = word.to_ne_bytes();
    (
        Be16::from_wire(u16::from_ne_bytes([a, b])),
        Be16::from_wire(u16::from_ne_bytes([c, d])),
    )
}

/// What is known when a flow is made.
#[derive(Clone, Copy, Debug)]
pub struct NewFlow {
    /// Clock.
    pub now: u32,
    /// The Service port.
    pub service_id: u32,
    /// The chosen backend.
    pub backend_id: u32,
    /// Its generation.
    pub backend_generation: u32,
    /// Where the flow's packets enter.
    pub ifindex: u32,
    /// `FLOW_*` bits of its first packet.
    pub observed: u32,
}

impl NewFlow {
    /// The half of the client's packets.
    #[must_use]
    #[inline(always)]
    pub fn forward_half(&self, flow: &FlowKey, to: &Translation) -> ConntrackEntry {
        ConntrackEntry {
            last_seen: self.now,
            policy_generation: 0,
            source: to.source,
            destination: to.destination,
            source_port: to.source_port,
            destination_port: to.destination_port,
            service_id: self.service_id,
            backend_id: self.backend_id,
            backend_generation: self.backend_generation,
            ifindex: self.ifindex,
            flags: self.observed | to.flags(flow),
        }
    }
}

/// The half of the backend's packets, from the forward half and its key.
#[must_use]
#[inline(always)]
pub const fn reply_half(flow: &FlowKey, forward: &ConntrackEntry) -> ConntrackEntry {
    ConntrackEntry {
        last_seen: forward.last_seen,
        policy_generation: forward.policy_generation,
        source: flow.destination,
        destination: flow.source,
        source_port: flow.destination_port,
        destination_port: flow.source_port,
        service_id: forward.service_id,
        backend_id: forward.backend_id,
        backend_generation: forward.backend_generation,
        ifindex: 0,
        flags: FLOW_REPLY | (forward.flags & FLOW_OF_BOTH),
    }
}

/// The other half of a flow whose `entry` is found under `key`, for when it was evicted.
#[must_use]
#[inline(always)]
pub const fn other_half(key: &FlowKey, entry: &ConntrackEntry) -> ConntrackEntry {
    let mut other = reply_half(key, entry);
    other.flags ^= entry.flags & FLOW_REPLY;
    other
}

/// An IPv4 header checksum after the addresses changed by `addresses` and the TTL fell by one.
#[must_use]
#[inline(always)]
pub const fn ipv4_checksum(stored: u16, addresses: Sum, ttl: u8, new_ttl: u8) -> u16 {
    // TTL and protocol share a 16-bit word; the TTL is its first byte.
    let old = u32::from_ne_bytes([ttl, 0, 0, 0]);
    let new = u32::from_ne_bytes([new_ttl, 0, 0, 0]);
    csum::updated(stored, addresses.remove(old).add(new))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::packet::TCP;

    fn address() -> impl Strategy<Value = Address> {
        prop_oneof![
            any::<[u8; 4]>().prop_map(Address::from_v4),
            any::<[u8; 16]>().prop_map(Address::from_v6),
        ]
    }

    fn flow() -> impl Strategy<Value = FlowKey> {
        (address(), address(), any::<u16>(), any::<u16>()).prop_map(
            |(source, destination, s, d)| FlowKey {
                source,
                destination,
                source_port: Be16::new(s),
                destination_port: Be16::new(d),
                protocol: TCP,
                _pad: [0; 3],
            },
        )
    }

    fn backend() -> impl Strategy<Value = BackendValue> {
        (address(), any::<u16>()).prop_map(|(address, port)| BackendValue {
            address,
            port: Be16::new(port),
            protocol: TCP,
            flags: 1,
            generation: 9,
            service_id: 1,
        })
    }

    fn halves(flow: &FlowKey, backend: &BackendValue) -> (ConntrackEntry, FlowKey, ConntrackEntry) {
        let to = Translation::to_backend(flow, backend, flow.source);
        let new = NewFlow {
            now: 5,
            service_id: 1,
            backend_id: 2,
            backend_generation: 9,
            ifindex: 3,
            observed: 4,
        };
        let forward = new.forward_half(flow, &to);
        (forward, to.reply_key(TCP), reply_half(flow, &forward))
    }

    proptest! {
        #[test]
        fn the_reply_of_a_translated_packet_becomes_the_reply_of_the_original(
            flow in flow(), backend in backend()
        ) {
            let (_, _, reply) = halves(&flow, &backend);
            let seen_by_client = Translation::of_entry(&reply);
            prop_assert_eq!(Translation::identity(&flow.reversed()), seen_by_client);
        }

        #[test]
        fn each_half_rebuilds_the_other(flow in flow(), backend in backend()) {
            let (forward, reply_key, reply) = halves(&flow, &backend);
            prop_assert_eq!(other_half(&flow, &forward), reply);
            let again = other_half(&reply_key, &reply);
            prop_assert_eq!(Translation::of_entry(&again), Translation::of_entry(&forward));
            prop_assert_eq!(again.flags & FLOW_REPLY, 0);
            prop_assert_eq!(Translation::of_entry(&reply).reply_key(TCP), flow);
        }

        #[test]
        fn a_pod_never_sees_its_own_address_as_source(flow in flow(), port: u16) {
            let itself = BackendValue {
                address: flow.source, port: Be16::new(port), protocol: TCP, flags: 1, generation: 1,
                service_id: 1,
            };
            let to = Translation::to_backend(&flow, &itself, flow.source);
            prop_assert!(to.source != to.destination || flow.source == flow.destination);
        }

        #[test]
        fn a_masqueraded_flow_uses_the_reserved_ports(flow in flow(), node in address(), random: u32) {
            let to = Translation::identity(&flow).masqueraded(node, random);
            prop_assert!(to.source_port.get() >= MASQUERADE_FIRST_PORT);
            prop_assert_eq!(to.source, node);
            let kept = (to.destination, to.destination_port);
            prop_assert_eq!(kept, (flow.destination, flow.destination_port));
        }

        #[test]
        fn a_port_word_keeps_both_ports(source: u16, destination: u16) {
            let (source, destination) = (Be16::new(source), Be16::new(destination));
            prop_assert_eq!(ports_of_word(ports_word(source, destination)), (source, destination));
        }

        #[test]
        fn the_ipv4_checksum_follows_addresses_and_ttl(
            mut words: [u32; 5], source: u32, destination: u32
        ) {
            let [ttl, protocol, _, _] = words[2].to_ne_bytes();
            words[2] = u32::from_ne_bytes([ttl, protocol, 0, 0]);
            let stored = Sum::ZERO.add_words(&words).finish();
            let change = Sum::ZERO.remove(words[3]).remove(words[4]).add(source).add(destination);
            words[3] = source;
            words[4] = destination;
            let new_ttl = ttl.wrapping_sub(1);
            words[2] = u32::from_ne_bytes([new_ttl, protocol, 0, 0]);
            let fresh = Sum::ZERO.add_words(&words).finish();
            let updated = ipv4_checksum(stored, change, ttl, new_ttl);
            prop_assert!(updated == fresh || updated ^ fresh == 0xffff);
        }
    }
}
