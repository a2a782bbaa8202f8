//! Properties of the service planner, checked by replaying its plans write by write.

use proptest::prelude::*;

use super::*;
use crate::service::fold::{BackendList, EntryFrontend, ServiceEntry};
use crate::service::{Protocol, Scope, ServiceName};

const LARGE: Capacities = Capacities {
    frontends: 1000,
    slots: 4000,
    backends: 1000,
    source_ranges: 100,
};
const SMALL: Capacities = Capacities {
    frontends: 6,
    slots: 12,
    backends: 9,
    source_ranges: 3,
};

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
        scope: Scope::Cluster,
    }
}

fn owner(service: u8) -> Owner {
    Owner::Service(ServiceName {
        namespace: "default".to_owned(),
        name: format!("svc-{service}"),
    })
}

fn list(backends: &[u8], local_count: usize) -> BackendList {
    BackendList {
        backends: backends.iter().map(|last| backend(*last)).collect(),
        local_count,
        ..BackendList::default()
    }
}

fn service(service: u8, frontends: &[u8], lists: Vec<BackendList>, draining: &[u8]) -> Folded {
    let last = lists.len() - 1;
    let frontends = frontends
        .iter()
        .zip(0..)
        .map(|(address, index)| EntryFrontend {
            frontend: frontend(*address),
            list: if index == 0 { 0 } else { last },
            flags: FrontendFlags {
                source_ranges: index == 1,
                ..FrontendFlags::default()
            },
            cluster_ip: index == 0,
        });
    let listed = lists.iter().flat_map(|list| list.backends.clone());
    let serving = listed.chain(draining.iter().map(|last| backend(*last)));
    Folded {
        created_at_secs: service.into(),
        entries: vec![ServiceEntry {
            frontends: frontends.collect(),
            serving: serving.collect(),
            lists,
            source_ranges: vec!["192.0.2.0/24".parse().unwrap()],
            ..ServiceEntry::default()
        }],
        ..Folded::default()
    }
}

fn simple(number: u8, backends: &[u8], draining: &[u8]) -> Folded {
    service(number, &[number], vec![list(backends, 0)], draining)
}

type Table = BTreeMap<Owner, Folded>;

fn planner(realized: &RealizedServices, capacities: Capacities, generation: u32) -> Planner {
    let ranges = vec!["10.96.0.0/16".parse().unwrap()];
    Planner::restore(realized.clone(), capacities, ranges, generation)
}

/// All owners of either table.
fn both(before: &Table, after: &Table) -> Vec<Owner> {
    before.keys().chain(after.keys()).cloned().collect()
}

/// The writes of a plan, one by one.
fn writes(plan: &Plan) -> Vec<Plan> {
    let mut writes = Vec::new();
    let mut push = |change: &dyn Fn(&mut Plan)| {
        let mut write = Plan::default();
        change(&mut write);
        writes.push(write);
    };
    plan.backends
        .iter()
        .for_each(|w| push(&|plan| plan.backends.push(*w)));
    plan.slots
        .iter()
        .for_each(|w| push(&|plan| plan.slots.push(*w)));
    plan.source_ranges
        .iter()
        .for_each(|w| push(&|plan| plan.source_ranges.push(*w)));
    plan.frontends
        .iter()
        .for_each(|w| push(&|plan| plan.frontends.push(*w)));
    plan.removed_frontends
        .iter()
        .for_each(|w| push(&|plan| plan.removed_frontends.push(*w)));
    let gone = plan.removed_source_ranges.iter();
    gone.for_each(|w| push(&|plan| plan.removed_source_ranges.push(*w)));
    plan.retired
        .iter()
        .for_each(|w| push(&|plan| plan.retired.push(*w)));
    writes
}

/// Every state the maps were in, and for each the earliest start of a reader still running then.
#[derive(Default)]
struct History {
    states: Vec<RealizedServices>,
    earliest: Vec<usize>,
}

impl History {
    fn now(&self) -> RealizedServices {
        self.states.last().cloned().unwrap_or_default()
    }

    fn push(&mut self, state: RealizedServices) {
        self.earliest
            .push(self.earliest.last().copied().unwrap_or(0));
        self.states.push(state);
    }

    /// No packet is under way that began before state `start`.
    fn waited(&mut self, start: usize) {
        let earliest = self.earliest.last_mut().expect("waiting follows a state");
        *earliest = start.max(*earliest);
    }

    /// A packet reads the frontend in one state, the slot in the same or a later one, the backend in
    /// the same or a still later one. `serves` says which backends a frontend may ever lead to.
    fn assert_no_reader_is_misled(&self, serves: &dyn Fn(&Frontend, &BackendAddress) -> bool) {
        for (k, third) in self.states.iter().enumerate() {
            for (i, first) in self
                .states
                .iter()
                .enumerate()
                .take(k + 1)
                .skip(self.earliest[k])
            {
                for (frontend, state) in &first.frontends {
                    let range = state.range();
                    for second in &self.states[i..=k] {
                        for index in range.start..range.start + range.len {
                            let slot = second.slots[index as usize];
                            assert_eq!(
                                slot.service_id, state.service_id,
                                "slot {index} of {frontend}"
                            );
                            let backend = third.backends[slot.backend_id as usize];
                            let backend = backend.expect("a slot leads to a backend");
                            assert!(
                                serves(frontend, &backend.address),
                                "{frontend} to {backend:?}"
                            );
                        }
                    }
                }
            }
        }
    }
}

/// Tables in which owner n has frontend n, sometimes a contested one, and backends of its own.
fn tables() -> impl Strategy<Value = Vec<Table>> {
    let lists = prop_oneof![
        prop::collection::vec(0_u8..6, 0..5).prop_map(|backends| (backends, None)),
        (
            prop::collection::vec(0_u8..6, 1..5),
            prop::collection::vec(0_u8..6, 1..3)
        )
            .prop_map(|(cluster, local)| (cluster, Some(local))),
    ];
    let one = (
        lists,
        prop::collection::vec(0_u8..6, 0..3),
        0_u8..3,
        any::<bool>(),
    );
    let table = prop::collection::btree_map(1_u8..5, one, 0..5).prop_map(|services| {
        let services = services.into_iter().map(|(number, shape)| {
            let ((cluster, local), draining, contested, spare) = shape;
            let own = |list: Vec<u8>| -> Vec<u8> {
                let mut list: Vec<u8> = list.iter().map(|last| number * 10 + last).collect();
                list.sort_unstable();
                list.dedup();
                list
            };
            let cluster = own(cluster);
            let mut lists = vec![list(&cluster, cluster.len() / 2)];
            if spare && !cluster.contains(&(number * 10 + 9)) {
                lists[0].spare = vec![backend(number * 10 + 9)];
            }
            if let Some(local) = local.map(own) {
                lists.push(list(&local, local.len()));
            }
            let frontends = [number, 200 + contested];
            (
                owner(number),
                service(number, &frontends, lists, &own(draining)),
            )
        });
        services.collect()
    });
    prop::collection::vec(table, 1..5)
}

/// Backends of owner n are n0..n9, so a frontend's are those of the owners that ever wanted it.
fn serves(tables: &[Table]) -> impl Fn(&Frontend, &BackendAddress) -> bool {
    let mut pairs = BTreeSet::new();
    for folded in tables.iter().flat_map(|table| table.values()) {
        for wanted in &folded.entries[0].frontends {
            pairs.insert((wanted.frontend, folded.created_at_secs));
        }
    }
    move |frontend, backend| match backend.address {
        IpAddr::V4(address) => pairs.contains(&(*frontend, i64::from(address.octets()[3] / 10))),
        IpAddr::V6(_) => false,
    }
}

proptest! {
    #[test]
    fn no_packet_is_ever_misled(
        tables in tables(), small: bool, waits in prop::collection::vec(0_usize..3, 8), restart in 0_usize..5
    ) {
        let capacities = if small { SMALL } else { LARGE };
        let mut planner = planner(&RealizedServices::default(), capacities, 1);
        let mut history = History::default();
        history.push(RealizedServices::default());
        let mut before = Table::new();
        let mut pending: Vec<(usize, Release)> = Vec::new();
        for (round, table) in tables.iter().enumerate() {
            let mut changed = both(&before, table);
            if round == restart {
                // A new agent waits before it reads, and knows nothing of what was to be released.
                let now = history.states.len() - 1;
                history.waited(now);
                pending.clear();
                planner = self::planner(&history.now(), capacities, planner.next_generation());
                changed = table.keys().cloned().collect();
            }
            let mut plan = planner.plan(changed, |owner| table.get(owner).cloned());
            for write in writes(&plan) {
                let mut state = history.now();
                state.record(&write);
                history.push(state);
            }
            pending.push((history.states.len() - 1, std::mem::take(&mut plan.release)));
            // Some of what waits is waited for now, some only after the next rounds.
            for _ in 0..waits[round] {
                if !pending.is_empty() {
                    let (start, release) = pending.remove(0);
                    history.push(history.now());
                    history.waited(start);
                    let again = planner.release(release);
                    let plan = planner.plan(again, |owner| table.get(owner).cloned());
                    for write in writes(&plan) {
                        let mut state = history.now();
                        state.record(&write);
                        history.push(state);
                    }
                    pending.push((history.states.len() - 1, plan.release));
                }
            }
            before.clone_from(table);
        }
        history.assert_no_reader_is_misled(&serves(&tables));
        prop_assert_eq!(planner.difference(&history.now()), None);
    }

    #[test]
    fn changes_lead_to_what_a_whole_plan_leads_to(tables in tables(), small: bool) {
        let capacities = if small { SMALL } else { LARGE };
        let mut planner = planner(&RealizedServices::default(), capacities, 1);
        let mut realized = RealizedServices::default();
        let mut before = Table::new();
        for table in &tables {
            let plan = planner.plan(both(&before, table), |owner| table.get(owner).cloned());
            realized.record(&plan);
            prop_assert!(realized.frontends.len() <= capacities.frontends);
            prop_assert!(realized.slots.len() <= capacities.slots as usize);
            prop_assert!(realized.backends.len() <= capacities.backends as usize);
            prop_assert!(realized.source_ranges.len() <= capacities.source_ranges);
            planner.release(plan.release);
            let again = planner.plan(table.keys().cloned(), |owner| table.get(owner).cloned());
            if !small {
                prop_assert!(again.is_empty(), "{:?}", again);
            }
            realized.record(&again);
            planner.release(again.release);
            // A restart changes nothing of it.
            let mut restored = self::planner(&realized, capacities, planner.next_generation());
            let after = restored.plan(table.keys().cloned(), |owner| table.get(owner).cloned());
            if !small {
                prop_assert!(after.is_empty(), "{:?}", after);
                for (owner, folded) in table {
                    check_programmed(&realized, owner, folded, table);
                }
            }
            before.clone_from(table);
        }
    }

    #[test]
    fn a_generation_is_never_used_twice(tables in tables()) {
        let mut planner = planner(&RealizedServices::default(), LARGE, 1);
        let mut before = Table::new();
        let mut seen = BTreeSet::new();
        for table in &tables {
            let plan = planner.plan(both(&before, table), |owner| table.get(owner).cloned());
            for (_, backend) in &plan.backends {
                prop_assert!(backend.generation != 0 && seen.insert(backend.generation));
            }
            planner.release(plan.release);
            before.clone_from(table);
        }
    }
}

/// The maps say of an owner exactly what it wants, as far as nobody older has the frontend.
fn check_programmed(realized: &RealizedServices, owner: &Owner, folded: &Folded, table: &Table) {
    let entry = &folded.entries[0];
    for wanted in &entry.frontends {
        let claimants = table.iter().filter(|(_, other)| {
            let frontends = other.entries.iter().flat_map(|entry| &entry.frontends);
            frontends.into_iter().any(|f| f.frontend == wanted.frontend)
        });
        let winner = claimants.min_by_key(|(owner, other)| (other.created_at_secs, *owner));
        if winner.unwrap().0 != owner {
            continue;
        }
        let state = realized.frontends[&wanted.frontend];
        let list = &entry.lists[wanted.list];
        let range = state.range();
        let addresses: Vec<BackendAddress> = (range.start..range.start + range.len)
            .map(|index| realized.slots[index as usize].backend_id)
            .map(|id| realized.backends[id as usize].unwrap())
            .inspect(|backend| assert!(backend.serving))
            .map(|backend| backend.address)
            .collect();
        let wanted_addresses: Vec<_> = list.spare.iter().chain(&list.backends).copied().collect();
        assert_eq!(addresses, wanted_addresses);
        assert_eq!(usize::from(state.local_count), list.local_count);
        assert_eq!(usize::from(state.backend_count), list.backends.len());
        if wanted.flags.source_ranges {
            let range = entry.source_ranges[0];
            assert!(realized.source_ranges.contains(&(state.service_id, range)));
        }
    }
}

/// Plans `table` on top of the maps, and applies it.
fn realize(table: &Table, realized: &mut RealizedServices, capacities: Capacities) -> Planner {
    let mut planner = planner(realized, capacities, 100);
    let plan = planner.plan(table.keys().cloned(), |owner| table.get(owner).cloned());
    realized.record(&plan);
    planner.release(plan.release);
    planner
}

fn table<const N: usize>(services: [Folded; N]) -> Table {
    let number = |folded: &Folded| u8::try_from(folded.created_at_secs).unwrap();
    services
        .into_iter()
        .map(|folded| (owner(number(&folded)), folded))
        .collect()
}

#[test]
fn service_ids_are_kept_when_endpoints_change() {
    let mut realized = RealizedServices::default();
    realize(
        &table([simple(1, &[1, 2], &[]), simple(2, &[3], &[])]),
        &mut realized,
        LARGE,
    );
    let before = realized.frontends[&frontend(2)].service_id;
    // The first one goes: the second must not move into its id.
    realize(&table([simple(2, &[3, 4], &[])]), &mut realized, LARGE);
    assert_eq!(realized.frontends[&frontend(2)].service_id, before);
    assert_eq!(realized.frontends.len(), 1);
}

#[test]
fn a_service_scaled_to_zero_keeps_its_frontend_and_its_backends_stop_serving() {
    let mut realized = RealizedServices::default();
    let mut planner = realize(&table([simple(1, &[1, 2], &[])]), &mut realized, LARGE);
    let plan = planner.plan([owner(1)], |_| Some(simple(1, &[], &[])));
    realized.record(&plan);
    assert_eq!(realized.frontends[&frontend(1)].backend_count, 0);
    assert!(
        realized
            .backends
            .iter()
            .flatten()
            .all(|backend| !backend.serving)
    );
    assert_eq!(plan.release.backends.len(), 2);
}

#[test]
fn a_draining_endpoint_leaves_the_slots_but_stays_a_backend_across_a_restart() {
    let mut realized = RealizedServices::default();
    realize(&table([simple(1, &[1, 2], &[])]), &mut realized, LARGE);
    let backends = realized.backends.clone();
    for _ in 0..2 {
        realize(&table([simple(1, &[1], &[2])]), &mut realized, LARGE);
        assert_eq!(realized.frontends[&frontend(1)].backend_count, 1);
        assert_eq!(realized.backends, backends);
    }
}

#[test]
fn an_endpoint_of_two_services_is_a_backend_of_each() {
    let mut realized = RealizedServices::default();
    let services = table([simple(1, &[1], &[]), simple(2, &[1], &[])]);
    let mut planner = realize(&services, &mut realized, LARGE);
    // It leaves one of them: UDP flows through that one move on, those of the other stay.
    let plan = planner.plan([owner(1)], |_| Some(simple(1, &[], &[])));
    realized.record(&plan);
    let serving = realized
        .backends
        .iter()
        .flatten()
        .filter(|backend| backend.serving);
    assert_eq!(serving.count(), 1);
}

#[test]
fn a_list_of_the_same_shape_is_changed_in_place_and_another_one_moves() {
    let mut realized = RealizedServices::default();
    let mut planner = realize(&table([simple(1, &[1, 2, 3], &[])]), &mut realized, LARGE);
    let same = planner.plan([owner(1)], |_| Some(simple(1, &[1, 2, 4], &[])));
    assert_eq!((same.slots.len(), same.frontends.len()), (1, 0));
    let grown = planner.plan([owner(1)], |_| Some(simple(1, &[1, 2, 4, 5], &[])));
    assert_eq!((grown.slots.len(), grown.frontends.len()), (4, 1));
    assert_eq!(grown.release.ranges.len(), 1);
}

#[test]
fn a_maglev_table_stands_behind_the_backends() {
    let mut realized = RealizedServices::default();
    let mut folded = simple(1, &[1, 2], &[]);
    folded.entries[0].lists[0].maglev = true;
    realize(&table([folded]), &mut realized, LARGE);
    let state = realized.frontends[&frontend(1)];
    assert_eq!((state.backend_count, state.maglev_size), (2, 251));
    let entries = state.first_slot as usize + 2;
    let of_first = |slot: &&Slot| slot.backend_id == realized.slots[entries - 2].backend_id;
    let share = realized.slots[entries..entries + 251]
        .iter()
        .filter(of_first)
        .count();
    assert!(share == 125 || share == 126, "{share} of 251");
}

#[test]
fn a_full_map_refuses_the_newest_service_and_names_the_map() {
    let capacities = Capacities { slots: 2, ..SMALL };
    let mut realized = RealizedServices::default();
    let services = table([simple(1, &[1], &[]), simple(2, &[2, 3], &[])]);
    let mut planner = realize(&services, &mut realized, capacities);
    let problems: Vec<String> = planner
        .problems()
        .values()
        .map(ToString::to_string)
        .collect();
    assert_eq!(problems, ["the slot map is full (2 entries)"]);
    // When the older one goes there is room, and the newer one is planned again.
    let plan = planner.plan([owner(1)], |_| None);
    let again = planner.release(plan.release);
    assert_eq!(again, [owner(2)]);
    let plan = planner.plan(again, |_| Some(simple(2, &[2, 3], &[])));
    assert_eq!(plan.frontends.len(), 1);
    assert!(planner.problems().is_empty());
}

#[test]
fn a_programmed_service_that_outgrows_the_map_keeps_serving() {
    let capacities = Capacities { slots: 3, ..SMALL };
    let mut realized = RealizedServices::default();
    let mut planner = realize(&table([simple(1, &[1, 2], &[])]), &mut realized, capacities);
    let plan = planner.plan([owner(1)], |_| Some(simple(1, &[3, 4, 5], &[])));
    realized.record(&plan);
    let problem = Problem::Truncated {
        map: "slot",
        programmed: 2,
        wanted: 3,
    };
    assert_eq!(planner.problems().values().collect::<Vec<_>>(), [&problem]);
    assert_eq!(realized.frontends[&frontend(1)].backend_count, 2);
}

#[test]
fn the_older_service_keeps_a_contested_frontend() {
    let mut realized = RealizedServices::default();
    let newer = service(2, &[1], vec![list(&[2], 0)], &[]);
    let planner = realize(&table([simple(1, &[1], &[]), newer]), &mut realized, LARGE);
    let problems: Vec<String> = planner
        .problems()
        .values()
        .map(ToString::to_string)
        .collect();
    assert_eq!(
        problems,
        ["frontend 10.96.0.1:80/tcp already belongs to Service default/svc-1"]
    );
}

#[test]
fn a_cluster_ip_outside_the_nodes_ranges_is_programmed_and_reported() {
    let mut folded = simple(1, &[1], &[]);
    folded.entries[0].frontends[0].frontend.address = [10, 97, 0, 1].into();
    let mut realized = RealizedServices::default();
    let planner = realize(&table([folded]), &mut realized, LARGE);
    let problem = planner.problems().values().next().unwrap().to_string();
    assert!(problem.contains("10.97.0.1 is in none"), "{problem}");
    assert_eq!(realized.frontends.len(), 1);
}

#[test]
fn what_nobody_wants_after_a_restart_is_removed_and_its_backends_stop_serving() {
    let mut realized = RealizedServices::default();
    realize(
        &table([simple(1, &[1], &[]), simple(2, &[2], &[])]),
        &mut realized,
        LARGE,
    );
    realize(&table([simple(2, &[2], &[])]), &mut realized, LARGE);
    assert_eq!(realized.frontends.len(), 1);
    let serving = realized
        .backends
        .iter()
        .flatten()
        .filter(|backend| backend.serving);
    assert_eq!(serving.count(), 1);
}
