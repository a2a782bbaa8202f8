//! Where the answer is another than kube-proxy's on purpose, counted.

use std::collections::BTreeMap;

use serde_json::Value;
use tholepin_tests_dataplane::cases::{self, Expected, Flow};
use tholepin_tests_dataplane::reference::Style;

use crate::model::as_upstream;

/// Why ours is another answer than kube-proxy's; see docs/design/testing.md.
fn deviation(expected: &Expected, found: &Expected) -> Option<&'static str> {
    match (expected, found) {
        _ if expected == found => None,
        (Expected::To(theirs, true), Expected::To(ours, false)) if theirs == ours => {
            Some("the client's address is kept")
        }
        (Expected::Drop, Expected::Reject) => Some("an address nobody has is refused"),
        _ => Some("none that is known"),
    }
}

#[test]
fn ours_is_another_answer_than_kube_proxys_only_where_that_is_written_down() {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for case in cases::load("packet_flows") {
        if case["only"] == "iptables" {
            continue;
        }
        for step in case["steps"].as_array().expect("steps") {
            let mut world = cases::world(Style::Tholepin, &step["services"], &step["slices"]);
            if let Some(list) = case["nodePortAddresses"].as_array() {
                let texts: Vec<_> = list.iter().filter_map(Value::as_str).collect();
                world.node_port_addresses = cases::addresses(&texts);
            }
            for flow in step["flows"].as_array().expect("flows") {
                let flow = Flow::read(flow);
                if flow.only.as_deref() == Some("iptables") {
                    continue;
                }
                let found = as_upstream(world.ask(&flow.question));
                if let Some(why) = deviation(&flow.expected, &found) {
                    *counts.entry(why).or_default() += 1;
                }
            }
        }
    }
    let known = [
        ("an address nobody has is refused", 1),
        ("the client's address is kept", 29),
    ];
    assert_eq!(counts, known.into(), "docs/design/testing.md lists them");
}
