//! Properties of the service planner, checked by replaying its operations one by one.

use proptest::prelude::*;

use super::*;
use crate::service::Protocol;

const LARGE: Capacities = Capacities {
    frontends: 1000,
    slots: 1000,
    backends: 1000,
};

fn context(synced: bool, capacities: Capacities, next_generation: u32) -> Context {
    Context {
        synced,
        capacities,
        next_generation,
    }
}

fn backend(last: u8) -> BackendAddress {
    BackendAddress {
        address: [10, 244, 0, last].into(),
        port: 80,
        protocol: Protocol::Tcp,
    }
}

fn frontend(last: u8) -> Frontend {
    Frontend {
        address: [10, 96, 0, last].into(),
        port: 80,
        protocol: Protocol::Tcp,
    }
}

fn entry(service: u8, frontends: &[u8], backends: &[u8], draining: &[u8]) -> ServiceEntry {
    ServiceEntry {
        service: ServiceName {
            namespace: "default".to_owned(),
            name: format!("svc-{service}"),
        },
        port_name: String::new(),
        created_at_secs: i64::from(service),
        frontends: frontends.iter().map(|last| frontend(*last)).collect(),
        backends: backends.iter().map(|last| backend(*last)).collect(),
        local_count: backends.len() / 2,
        serving: backends
            .iter()
            .chain(draining)
            .map(|last| backend(*last))
            .collect(),
        local_only: false,
    }
}

/// Applies a plan and returns every state on the way, split where readers are waited for.
fn windows(realized: &RealizedServices, ops: &[Op]) -> Vec<Vec<RealizedServices>> {
    let mut state = realized.clone();
    let mut windows = vec![vec![state.clone()]];
    for op in ops {
        assert!(state.is_safe(op), "{op:?} is unsafe in {state:?}");
        state.record(op);
        if *op == Op::WaitForReaders {
            windows.push(Vec::new());
        }
        windows.last_mut().unwrap().push(state.clone());
    }
    windows
}

/// A packet reads the frontend in one state, the slot in the same or a later one, the backend in the
/// same or a still later one, all between two waits.
fn assert_no_reader_misses(window: &[RealizedServices]) {
    for (i, first) in window.iter().enumerate() {
        for state in first.frontends.values() {
            for ordinal in 0..state.backend_count {
                for (j, second) in window.iter().enumerate().skip(i) {
                    let id = second.slots.get(&(state.service_id, ordinal));
                    let id = id.unwrap_or_else(|| panic!("slot {ordinal} of {state:?} is missing"));
                    for third in window.iter().skip(j) {
                        assert!(third.backends.contains_key(id), "backend {id} is missing");
                    }
                }
            }
        }
    }
}

fn tables() -> impl Strategy<Value = Vec<ServiceTable>> {
    let entries = prop::collection::btree_map(
        1_u8..6,
        (
            prop::collection::btree_set(1_u8..9, 0..5),
            prop::collection::btree_set(1_u8..9, 0..3),
        ),
        0..5,
    );
    let table = (entries, any::<bool>()).prop_map(|(entries, reversed)| ServiceTable {
        entries: entries
            .into_iter()
            .map(|(service, (backends, draining))| {
                let mut backends: Vec<u8> = backends.into_iter().collect();
                if reversed {
                    backends.reverse();
                }
                let draining: Vec<u8> = draining.into_iter().collect();
                // Two services share a frontend now and then.
                entry(service, &[service, 20 + service % 4], &backends, &draining)
            })
            .collect(),
    });
    prop::collection::vec(table, 1..5)
}

proptest! {
    #[test]
    fn no_packet_ever_finds_a_slot_or_backend_missing(tables in tables(), small in any::<bool>()) {
        let capacities = if small { Capacities { frontends: 6, slots: 8, backends: 6 } } else { LARGE };
        let mut realized = RealizedServices::default();
        let mut generation = 1;
        let mut window = vec![];
        for table in &tables {
            let planned = plan(table, &realized, context(true, capacities, generation));
            for next in windows(&realized, &planned.ops) {
                window.extend(next);
                assert_no_reader_misses(&window);
                realized = window.pop().unwrap();
                window.clear();
            }
            // The next plan starts without a wait: packets of this one's end may still be under way.
            window.push(realized.clone());
            generation = planned.next_generation;
        }
    }

    #[test]
    fn a_plan_applied_leaves_nothing_to_do(tables in tables(), small in any::<bool>()) {
        let capacities = if small { Capacities { frontends: 6, slots: 8, backends: 6 } } else { LARGE };
        let mut realized = RealizedServices::default();
        let mut generation = 1;
        for table in &tables {
            let planned = plan(table, &realized, context(true, capacities, generation));
            planned.ops.iter().for_each(|op| realized.record(op));
            generation = planned.next_generation;
            prop_assert!(realized.backends.len() <= capacities.backends);
            prop_assert!(realized.slots.len() <= capacities.slots);
            prop_assert!(realized.frontends.len() <= capacities.frontends);
            let again = plan(table, &realized, context(true, capacities, generation));
            prop_assert_eq!(again.ops, vec![]);
            prop_assert_eq!(again.next_generation, generation);
        }
    }

    #[test]
    fn before_the_sources_have_synced_existing_entries_stay_as_they_are(tables in tables()) {
        let mut realized = RealizedServices::default();
        for table in &tables {
            let before = realized.clone();
            let planned = plan(table, &realized, context(false, LARGE, 1));
            planned.ops.iter().for_each(|op| realized.record(op));
            for (frontend, state) in &before.frontends {
                prop_assert_eq!(realized.frontends.get(frontend), Some(state));
            }
            for (key, backend) in &before.slots {
                prop_assert_eq!(realized.slots.get(key), Some(backend));
            }
        }
    }

    #[test]
    fn a_backend_that_went_away_never_comes_back_with_its_old_generation(tables in tables()) {
        let mut realized = RealizedServices::default();
        let mut generation = 1;
        let mut seen = BTreeMap::<(BackendId, u32), BackendAddress>::new();
        for table in &tables {
            let planned = plan(table, &realized, context(true, LARGE, generation));
            for op in &planned.ops {
                if let Op::UpsertBackend(id, backend) = op {
                    prop_assert_eq!(seen.insert((*id, backend.generation), backend.address), None);
                }
                realized.record(op);
            }
            generation = planned.next_generation;
        }
    }
}

fn realize(
    table: &ServiceTable,
    from: &RealizedServices,
    capacities: Capacities,
) -> RealizedServices {
    let mut realized = from.clone();
    plan(table, from, context(true, capacities, 1))
        .ops
        .iter()
        .for_each(|op| realized.record(op));
    realized
}

#[test]
fn service_ids_are_kept_when_endpoints_change() {
    let before = realize(
        &ServiceTable {
            entries: vec![entry(1, &[1], &[1, 2], &[]), entry(2, &[2], &[3], &[])],
        },
        &RealizedServices::default(),
        LARGE,
    );
    // The first one goes: the second must not move into its id.
    let after = realize(
        &ServiceTable {
            entries: vec![entry(2, &[2], &[3, 4], &[])],
        },
        &before,
        LARGE,
    );
    assert_eq!(
        after.frontends[&frontend(2)].service_id,
        before.frontends[&frontend(2)].service_id
    );
    assert_eq!(after.frontends.len(), 1);
    assert_eq!(after.backends.len(), 2);
}

#[test]
fn a_service_scaled_to_zero_keeps_its_frontend_and_its_backends_go() {
    let before = realize(
        &ServiceTable {
            entries: vec![entry(1, &[1], &[1, 2], &[])],
        },
        &RealizedServices::default(),
        LARGE,
    );
    let after = realize(
        &ServiceTable {
            entries: vec![entry(1, &[1], &[], &[])],
        },
        &before,
        LARGE,
    );
    assert_eq!(after.frontends[&frontend(1)].backend_count, 0);
    assert!(after.slots.is_empty() && after.backends.is_empty());
}

#[test]
fn a_draining_endpoint_leaves_the_slots_but_stays_a_backend() {
    let before = realize(
        &ServiceTable {
            entries: vec![entry(1, &[1], &[1, 2], &[])],
        },
        &RealizedServices::default(),
        LARGE,
    );
    let after = realize(
        &ServiceTable {
            entries: vec![entry(1, &[1], &[1], &[2])],
        },
        &before,
        LARGE,
    );
    assert_eq!(after.slots.len(), 1);
    assert_eq!(after.backends, before.backends);
}

#[test]
fn a_full_map_refuses_the_newest_service_and_names_the_map() {
    let table = ServiceTable {
        entries: vec![entry(1, &[1], &[1], &[]), entry(2, &[2], &[2, 3], &[])],
    };
    let planned = plan(
        &table,
        &RealizedServices::default(),
        context(
            true,
            Capacities {
                frontends: 2,
                slots: 2,
                backends: 9,
            },
            1,
        ),
    );
    assert_eq!(planned.problems.len(), 1);
    assert_eq!(planned.problems[0].0.name, "svc-2");
    assert_eq!(
        planned.problems[0].2.to_string(),
        "the slot map is full (2 entries)"
    );
}

#[test]
fn a_programmed_service_that_outgrows_the_map_keeps_serving() {
    let capacities = Capacities {
        frontends: 2,
        slots: 2,
        backends: 9,
    };
    let before = realize(
        &ServiceTable {
            entries: vec![entry(1, &[1], &[1], &[])],
        },
        &RealizedServices::default(),
        capacities,
    );
    let table = ServiceTable {
        entries: vec![entry(1, &[1], &[1, 2, 3], &[])],
    };
    let planned = plan(&table, &before, context(true, capacities, 9));
    assert_eq!(
        planned.problems[0].2,
        Problem::Truncated {
            map: "slot",
            programmed: 2,
            wanted: 3
        }
    );
    assert_eq!(
        realize(&table, &before, capacities).frontends[&frontend(1)].backend_count,
        2
    );
}

#[test]
fn the_older_service_keeps_a_contested_frontend() {
    let table = ServiceTable {
        entries: vec![entry(1, &[1], &[1], &[]), entry(2, &[1], &[2], &[])],
    };
    let planned = plan(
        &table,
        &RealizedServices::default(),
        context(true, LARGE, 1),
    );
    assert_eq!(planned.problems.len(), 1);
    assert_eq!(
        planned.problems[0].2.to_string(),
        "frontend 10.96.0.1:80/tcp already belongs to Service default/svc-1"
    );
}

#[test]
fn an_operation_after_a_failed_one_is_recognised_as_unsafe() {
    let mut realized = RealizedServices::default();
    let planned = plan(
        &ServiceTable {
            entries: vec![entry(1, &[1], &[1], &[])],
        },
        &realized,
        context(true, LARGE, 1),
    );
    // The backend could not be written: nothing that leads to it may be.
    for op in planned.ops.iter().skip(1) {
        assert!(!realized.is_safe(op));
    }
    realized.record(&planned.ops[0]);
    assert!(realized.is_safe(&planned.ops[1]));
}

#[test]
fn a_backend_that_goes_is_retired_before_its_removal_waits_for_readers() {
    let before = realize(
        &ServiceTable {
            entries: vec![entry(1, &[1], &[1, 2], &[])],
        },
        &RealizedServices::default(),
        LARGE,
    );
    let table = ServiceTable {
        entries: vec![entry(1, &[1], &[2], &[])],
    };
    let ops = plan(&table, &before, context(true, LARGE, 9)).ops;
    let at = |wanted: fn(&Op) -> bool| ops.iter().position(wanted).unwrap();
    let frontend = at(|op| matches!(op, Op::UpsertFrontend(..)));
    let retired = at(|op| matches!(op, Op::RetireBackend(_, backend) if !backend.serving));
    let wait = at(|op| matches!(op, Op::WaitForReaders));
    let removed = at(|op| matches!(op, Op::RemoveBackend(_)));
    assert!(
        frontend < retired && retired < wait && wait < removed,
        "{ops:?}"
    );
}
