//! The service reconciler over fake maps, with every operation forced to fail once.

use std::sync::Arc;

use tholepin_model::plan::services::FrontendState;
use tholepin_model::service::{
    Conditions, Endpoint, EndpointPort, EndpointSlice, Protocol, Service, ServicePort, SliceName,
    TrafficPolicy,
};

use super::*;

/// Maps in memory; the operation with number `fail_at` fails.
#[derive(Default)]
struct FakeMaps {
    kernel: RealizedServices,
    applied: usize,
    fail_at: Option<usize>,
}

impl ServiceMaps for FakeMaps {
    fn read(&self) -> Result<RealizedServices, MapAccessError> {
        Ok(self.kernel.clone())
    }

    fn apply(&mut self, op: &Op) -> Result<(), MapAccessError> {
        let number = self.applied;
        self.applied += 1;
        if self.fail_at == Some(number) {
            return Err(MapAccessError::Full { map: "BACKENDS" });
        }
        assert!(self.kernel.is_safe(op), "{op:?}");
        self.kernel.record(op);
        Ok(())
    }
}

fn desired(services: &[(&str, &[u8])]) -> Desired {
    let mut desired = Desired::default();
    for (number, (name, endpoints)) in (1_u8..).zip(services) {
        let service = ServiceName {
            namespace: "default".to_owned(),
            name: (*name).to_owned(),
        };
        let slice = SliceName {
            namespace: "default".to_owned(),
            name: format!("{name}-1"),
        };
        desired.services.insert(
            service.clone(),
            Arc::new(Service {
                name: service.clone(),
                created_at_secs: number.into(),
                cluster_ips: vec![[10, 96, 0, number].into()],
                ports: vec![ServicePort {
                    name: String::new(),
                    protocol: Protocol::Tcp,
                    port: 80,
                }],
                internal_policy: TrafficPolicy::Cluster,
            }),
        );
        let endpoint = |last: &u8| Endpoint {
            address: [10, 244, 0, *last].into(),
            conditions: Conditions {
                ready: true,
                serving: true,
                terminating: false,
            },
            node_name: None,
        };
        desired.slices.insert(
            slice.clone(),
            Arc::new(EndpointSlice {
                name: slice,
                service,
                ports: vec![EndpointPort {
                    name: String::new(),
                    protocol: Protocol::Tcp,
                    port: 80,
                }],
                endpoints: endpoints.iter().map(endpoint).collect(),
            }),
        );
    }
    desired.sync.services = true;
    desired.sync.endpoint_slices = true;
    desired
}

fn task(maps: FakeMaps, state: &Path) -> ServicesTask<FakeMaps> {
    let (_, desired) = watch::channel(Desired::default());
    let (status, _) = watch::channel(ServicesStatus::default());
    let generations = Generations::open(state).unwrap();
    ServicesTask {
        node_name: "n1".to_owned(),
        service_ranges: vec!["10.96.0.0/16".parse().unwrap()],
        maps,
        generations,
        desired,
        status,
    }
}

fn counts(realized: &RealizedServices) -> Vec<u16> {
    realized
        .frontends
        .values()
        .map(|state: &FrontendState| state.backend_count)
        .collect()
}

#[test]
fn whichever_operation_fails_nothing_dangles_and_the_next_round_finishes() {
    let directory = tempfile::tempdir().unwrap();
    let before = desired(&[("a", &[1, 2]), ("b", &[3])]);
    let after = desired(&[("a", &[2, 4, 5]), ("c", &[1, 6])]);
    for fail_at in 0..40 {
        let mut task = task(FakeMaps::default(), directory.path());
        let mut realized = RealizedServices::default();
        assert!(!task.round(&before, &mut realized));
        task.maps.fail_at = Some(task.maps.applied + fail_at);
        let failed = task.round(&after, &mut realized);
        if failed {
            assert!(!task.status.borrow().problems.is_empty() || counts(&realized) == [3, 2]);
        }
        realized = task.maps.read().unwrap();
        assert!(!task.round(&after, &mut realized));
        assert_eq!(
            counts(&realized),
            [3, 2],
            "after failing operation {fail_at}"
        );
        assert_eq!(realized, task.maps.kernel);
        assert_eq!((realized.slots.len(), realized.backends.len()), (5, 5));
        assert!(task.status.borrow().problems.is_empty());
    }
}

#[test]
fn ids_and_generations_survive_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let mut first = task(FakeMaps::default(), directory.path());
    let mut realized = RealizedServices::default();
    first.round(&desired(&[("a", &[1]), ("b", &[2])]), &mut realized);
    let kernel = first.maps.kernel.clone();
    let maps = FakeMaps {
        kernel: kernel.clone(),
        ..FakeMaps::default()
    };
    let mut second = task(maps, directory.path());
    let mut realized = second.maps.read().unwrap();
    second.round(&desired(&[("a", &[1]), ("b", &[2])]), &mut realized);
    assert_eq!(second.maps.kernel, kernel);
    assert_eq!(second.maps.applied, 0);
    // An address that goes and comes back across the restart has a generation never used before.
    second.round(&desired(&[("a", &[]), ("b", &[2])]), &mut realized);
    second.round(&desired(&[("a", &[1]), ("b", &[2])]), &mut realized);
    let newest = realized
        .backends
        .values()
        .map(|backend| backend.generation)
        .max();
    let oldest = kernel
        .backends
        .values()
        .map(|backend| backend.generation)
        .max();
    assert!(newest > oldest, "{newest:?} {oldest:?}");
}

#[test]
fn a_half_seen_cluster_removes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let mut task = task(FakeMaps::default(), directory.path());
    let mut realized = RealizedServices::default();
    task.round(&desired(&[("a", &[1])]), &mut realized);
    let mut half = Desired::default();
    half.sync.services = true;
    assert!(!task.round(&half, &mut realized));
    assert_eq!(counts(&task.maps.kernel), [1]);
}

#[test]
fn a_service_outside_the_nodes_ranges_is_programmed_and_reported() {
    let directory = tempfile::tempdir().unwrap();
    let mut task = task(FakeMaps::default(), directory.path());
    task.service_ranges = vec!["10.97.0.0/16".parse().unwrap()];
    let mut realized = RealizedServices::default();
    assert!(!task.round(&desired(&[("a", &[1])]), &mut realized));
    assert_eq!(counts(&task.maps.kernel), [1]);
    let status = task.status.borrow().clone();
    assert!(
        status
            .problems
            .values()
            .next()
            .unwrap()
            .contains("10.96.0.1 is in none")
    );
}
