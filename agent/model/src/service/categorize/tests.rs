//! kube-proxy's rules in a few words each. Its own cases run through this code, the planner, the maps
//! and the programs in tests/dataplane (kube_proxy).

use super::*;
use crate::service::Protocol;

const READY: Conditions = Conditions {
    ready: true,
    serving: true,
    terminating: false,
};
const DRAINING: Conditions = Conditions {
    ready: false,
    serving: true,
    terminating: true,
};
const GONE: Conditions = Conditions {
    ready: false,
    serving: false,
    terminating: true,
};
/// Serving but neither ready nor terminating: never chosen.
const UNREADY: Conditions = Conditions {
    ready: false,
    serving: true,
    terminating: false,
};

struct Hints {
    nodes: Vec<String>,
    zones: Vec<String>,
}

fn hints(nodes: &[&str], zones: &[&str]) -> Hints {
    let own = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect();
    Hints {
        nodes: own(nodes),
        zones: own(zones),
    }
}

fn candidates<'a>(all: &'a [(Conditions, bool, Hints)]) -> Vec<Candidate<'a>> {
    let candidate =
        |(index, (conditions, local, hints)): (usize, &'a (Conditions, bool, Hints))| Candidate {
            backend: BackendAddress {
                address: [10, 1, 2, u8::try_from(index).unwrap()].into(),
                port: 80,
                protocol: Protocol::Tcp,
            },
            conditions: *conditions,
            local: *local,
            node_hints: &hints.nodes,
            zone_hints: &hints.zones,
        };
    all.iter().enumerate().map(candidate).collect()
}

fn of(all: &[(Conditions, bool, Hints)], zone: Option<&str>) -> (Vec<usize>, Vec<usize>) {
    let place = Place { node: "n1", zone };
    let found = categorize(&candidates(all), place);
    (found.cluster, found.local)
}

fn none() -> Hints {
    hints(&[], &[])
}

#[test]
fn ready_endpoints_serve_and_draining_ones_only_when_none_is_ready() {
    let mixed = [
        (READY, false, none()),
        (DRAINING, true, none()),
        (GONE, true, none()),
        (UNREADY, true, none()),
    ];
    assert_eq!(of(&mixed, None), (vec![0], vec![1]));
    let draining = [
        (DRAINING, false, none()),
        (GONE, false, none()),
        (UNREADY, false, none()),
    ];
    assert_eq!(of(&draining, None), (vec![0], vec![]));
}

#[test]
fn local_traffic_does_not_spill_to_other_nodes() {
    let elsewhere = [(READY, false, none()), (GONE, true, none())];
    assert_eq!(of(&elsewhere, None), (vec![0], vec![]));
    assert_eq!(of(&[(GONE, true, none())], None), (vec![], vec![]));
}

#[test]
fn zone_hints_bind_if_all_ready_endpoints_have_them_and_one_is_for_this_zone() {
    let all = [
        (READY, false, hints(&[], &["a"])),
        (READY, true, hints(&[], &["b"])),
        (DRAINING, false, none()),
    ];
    assert_eq!(
        of(&all, Some("a")),
        (vec![0], vec![1]),
        "Local traffic has no topology"
    );
    assert_eq!(of(&all, Some("c")).0, [0, 1], "no hint for the zone");
    assert_eq!(of(&all, None).0, [0, 1], "no zone");
    let one_without = [(READY, false, hints(&[], &["a"])), (READY, false, none())];
    assert_eq!(of(&one_without, Some("a")).0, [0, 1]);
}

#[test]
fn node_hints_go_before_zone_hints() {
    let all = [
        (READY, false, hints(&["n1"], &["a"])),
        (READY, false, hints(&["n2"], &["a"])),
        (READY, false, hints(&["n3"], &["b"])),
    ];
    assert_eq!(of(&all, Some("a")).0, [0]);
    let elsewhere = [
        (READY, false, hints(&["n2"], &["a"])),
        (READY, false, hints(&["n3"], &["b"])),
    ];
    assert_eq!(
        of(&elsewhere, Some("a")).0,
        [0],
        "no endpoint for the node: the zone decides"
    );
}
