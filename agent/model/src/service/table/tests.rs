//! What changes mark, and what they do not.

use super::*;
use crate::service::{Conditions, Endpoint, EndpointPort, Protocol, ServicePort, TrafficPolicy};

fn name(name: &str) -> ServiceName {
    ServiceName {
        namespace: "default".to_owned(),
        name: name.to_owned(),
    }
}

fn service(of: &str) -> Arc<Service> {
    Arc::new(Service {
        name: name(of),
        uid: String::new(),
        created_at_secs: 1,
        cluster_ips: vec![[10, 96, 0, 7].into()],
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
        selection: crate::service::Selection::Random,
        forwarding: None,
        health_check_node_port: None,
        complaints: vec![],
    })
}

fn slice(of: &str, id: &str, last: u8) -> Arc<EndpointSlice> {
    Arc::new(EndpointSlice {
        name: slice_name(id),
        service: name(of),
        triggered_at: None,
        ports: vec![EndpointPort {
            name: String::new(),
            protocol: Protocol::Tcp,
            port: 8080,
        }],
        endpoints: vec![Endpoint {
            address: [10, 244, 0, last].into(),
            conditions: Conditions {
                ready: true,
                serving: true,
                terminating: false,
            },
            node_name: None,
            node_hints: vec![],
            zone_hints: vec![],
        }],
    })
}

fn slice_name(id: &str) -> SliceName {
    SliceName {
        namespace: "default".to_owned(),
        name: id.to_owned(),
    }
}

/// Applies a change and says what it marked.
fn marked(table: &mut ServiceTable, change: impl FnOnce(&mut Changes)) -> Vec<String> {
    let mut changes = Changes::default();
    change(&mut changes);
    table.apply(changes);
    let mut names: Vec<String> = table.take_dirty().iter().map(ToString::to_string).collect();
    names.sort();
    names
}

fn backends(table: &ServiceTable, of: &str) -> usize {
    let folded = table.folded(&Owner::Service(name(of))).unwrap();
    folded.entries[0].lists[0].backends.len()
}

#[test]
fn only_what_a_change_touches_is_marked() {
    let mut table = ServiceTable::default();
    let added = marked(&mut table, |changes| {
        changes
            .services
            .replace([(name("a"), service("a")), (name("b"), service("b"))]);
    });
    assert_eq!(added, ["Service default/a", "Service default/b"]);
    let changed = |changes: &mut Changes| {
        changes
            .slices
            .insert(slice_name("a-1"), slice("a", "a-1", 1))
    };
    assert_eq!(marked(&mut table, changed), ["Service default/a"]);
    assert_eq!(
        marked(&mut table, changed),
        [""; 0],
        "a heartbeat changes nothing"
    );
    assert_eq!((backends(&table, "a"), backends(&table, "b")), (1, 0));
    let listed = |changes: &mut Changes| {
        changes.services.replace([(name("a"), service("a"))]);
        changes
            .slices
            .replace([(slice_name("a-1"), slice("a", "a-1", 1))]);
    };
    assert_eq!(
        marked(&mut table, listed),
        ["Service default/b"],
        "what was not listed is gone"
    );
    assert!(table.folded(&Owner::Service(name("b"))).is_none());
}

#[test]
fn slices_that_come_before_their_service_or_move_to_another_are_found() {
    let mut table = ServiceTable::default();
    marked(&mut table, |changes| {
        changes.slices.insert(slice_name("x"), slice("a", "x", 1))
    });
    marked(&mut table, |changes| {
        changes
            .services
            .replace([(name("a"), service("a")), (name("b"), service("b"))]);
    });
    assert_eq!((backends(&table, "a"), backends(&table, "b")), (1, 0));
    let moved = marked(&mut table, |changes| {
        changes.slices.insert(slice_name("x"), slice("b", "x", 1));
    });
    assert_eq!(moved, ["Service default/a", "Service default/b"]);
    assert_eq!((backends(&table, "a"), backends(&table, "b")), (0, 1));
    let gone = marked(&mut table, |changes| changes.slices.remove(slice_name("x")));
    assert_eq!(gone, ["Service default/b"]);
    assert_eq!(backends(&table, "b"), 0);
}

#[test]
fn what_changes_about_the_node_concerns_everything() {
    let mut table = ServiceTable::default();
    marked(&mut table, |changes| {
        changes.services.insert(name("a"), service("a"))
    });
    let node = |zone: &str| NodeView {
        zone: Some(zone.to_owned()),
        ..NodeView::default()
    };
    let seen = |zone: &'static str| move |changes: &mut Changes| changes.node = Some(node(zone));
    assert_eq!(marked(&mut table, seen("z1")), ["Service default/a"]);
    assert_eq!(marked(&mut table, seen("z1")), [""; 0]);
}

#[test]
fn changes_that_were_not_taken_yet_are_joined() {
    let mut changes = Changes::default();
    changes.services.insert(name("a"), service("a"));
    changes.services.replace([(name("b"), service("b"))]);
    changes.services.insert(name("c"), service("c"));
    changes.services.remove(name("b"));
    changes.sync.services = true;
    let taken = changes.take();
    assert!(taken.services.whole && changes.is_empty() && changes.sync.services);
    let mut table = ServiceTable::default();
    table.apply(taken);
    assert!(table.folded(&Owner::Service(name("c"))).is_some());
    assert!(table.folded(&Owner::Service(name("b"))).is_none());
}
