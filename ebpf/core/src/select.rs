//! Which slot of a Service a new flow gets.

use tholepin_ebpf_abi::service::{FRONTEND_LOCAL_ONLY, FRONTEND_MAGLEV};
use tholepin_ebpf_abi::{DropReason, FlowKey, FrontendValue};

/// The ordinal of the slot for a new flow.
#[inline(always)]
pub fn ordinal(random: u32, frontend: &FrontendValue) -> Result<u32, DropReason> {
    let local_only = frontend.flags & FRONTEND_LOCAL_ONLY != 0;
    let count = if local_only {
        frontend.local_count
    } else {
        frontend.backend_count
    };
    // `checked_rem` is the zero test the verifier wants and the reader expects.
    match random.checked_rem(u32::from(count)) {
        Some(ordinal) => Ok(ordinal),
        None if frontend.backend_count > 0 => Err(DropReason::NoLocalBackend),
        None => Err(DropReason::NoBackend),
    }
}

/// The slot for a new flow: any of the eligible, or what the Maglev table says. `number` is random, or
/// with Maglev [`tuple_hash`]. The table is about all eligible backends, so where only those of this
/// node are, the hash chooses among them directly.
#[inline(always)]
pub fn slot(number: u32, frontend: &FrontendValue) -> Result<u32, DropReason> {
    let ordinal = ordinal(number, frontend)?;
    let by_table = frontend.flags & (FRONTEND_MAGLEV | FRONTEND_LOCAL_ONLY) == FRONTEND_MAGLEV;
    let offset = match number.checked_rem(u32::from(frontend.maglev_size)) {
        Some(entry) if by_table => u32::from(frontend.backend_count) + entry,
        _ => ordinal,
    };
    Ok(frontend.first_slot.wrapping_add(offset))
}

/// The slot for a new flow that another node has handed to this one, for one of its backends.
#[inline(always)]
pub fn handed_slot(number: u32, frontend: &FrontendValue) -> Result<u32, DropReason> {
    let (first, count) = eligible(frontend, true);
    match number.checked_rem(count) {
        Some(offset) => Ok(first.wrapping_add(offset)),
        None => Err(DropReason::NoLocalBackend),
    }
}

/// The slots a new flow may get: the first and how many. Of a flow that another node has handed to
/// this one they are this node's, or, where it would choose none of those itself, what it has besides.
#[must_use]
#[inline(always)]
pub const fn eligible(frontend: &FrontendValue, handed: bool) -> (u32, u32) {
    let (local, spare) = (frontend.local_count as u32, frontend.spare_count as u32);
    if handed && local == 0 {
        return (frontend.first_slot.wrapping_sub(spare), spare);
    }
    let local_only = handed || frontend.flags & FRONTEND_LOCAL_ONLY != 0;
    let count = if local_only {
        local
    } else {
        frontend.backend_count as u32
    };
    (frontend.first_slot, count)
}

/// A hash of a flow's tuple, the same on every node.
#[must_use]
#[inline(always)]
pub const fn tuple_hash(flow: &FlowKey) -> u32 {
    let ([a, b, c, d], [e, f, g, h]) = (flow.source.words(), flow.destination.words());
    let ports = ((flow.source_port.be as u32) << 16) | flow.destination_port.be as u32;
    let words = [a, b, c, d, e, f, g, h, ports, flow.protocol as u32];
    let mut hash = 0_u32;
    let mut index = 0;
    while index < words.len() {
        hash = mixed(hash, words[index]);
        index += 1;
    }
    // Every bit of the input has to reach the low ones, which choose.
    hash ^= hash >> 16;
    hash = hash.wrapping_mul(0x85eb_ca6b);
    hash ^= hash >> 13;
    hash = hash.wrapping_mul(0xc2b2_ae35);
    hash ^ (hash >> 16)
}

/// One step of MurmurHash3 (public domain).
#[inline(always)]
const fn mixed(hash: u32, word: u32) -> u32 {
    let word = word
        .wrapping_mul(0xcc9e_2d51)
        .rotate_left(15)
        .wrapping_mul(0x1b87_3593);
    (hash ^ word)
        .rotate_left(13)
        .wrapping_mul(5)
        .wrapping_add(0xe654_6b64)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use tholepin_ebpf_abi::{Address, Be16};

    use super::*;

    fn frontend(backend_count: u16, local_count: u16, flags: u16) -> FrontendValue {
        FrontendValue {
            service_id: 1,
            backend_count,
            local_count,
            flags,
            ..FrontendValue::default()
        }
    }

    #[test]
    fn a_service_without_backends_is_rejected() {
        assert_eq!(ordinal(7, &frontend(0, 0, 0)), Err(DropReason::NoBackend));
        let local_only = frontend(0, 0, FRONTEND_LOCAL_ONLY);
        assert_eq!(ordinal(7, &local_only), Err(DropReason::NoBackend));
    }

    #[test]
    fn local_only_does_not_spill_to_other_nodes() {
        let local_only = frontend(3, 0, FRONTEND_LOCAL_ONLY);
        assert_eq!(ordinal(7, &local_only), Err(DropReason::NoLocalBackend));
    }

    proptest! {
        #[test]
        fn the_slot_is_one_of_the_eligible(
            random: u32, backends in 1_u16.., local in 1_u16.., local_only: bool
        ) {
            let local = local.min(backends);
            let flags = if local_only { FRONTEND_LOCAL_ONLY } else { 0 };
            let chosen = ordinal(random, &frontend(backends, local, flags)).unwrap();
            let eligible = if local_only { local } else { backends };
            prop_assert!(chosen < u32::from(eligible));
        }
    }

    #[test]
    fn maglev_looks_behind_the_backends_and_in_its_table_only() {
        let frontend = FrontendValue {
            first_slot: 100,
            maglev_size: 7,
            ..frontend(3, 2, FRONTEND_MAGLEV)
        };
        let slots: Vec<_> = (0..14).map(|hash| slot(hash, &frontend).unwrap()).collect();
        let table: Vec<_> = (103..110).chain(103..110).collect();
        assert_eq!(slots, table);
        let local = FrontendValue {
            flags: FRONTEND_MAGLEV | FRONTEND_LOCAL_ONLY,
            ..frontend
        };
        assert!((0..14).all(|hash| (100..102).contains(&slot(hash, &local).unwrap())));
        let none = FrontendValue {
            backend_count: 0,
            local_count: 0,
            ..frontend
        };
        assert_eq!(slot(1, &none), Err(DropReason::NoBackend));
    }

    #[test]
    fn a_handed_flow_stays_on_this_node() {
        let mut frontend = FrontendValue {
            first_slot: 100,
            spare_count: 2,
            ..frontend(5, 3, 0)
        };
        let reached = |frontend: &FrontendValue| {
            let mut slots: Vec<_> = (0..12).map(|n| handed_slot(n, frontend).unwrap()).collect();
            slots.sort_unstable();
            slots.dedup();
            slots
        };
        assert_eq!(reached(&frontend), [100, 101, 102]);
        frontend.local_count = 0;
        assert_eq!(reached(&frontend), [98, 99]);
        frontend.spare_count = 0;
        assert_eq!(handed_slot(7, &frontend), Err(DropReason::NoLocalBackend));
    }

    #[test]
    fn neighbouring_clients_and_ports_spread_over_a_small_table() {
        let mut hits = [0_u32; 7];
        for client in 0..20 {
            for port in 40_000..40_350 {
                let flow = FlowKey {
                    source: Address::from_v4([192, 168, 7, client]),
                    destination: Address::from_v4([172, 30, 0, 11]),
                    source_port: Be16::new(port),
                    destination_port: Be16::new(30_080),
                    protocol: 6,
                    _pad: [0; 3],
                };
                hits[(tuple_hash(&flow) % 7) as usize] += 1;
            }
        }
        assert!(hits.iter().all(|hit| (900..1100).contains(hit)), "{hits:?}");
    }

    #[test]
    fn every_slot_is_reached_equally_often() {
        let frontend = frontend(5, 0, 0);
        let mut hits = [0_u32; 5];
        for random in 0..5_000 {
            hits[ordinal(random, &frontend).unwrap() as usize] += 1;
        }
        assert_eq!(hits, [1_000; 5]);
    }
}
