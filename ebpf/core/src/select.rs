//! Which slot of a Service a new flow gets.

use tholepin_ebpf_abi::service::FRONTEND_LOCAL_ONLY;
use tholepin_ebpf_abi::{DropReason, FrontendValue};

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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

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
    fn every_slot_is_reached_equally_often() {
        let frontend = frontend(5, 0, 0);
        let mut hits = [0_u32; 5];
        for random in 0..5_000 {
            hits[ordinal(random, &frontend).unwrap() as usize] += 1;
        }
        assert_eq!(hits, [1_000; 5]);
    }
}
