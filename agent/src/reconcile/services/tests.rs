//! What a round does over fake maps, with every write forced to fail once.

use std::path::Path;
use std::sync::Arc;

use tholepin_model::plan::services::{Plan, RealizedServices};
use tholepin_model::service::table::Changes;
use tholepin_model::service::{
    Conditions, Endpoint, EndpointPort, EndpointSlice, Protocol, Selection, Service, ServiceName,
    ServicePort, SliceName, TrafficPolicy,
};

use super::*;
use crate::dataplane::maps::MapAccessError;

/// Maps in memory; the part of a plan with number `fail_at` fails half way.
#[derive(Default)]
struct FakeMaps {
    kernel: RealizedServices,
    parts: usize,
    fail_at: Option<usize>,
}

/// A part of a plan with half of what it writes.
fn half<T: Clone>(writes: &[T]) -> Vec<T> {
    writes[..writes.len() / 2].to_vec()
}

impl ServiceMaps for FakeMaps {
    fn read(&self, _backends: Option<u32>) -> Result<RealizedServices, MapAccessError> {
        Ok(self.kernel.clone())
    }

    fn apply(&mut self, plan: &Plan) -> Result<(), MapAccessError> {
        let whole = [
            Plan {
                backends: plan.backends.clone(),
                ..Plan::default()
            },
            Plan {
                slots: plan.slots.clone(),
                ..Plan::default()
            },
            Plan {
                frontends: plan.frontends.clone(),
                ..Plan::default()
            },
            Plan {
                removed_frontends: plan.removed_frontends.clone(),
                ..Plan::default()
            },
            Plan {
                retired: plan.retired.clone(),
                ..Plan::default()
            },
        ];
        for part in whole {
            let number = self.parts;
            self.parts += 1;
            if self.fail_at == Some(number) {
                self.kernel.record(&Plan {
                    backends: half(&part.backends),
                    slots: half(&part.slots),
                    frontends: half(&part.frontends),
                    removed_frontends: half(&part.removed_frontends),
                    retired: half(&part.retired),
                    ..Plan::default()
                });
                return Err(MapAccessError::Full { map: "BACKENDS" });
            }
            self.kernel.record(&part);
        }
        Ok(())
    }
}

/// Everything there is: Services with the last bytes of their endpoints.
fn all(services: &[(&str, &[u8])]) -> Changes {
    let mut changes = Changes::default();
    let objects = (1_u8..).zip(services).map(|(number, (name, _))| {
        let name = service_name(name);
        let service = Service {
            name: name.clone(),
            uid: String::new(),
            created_at_secs: number.into(),
            cluster_ips: vec![[10, 96, 0, number].into()],
            external_ips: vec![],
            load_balancer_ips: vec![],
            source_ranges: vec![],
            ports: vec![ServicePort {
                name: String::new(),
                protocol: Protocol::Tcp,
                port: 80,
                node_port: None,
            }],
            internal_policy: TrafficPolicy::Cluster,
            external_policy: TrafficPolicy::Cluster,
            affinity_timeout_secs: None,
            selection: Selection::Random,
            forwarding: None,
            health_check_node_port: None,
            complaints: vec![],
        };
        (name, Arc::new(service))
    });
    changes.services.replace(objects);
    let slices = services.iter().map(|(name, endpoints)| {
        let slice = slice(name, endpoints);
        (slice.name.clone(), Arc::new(slice))
    });
    changes.slices.replace(slices);
    changes.sync = tholepin_model::service::table::ServiceSync {
        services: true,
        slices: true,
        node: true,
        host_ports: true,
    };
    changes
}

fn service_name(name: &str) -> ServiceName {
    ServiceName {
        namespace: "default".to_owned(),
        name: name.to_owned(),
    }
}

fn slice(service: &str, endpoints: &[u8]) -> EndpointSlice {
    let endpoint = |last: &u8| Endpoint {
        address: [10, 244, 0, *last].into(),
        conditions: Conditions {
            ready: true,
            serving: true,
            terminating: false,
        },
        node_name: None,
        node_hints: vec![],
        zone_hints: vec![],
    };
    EndpointSlice {
        name: SliceName {
            namespace: "default".to_owned(),
            name: format!("{service}-1"),
        },
        service: service_name(service),
        triggered_at: None,
        ports: vec![EndpointPort {
            name: String::new(),
            protocol: Protocol::Tcp,
            port: 80,
        }],
        endpoints: endpoints.iter().map(endpoint).collect(),
    }
}

fn programmer(maps: FakeMaps, state: &Path) -> Programmer<FakeMaps> {
    let generations = Generations::open(state).unwrap();
    Programmer::new(maps, generations, vec!["10.96.0.0/16".parse().unwrap()])
}

fn counts(realized: &RealizedServices) -> Vec<u16> {
    let mut frontends: Vec<_> = realized.frontends.iter().collect();
    frontends.sort_by_key(|(frontend, _)| **frontend);
    frontends
        .iter()
        .map(|(_, state)| state.backend_count)
        .collect()
}

/// No frontend leads to a slot of another list or to a backend that is none.
fn assert_sound(realized: &RealizedServices) {
    for (frontend, state) in &realized.frontends {
        let first = usize::try_from(state.first_slot).unwrap();
        for slot in &realized.slots[first..first + usize::from(state.backend_count)] {
            assert_eq!(slot.service_id, state.service_id, "{frontend}");
            let backend = realized.backends[usize::try_from(slot.backend_id).unwrap()];
            assert!(backend.unwrap().serving, "{frontend} leads to {backend:?}");
        }
    }
}

#[test]
fn whichever_write_fails_nothing_dangles_and_the_next_round_finishes() {
    let directory = tempfile::tempdir().unwrap();
    let after: [(&str, &[u8]); 2] = [("a", &[2, 4, 5]), ("c", &[1, 6])];
    for fail_at in 0..5 {
        let mut programmer = programmer(FakeMaps::default(), directory.path());
        programmer
            .apply(all(&[("a", &[1, 2]), ("b", &[3])]))
            .unwrap()
            .unwrap();
        programmer.maps_mut().fail_at = Some(5 + fail_at);
        let error = programmer.apply(all(&after)).unwrap_err();
        assert_eq!(error.to_string(), "failed to write the service maps");
        assert_sound(&programmer.maps().kernel);
        // Nothing new has come, and still everything is made good.
        programmer
            .apply(Changes {
                sync: all(&[]).sync,
                ..Changes::default()
            })
            .unwrap()
            .unwrap();
        assert_sound(&programmer.maps().kernel);
        assert_eq!(
            counts(&programmer.maps().kernel),
            [3, 2],
            "after failing part {fail_at}"
        );
        let serving = programmer.maps().kernel.backends.iter().flatten();
        assert_eq!(serving.filter(|backend| backend.serving).count(), 5);
        assert!(!programmer.audit());
    }
}

#[test]
fn ids_and_generations_survive_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let services: [(&str, &[u8]); 2] = [("a", &[1]), ("b", &[2])];
    let mut first = programmer(FakeMaps::default(), directory.path());
    first.apply(all(&services)).unwrap();
    let kernel = first.maps().kernel.clone();
    let maps = FakeMaps {
        kernel: kernel.clone(),
        ..FakeMaps::default()
    };
    let mut second = programmer(maps, directory.path());
    assert_eq!(second.apply(all(&services)).unwrap().unwrap().writes, 0);
    assert_eq!(second.maps().kernel, kernel);
    // An address that goes and comes back across the restart has a generation never used before.
    second.apply(all(&[("a", &[]), ("b", &[2])])).unwrap();
    second.apply(all(&services)).unwrap();
    let newest = |realized: &RealizedServices| {
        let backends = realized.backends.iter().flatten();
        backends.map(|backend| backend.generation).max()
    };
    assert!(newest(&second.maps().kernel) > newest(&kernel));
}

#[test]
fn a_half_seen_cluster_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let mut first = programmer(FakeMaps::default(), directory.path());
    first.apply(all(&[("a", &[1])])).unwrap();
    let kernel = first.maps().kernel.clone();
    for source in 0..4 {
        let maps = FakeMaps {
            kernel: kernel.clone(),
            ..FakeMaps::default()
        };
        let mut second = programmer(maps, directory.path());
        let mut half = all(&[]);
        let sync = &mut half.sync;
        let flags = [
            &mut sync.services,
            &mut sync.slices,
            &mut sync.node,
            &mut sync.host_ports,
        ];
        *flags.into_iter().nth(source).unwrap() = false;
        assert!(second.apply(half).unwrap().is_none());
        assert_eq!(second.maps().kernel, kernel);
    }
}

#[test]
fn one_changed_slice_writes_what_it_changes_and_nothing_else() {
    let directory = tempfile::tempdir().unwrap();
    let names: Vec<String> = (0..50).map(|n| format!("svc-{n}")).collect();
    let services: Vec<(&str, &[u8])> = names
        .iter()
        .map(|name| (name.as_str(), &[1, 2, 3][..]))
        .collect();
    let mut programmer = programmer(FakeMaps::default(), directory.path());
    programmer.apply(all(&services)).unwrap();
    let mut change = Changes {
        sync: all(&[]).sync,
        ..Changes::default()
    };
    let slice = slice("svc-7", &[1, 2, 4]);
    change.slices.insert(slice.name.clone(), Arc::new(slice));
    let applied = programmer.apply(change).unwrap().unwrap();
    // The new backend, its slot, and the one that stops serving.
    assert_eq!((applied.writes, applied.judged.len()), (3, 1));
    assert_eq!(applied.release.backends.len(), 1);
}

#[test]
fn maps_that_somebody_changed_are_made_good() {
    let directory = tempfile::tempdir().unwrap();
    let mut programmer = programmer(FakeMaps::default(), directory.path());
    programmer
        .apply(all(&[("a", &[1, 2]), ("b", &[3])]))
        .unwrap();
    let sound = counts(&programmer.maps().kernel);
    programmer.maps_mut().kernel.frontends.clear();
    assert!(programmer.audit());
    programmer
        .apply(Changes {
            sync: all(&[]).sync,
            ..Changes::default()
        })
        .unwrap();
    assert_eq!(counts(&programmer.maps().kernel), sound);
    assert!(!programmer.audit());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_change_is_programmed_and_a_complaint_is_published() {
    let directory = tempfile::tempdir().unwrap();
    let (desired_sender, desired) = watch::channel(Desired::default());
    let (status, mut published) = watch::channel(ServicesStatus::default());
    let changes = ServiceChanges::default();
    let task = ServicesTask {
        node: NodeView {
            name: "n1".to_owned(),
            ..NodeView::default()
        },
        programmer: programmer(FakeMaps::default(), directory.path()),
        changes: changes.clone(),
        metrics: ProxyMetrics::default(),
        recorder: None,
        desired,
        status,
    };
    let cancel = CancellationToken::new();
    let task = tokio::spawn(task.run(cancel.clone()));
    changes.change(|changes| *changes = all(&[("a", &[1])]));
    published.wait_for(|status| status.synced).await.unwrap();
    assert_eq!(published.borrow().frontend_count, 1);
    changes.change(|changes| {
        let (name, service) = all(&[("a", &[])])
            .services
            .changed
            .into_iter()
            .next()
            .unwrap();
        let mut service = Service::clone(&service.unwrap());
        service.complaints = vec!["a bad value".to_owned()];
        changes.services.insert(name, Arc::new(service));
    });
    let key = (Owner::Service(service_name("a")), String::new());
    let complains = |status: &ServicesStatus| status.problems.contains_key(&key);
    assert_eq!(
        published.wait_for(complains).await.unwrap().problems[&key],
        "a bad value"
    );
    changes.change(|changes| *changes = all(&[("a", &[1])]));
    published
        .wait_for(|status| status.problems.is_empty())
        .await
        .unwrap();
    cancel.cancel();
    task.await.unwrap();
    drop(desired_sender);
}
